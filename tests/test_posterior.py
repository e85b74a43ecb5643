"""Posterior: draws, densities, evidence, predictions, files; against closed forms."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import avbvi
from avbvi import AdversarialELBO, AVBGuide, CheckpointError, Posterior, Verdict
from avbvi import elbo as elbo_module
from avbvi import training as training_module
from avbvi.diagnostics import choose_stage, judge
from avbvi.posterior import Run
from models import eight_schools

REPOSITORY = Path(__file__).resolve().parents[1]
X = torch.linspace(-1.0, 2.0, 12)
Y = 0.7 - 0.4 * X + 0.5 * torch.sin(17.0 * X)
SIGMA = 0.5


def regression(x: Tensor, y: Tensor | None = None) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, SIGMA), obs=y)


def design(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x], -1).double()


def exact_regression() -> tuple[Tensor, Tensor, float]:
    """Mean (2,) and covariance (2, 2) of (a, b), and the log-evidence, by conjugacy."""
    d = design(X)
    precision = torch.eye(2).double() + d.T @ d / SIGMA**2
    mean = torch.linalg.solve(precision, d.T @ Y.double() / SIGMA**2)
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(12).double(), SIGMA**2 * torch.eye(12).double() + d @ d.T
    )
    return mean, torch.linalg.inv(precision), float(marginal.log_prob(Y.double()))


def with_constraints(x: Tensor, y: Tensor) -> None:
    """A positive site, a simplex, a vector in a plate, a deterministic site."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 2, dim=-2):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    level = pyro.deterministic("level", (weights * torch.arange(3.0)).sum(-1))
    with pyro.plate("data", len(x), dim=-1):
        mean = level + slope[..., :1, :] * x + slope[..., 1:, :] * x.square()
        pyro.sample("y", dist.Normal(mean.squeeze(-2).unsqueeze(-2), scale), obs=y)


def small_elbo() -> AdversarialELBO:
    return AdversarialELBO(num_particles=64, pretrain_steps=5, schedule=avbvi.Schedule(settle=0.0))


def quick_fit(model: Any, *args: Any, steps: int = 40, **options: Any) -> Posterior:
    with pytest.MonkeyPatch.context() as patch:
        # The verdict by few draws: these tests are about other things.
        patch.setattr(elbo_module, "choose_stage", partial(choose_stage, n=500))
        patch.setattr(training_module, "judge", partial(judge, n=500))
        return avbvi.fit(model, *args, seed=0, steps=steps, progress=False, elbo=small_elbo(), **options)


def adversarial(model: Any, *args: Any) -> Posterior:
    """A quick fit that ends in the adversarial stage."""
    posterior = quick_fit(model, *args, guide=AVBGuide(model, trunk=avbvi.AffineTrunk()))
    assert posterior.guide.is_adversarial
    return posterior


def placed(loc: Tensor, covariance: Tensor) -> Posterior:
    """An untrained posterior of the regression: the normal distribution with these moments."""
    guide = AVBGuide(regression, trunk=avbvi.AffineTrunk())
    guide.setup(X, Y)
    guide.trunk.start(loc.float(), torch.linalg.cholesky(covariance).float())
    return Posterior(regression, guide, (X, Y), {}, verdict=Verdict("ok", []), run=Run())


# -- draws ----------------------------------------------------------------------------------------------


def test_sample_has_all_sites() -> None:
    posterior = quick_fit(eight_schools.classic_model, steps=12)
    draws = posterior.sample(7)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {
        "mu": (7,),
        "tau": (7,),
        "eta": (7, 8),
        "theta": (7, 8),
    }
    assert bool((draws["tau"] > 0).all())
    torch.testing.assert_close(draws["theta"], draws["mu"][:, None] + draws["tau"][:, None] * draws["eta"])
    assert not any(v.requires_grad for v in draws.values())


def test_sample_of_constrained_sites() -> None:
    draws = quick_fit(with_constraints, X, Y, steps=12).sample(5)
    assert tuple(draws["slope"].shape) == (5, 2, 1)
    torch.testing.assert_close(draws["weights"].sum(-1), torch.ones(5))
    torch.testing.assert_close(draws["level"], (draws["weights"] * torch.arange(3.0)).sum(-1))


def test_sample_without_vectorisation() -> None:
    def one_at_a_time(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2.0 * loc)
        if float(loc.detach()) > 100.0:  # needs a single draw
            raise RuntimeError
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    elbo = AdversarialELBO(num_particles=2, vectorize_particles=False, pretrain_steps=1, adversary_steps=1)
    guide = AVBGuide(one_at_a_time, trunk=avbvi.AffineTrunk())
    guide.setup(torch.tensor(0.3))
    elbo.loss(one_at_a_time, guide, torch.tensor(0.3))
    posterior = Posterior(one_at_a_time, guide, (torch.tensor(0.3),), {}, verdict=Verdict("ok", []), run=Run())
    draws = posterior.sample(4)
    torch.testing.assert_close(draws["twice"], 2.0 * draws["loc"])


@pytest.mark.parametrize("n", [0, -3])
def test_sample_needs_a_positive_number(n: int) -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        placed(torch.zeros(2), torch.eye(2)).sample(n)


# -- densities --------------------------------------------------------------------------------------------


def at_sampling(posterior: Posterior, n: int) -> tuple[dict[str, Tensor], Tensor]:
    """Draws and their log-density in the sites' own coordinates, as known when they were drawn."""
    distribution = posterior.guide.get_posterior(*posterior.args, **posterior.kwargs)
    with torch.no_grad():
        draw = distribution.draw((n,))
        values, log_det = posterior._layout.constrain(draw.z)
        return values, distribution.draw_log_prob(draw) - log_det


@pytest.mark.parametrize("stage", ["trunk", "adversarial"])
@pytest.mark.parametrize("model", [regression, with_constraints])
def test_log_prob_is_that_of_the_draws(model: Callable[..., None], stage: str, tmp_path: Path) -> None:
    posterior = adversarial(model, X, Y) if stage == "adversarial" else quick_fit(model, X, Y)
    if stage == "trunk":
        posterior.guide.stage.fill_(0)
    values, expected = at_sampling(posterior, 200)
    torch.testing.assert_close(posterior.log_prob(values), expected, rtol=1e-4, atol=1e-4)
    posterior.save(tmp_path / "fit.pt")
    loaded = avbvi.load(tmp_path / "fit.pt", model, X, Y)
    torch.testing.assert_close(loaded.log_prob(values), expected, rtol=1e-4, atol=1e-4)


def test_log_prob_of_a_placed_normal() -> None:
    mean, covariance, _ = exact_regression()
    posterior = placed(mean, covariance)
    draws = posterior.sample(100)
    z = torch.stack([draws["a"], draws["b"]], -1).double()
    expected = torch.distributions.MultivariateNormal(mean, covariance).log_prob(z)
    torch.testing.assert_close(posterior.log_prob(draws).double(), expected, rtol=1e-4, atol=1e-4)


def test_density_of_a_positive_site_integrates_to_one() -> None:
    def counts(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    posterior = quick_fit(counts, torch.tensor([3.0, 1.0, 4.0]))
    posterior.guide.stage.fill_(0)
    log_rate = torch.linspace(-12.0, 9.0, 20_001)
    log_q = posterior.log_prob({"rate": log_rate.exp()})
    mass = torch.trapezoid((log_q + log_rate).exp().double(), log_rate.double())
    assert float(mass) == pytest.approx(1.0, abs=2e-4)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"scale": torch.ones(2)}, "lack the site 'weights'"),
        ({"scale": -torch.ones(2)}, "outside the site's support"),
        ({"scale": torch.ones(2, 2)}, "must have shape"),
    ],
)
def test_log_prob_refuses_bad_draws(draws: dict[str, Tensor], message: str) -> None:
    posterior = quick_fit(with_constraints, X, Y, steps=4)
    with pytest.raises(ValueError, match=message):
        posterior.log_prob(draws)


# -- evidence -----------------------------------------------------------------------------------------------


def test_elbo_of_the_exact_posterior_is_the_log_evidence() -> None:
    mean, covariance, log_evidence = exact_regression()
    estimate = placed(mean, covariance).elbo()
    assert estimate.value == pytest.approx(log_evidence, abs=1e-4)
    assert estimate.stderr < 1e-5


def test_elbo_and_its_standard_error() -> None:
    mean, covariance, log_evidence = exact_regression()
    loc, wider = mean + 0.1, 1.7 * covariance
    posterior = placed(loc, wider)
    q = torch.distributions.MultivariateNormal(loc, wider)
    p = torch.distributions.MultivariateNormal(mean, covariance)
    expected = log_evidence - float(torch.distributions.kl_divergence(q, p))
    repeats = [posterior.elbo(500) for _ in range(300)]
    values = torch.tensor([e.value for e in repeats]).double()
    spread = float(values.std())
    assert float(values.mean()) == pytest.approx(expected, abs=4.0 * spread / math.sqrt(300))
    # A standard deviation of 300 values is known to about 4 %.
    stated = math.sqrt(sum(e.stderr**2 for e in repeats) / 300)
    assert stated == pytest.approx(spread, rel=0.16)


def test_elbo_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="n must be at least 2"):
        placed(torch.zeros(2), torch.eye(2)).elbo(1)


# -- predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True])
def test_predictive_moments(new: bool) -> None:
    mean, covariance, _ = exact_regression()
    posterior = placed(mean, covariance)
    x = torch.tensor([-3.0, 0.5, 4.0]) if new else X
    n = 40_000
    y = (posterior.predict(x, n=n) if new else posterior.predict(n=n))["y"].double()
    assert tuple(y.shape) == (n, len(x))
    d = design(x)
    exact_mean = d @ mean
    exact_variance = ((d @ covariance) * d).sum(-1) + SIGMA**2
    assert bool(((y.mean(0) - exact_mean).abs() < 4.5 * (exact_variance / n).sqrt()).all())
    assert bool(((y.var(0) / exact_variance - 1.0).abs() < 4.5 * math.sqrt(2.0 / n)).all())


def test_predict_shares_a_draw_among_its_observations() -> None:
    mean, covariance, _ = exact_regression()
    y = placed(mean, covariance).predict(torch.tensor([3.0, 3.0]), n=40_000)["y"].double()
    d = torch.tensor([1.0, 3.0]).double()
    shared = float(d @ covariance @ d)
    expected = shared / (shared + SIGMA**2)
    assert float(torch.corrcoef(y.T)[0, 1]) == pytest.approx(expected, abs=4.5 * (1 - expected**2) / math.sqrt(40_000))


def test_predict_uses_deterministic_sites_as_they_are() -> None:
    """Eight Schools has its observations around a deterministic site in a plate."""
    guide = AVBGuide(eight_schools.classic_model, trunk=avbvi.AffineTrunk()).setup()
    posterior = Posterior(eight_schools.classic_model, guide, (), {}, verdict=Verdict("ok", []), run=Run())
    loc, n = torch.zeros(10), 20_000
    loc[0] = 100.0  # mu, far from the data; tau is about 1, eta about 0
    guide.part("trunk").start(loc, 1e-4 * torch.eye(10))
    assert set(posterior.predict(n=5)) == {"y"}
    y = posterior.predict(n=n)["y"]
    assert y.shape == (n, 8)
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    assert bool(((y.mean(0) - 100.0).abs() < 4.5 * sigma / math.sqrt(n)).all())
    assert bool(((y.var(0) / sigma**2 - 1.0).abs() < 4.5 * math.sqrt(2.0 / n)).all())


def by_group(y: Tensor) -> None:
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(level, 1.0), obs=y)


def test_predict_refuses_what_it_can_not_do() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, found 0"):
        placed(torch.zeros(2), torch.eye(2)).predict(n=0)
    guide = AVBGuide(by_group, trunk=avbvi.AffineTrunk()).setup(Y)
    posterior = Posterior(by_group, guide, (Y,), {}, verdict=Verdict("ok", []), run=Run())
    with pytest.raises(avbvi.ModelError, match=r"'level' has shape \(3,\) with these arguments and \(12,\) in the fit"):
        posterior.predict(Y[:3], n=10)


# -- files ------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    posterior = adversarial(regression, X, Y)
    file = tmp_path / "fit.pt"
    posterior.save(file)
    loaded = avbvi.load(file, regression, X, Y)
    assert loaded.verdict == posterior.verdict
    assert loaded.run == posterior.run
    pyro.set_rng_seed(1)
    first = posterior.sample(20)
    pyro.set_rng_seed(1)
    second = loaded.sample(20)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert loaded.elbo_is_exact is False


def test_the_comparison_of_the_stages_is_kept(tmp_path: Path) -> None:
    posterior = quick_fit(regression, X, Y)
    posterior.save(tmp_path / "fit.pt")
    assert posterior.comparison is not None
    assert avbvi.load(tmp_path / "fit.pt", regression, X, Y).comparison == posterior.comparison


def test_load_with_other_arguments(tmp_path: Path) -> None:
    posterior = quick_fit(regression, X, Y)
    posterior.save(tmp_path / "fit.pt")
    other = avbvi.load(tmp_path / "fit.pt", regression, X, y=Y)
    draws = posterior.sample(10)
    torch.testing.assert_close(other.log_prob(draws), posterior.log_prob(draws))


class Doubling(nn.Module):
    noise_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, noise: Tensor) -> Tensor:
        return noise[..., :2] + 0.1 * self.linear(noise)


def test_a_custom_part_needs_a_guide(tmp_path: Path) -> None:
    def guide() -> AVBGuide:
        return AVBGuide(regression, sampler=Doubling(), trunk=avbvi.AffineTrunk())

    posterior = quick_fit(regression, X, Y, guide=guide())
    file = tmp_path / "fit.pt"
    posterior.save(file)
    with pytest.raises(CheckpointError, match=r"custom parts \['sampler'\]; pass guide="):
        avbvi.load(file, regression, X, Y)
    loaded = avbvi.load(file, regression, X, Y, guide=guide())
    draws = posterior.sample(10)
    assert torch.equal(loaded.log_prob(draws), posterior.log_prob(draws))
    with pytest.raises(CheckpointError, match="do not fit"):
        avbvi.load(file, regression, X, Y, guide=AVBGuide(regression, trunk=avbvi.AffineTrunk()))


def test_a_file_of_another_model(tmp_path: Path) -> None:
    def other(x: Tensor, y: Tensor) -> None:
        pyro.sample("c", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    quick_fit(regression, X, Y, steps=4).save(tmp_path / "fit.pt")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        avbvi.load(tmp_path / "fit.pt", other, X, Y)


def test_damaged_foreign_and_missing_files(tmp_path: Path) -> None:
    file = tmp_path / "fit.pt"
    quick_fit(regression, X, Y, steps=4).save(file)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"not a file of ours", b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            avbvi.load(file, regression, X, Y)
    torch.save({"format": "avbvi-posterior", "version": 99}, file)
    with pytest.raises(CheckpointError, match="has version 99"):
        avbvi.load(file, regression, X, Y)
    torch.save([1, 2], file)
    with pytest.raises(CheckpointError, match="found 'list'"):
        avbvi.load(file, regression, X, Y)
    with pytest.raises(FileNotFoundError, match="no file"):
        avbvi.load(tmp_path / "none.pt", regression, X, Y)


@pytest.mark.parametrize("stage", ["trunk", "adversarial"])
def test_the_file_says_whether_its_density_needs_the_model(stage: str, tmp_path: Path) -> None:
    posterior = adversarial(regression, X, Y)
    posterior.guide.stage.fill_(int(stage == "adversarial"))
    posterior.save(tmp_path / "fit.pt")
    content = torch.load(tmp_path / "fit.pt", weights_only=True)
    assert content["needs_model"] is (stage == "adversarial")


SCRIPT = """
import sys, torch, avbvi
from models import eight_schools
posterior = avbvi.load(sys.argv[1], eight_schools.classic_model)
torch.save(posterior.log_prob(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_load_in_a_fresh_process(tmp_path: Path) -> None:
    guide = AVBGuide(eight_schools.classic_model, trunk=avbvi.AffineTrunk())
    posterior = quick_fit(eight_schools.classic_model, steps=12, guide=guide)
    draws = {name: value for name, value in posterior.sample(50).items() if name != "theta"}
    files = [str(tmp_path / name) for name in ("fit.pt", "draws.pt", "log_q.pt")]
    posterior.save(files[0])
    torch.save(draws, files[1])
    subprocess.run([sys.executable, "-c", SCRIPT, *files], cwd=REPOSITORY, check=True, timeout=120)
    torch.testing.assert_close(torch.load(files[2]), posterior.log_prob(draws), rtol=1e-4, atol=1e-4)


def test_learned_model_parameters_travel_with_the_file(tmp_path) -> None:
    def model(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    y = torch.randn(20) * 3.0
    small = avbvi.AdversarialELBO(num_particles=64, pretrain_steps=0)
    posterior = avbvi.fit(model, y, seed=0, steps=50, lr=0.05, elbo=small, progress=False)
    learned = float(pyro.param("scale").detach())
    assert learned > 1.05
    posterior.save(tmp_path / "fit.pt")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = posterior.elbo(500).value
    pyro.clear_param_store()
    loaded = avbvi.load(tmp_path / "fit.pt", model, y)
    assert float(pyro.param("scale").detach()) == pytest.approx(learned)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert loaded.elbo(500).value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(avbvi.CheckpointError, match=r"learned parameters are \['scale'\]"):
        avbvi.load(tmp_path / "fit.pt", lambda y: pyro.sample("mu", dist.Normal(0.0, 1.0)), y)


def test_predict_draw_by_draw_for_a_model_that_does_not_broadcast() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        assert mu.dim() == 0  # such a model can't run inside an outer plate
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 0.1), obs=y)

    guide = AVBGuide(model, trunk=avbvi.AffineTrunk(), adversary=avbvi.MLPAdversary())
    y = torch.ones(5)
    posterior = avbvi.Posterior(model, guide.setup(y), (y,), {}, verdict=Verdict("ok", []), run=Run())
    guide.bind(model, (y,), {}, vectorize=False)
    guide.part("trunk").start(torch.tensor([1.0]), torch.tensor([[0.1]]))
    draws = posterior.predict(n=400)["y"]
    assert draws.shape == (400, 5)
    # Mean 1, variance .1^2 of mu plus .1^2 of the noise; s.e. of the overall mean is about .1 / sqrt(400).
    assert abs(float(draws.mean()) - 1.0) < 4 * 0.11 / 20
    assert abs(float(draws.var(0).mean()) - 0.02) < 4 * 0.02 * math.sqrt(2 / 400)
