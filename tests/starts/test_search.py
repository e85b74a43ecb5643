"""The search for a start, on targets whose moments, modes and weights are known."""

from __future__ import annotations

import math
import time

import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi import LogDensity
from avbvi.reference import unconstrained_target
from avbvi.starts import SMALL_EFFORT, Start, find_start
from avbvi.starts.search import tolerant
from avbvi.targets import Model
from models import eight_schools, toy_densities


def search(model: Model) -> Start:
    target = unconstrained_target(model)
    with pyro.validation_enabled(False):
        return find_start(
            target.log_prob, target.starting_points, target.broad_draws(1000), target.layout.coordinate_names
        )


def assert_weights(start: Start, locs: Tensor, exact: Tensor) -> None:
    """One mode at each of the locs, in any order, with its weight to within a tenth."""
    assert start.modes is not None
    assert len(start.modes.locs) == len(locs)
    nearest = torch.cdist(start.modes.locs, locs).argmin(-1)
    assert sorted(nearest.tolist()) == list(range(len(locs)))
    torch.testing.assert_close(start.modes.log_weights.exp(), exact[nearest], rtol=0.1, atol=0.0)
    assert start.notes == []


def badly_scaled(dim: int, dtype: torch.dtype) -> Tensor:
    """Triangular factor of a correlated covariance with sds from 1e-3 to 1e4."""
    factor = torch.randn(dim, dim, dtype=torch.float64)
    covariance = factor @ factor.mT + torch.eye(dim, dtype=torch.float64)
    sd = covariance.diagonal().sqrt()
    scale = torch.logspace(-3, 4, dim, dtype=torch.float64)[:, None]
    return (scale * torch.linalg.cholesky(covariance / torch.outer(sd, sd))).to(dtype)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 30.0), (torch.float64, 1e4)])
def test_a_badly_scaled_normal_far_from_zero_is_exact(dtype: torch.dtype, far: float) -> None:
    torch.set_default_dtype(dtype)
    factor, loc = badly_scaled(8, dtype), torch.full((8,), far)
    start = search(LogDensity(MultivariateNormal(loc, scale_tril=factor).log_prob, (8,)))
    assert start.loc is not None
    assert start.covariance is not None
    assert start.notes == []
    error = torch.linalg.solve_triangular(factor, (start.loc - loc)[:, None], upper=False)
    assert float(error.abs().max()) < 0.05  # in posterior sds
    half = torch.linalg.solve_triangular(factor.double(), start.covariance.double(), upper=False)
    white = torch.linalg.solve_triangular(factor.double(), half.mT, upper=False)
    torch.testing.assert_close(torch.linalg.eigvalsh(white), torch.ones(8).double(), atol=0.01, rtol=0.0)


def test_a_coordinate_that_float32_does_not_resolve_is_told() -> None:
    """1e4 away an sd of 1e-3 is one unit of rounding."""
    q = MultivariateNormal(torch.tensor([1e4, 1e4]), torch.diag(torch.tensor([1e-6, 1.0])))
    start = search(LogDensity(q.log_prob, (2,)))
    assert start.suspect
    assert "peak along z[0] that is narrower than float32 resolves" in start.notes[0]


def test_a_hundred_dimensions_of_condition_1e4() -> None:
    dim = 100
    axes = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    variance = torch.logspace(-2, 2, dim, dtype=torch.float64)
    loc, precision = 3.0 * torch.randn(dim), ((axes / variance) @ axes.mT).float()
    target = LogDensity(lambda z: -0.5 * ((z - loc) @ precision * (z - loc)).sum(-1), (dim,))
    begun = time.process_time()
    start = search(target)
    assert time.process_time() - begun < 5.0
    assert start.loc is not None
    assert start.covariance is not None
    white = axes.mT @ start.covariance.double() @ axes / torch.outer(variance.sqrt(), variance.sqrt())
    torch.testing.assert_close(torch.linalg.eigvalsh(white), torch.ones(dim).double(), atol=0.01, rtol=0.0)
    assert float(((start.loc - loc).double() @ axes / variance.sqrt()).abs().max()) < 0.05


def test_four_bananas_of_unequal_weights() -> None:
    weights, centres = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.zeros(4, 10)
    centres[:, 0], centres[:, 2] = torch.tensor([-8.0, 8.0, -8.0, 8.0]), torch.tensor([-8.0, -8.0, 8.0, 8.0])

    def log_prob(z: Tensor) -> Tensor:
        x = z[:, None] - centres
        straight = x[..., 1] - 0.5 * (x[..., 0].square() - 1.0)
        rest = x[..., 0].square() + straight.square() + x[..., 2:].square().sum(-1)
        return torch.logsumexp(weights.log() - 0.5 * rest, -1)

    begun = time.process_time()
    start = search(LogDensity(log_prob, (10,)))
    assert time.process_time() - begun < 2.0
    assert_weights(start, centres, weights)


@pytest.mark.parametrize("sd", [0.5, 0.2])
def test_eight_modes_on_a_circle(sd: float) -> None:
    angle = torch.arange(8) * math.pi / 4
    centres = 4.0 * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(z: Tensor) -> Tensor:
        return torch.logsumexp(-0.5 * (z[:, None] - centres).square().sum(-1) / sd**2, -1)

    assert_weights(search(LogDensity(log_prob, (2,))), centres, torch.full((8,), 0.125))


def test_both_moons() -> None:
    start = search(LogDensity(toy_densities.two_moons, (2,)))
    assert_weights(start, torch.tensor([[-1.8, 0.0], [1.8, 0.0]]), torch.tensor([0.5, 0.5]))


def test_both_signs_of_eight_schools() -> None:
    start = search(eight_schools.model)
    assert start.modes is not None
    assert len(start.modes.locs) == 2
    assert float(start.modes.locs[:, 1].prod()) < 0.0
    torch.testing.assert_close(start.modes.log_weights.exp(), torch.tensor([0.5, 0.5]), rtol=0.1, atol=0.0)


def test_a_skewed_density() -> None:
    """The logarithm of a Gamma(2, 1): mean digamma(2), sd sqrt(trigamma(2))."""
    start = search(LogDensity(lambda z: (2.0 * z - z.exp()).sum(-1), (3,)))
    assert start.loc is not None
    assert start.covariance is not None
    exact_sd = math.sqrt(math.pi**2 / 6 - 1.0)
    assert float((start.loc - (1.0 - 0.5772157)).abs().max()) < 0.5 * exact_sd
    assert bool(((start.covariance.diagonal().sqrt() / exact_sd - 1.0).abs() < 0.3).all())


@pytest.mark.xfail(strict=True, reason="three Gaussians are kept, and their mean in v is 3.5: 1.2 posterior sds off")
def test_a_funnel_is_met_where_its_mass_is() -> None:
    start = search(LogDensity(toy_densities.funnel, (10,)))
    assert start.modes is not None
    assert start.loc is not None
    assert start.covariance is not None
    # v ~ N(0, 3^2); the optimum, at v = -40, holds nothing. The Gaussian of the largest ELBO has the sd 1 / sqrt(4.5 +
    # 1 / 9) = .47 in v, and its mean at 0; the posterior's own is 3.
    assert abs(float(start.loc[0])) < 3.0
    assert 0.4 < float(start.covariance[0, 0].sqrt()) < 4.0
    assert not start.suspect


def test_heavy_tails_are_no_cause_for_suspicion() -> None:
    start = search(LogDensity(lambda z: -torch.log1p(z.square()).sum(-1), (3,)))
    assert start.notes == []
    assert start.loc is not None
    assert float(start.loc.abs().max()) < 1.0


def test_errors_at_single_points_are_places_without_density() -> None:
    def log_prob(z: Tensor) -> Tensor:
        if bool((z < 0.0).any()):
            raise ValueError("negative")
        return -z.sum(-1)

    z = torch.tensor([[1.0], [-1.0], [2.0], [3.0], [-4.0]])
    expected = torch.tensor([-1.0, -math.inf, -2.0, -3.0, -math.inf])
    torch.testing.assert_close(tolerant(log_prob)(z), expected)
    with pytest.raises(ValueError, match="negative"):
        tolerant(log_prob)(-z.abs())


def test_a_small_effort_takes_few_evaluations() -> None:
    count = 0

    def log_prob(z: Tensor) -> Tensor:
        nonlocal count
        count += len(z)
        return -0.5 * (z - 3.0).square().sum(-1)

    target = unconstrained_target(LogDensity(log_prob, (3,)))
    broad = target.broad_draws(SMALL_EFFORT.draws)
    count = 0
    start = find_start(log_prob, target.starting_points, broad, target.layout.coordinate_names, SMALL_EFFORT)
    assert start.loc is not None
    torch.testing.assert_close(start.loc, torch.full((3,), 3.0), atol=0.1, rtol=0.0)
    assert count < 4000
