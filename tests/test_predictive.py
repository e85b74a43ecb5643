"""What a model gives at draws: against formulas written by hand."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from avbvi import AffineTrunk, AVBGuide, LogDensity, ModelError, predictive
from avbvi.predictive import deterministic, log_joint, log_likelihood, predictions, prior_draws, single_run
from avbvi.targets import UnconstrainedTarget

N = 7
Y = torch.tensor([1.2, -0.3, 0.8, 2.1], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def target_of(model: Any, *args: Any, vectorize: bool = True) -> UnconstrainedTarget:
    guide = AVBGuide(model, trunk=AffineTrunk()).setup(*args)
    target = guide.bind(model, args, {}, vectorize=vectorize)
    assert target is not None
    return target


def draws_of(target: UnconstrainedTarget, n: int = N) -> dict[str, Tensor]:
    return target.layout.constrain(torch.randn(n, target.layout.dim))[0]


def normal(x: Any, loc: Any, scale: Any) -> Tensor:
    """Log-density of the normal distribution, written out."""
    z = (torch.as_tensor(x) - loc) / scale
    return -0.5 * z.square() - torch.as_tensor(scale).log() - 0.5 * math.log(2.0 * math.pi)


# -- models -----------------------------------------------------------------------------------------------


def nested(y: Tensor, counts: Tensor) -> None:
    """Two observed sites: vectors in one plate, numbers in two nested plates; deterministic sites used downstream."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.deterministic("double", 2.0 * scale)
    with pyro.plate("groups", 3, dim=-2):
        level = pyro.sample("level", dist.Normal(0.0, scale))
        shifted = pyro.deterministic("shifted", level + 1.0)
        with pyro.plate("items", 2, dim=-1):
            pyro.sample("counts", dist.Poisson(shifted.exp()), obs=counts)
    with pyro.plate("rows", 4, dim=-1):
        pyro.sample("y", dist.Normal(scale.unsqueeze(-1) * torch.ones(2), 1.0).to_event(1), obs=y)


NESTED = (torch.arange(8.0).reshape(4, 2).double() / 5.0, torch.tensor([[0.0, 2.0], [1.0, 1.0], [3.0, 0.0]]).double())


def nested_terms(values: dict[str, Tensor]) -> dict[str, Tensor]:
    y, counts = NESTED
    rate = (values["level"] + 1.0).exp()
    return {
        "y": normal(y, values["scale"][:, None, None], 1.0).sum(-1),
        "counts": counts * rate.log() - rate - torch.lgamma(counts + 1.0),
    }


def mixture(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    pyro.deterministic("gap", loc[..., 1] - loc[..., 0])
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        chosen = pyro.deterministic("chosen", torch.where(k == 0, loc[..., 0], loc[..., 1]))
        pyro.sample("y", dist.Normal(chosen, 0.5), obs=y)


def shared_discrete(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc + k, 1.0), obs=y)


# -- deterministic sites ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", [True, False])
def test_deterministic_sites(vectorize: bool) -> None:
    target = target_of(nested, *NESTED, vectorize=vectorize)
    values = draws_of(target)
    found = deterministic(target, values)
    assert set(found) == {"double", "shifted"}
    torch.testing.assert_close(found["double"], 2.0 * values["scale"])
    torch.testing.assert_close(found["shifted"], values["level"] + 1.0)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_deterministic_site_of_a_summed_out_latent_has_no_value(n: int) -> None:
    target = target_of(mixture, Y)
    values = draws_of(target, n)
    found = deterministic(target, values)
    assert set(found) == {"gap"}
    torch.testing.assert_close(found["gap"], values["loc"][:, 1] - values["loc"][:, 0])


def test_a_deterministic_site_that_does_not_vary_is_repeated() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("fixed", torch.arange(3.0))

    target = target_of(model)
    assert torch.equal(deterministic(target, draws_of(target))["fixed"], torch.arange(3.0).expand(N, 3))


def test_a_deterministic_site_that_mixes_draws_is_refused() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("pairs", x.reshape(-1, 1) * x.reshape(1, -1))

    target = target_of(model)
    with pytest.raises(ModelError, match=r"'pairs' has shape \(1, 1\) for one draw and \(7, 7\) for 7 at once"):
        deterministic(target, draws_of(target))


# -- log-likelihoods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", [True, False])
def test_log_likelihood_of_each_observation(vectorize: bool) -> None:
    target = target_of(nested, *NESTED, vectorize=vectorize)
    values = draws_of(target)
    found, left_out = log_likelihood(target, values, ["y", "counts"])
    assert left_out == {}
    expected = nested_terms(values)
    assert {name: tuple(v.shape) for name, v in found.items()} == {"y": (N, 4), "counts": (N, 3, 2)}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("vectorize", [True, False])
def test_log_likelihood_and_prior_add_up_to_the_log_joint(vectorize: bool) -> None:
    target = target_of(nested, *NESTED, vectorize=vectorize)
    z = torch.randn(N, target.layout.dim)
    values, log_det = target.layout.constrain(z)
    found, _ = log_likelihood(target, values, ["y", "counts"])
    scale = values["scale"]
    prior = normal(scale, 0.0, 1.0) + math.log(2.0) + normal(values["level"], 0.0, scale[:, None, None]).sum((-1, -2))
    total = found["y"].sum(-1) + found["counts"].sum((-1, -2)) + prior
    torch.testing.assert_close(log_joint(target, z) - log_det, total)


def test_chunks_of_draws_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(nested, *NESTED)
    z = torch.randn(N, target.layout.dim)
    values = target.layout.constrain(z)[0]
    whole = log_likelihood(target, values, ["y", "counts"])[0], deterministic(target, values), log_joint(target, z)
    monkeypatch.setattr(predictive, "_CHUNK", 30)  # of 10 terms each, 4 deterministic values each, all values
    seen = []
    trace = UnconstrainedTarget.trace
    monkeypatch.setattr(
        UnconstrainedTarget, "trace", lambda t, v, m=None: seen.append(len(v["scale"])) or trace(t, v, m)
    )
    torch.testing.assert_close(log_likelihood(target, values, ["y", "counts"])[0], whole[0])
    assert seen == [3, 3, 1]
    torch.testing.assert_close(deterministic(target, values), whole[1])
    assert seen[3:] == [7]
    torch.testing.assert_close(log_joint(target, z), whole[2])
    assert seen[4:] == [1] * 7
    assert prior_draws(target, N)["counts"].shape == (N, 3, 2)
    assert predictions(target, values)["y"].shape == (N, 4, 2)


def test_weights_are_ignored_and_masked_observations_count_nothing() -> None:
    keep = torch.tensor([True, False, True, True])

    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), poutine.scale(scale=0.25), poutine.mask(mask=keep):
            pyro.sample("y", dist.Normal(loc, 2.0), obs=y)

    target = target_of(model, Y)
    values = draws_of(target)
    found = log_likelihood(target, values, ["y"])[0]["y"]
    torch.testing.assert_close(found, normal(Y, values["loc"][:, None], 2.0) * keep)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_discrete_latent_of_each_observation_is_summed_out(n: int, vectorize: bool) -> None:
    target = target_of(mixture, Y, vectorize=vectorize)
    values = draws_of(target, n)
    found, left_out = log_likelihood(target, values, ["y"])
    loc, share = values["loc"], values["share"][:, None]
    expected = torch.logaddexp(
        (1.0 - share).log() + normal(Y, loc[:, :1], 0.5), share.log() + normal(Y, loc[:, 1:], 0.5)
    )
    assert left_out == {}
    torch.testing.assert_close(found["y"], expected)


def chain(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    state = torch.tensor(0)
    for i in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{i}", dist.Bernoulli(0.2 + 0.6 * state))
        pyro.sample(f"y_{i}", dist.Normal(loc + state, 1.0), obs=y[i])


def latent_below(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        x = pyro.sample("x", dist.Normal(loc + k, 1.0))
        pyro.sample("y", dist.Normal(x + k, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (shared_discrete, "y", r"\['k'\] lie in other plates"),
        (config_enumerate(chain), "y_1", r"are shared with \['y_0', 'y_2', 'y_3'\]"),
        (latent_below, "y", r"\['k'\] are shared with \['x'\]"),
    ],
)
def test_other_discrete_latents_leave_no_pointwise_likelihood(
    model: Callable[[Tensor], None], name: str, message: str
) -> None:
    target = target_of(model, Y)
    found, left_out = log_likelihood(target, draws_of(target), [name])
    assert found == {}
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(left_out[name])


# -- predictions --------------------------------------------------------------------------------------------


def test_predictions_belong_to_the_draws_and_use_deterministic_sites() -> None:
    def precise(x: Tensor, y: Tensor | None = None) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", slope * x)
            pyro.sample("y", dist.Normal(mean, 1e-3), obs=y)

    target = target_of(precise, torch.arange(4.0), Y)
    values = draws_of(target)
    for x in (torch.arange(4.0), torch.linspace(-1.0, 1.0, 9)):
        found = predictions(target, values, target.with_arguments((x,), {}))
        assert set(found) == {"y"}
        assert float((found["y"] - values["slope"][:, None] * x).abs().max()) < 6e-3


@pytest.mark.parametrize("vectorize", [True, False])
def test_predictions_draw_a_discrete_latent_anew_for_each_observation(vectorize: bool) -> None:
    target = target_of(mixture, Y, vectorize=vectorize)
    n = 4000 if vectorize else 300
    values = {"loc": torch.tensor([-20.0, 20.0]).expand(n, 2), "share": torch.full((n,), 0.3)}
    found = predictions(target, values)
    assert set(found) == {"y"}
    assert found["y"].shape == (n, 4)
    upper = (found["y"] > 0.0).double().mean(0)
    assert bool(((upper - 0.3).abs() < 4.0 * math.sqrt(0.21 / n)).all())


@pytest.mark.parametrize("vectorize", [True, False])
def test_predictions_know_what_the_data_say_of_a_discrete_latent_that_all_share(vectorize: bool) -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc + 40.0 * k, 20.0), obs=y)

    y = torch.tensor([30.0, 25.0])
    target = target_of(model, y, vectorize=vectorize)
    n = 20_000 if vectorize else 200
    found = predictions(target, {"loc": torch.zeros(n)}, target.with_arguments((torch.zeros(3),), {}))["y"]
    odds = math.log(0.3 / 0.7) + float((normal(y, 40.0, 20.0) - normal(y, 0.0, 20.0)).sum())
    p = 1.0 / (1.0 + math.exp(-odds))
    assert p > 0.6  # .3 by the prior alone
    assert found.shape == (n, 3)
    variance = 1600.0 * p * (1.0 - p)
    row = found.mean(1)  # the row's observations share k
    assert float(row.mean()) == pytest.approx(40.0 * p, abs=4.0 * math.sqrt((variance + 400.0 / 3.0) / n))
    if vectorize:
        assert float(torch.cov(found.mT)[0, 1]) == pytest.approx(variance, rel=0.15)


def test_new_arguments_may_not_change_a_latents_shape() -> None:
    def groups(y: Tensor) -> None:
        with pyro.plate("groups", len(y)):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    target = target_of(groups, Y)
    with pytest.raises(ModelError, match=r"'level' has shape \(5,\) with these arguments and \(4,\) in the fit"):
        predictions(target, draws_of(target), target.with_arguments((torch.zeros(5),), {}))


def test_single_run_is_at_the_first_draw() -> None:
    target = target_of(mixture, Y)
    values = draws_of(target)
    trace = single_run(target, values)
    assert all(torch.equal(trace.nodes[name]["value"], value[0]) for name, value in values.items())
    assert trace.nodes["k"]["value"].shape == (4,)


# -- prior ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", [True, False])
def test_prior_draws(vectorize: bool) -> None:
    target = target_of(nested, *NESTED, vectorize=vectorize)
    n = 20_000 if vectorize else 200
    found = prior_draws(target, n)
    assert set(found) == {"scale", "double", "level", "shifted", "counts", "y"}
    torch.testing.assert_close(found["shifted"], found["level"] + 1.0)
    torch.testing.assert_close(found["double"], 2.0 * found["scale"])
    scale = found["scale"]
    # |N(0, 1)| has mean sqrt(2 / pi) and second moment 1, fourth moment 3.
    assert float(scale.mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=4.0 * math.sqrt((1 - 2 / math.pi) / n))
    assert float(scale.square().mean()) == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / n))
    unit = (found["level"] / scale[:, None, None]).squeeze(-1)
    assert bool((unit.mean(0).abs() < 4.0 / math.sqrt(n)).all())
    assert bool(((unit.var(0) - 1.0).abs() < 4.0 * math.sqrt(2.0 / n)).all())
    noise = found["y"] - scale[:, None, None]
    assert noise.shape == (n, 4, 2)
    assert bool((noise.mean(0).abs() < 4.0 / math.sqrt(n)).all())
    assert bool(((noise.var(0) - 1.0).abs() < 4.0 * math.sqrt(2.0 / n)).all())


class Undrawable(dist.Normal):
    """A distribution with a density but no sampler."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        raise NotImplementedError("Undrawable has no sampler")


def test_observations_that_can_not_be_drawn() -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Undrawable(loc, 1.0), obs=y)

    target = target_of(model, Y)
    values = draws_of(target)
    with pytest.raises(NotImplementedError, match="no sampler"):
        prior_draws(target, 3)
    with pytest.raises(NotImplementedError, match="no sampler"):
        predictions(target, values)
    found = log_likelihood(target, values, ["y"])[0]["y"]
    torch.testing.assert_close(found, normal(Y, values["loc"][:, None], 1.0))


def test_a_log_density_has_no_deterministic_sites_and_nothing_to_predict() -> None:
    target = target_of(LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,)))
    values = draws_of(target)
    assert deterministic(target, values) == {}
    assert predictions(target, values) == {}
    z = torch.randn(N, 2)
    torch.testing.assert_close(log_joint(target, z), -0.5 * z.square().sum(-1))
