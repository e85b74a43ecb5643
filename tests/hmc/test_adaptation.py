"""What the warm-up learns: mass, step size, trajectory length, and the sequence that jitters it."""

import math

import numpy as np
import pytest
import torch

from avbvi.hmc.adaptation import (
    ChEES,
    DenseMass,
    DenseMetric,
    DiagonalMass,
    DiagonalMetric,
    DualAveraging,
    Moments,
    Proposals,
    harmonic_mean,
    reasonable_step_size,
    van_der_corput,
)


def moments(states: torch.Tensor, *, dense: bool) -> Moments:
    """Fed in two unequal pieces."""
    result = Moments(states[:7], dense=dense)
    result.add(states[:30])
    result.add(states[30:])
    return result


def badly_scaled(n: int = 200) -> torch.Tensor:
    """Far from 0 in units of their sd, correlated, on scales from 1e-4 to 1e4."""
    z = torch.randn(n, 3, dtype=torch.float64) @ torch.tensor([[1.0, 0.9, 0.0], [0, 0.3, 0.5], [0, 0, 1.0]]).double()
    return torch.tensor([1.0, -5.0, 1e6]).double() + z * torch.tensor([1e-4, 1.0, 1e4]).double()


def test_moments_are_those_of_all_states():
    z = badly_scaled()
    cov = torch.from_numpy(np.cov(z.numpy(), rowvar=False, bias=True))
    torch.testing.assert_close(moments(z, dense=True).variance(), cov, rtol=1e-9, atol=0)
    torch.testing.assert_close(moments(z, dense=False).variance(), cov.diagonal(), rtol=1e-9, atol=0)


def test_dense_mass_is_the_covariance():
    z = badly_scaled()
    metric = DenseMass().metric(moments(z, dense=True), z)
    assert isinstance(metric, DenseMetric)
    cov = np.cov(z.numpy(), rowvar=False, bias=True)
    scales = np.sqrt(np.diag(cov))
    shrunk = np.where(np.eye(3, dtype=bool), cov, cov * 200 / 200.3)
    found = (metric.factor @ metric.factor.mT).numpy()
    np.testing.assert_allclose(found / np.outer(scales, scales), shrunk / np.outer(scales, scales), atol=1e-12)


def test_diagonal_mass_is_the_variances():
    z = badly_scaled()
    metric = DiagonalMass().metric(moments(z, dense=False), z.float())
    assert isinstance(metric, DiagonalMetric)
    assert metric.scales.dtype == torch.float32
    np.testing.assert_allclose(metric.scales.double().numpy(), z.numpy().std(0), rtol=1e-6)


def test_a_coordinate_that_does_not_vary_gets_the_others_scale():
    z = torch.stack([torch.full((50,), 3.0), 2.0 * torch.randn(50), 2.0 * torch.randn(50)], -1).double()
    state = Moments(z, dense=False)
    state.add(z)
    scales = DiagonalMass().metric(state, z).scales
    assert float(scales[0]) == pytest.approx(float(scales[1:].min()))
    one = Moments(z[:1], dense=True)
    one.add(z[:1])
    factor = DenseMass().metric(one, z).factor
    torch.testing.assert_close(factor, torch.eye(3, dtype=torch.float64))


def test_more_dimensions_than_states_give_a_proper_matrix():
    z = torch.randn(10, 40, dtype=torch.float64)
    state = Moments(z, dense=True)
    state.add(z)
    metric = DenseMass().metric(state, z)
    assert isinstance(metric, DenseMetric)
    assert bool(torch.isfinite(metric.factor).all())
    assert bool((metric.factor.diagonal() > 0).all())


@pytest.mark.parametrize(
    "metric",
    [
        DiagonalMetric(torch.tensor([0.5, 3.0], dtype=torch.float64)),
        DenseMetric(torch.tensor([[0.5, 0.0], [2.0, 3.0]], dtype=torch.float64)),
    ],
    ids=["diagonal", "dense"],
)
def test_metric_maps_belong_together(metric):
    z, g = torch.randn(2, 9, 2, dtype=torch.float64)
    factor = metric.scale(torch.eye(2, dtype=torch.float64)).mT  # columns L e_i
    torch.testing.assert_close(metric.scale(z), z @ factor.mT)
    torch.testing.assert_close(metric.pull(g), g @ factor)
    torch.testing.assert_close(metric.whiten(metric.scale(z)), z)


def test_harmonic_mean():
    p = torch.tensor([1.0, 0.5, 0.25])
    assert float(harmonic_mean(p)) == pytest.approx(3 / (1 + 2 + 4))
    # A chain that never accepts counts as one in ten.
    assert float(harmonic_mean(torch.tensor([1.0, 0.0]))) == pytest.approx(2 / 11)


def test_dual_averaging_follows_its_closed_form():
    # Hoffman and Gelman (2014), eq. 5: x_{t+1} = mu - sqrt(t) / gamma / (t + t0) sum_{i <= t} (target - a_i).
    acceptance = torch.rand(60, dtype=torch.float64).tolist()
    search, steps = DualAveraging(0.3, target=0.75), []
    for a in acceptance:
        search.update(a)
        steps.append(search.step_size)
    t = np.arange(1, 61)
    x = np.log(0.3) - np.sqrt(t) / 0.2 / (t + 10) * np.cumsum(0.75 - np.array(acceptance))
    np.testing.assert_allclose(steps, np.exp(x))
    # The average has weights eta_t prod_{s > t} (1 - eta_s) with eta_t = t^-.75.
    eta = t**-0.75
    weights = [eta[i] * np.prod(1 - eta[i + 1 :]) for i in range(60)]
    assert search.average == pytest.approx(math.exp(np.dot(weights, x)))


@pytest.mark.parametrize("start", [0.01, 0.3, 5.0])
def test_dual_averaging_finds_the_step_size_of_the_target(start):
    # Acceptance exp(-step^2): the target .75 is met at sqrt(log(4/3)) = .536.
    search = DualAveraging(start, target=0.75)
    for _ in range(500):
        search.update(math.exp(-(search.step_size**2)))
    assert search.step_size == pytest.approx(math.sqrt(math.log(4 / 3)), rel=0.05)


def test_reasonable_step_size_brackets_one_half():
    for start in (1e-6, 0.3, 1e6):
        found = reasonable_step_size(lambda e: math.exp(-e), start)
        # Acceptance is 1/2 at log 2; the answer is the largest on the grid above one half.
        assert math.log(2) / 2 <= found <= math.log(2)


def test_van_der_corput():
    assert [van_der_corput(i) for i in range(1, 8)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]


@pytest.mark.parametrize("start", [0.2, 8.0])
def test_chees_finds_the_best_length_for_a_normal(start):
    # Exact dynamics of a standard normal rotate (z, r) by t = u T: the criterion is proportional to E_u sin^2(u T)
    # = 1/2 - sin(2 T) / (4 T), whose first maximum is where tan(2 T) = 2 T: T = 2.2467. From above the
    # ascent ends in the next, lower maximum: 2 T = 10.9041, T = 5.4521.
    search = ChEES(start)
    for i in range(1, 600):
        u = van_der_corput(i)
        z, r = torch.randn(2, 500, 4)
        t = u * search.length
        proposed, velocity = z * math.cos(t) + r * math.sin(t), r * math.cos(t) - z * math.sin(t)
        search.update(Proposals(z, proposed, velocity, torch.ones(500)), u, 100.0)
    best = 2.2467 if start < 2.0 else 5.4521
    assert search.average == pytest.approx(best, rel=0.15)


def test_chees_ignores_what_is_not_finite():
    search = ChEES(1.0)
    z, r = torch.randn(2, 100, 2)
    bad = z.clone()
    bad[:10] = math.inf
    probability = torch.ones(100)
    probability[:10] = 0.0
    search.update(Proposals(z, bad, r, probability), 0.5, 100.0)
    assert math.isfinite(search.length)
    assert search.length != 1.0
    before = search.length
    search.update(Proposals(z, torch.full_like(z, math.nan), r, torch.zeros(100)), 0.5, 100.0)
    assert search.length == before
