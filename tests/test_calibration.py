"""Simulation-based calibration: exact posteriors pass, wrong ones are named for what they are."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

import avbvi
from avbvi import Calibration, CheckpointError, LogDensity, ModelError, NonFiniteError, calibration, export, sbc
from avbvi.simulations import Simulation

PRIOR = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
NOISE = 0.8
Y = torch.zeros(2)


def model(y: Tensor | None = Y) -> None:
    """Two correlated latents, each measured once: the posterior is normal with covariance (PRIOR^-1 + I / .64)^-1."""
    z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), PRIOR))
    pyro.sample("y", dist.Normal(z, NOISE).to_event(1), obs=y)


class Gaussian:
    """A Gaussian as what a fit returns."""

    def __init__(self, loc: Tensor, covariance: Tensor, verdict: str | None = None) -> None:
        self.law = dist.MultivariateNormal(loc, covariance)
        if verdict is not None:
            self.verdict = SimpleNamespace(status=verdict)

    def sample(self, n: int) -> dict[str, Tensor]:
        return {"z": self.law.sample((n,))}

    def log_prob(self, values: dict[str, Tensor]) -> Tensor:
        return self.law.log_prob(values["z"])


def data_of(conditioned: Any, *args: Any) -> Tensor:
    """The observations that a fit is given, as a trace of the model shows them."""
    node = poutine.trace(conditioned).get_trace(*args).nodes["y"]
    assert node["is_observed"]
    value: Tensor = node["value"]
    return value


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    covariance = torch.linalg.inv(torch.linalg.inv(PRIOR) + torch.eye(2) / NOISE**2)
    return covariance @ y / NOISE**2, covariance


def exact(conditioned: Any, *args: Any, seed: int, scale: float = 1.0, shift: float = 0.0) -> Gaussian:
    """The exact posterior, its sds times ``scale``, its mean shifted."""
    loc, covariance = moments(data_of(conditioned, *args))
    return Gaussian(loc + shift, scale**2 * covariance)


def uncorrelated(conditioned: Any, *args: Any, seed: int) -> Gaussian:
    """The product of the exact marginals."""
    loc, covariance = moments(data_of(conditioned, *args))
    return Gaussian(loc, covariance.diagonal().diag())


def prior_itself(conditioned: Any, *args: Any, seed: int) -> Gaussian:
    return Gaussian(torch.zeros(2), PRIOR)


study = partial(sbc, model, seed=1, progress=False)


def test_an_exact_posterior_passes() -> None:
    result = study(simulations=200, fit=exact)
    assert set(result.ranks) == {
        *("z[0]", "z[1]", "log_joint", "log_likelihood", "log_q", "distance", "tarp_distance")
    }  # fmt: skip
    # An exact test at 1 % for the whole family, and one that knows nothing of the code here.
    assert min(result.adjusted_p_values.values()) > 0.01
    for ranks in result.ranks.values():
        assert len(ranks) == 200
        assert stats.chisquare(np.bincount(ranks.numpy() // 100, minlength=10)).pvalue > 0.01 / 7
    for row in result.coverage((0.5, 0.9)):
        assert abs(row.share - row.level) < 4.0 * math.sqrt(row.level * (1.0 - row.level) / 200)
    assert "no sign of miscalibration in 7 statistics" in str(result)
    assert result.failures == {}


def test_draws_that_are_too_narrow_are_called_so() -> None:
    result = study(simulations=100, fit=partial(exact, scale=0.5))
    assert set(result.flagged) >= {"z[0]", "z[1]", "log_joint", "log_q", "distance"}
    assert result.describe("z[0]") == "the draws are too narrow (overconfident)"
    assert result.describe("distance") == "the truth lies too far out: too narrow"
    assert "too narrow" in result.describe("log_joint")
    # The interval of half the width: P(|N(0, 1)| < .5 * 1.2816) at the level of 80 %.
    (row,) = result.coverage([0.8], ["z[0]"])
    expected = 2.0 * stats.norm.cdf(0.5 * stats.norm.ppf(0.9)) - 1.0
    assert abs(row.share - expected) < 4.0 * math.sqrt(expected * (1.0 - expected) / 100)
    # Of the ellipse: P(chi2_2 < .25 * quantile).
    for name in ("distance", "log_q"):
        (row,) = result.coverage([0.8], [name])
        expected = stats.chi2.cdf(0.25 * stats.chi2.ppf(0.8, 2), 2)
        assert abs(row.share - expected) < 4.0 * math.sqrt(expected * (1.0 - expected) / 100)
    assert "MISCALIBRATED in " in str(result)


def test_draws_that_are_too_wide_are_called_so() -> None:
    result = study(simulations=100, fit=partial(exact, scale=2.0))
    assert set(result.flagged) >= {"z[0]", "z[1]", "log_joint", "log_q", "distance"}
    assert result.describe("z[1]") == "the draws are too wide (underconfident)"
    assert result.describe("distance") == "the truth lies too close to q's centre: too wide"
    assert "too wide" in result.describe("log_q")


def test_a_shift_is_named_with_its_direction() -> None:
    sd = float(moments(Y)[1][0, 0].sqrt())
    result = study(simulations=100, fit=partial(exact, shift=0.5 * sd))
    assert {"z[0]", "z[1]"} <= set(result.flagged)
    # The truth exceeds a share of the draws that is P(N(0, 2) < -.5) on average.
    share = float(result.ranks["z[0]"].double().mean()) / 999
    assert abs(share - stats.norm.cdf(-0.5 / math.sqrt(2.0))) < 4.0 * math.sqrt(1.0 / 12.0 / 100)
    assert result.describe("z[0]") == f"the draws lie too high (the truth exceeds {100.0 * share:.0f} % of them)"
    assert "too low" in study(simulations=40, fit=partial(exact, shift=-0.8 * sd)).describe("z[0]")


def test_joint_statistics_see_what_marginal_ranks_miss() -> None:
    result = study(simulations=200, fit=uncorrelated)
    assert "log_joint" in result.flagged
    assert result.p_values["z[0]"] > 0.01
    assert result.p_values["z[1]"] > 0.01


def test_the_likelihood_sees_that_the_data_were_not_used() -> None:
    result = study(simulations=100, fit=prior_itself)
    assert result.p_values["z[0]"] > 0.01
    assert result.p_values["z[1]"] > 0.01
    assert "log_likelihood" in result.flagged
    assert "the data are not fully used" in result.describe("log_likelihood")


# -- statistics -------------------------------------------------------------------------------------------


def positive(x: Tensor, y: Tensor | None = None) -> None:
    """Latents with and without a constraint, covariates that are not data, a deterministic site, in a plate."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    loc = pyro.deterministic("loc", slope * x, event_dim=0)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


X = torch.tensor([-1.0, 0.5, 2.0])


class OfPositive:
    """Draws that are no posterior, to compare statistics at."""

    def sample(self, n: int) -> dict[str, Tensor]:
        return {"slope": torch.randn(n), "scale": torch.rand(n) + 0.5, "loc": torch.zeros(n, 3), "more": torch.ones(n)}


def closed_forms() -> dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]]:
    """Log joint density with respect to the sites' own coordinates, and log-likelihood, by scipy."""

    def likelihood(values: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        loc = values["slope"][:, None] * X
        terms = stats.norm.logpdf(data["y"].numpy(), loc.numpy(), values["scale"][:, None].numpy())
        return torch.from_numpy(terms.sum(-1))

    def joint(values: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        prior = stats.norm.logpdf(values["slope"].numpy())
        prior += stats.lognorm.logpdf(values["scale"].numpy(), 0.5)
        return likelihood(values, data) + torch.from_numpy(prior)

    return {"scipy_joint": joint, "scipy_likelihood": likelihood}


@pytest.mark.parametrize("vectorize", [True, False])
def test_densities_are_those_of_the_simulated_data(vectorize: bool) -> None:
    torch.set_default_dtype(torch.float64)
    x = X.double()
    result = sbc(
        positive,
        x,
        model_kwargs={"y": torch.full((3,), 100.0)},
        simulations=5,
        draws=20,
        fit=lambda conditioned, *args, seed: OfPositive(),
        statistics=closed_forms(),
        vectorize=vectorize,
        seed=3,
        progress=False,
    )
    assert torch.equal(result.ranks["log_joint"], result.ranks["scipy_joint"])
    assert torch.equal(result.ranks["log_likelihood"], result.ranks["scipy_likelihood"])
    assert len(set(result.ranks["scipy_joint"].tolist())) > 1
    assert "log_q" not in result.ranks
    for s in result.simulations:
        assert set(s.truth) == {"slope", "scale"}


def test_ranks_count_draws_below_the_truth_in_unconstrained_coordinates() -> None:
    def below(conditioned: Any, *args: Any, seed: int) -> Any:
        def sample(n: int) -> dict[str, Tensor]:
            # 7 of the first 20 draws of the scale are below every likely truth, and all slopes are equal.
            scale = torch.full((n,), 1e6)
            scale[:7] = 1e-6
            return {"slope": torch.full((n,), -1e6), "scale": scale}

        return SimpleNamespace(sample=sample)

    result = sbc(positive, X, torch.zeros(3), simulations=4, draws=20, fit=below, seed=0, progress=False)
    assert result.ranks["scale"].tolist() == [7] * 4
    assert result.ranks["slope"].tolist() == [20] * 4


def test_ties_are_broken_at_random() -> None:
    result = sbc(
        model,
        simulations=110,
        draws=10,
        fit=exact,
        statistics={"constant": lambda values, data: torch.ones(len(values["z"]))},
        seed=0,
        progress=False,
    )
    counts = np.bincount(result.ranks["constant"].numpy(), minlength=11)
    assert stats.chisquare(counts).pvalue > 0.001


def test_a_discrete_latent_that_is_summed_out() -> None:
    @pyro.infer.config_enumerate
    def mixture(y: Tensor = Y[0]) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(z[..., 0] + 3.0 * k, 0.5), obs=y)

    def joint(values: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        z, y = values["z"], data["y"]
        terms = [math.log(w) + dist.Normal(z[:, 0] + 3.0 * k, 0.5).log_prob(y) for k, w in ((0, 0.7), (1, 0.3))]
        return torch.logaddexp(*terms) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)

    result = sbc(mixture, simulations=5, draws=30, fit=prior_itself, statistics={"mine": joint}, seed=0, progress=False)
    assert torch.equal(result.ranks["log_joint"], result.ranks["mine"])
    assert "log_likelihood" not in result.ranks


# -- the default fit on the conditioned model ----------------------------------------------------------------


def test_fit_works_on_the_conditioned_model() -> None:
    """The wrapped model is set up, vectorised, trained and judged; what it fits is the simulated data."""
    seen: list[tuple[Tensor, Tensor]] = []

    def fit(conditioned: Any, *args: Any, seed: int) -> avbvi.Posterior:
        posterior = avbvi.fit(conditioned, *args, seed=seed, steps=12, progress=False)
        z = posterior.sample(50)
        target = posterior.guide.target(*posterior.args)
        assert target is not None
        unconstrained, _ = target.layout.unconstrain(z)
        y = data_of(conditioned, *args)
        expected = dist.MultivariateNormal(torch.zeros(2), PRIOR).log_prob(z["z"])
        expected = expected + dist.Normal(z["z"], NOISE).log_prob(y).sum(-1)
        seen.append((target.log_prob(unconstrained), expected))
        return posterior

    before = set(pyro.get_param_store().keys())
    state = torch.get_rng_state()
    result = study(Y + 50.0, simulations=2, draws=50, fit=fit)
    for found, expected in seen:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert set(pyro.get_param_store().keys()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(result.verdicts.values()) == 2
    assert {"log_q", "log_joint"} <= set(result.ranks)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_default_fit_takes_ten_seconds(monkeypatch: pytest.MonkeyPatch, vectorize: bool) -> None:
    asked: list[dict[str, Any]] = []

    def recording(conditioned: Any, *args: Any, seed: int, **options: Any) -> Gaussian:
        asked.append(options)
        return exact(conditioned, *args, seed=seed)

    monkeypatch.setattr(calibration, "default_fit", recording)
    study(simulations=1, vectorize=vectorize)
    (given,) = asked
    elbo = given.pop("elbo")
    assert given == {"minutes": 1 / 6, "progress": False}
    assert elbo is None if vectorize else elbo.vectorize_particles is False


def test_data_sites_without_data_are_named() -> None:
    with pytest.raises(ModelError, match=r"no observed sites.*observed=\['y'\]"):
        study(None, simulations=1, fit=exact)
    named = study(None, observed=["y"], simulations=5, fit=exact)
    given = study(Y, simulations=5, fit=exact)
    assert all(torch.equal(named.ranks[name], given.ranks[name]) for name in given.ranks)


# -- failures, verdicts, interruption ---------------------------------------------------------------------------


def sometimes(conditioned: Any, *args: Any, seed: int) -> Gaussian:
    """Fails where the first observation is below -1, doubts itself where the second is above 1."""
    y = data_of(conditioned, *args)
    if y[0] < -1.0:
        raise NonFiniteError("the loss stayed NaN")
    return Gaussian(*moments(y), verdict="suspect" if y[1] > 1.0 else "ok")


def test_failures_and_verdicts_are_counted() -> None:
    result = study(simulations=60, fit=sometimes)
    failed, verdicts = result.failures, result.verdicts
    assert 0 < len(failed) < 60
    assert set(failed.values()) == {"NonFiniteError: the loss stayed NaN"}
    assert verdicts.keys() == {"ok", "suspect"}
    assert sum(verdicts.values()) + len(failed) == 60
    assert len(result.ranks["z[0]"]) == 60 - len(failed)
    assert f"{len(failed)} without ranks" in str(result)
    assert f"verdicts: {verdicts['ok']} ok, {verdicts['suspect']} suspect" in str(result)
    assert len(result.only("ok").completed) == verdicts["ok"]
    assert len(result.only("ok", "suspect").completed) == 60 - len(failed)


def test_ranks_stay_uniform_among_fits_that_call_themselves_ok() -> None:
    result = study(simulations=150, fit=sometimes).only("ok")
    assert 75 < len(result.completed) < 150
    assert min(result.adjusted_p_values.values()) > 0.01


def test_draws_without_a_rank_are_failures() -> None:
    def nan(conditioned: Any, *args: Any, seed: int) -> Any:
        return Gaussian(*moments(data_of(conditioned))) if seed % 2 else SimpleNamespace(sample=lambda n: {
            "z": torch.full((n, 2), math.nan)
        })  # fmt: skip

    result = study(simulations=10, fit=nan)
    assert 0 < len(result.failures) < 10
    assert all("can't be ranked: draws['z'] has values outside" in why for why in result.failures.values())
    bad = study(simulations=1, statistics={"s": lambda values, data: values["z"][:, 0] * 0}, fit=exact)
    assert bad.failures == {}
    with pytest.raises(ModelError, match=r"none of 2 simulations has ranks; the first: the statistic s is NaN at 1000"):
        study(simulations=2, statistics={"s": lambda values, data: values["z"][:, 0] * math.nan}, fit=exact)


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_ends_the_study_even_if_the_fit_survives_it(tmp_path: Path) -> None:
    path = tmp_path / "study.pt"
    calls: list[int] = []

    def surviving(conditioned: Any, *args: Any, seed: int) -> Gaussian:
        calls.append(seed)
        if len(calls) == 3:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                return Gaussian(torch.zeros(2), PRIOR)
        return exact(conditioned, *args, seed=seed)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        study(simulations=5, fit=surviving, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = study(simulations=5, fit=surviving, checkpoint=path)
    assert len(calls) == 6
    assert_same(resumed, study(simulations=5, fit=exact))


# -- checkpoints ------------------------------------------------------------------------------------------------


def assert_same(a: Calibration, b: Calibration) -> None:
    for one, other in zip(a.simulations, b.simulations, strict=True):
        assert (one.index, one.ranks, one.verdict, one.failure) == (
            *(other.index, other.ranks, other.verdict, other.failure),
        )
        assert one.truth.keys() == other.truth.keys()
        assert all(torch.equal(one.truth[name], other.truth[name]) for name in one.truth)
    assert (a.draws, a.seed, a.sites) == (b.draws, b.seed, b.sites)


def short(conditioned: Any, *args: Any, seed: int) -> avbvi.Posterior:
    return avbvi.fit(conditioned, *args, seed=seed, steps=4, progress=False)


def test_an_interrupted_study_goes_on_to_the_same_result(tmp_path: Path) -> None:
    path = tmp_path / "study.pt"
    study(simulations=1, draws=20, fit=short, checkpoint=path)
    torch.randn(7)
    pyro.param("other", torch.zeros(()))
    calls: list[int] = []

    def counting(conditioned: Any, *args: Any, seed: int) -> avbvi.Posterior:
        calls.append(seed)
        return short(conditioned, *args, seed=seed)

    resumed = study(simulations=2, draws=20, fit=counting, checkpoint=path)
    assert len(calls) == 1
    assert_same(resumed, study(simulations=2, draws=20, fit=short))
    # A finished one is only read, with the file's seed if none is given; one that is cut shorter too.
    again = sbc(model, simulations=1, draws=20, fit=counting, checkpoint=path, progress=False)
    assert len(calls) == 1
    assert_same(again, Calibration(resumed.simulations[:1], 20, resumed.sites, 1))


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.pt"
    failing = study(simulations=20, fit=sometimes, checkpoint=path)
    assert failing.failures
    assert_same(study(simulations=20, fit=sometimes, checkpoint=path), failing)
    with pytest.raises(CheckpointError, match="its seed is 1, this one's 2"):
        sbc(model, seed=2, fit=exact, checkpoint=path, progress=False)
    with pytest.raises(CheckpointError, match="its draws is 999, this one's 99"):
        study(draws=99, fit=exact, checkpoint=path)

    def other(y: Tensor = Y) -> None:
        z = pyro.sample("z", dist.Normal(torch.ones(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, NOISE).to_event(1), obs=y)

    with pytest.raises(CheckpointError, match="belongs to another model"):
        sbc(other, seed=1, fit=exact, checkpoint=path, progress=False)
    path.write_bytes(b"no such file")
    with pytest.raises(CheckpointError, match="damaged"):
        study(fit=exact, checkpoint=path)


# -- figures of given ranks --------------------------------------------------------------------------------------


def given(ranks: dict[str, list[int]], draws: int = 9) -> Calibration:
    n = len(next(iter(ranks.values())))
    rounds = [
        Simulation(i, {"a": torch.tensor(float(i))}, {k: r[i] for k, r in ranks.items()}, None, None, 1.0)
        for i in range(n)
    ]
    return Calibration(tuple(rounds), draws, {"a": ()}, 0)


def test_coverage_counts_the_ranks_in_each_region() -> None:
    ranks = list(range(10))
    result = given({"a": ranks, "log_q": ranks, "distance": ranks})
    # Each region of 4 of 10 values holds 4 of the ranks 0..9, which ones depends on the statistic.
    for name, inside in (("a", {3, 4, 5, 6}), ("log_q", {6, 7, 8, 9}), ("distance", {0, 1, 2, 3})):
        for rank in range(10):
            (row,) = given({name: [rank]}).coverage([0.4])
            assert row.covered == (rank in inside)
        (row,) = result.coverage([0.4], [name])
        assert row[:5] == (name, 0.4, 0.4, 4, 10)
        interval = stats.binomtest(4, 10).proportion_ci(method="exact")
        assert row[5:] == pytest.approx((interval.low, interval.high))
    # 95 % of 10 values are 10 of them: the level that is meant is said.
    assert result.coverage([0.96], ["a"])[0].level == 1.0


def test_ecdf_difference_by_hand() -> None:
    result = given({"a": [0, 0, 5, 9]}, draws=9)
    np.testing.assert_allclose(result.band().points, np.arange(1, 10) / 10)
    expected = np.array([2, 2, 2, 2, 2, 3, 3, 3, 3]) / 4 - np.arange(1, 10) / 10
    np.testing.assert_allclose(result.ecdf_difference("a"), expected)


def test_a_flag_is_an_adjusted_p_value_below_5_percent() -> None:
    rng = np.random.default_rng(0)
    fine = {f"s{i}": rng.integers(0, 10, 50).tolist() for i in range(4)}
    result = given({**fine, "a": [0] * 50})
    assert result.flagged == ["a"]
    assert result.adjusted_p_values["a"] == pytest.approx(5 * result.p_values["a"])
    assert result.describe("a") == "the draws lie too high (the truth exceeds 5 % of them)"


def test_a_statistic_that_some_round_lacks_is_left_out() -> None:
    both = given({"a": [1, 2], "log_q": [3, 4]})
    first, second = both.simulations
    lacking = Simulation(1, second.truth, {"a": 2}, None, None, 1.0)
    assert set(Calibration((first, lacking), 9, {"a": ()}, 0).ranks) == {"a"}


def test_arviz_gets_truth_and_ranks_by_site() -> None:
    result = study(simulations=12, fit=exact)
    container = result.to_arviz()
    truth, shares = container["prior"], container["prior_sbc"]
    expected = torch.stack([s.truth["z"] for s in result.simulations])
    np.testing.assert_array_equal(truth["z"].values[0], expected.numpy())
    for i in range(2):
        share = (result.ranks[f"z[{i}]"].double() + 0.5) / 1000
        np.testing.assert_allclose(shares["z"].values[0, :, i], share.numpy())
    assert shares["log_joint"].shape == (1, 12)
    assert shares.attrs["draws"] == "999"
    assert shares.attrs["inference_library"] == "avbvi"


def test_arviz_1_gets_the_group_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(dict[str, Any]):
        def __init__(self, values: Any) -> None:
            super().__init__(values)
            self.attrs: dict[str, str] = {}

    class ArviZ1:
        __version__ = "1.0.0"

        @staticmethod
        def from_dict(data: dict[str, dict[str, Any]], **options: Any) -> dict[str, Any]:
            return {name: Group(values) for name, values in data.items()}

    monkeypatch.setattr(export, "import_arviz", lambda: ArviZ1)
    tree = study(simulations=3, fit=exact).to_arviz()
    assert set(tree) == {"prior", "prior_sbc"}
    assert tree["prior_sbc"]["z"].shape == (1, 3, 2)
    assert tree["prior_sbc"].attrs == {"inference_library": "avbvi", "draws": "999", "failures": "0"}
    assert tree["prior"].attrs == tree["prior_sbc"].attrs


# -- refusals -----------------------------------------------------------------------------------------------------


def test_models_that_do_not_generate_their_data_are_refused() -> None:
    def with_factor() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", -z.square())
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def improper() -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def weighted() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def subsampled() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=5) as index:
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(10)[index])

    def learning() -> None:
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    def summing() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.0))

    def indexing() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z[0], 1.0), obs=torch.tensor(0.0))

    def broadcast() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(3))

    for refused, message in (
        (with_factor, "the factor 'f' takes part"),
        (improper, "(?s)can't be simulated.*ImproperUniform.*proper prior"),
        (weighted, "site 'y' has a weight other than 1"),
        (subsampled, "site 'y' has a weight other than 1"),
        (learning, "learns the parameter 'loc'"),
        (summing, r"by itself but .* among others.*or use vectorize=False"),
        (indexing, r"(?s)the model failed when run for many draws at once.*here: sbc\(vectorize=False\)"),
        (broadcast, r"site 'y' has observations of shape \(3,\) but draws of shape \(\)"),
        (LogDensity(lambda z: -z.square().sum(-1), (2,)), "a LogDensity has no prior"),
    ):
        with pytest.raises(ModelError, match=message):
            sbc(refused, fit=exact, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"simulations": 0}, ValueError, "simulations must be at least 1, found 0"),
        ({"simulations": 2.0}, TypeError, "simulations must be an integer, found float"),
        ({"draws": 5}, ValueError, "draws must be at least 10, found 5"),
        ({"seed": -1}, ValueError, "seed must be at least 0, found -1"),
        ({"fit": 3}, TypeError, "fit must be a function"),
        ({"statistics": [1]}, TypeError, "statistics must map names to functions, found list"),
        ({"statistics": {"s": 1}}, TypeError, r"statistics\['s'\] must be a function"),
        ({"statistics": {"distance": lambda v, d: v["z"]}}, ValueError, r"share the names \['distance'\]"),
        ({"statistics": {"s": lambda v, d: v["z"]}}, ValueError, r"statistics\['s'\] must map.*\(1000, 2\)"),
        ({"observed": "y"}, TypeError, "observed must be a list of site names, found the string 'y'"),
        ({"observed": ["w"]}, ValueError, r"observed must name sites.*\['w'\]"),
        ({"observed": []}, ValueError, "observed must name sites"),
        ({"observed": ["z"]}, ValueError, r"observed leaves out \['y'\]"),
        ({"fit": lambda m, *a, seed: SimpleNamespace(sample=lambda n: {})}, ValueError, "lack the latent site 'z'"),
        ({"fit": lambda m, *a, seed: SimpleNamespace(sample=lambda n: 1)}, TypeError, "found int"),
        (
            {"fit": lambda m, *a, seed: SimpleNamespace(sample=lambda n: {"z": torch.zeros(9, 2)})},
            ValueError,
            r"must have shape \(1998, 2\) for sample\(1998\), found \(9, 2\)",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sbc(model, **({"fit": exact, "simulations": 1, "seed": 0, "progress": False} | arguments))


def test_questions_that_have_no_answer() -> None:
    result = given({"a": [1, 2]})
    with pytest.raises(ValueError, match=r"no statistic 'b'; there are \['a'\]"):
        result.coverage(names=["b"])
    with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
        result.coverage([1.0])
    empty = result.only("ok")
    assert "nothing can be said" in str(empty)
    for question in (empty.coverage, empty.band, empty.to_arviz):
        with pytest.raises(ValueError, match="no simulation has ranks"):
            question()
