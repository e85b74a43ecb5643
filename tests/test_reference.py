"""Ground truth by HMC: exact answers of conjugate and multimodal models, and a warning where it is none."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from avbvi import LogDensity, ModelError, knn_kl
from avbvi.reference import HMCPosterior, hmc_posterior, starting_states, unconstrained_target
from models import eight_schools


def assert_mean(posterior: HMCPosterior, x: torch.Tensor, expected: float) -> None:
    """The mean of x (chains * draws,) within four standard errors by the spread of the chains' means."""
    means = x.double().reshape(posterior.run.draws.shape[:2]).mean(1)
    assert abs(float(means.mean()) - expected) < 4 * float(means.std()) / math.sqrt(len(means))


def counts(y: torch.Tensor) -> None:
    """Gamma(3, 2) prior, Poisson counts: the posterior is Gamma(3 + sum y, 2 + n)."""
    rate = pyro.sample("rate", dist.Gamma(y.new_tensor(3.0), 2.0))
    pyro.deterministic("log_rate", rate.log())
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


COUNTS = torch.tensor([2.0, 5.0, 3.0, 1.0])


def test_conjugate_counts():
    posterior = hmc_posterior(counts, COUNTS, seed=0)
    a, b = 3 + 11, 2 + 4
    assert set(posterior.draws) == {"rate", "log_rate"}
    rate = posterior.draws["rate"]
    assert rate.shape == (10_000,)
    assert_mean(posterior, rate, a / b)
    assert_mean(posterior, (rate - a / b).square(), a / b**2)
    assert_mean(
        posterior, posterior.draws["log_rate"], float(torch.special.digamma(torch.tensor(float(a)))) - math.log(b)
    )
    torch.testing.assert_close(posterior.draws["log_rate"], rate.log())
    assert posterior.rhat["rate"] < 1.01
    assert posterior.ess["rate"] > 5000
    assert posterior.warnings == []
    assert "WARNING" not in repr(posterior)


def test_regression_with_sds_from_a_thousandth_to_ten_and_correlation_minus_point_99():
    # y = a + b x + c w with known noise and flat-ish priors: the posterior is normal, in closed form.
    x = 7.0 + torch.randn(100)
    w = 1e-3 * torch.randn(100)
    noise = 0.01
    y = 2.0 + 0.05 * x + 3.0 * w + noise * torch.randn(100)

    def regression() -> None:
        a, b, c = (pyro.sample(name, dist.Normal(torch.zeros(()), 100.0)) for name in "abc")
        with pyro.plate("data", 100):
            pyro.sample("y", dist.Normal(a + b * x + c * w, noise), obs=y)

    design = torch.stack([torch.ones(100), x, w], -1).double()
    precision = design.mT @ design / noise**2 + 1e-4 * torch.eye(3)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (design.mT @ y.double()) / noise**2
    sd = covariance.diagonal().sqrt()
    assert float(sd.max() / sd.min()) > 500
    assert float(covariance[0, 1] / (sd[0] * sd[1])) < -0.98
    posterior = hmc_posterior(regression, seed=0)
    assert max(posterior.rhat.values()) < 1.01
    assert min(posterior.ess.values()) > 5000
    z = [(posterior.draws[name].double() - mean[i]) / sd[i] for i, name in enumerate("abc")]
    for i in range(3):
        assert_mean(posterior, z[i], 0.0)
        for j in range(i + 1):
            assert_mean(posterior, z[i] * z[j], float(covariance[i, j] / (sd[i] * sd[j])))


def test_eight_schools_of_the_paper():
    posterior = hmc_posterior(eight_schools.model, seed=0)
    assert posterior.modes is not None
    assert len(posterior.modes.locs) == 2
    assert posterior.rhat["tau"] < 1.01
    assert posterior.ess["tau"] > 5000
    for name, (mean, sd) in eight_schools.exact_moments().items():
        draws = posterior.draws[name].double().reshape(10_000, -1)
        for j, (m, s) in enumerate(zip(mean.reshape(-1).tolist(), sd.reshape(-1).tolist(), strict=True)):
            assert_mean(posterior, draws[:, j], m)
            assert_mean(posterior, (draws[:, j] - m).square(), s**2)
    assert_mean(posterior, (posterior.draws["tau"] > 0).double(), 0.5)
    assert "jumps between modes" in repr(posterior)


@pytest.mark.slow
def test_eight_schools_at_the_noise_floor():
    exact = eight_schools.exact_posterior(10_000, seed=1)
    posterior = hmc_posterior(eight_schools.model, seed=1)

    def joined(draws: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["eta"]], -1).double()

    for estimate in (
        knn_kl(joined(posterior.draws), joined(exact)),
        knn_kl(joined(exact), joined(posterior.draws)),
    ):
        assert abs(estimate.value) < 0.03 + 2 * estimate.stderr


def test_classic_eight_schools():
    posterior = hmc_posterior(eight_schools.classic_model, seed=0)
    assert max(posterior.rhat.values()) < 1.01
    for name, (mean, _) in eight_schools.classic_exact_moments().items():
        draws = posterior.draws[name].double().reshape(10_000, -1)
        for j, m in enumerate(mean.reshape(-1).tolist()):
            assert_mean(posterior, draws[:, j], m)
    torch.testing.assert_close(
        posterior.draws["theta"],
        posterior.draws["mu"][:, None] + posterior.draws["tau"][:, None] * posterior.draws["eta"],
    )


def test_unequal_separated_modes():
    weights = torch.tensor([0.6, 0.3, 0.1])
    locs = torch.tensor([[-6.0, 0.0], [6.0, 0.0], [0.0, 9.0]])
    scales = torch.tensor([[1.0, 0.5], [0.4, 1.0], [1.0, 1.0]])
    mixture = dist.MixtureSameFamily(
        dist.Categorical(weights), dist.Normal(locs, scales).to_event(1), validate_args=False
    )
    posterior = hmc_posterior(LogDensity(mixture.log_prob, event_shape=(2,)), seed=0)
    nearest = torch.cdist(posterior.draws["z"], locs).argmin(-1)
    for m in range(3):
        assert_mean(posterior, (nearest == m).double(), float(weights[m]))
    assert max(posterior.rhat.values()) < 1.01


def test_modes_that_no_search_could_join_are_reported():
    def two(z: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(-0.5 * (z[:, 0] - 20).square(), -0.5 * (z[:, 0] + 20).square())

    states = torch.randn(100, 1) + 20 * (-1.0) ** torch.arange(100)[:, None]
    posterior = hmc_posterior(LogDensity(two, event_shape=(1,)), states=states, seed=0, warmup=40, thin=1)
    assert posterior.modes is None
    assert posterior.rhat["z[0]"] > 1.1
    assert any("R-hat of z[0]" in text for text in posterior.warnings)
    assert "WARNING: R-hat of z[0]" in repr(posterior)


def test_divergences_are_reported():
    def half(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, -0.5 * z.square().sum(-1), -math.inf)

    density = LogDensity(half, event_shape=(2,), init=torch.tensor([0.5, 0.0]))
    posterior = hmc_posterior(density, seed=0, chains=200, draws=8, warmup=40, thin=2, max_leapfrog_steps=32)
    assert posterior.divergences > 0
    assert any("transitions diverged" in text for text in posterior.warnings)
    assert_mean(posterior, posterior.draws["z"][:, 0], math.sqrt(2 / math.pi))


def test_too_few_draws_for_rhat_are_reported():
    posterior = hmc_posterior(counts, COUNTS, seed=0, chains=100, draws=3, warmup=20, thin=1)
    assert any("is unknown" in text for text in posterior.warnings)
    assert any("effective sample size" in text for text in posterior.warnings)
    assert "nan" in repr(posterior)


def test_a_spike_that_holds_nothing_is_no_place_to_start():
    # Neal's funnel: its density is highest at v = -40, where there is nothing.
    def funnel(z: torch.Tensor) -> torch.Tensor:
        v, x = z[:, 0], z[:, 1:]
        return -v.square() / 18 - 0.5 * (x.square() * torch.exp(-v)[:, None]).sum(-1) - 4.5 * v

    target = unconstrained_target(LogDensity(funnel, event_shape=(10,)))
    found = starting_states(target, 300)
    assert found.modes is None
    assert float(found.states[:, 0].min()) > -12.0
    assert bool(torch.isfinite(target.log_prob(found.states)).all())


def test_a_mode_too_narrow_for_float32_is_left_out():
    # The centred eight schools: log tau goes to -inf at the highest density, where the Laplace covariance is singular.
    def centred() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, eight_schools.CLASSIC_SIGMA), obs=eight_schools.CLASSIC_Y)

    target = unconstrained_target(centred)
    with pyro.validation_enabled(False):
        for seed in range(3):
            torch.manual_seed(seed)
            found = starting_states(target, 100)
            assert found.states.shape == (100, 10)
            # Half of the posterior of tau lies between 1.3 and 4.9.
            assert 1.0 < float(found.states[:, 1].exp().median()) < 6.0


def test_starts_follow_the_target_not_the_laplace_approximation():
    # A skewed density: importance resampling leaves out what lies where it is 1e-9 of its maximum.
    def skewed(z: torch.Tensor) -> torch.Tensor:
        return (2.0 * z - z.exp()).sum(-1)

    target = unconstrained_target(LogDensity(skewed, event_shape=(3,)))
    found = starting_states(target, 400)
    assert found.states.shape == (400, 3)
    assert found.modes is not None
    assert len(torch.unique(found.states, dim=0)) == 400
    # E exp(z) = 2 exactly; within a tenth is enough for a start.
    assert float(found.states.exp().mean()) == pytest.approx(2.0, rel=0.1)


def test_constrained_sites():
    concentration = torch.tensor([2.0, 3.0, 5.0])
    density = LogDensity(
        lambda v: ((concentration - 1) * v["p"].log()).sum(-1) + 3 * v["s"].log() - 2 * v["s"],
        sites={"p": (constraints.simplex, (3,)), "s": (constraints.positive, ())},
    )
    posterior = hmc_posterior(density, seed=0)
    assert list(posterior.rhat) == ["p[0]", "p[1]", "s"]
    for i in range(3):
        assert_mean(posterior, posterior.draws["p"][:, i], float(concentration[i] / 10))
    assert_mean(posterior, posterior.draws["s"], 2.0)  # Gamma(4, 2)


def test_enumerated_latents_are_summed_out():
    y = torch.tensor([-1.9, -2.2, 2.1, 1.8, 2.0])

    @pyro.infer.config_enumerate
    def mixture() -> None:
        share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 2.0))
        with pyro.plate("data", 5):
            which = pyro.sample("which", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal(100.0 * (2 * which - 1), 1e3), obs=100.0 * y)

    posterior = hmc_posterior(mixture, seed=0)
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1, None]
    right, left = (torch.exp(-0.5 * ((100.0 * y.double() - m) / 1e3) ** 2) for m in (100.0, -100.0))
    density = ((grid * right + (1 - grid) * left).prod(-1, keepdim=True) * grid * (1 - grid))[:, 0]
    assert_mean(posterior, posterior.draws["share"], float((grid[:, 0] * density).sum() / density.sum()))


def test_without_vectorisation():
    y = 1.5

    def scalar() -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        if mu.dim():
            raise ValueError("one draw at a time")
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(y))

    posterior = hmc_posterior(scalar, seed=0, vectorize=False, chains=10, draws=8, warmup=10, thin=1)
    assert posterior.draws["mu"].shape == (80,)
    assert_mean(posterior, posterior.draws["mu"], y / 2)


def test_seed():
    state = torch.get_rng_state()
    settings = {"chains": 50, "draws": 4, "warmup": 10, "thin": 1}
    first, again, other = (hmc_posterior(counts, COUNTS, seed=s, **settings) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.draws["rate"], again.draws["rate"])
    assert not torch.equal(first.draws["rate"], other.draws["rate"])


def test_to_arviz():
    posterior = hmc_posterior(counts, model_kwargs={"y": COUNTS}, seed=0, chains=20, draws=6, warmup=20, thin=1)
    data = posterior.to_arviz()
    found = data["posterior"]
    assert dict(found.sizes) == {"chain": 20, "draw": 6}
    np.testing.assert_array_equal(found["rate"].values, posterior.draws["rate"].reshape(20, 6).numpy())
    np.testing.assert_allclose(found["rate"].values, posterior.run.draws[:, :, 0].exp().numpy(), rtol=1e-6)
    stats = data["sample_stats"]
    rate = posterior.draws["rate"].double().reshape(20, 6)
    # Gamma(14, 6) up to its constant, with the Jacobian of the logarithm.
    kernel = (14 * rate.log() - 6 * rate).numpy()
    np.testing.assert_allclose(stats["lp"].values - stats["lp"].values.mean(), kernel - kernel.mean(), atol=1e-4)
    assert stats["diverging"].values.dtype == bool
    assert stats["acceptance_rate"].values.shape == (20, 6)
    assert found.attrs["inference_library"] == "avbvi"


def test_dimensions_are_named_by_plates():
    data = hmc_posterior(eight_schools.classic_model, seed=0, chains=10, draws=4, warmup=10, thin=1).to_arviz()
    assert data["posterior"]["eta"].dims == ("chain", "draw", "schools")


def test_errors():
    def discrete() -> None:
        pyro.sample("k", dist.Poisson(3.0))

    with pytest.raises(ModelError, match="'k' is a discrete latent"):
        hmc_posterior(discrete)
    with pytest.raises(ValueError, match="chains must be at least 1, found 0"):
        hmc_posterior(counts, COUNTS, chains=0)
    with pytest.raises(ModelError, match="finite at only 0 of"):
        hmc_posterior(LogDensity(lambda z: z.sum(-1) - math.inf, event_shape=(2,)), chains=10)


def test_on_a_device(device):
    posterior = hmc_posterior(counts, COUNTS, seed=0, device=device, chains=200, draws=5, warmup=30, thin=2)
    assert posterior.draws["rate"].device.type == device.type
    assert_mean(posterior, posterior.draws["rate"].cpu(), 14 / 6)
