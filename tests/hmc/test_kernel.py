"""The HMC transition: an exact integrator's properties, an invariant kernel, no infinity in silence."""

import math

import pytest
import torch

from avbvi.hmc.adaptation import DenseMetric, DiagonalMetric
from avbvi.hmc.kernel import evaluate, hmc_step, leapfrog

METRICS = [
    DiagonalMetric(torch.tensor([0.7, 1.6], dtype=torch.float64)),
    DenseMetric(torch.tensor([[0.7, 0.0], [-0.9, 1.1]], dtype=torch.float64)),
]


def banana(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * z[:, 0].square() - 0.5 * (z[:, 1] - z[:, 0].square()).square()


def log_gamma(z: torch.Tensor) -> torch.Tensor:
    """Log-density of the logarithms of independent Gamma(2, 1) variables."""
    return (2.0 * z - z.exp()).sum(-1)


def gamma_draws(n: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.distributions.Gamma(torch.tensor(2.0, dtype=dtype), 1.0).sample((n, dim)).log()


@pytest.mark.parametrize("metric", METRICS, ids=["diagonal", "dense"])
def test_leapfrog_is_reversible(metric):
    z, r = torch.randn(2, 50, 2, dtype=torch.float64)
    start = evaluate(banana, z)
    end, r_end, finite = leapfrog(banana, start, r, step_size=0.1, leapfrog_steps=20, metric=metric)
    back, r_back, _ = leapfrog(banana, end, -r_end, step_size=0.1, leapfrog_steps=20, metric=metric)
    kept = finite & (end.z.abs().amax(-1) < 50)  # the integrator is unstable in the far tails
    assert kept.sum() > 40
    assert (end.z - z).abs().max() > 0.5
    torch.testing.assert_close(back.z[kept], z[kept], atol=1e-9, rtol=0)
    torch.testing.assert_close(-r_back[kept], r[kept], atol=1e-9, rtol=0)


@pytest.mark.parametrize("metric", METRICS, ids=["diagonal", "dense"])
def test_leapfrog_preserves_volume(metric):
    def end(x: torch.Tensor) -> torch.Tensor:
        state = evaluate(banana, x[:, :2])
        z, r, _ = leapfrog(banana, state, x[:, 2:], step_size=0.3, leapfrog_steps=5, metric=metric)
        return torch.cat([z.z, r], -1)

    point, h = torch.tensor([0.3, -0.5, 0.8, 0.2], dtype=torch.float64), 1e-6
    steps = h * torch.eye(4, dtype=torch.float64)
    jacobian = (end(point + steps) - end(point - steps)).mT / (2 * h)
    assert (jacobian - torch.eye(4)).abs().max() > 0.3
    # Central differences: error h^2 plus rounding 1e-16 / h.
    assert abs(float(torch.linalg.det(jacobian)) - 1.0) < 1e-7


@pytest.mark.parametrize("metric", METRICS, ids=["diagonal", "dense"])
def test_energy_error_falls_with_the_square_of_the_step_size(metric):
    z, r = torch.randn(2, 200, 2, dtype=torch.float64)
    start = evaluate(banana, z)

    def error(steps: int) -> torch.Tensor:
        end, r_end, _ = leapfrog(banana, start, r, step_size=1.0 / steps, leapfrog_steps=steps, metric=metric)
        return (0.5 * (r_end.square() - r.square()).sum(-1) - end.log_prob + start.log_prob).abs().median()

    assert float(error(80) / error(160)) == pytest.approx(4.0, rel=0.05)


def test_harmonic_oscillator():
    # For a standard normal the leapfrog rotates by arccos(1 - eps^2 / 2) per step along an ellipse of aspect
    # sqrt(1 - eps^2 / 4).
    eps, steps = 0.5, 7
    z, r = torch.randn(2, 20, 1, dtype=torch.float64)
    unit = DiagonalMetric(torch.ones(1, dtype=torch.float64))
    normal = lambda x: -0.5 * x.square().sum(-1)  # noqa: E731
    end, r_end, _ = leapfrog(normal, evaluate(normal, z), r, step_size=eps, leapfrog_steps=steps, metric=unit)
    angle, aspect = steps * math.acos(1 - eps**2 / 2), math.sqrt(1 - eps**2 / 4)
    torch.testing.assert_close(end.z, z * math.cos(angle) + r / aspect * math.sin(angle))
    torch.testing.assert_close(r_end, r * math.cos(angle) - z * aspect * math.sin(angle))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transition_leaves_exact_draws_exact(dtype):
    n = 20_000
    state = evaluate(log_gamma, gamma_draws(n, 2, dtype))
    metric = DiagonalMetric(torch.full((2,), 0.8, dtype=dtype))
    accepted = []
    for _ in range(8):
        # A step so long that without the acceptance test the draws would be far off.
        transition = hmc_step(log_gamma, state, step_size=1.3, leapfrog_steps=2, metric=metric)
        state = transition.state
        accepted.append(transition.accepted.double().mean())
        assert (transition.probability.double().mean() - accepted[-1]).abs() < 4 * 0.5 / math.sqrt(n)
    assert 0.3 < float(torch.stack(accepted).mean()) < 0.9
    assert state.z.dtype == dtype
    x = state.z.double().exp().flatten()
    # Gamma(2, 1): E x = 2, var x = 2, E x^2 = 6, var x^2 = 120 - 36; E log x = digamma(2), var log x = trigamma(2).
    assert abs(float(x.mean()) - 2.0) < 4 * math.sqrt(2.0 / (2 * n))
    assert abs(float(x.square().mean()) - 6.0) < 4 * math.sqrt(84.0 / (2 * n))
    assert abs(float(x.log().mean()) - 0.4227843) < 4 * math.sqrt(0.6449341 / (2 * n))


def test_state_agrees_with_its_density_and_gradient():
    state = evaluate(log_gamma, gamma_draws(100, 3))
    metric = DiagonalMetric(torch.ones(3, dtype=torch.float64))
    for _ in range(3):
        transition = hmc_step(log_gamma, state, step_size=0.8, leapfrog_steps=3, metric=metric)
        assert bool(transition.accepted.any())
        assert not bool(transition.accepted.all())
        state = transition.state
    torch.testing.assert_close(state.log_prob, log_gamma(state.z))
    torch.testing.assert_close(state.gradient, 2.0 - state.z.exp())


def test_divergent_transitions_are_flagged_and_rejected():
    # Neal's funnel: in the neck (v = -6) the step is 20 sds long, in the mouth it is fine.
    def funnel(z: torch.Tensor) -> torch.Tensor:
        v, x = z[:, 0], z[:, 1:]
        return -v.square() / 18 - 0.5 * (x.square() * torch.exp(-v)[:, None]).sum(-1) - 4.5 * v

    z = torch.zeros(200, 10, dtype=torch.float64)
    z[:100, 0], z[100:, 0] = -6.0, 5.0
    unit = DiagonalMetric(torch.ones(10, dtype=torch.float64))
    transition = hmc_step(funnel, evaluate(funnel, z), step_size=1.0, leapfrog_steps=1, metric=unit)
    assert bool(transition.divergent[:100].all())
    assert not bool(transition.divergent[100:].any())
    assert not bool(transition.accepted[:100].any())
    torch.testing.assert_close(transition.state.z[:100], z[:100], atol=0, rtol=0)
    assert bool(torch.isfinite(transition.state.gradient).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_density_on_the_way_is_rejected(bad):
    asked = []

    def strip(z: torch.Tensor) -> torch.Tensor:
        """A standard normal but in the strip 1 < z < 2."""
        asked.append(z.detach())
        return torch.where((z[:, 0] > 1.0) & (z[:, 0] < 2.0), bad, -0.5 * z[:, 0].square())

    z = torch.cat([torch.full((50, 1), 0.9), torch.full((50, 1), -3.0)]).double()
    unit = DiagonalMetric(torch.ones(1, dtype=torch.float64))
    state = evaluate(strip, z)
    momentum = torch.where(z > 0.0, 3.0, -3.0)
    _, _, finite = leapfrog(strip, state, momentum, step_size=0.2, leapfrog_steps=6, metric=unit)
    assert finite.tolist() == [False] * 50 + [True] * 50
    # The chains that left the support wait at their start, though beyond the strip the density is finite again.
    assert torch.equal(asked[-1][:50], z[:50])
    transition = hmc_step(strip, state, step_size=0.2, leapfrog_steps=6, metric=unit)
    through = ~torch.isfinite(strip(transition.state.z)) & (bad != -math.inf)
    assert not bool(through.any())
    assert not bool(((transition.state.z > 1.0) & (transition.state.z < 2.0)).any())
    assert bool((transition.divergent[:50] | transition.accepted[:50]).all())


def test_nan_counts_as_zero_density():
    state = evaluate(lambda z: z[:, 0] * math.nan, torch.zeros(3, 1))
    assert bool((state.log_prob == -math.inf).all())


def test_a_chain_without_density_takes_any_step_into_the_support():
    def half_normal(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, -0.5 * z[:, 0].square(), -math.inf)

    state = evaluate(half_normal, torch.full((2000, 1), -0.5, dtype=torch.float64))
    unit = DiagonalMetric(torch.ones(1, dtype=torch.float64))
    transition = hmc_step(half_normal, state, step_size=1.0, leapfrog_steps=1, metric=unit)
    inside = transition.state.z[:, 0] > 0
    # The first step is z + r: inside where r > .5, with probability .3085.
    assert abs(float(inside.double().mean()) - 0.3085) < 4 * math.sqrt(0.3085 * 0.6915 / 2000)
    assert bool((transition.accepted == inside).all())


def test_flat_density_has_gradient_zero():
    state = evaluate(lambda z: torch.zeros(len(z)), torch.randn(4, 2))
    assert bool((state.gradient == 0).all())


def test_step_size_per_chain():
    z, r = torch.randn(2, 6, 2, dtype=torch.float64)
    sizes = torch.linspace(0.05, 0.3, 6, dtype=torch.float64)[:, None]
    start = evaluate(banana, z)
    together, _, _ = leapfrog(banana, start, r, step_size=sizes, leapfrog_steps=3, metric=METRICS[1])
    for i in range(6):
        one = evaluate(banana, z[i : i + 1])
        alone, _, _ = leapfrog(
            banana, one, r[i : i + 1], step_size=float(sizes[i]), leapfrog_steps=3, metric=METRICS[1]
        )
        torch.testing.assert_close(alone.z[0], together.z[i])
