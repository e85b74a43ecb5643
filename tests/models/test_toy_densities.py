"""The toy densities against independent densities, and their draws against the densities.

The tests of draws see the marginals (Kolmogorov-Smirnov), the joint law in the plane (chi-square
over cells, whose probabilities come from quadrature of the log density) and, in any dimension, Stein's
identity E[grad log p] = 0, E[z_i grad_j log p] = -delta_ij.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from avbvi import LogDensity
from models.correlated_normal import CorrelatedNormal
from models.toy_densities import LOG_EVIDENCE, TOYS, quadrature_log_evidence

DRAWS = 100_000
MANY = 1_000_000  # sees a weight or a width that is off by 1 %
# Rectangles that leave out less than 1e-10 of the mass, and points per axis for 1e-8.
BOXES: dict[str, tuple[tuple[float, float], tuple[float, float], int]] = {
    "figure_1": ((-14.0, -8.0), (14.0, 5.0), 1601),
    "banana": ((-14.0, -10.0), (14.0, 105.0), 801),
    "ring": ((-6.0, -6.0), (6.0, 6.0), 801),
    "eight_modes": ((-7.0, -7.0), (7.0, 7.0), 801),
    "cross": ((-11.0, -11.0), (11.0, 11.0), 801),
    "two_moons": ((-8.0, -8.0), (8.0, 8.0), 801),
}
NAMES = list(TOYS)
Array = np.ndarray[Any, np.dtype[np.float64]]


def limit(comparisons: int) -> float:
    """Bound in standard errors that the largest of so many normal deviations exceeds once in 10 000 times."""
    return float(stats.norm.isf(0.5e-4 / comparisons))


def figure_1(z: Array) -> Array:
    first, second = z[:, 0], z[:, 1]
    wave = np.sin(2.0 * np.pi * first / 4.0)
    shift = 3.0 / (1.0 + np.exp(-(first - 1.0) / 0.3))
    given = 0.4 * stats.norm.pdf(second, wave, 0.4) + 0.35 * stats.norm.pdf(second, wave - shift, 0.35)
    return stats.norm.logpdf(first, 0.0, 2.0) + np.log(given / 0.75)


def banana(z: Array) -> Array:
    return stats.norm.logpdf(z[:, 0], 0.0, 2.0) + stats.norm.logpdf(z[:, 1], 0.5 * z[:, 0] ** 2 - 2.0, 1.0)


def ring(z: Array) -> Array:
    total, _ = integrate.quad(lambda r: r * math.exp(-(((r - 2.0) / 0.3) ** 2) / 2.0), 0.0, 6.0, points=[2.0])
    return -(((np.hypot(z[:, 0], z[:, 1]) - 2.0) / 0.3) ** 2) / 2.0 - math.log(2.0 * math.pi * total)


def eight_modes(z: Array) -> Array:
    parts = [
        stats.multivariate_normal(4.0 * np.array([np.cos(a), np.sin(a)]), 0.09 * np.eye(2)).pdf(z)
        for a in np.pi / 4.0 * np.arange(8)
    ]
    return np.log(np.mean(parts, 0))


def cross(z: Array) -> Array:
    parts = [stats.multivariate_normal(cov=[[2.0, c], [c, 2.0]]).pdf(z) for c in (1.8, -1.8)]
    return np.log(np.mean(parts, 0))


def two_moons(z: Array) -> Array:
    # The integral in polar coordinates.
    def integrand(angle: float, r: float) -> float:
        x = r * math.cos(angle)
        cut = math.exp(-(((x - 2.0) / 0.6) ** 2) / 2.0) + math.exp(-(((x + 2.0) / 0.6) ** 2) / 2.0)
        return r * math.exp(-(((r - 2.0) / 0.4) ** 2) / 2.0) * cut

    total, _ = integrate.dblquad(integrand, 0.0, 6.0, 0.0, 0.5 * math.pi, epsabs=1e-11, epsrel=1e-11)
    r = np.hypot(z[:, 0], z[:, 1])
    cut = np.exp(-(((z[:, 0] - 2.0) / 0.6) ** 2) / 2.0) + np.exp(-(((z[:, 0] + 2.0) / 0.6) ** 2) / 2.0)
    return -(((r - 2.0) / 0.4) ** 2) / 2.0 + np.log(cut) - math.log(4.0 * total)


def funnel(z: Array) -> Array:
    v = z[:, :1]
    return stats.norm.logpdf(v[:, 0], 0.0, 3.0) + stats.norm.logpdf(z[:, 1:], 0.0, np.exp(v / 2.0)).sum(1)


@pytest.mark.parametrize("normalised", [figure_1, banana, ring, eight_modes, cross, two_moons, funnel])
def test_log_density_less_log_evidence_is_the_normalised_density(normalised: Callable[[Array], Array]) -> None:
    toy = TOYS[normalised.__name__]
    draws = toy.sample(100, seed=1)
    z = torch.cat([draws, draws + 0.3 * torch.randn(draws.shape, dtype=torch.float64)])
    value = (toy.log_prob(z) - toy.log_evidence).numpy()
    np.testing.assert_allclose(value, normalised(z.numpy()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BOXES)
def test_stated_log_evidence(name: str) -> None:
    lo, hi, points = BOXES[name]
    value = quadrature_log_evidence(TOYS[name].log_prob, lo, hi, points)
    assert value == pytest.approx(TOYS[name].log_evidence, abs=1e-8)


def plane(name: str) -> tuple[list[Array], Array]:
    """Centres of fine cells along both axes and the probabilities of these cells, by the midpoint rule."""
    lo, hi, _ = BOXES[name]
    cells = 1600
    edges = [np.linspace(lo[i], hi[i], cells + 1) for i in range(2)]
    centres = [0.5 * (e[1:] + e[:-1]) for e in edges]
    grid = torch.from_numpy(np.stack(np.meshgrid(*centres, indexing="ij"), -1))
    mass = (TOYS[name].log_prob(grid) - TOYS[name].log_evidence).exp().numpy()
    area = math.prod((hi[i] - lo[i]) / cells for i in range(2))
    assert mass.sum() * area == pytest.approx(1.0, abs=1e-8)
    return centres, mass * area


@pytest.mark.parametrize("name", BOXES)
def test_draws_in_the_plane_follow_the_density(name: str) -> None:
    toy = TOYS[name]
    lo, hi, _ = BOXES[name]
    draws = toy.sample(MANY, seed=2).numpy()
    centres, mass = plane(name)
    for cells in (80, 10):
        size = mass.shape[0] // cells
        expected = MANY * mass.reshape(cells, size, cells, size).sum((1, 3))
        counts, _, _ = np.histogram2d(draws[:, 0], draws[:, 1], bins=cells, range=[(lo[0], hi[0]), (lo[1], hi[1])])
        full = expected >= 10.0
        assert full.sum() > 10
        observed = np.append(counts[full], MANY - counts[full].sum())
        wanted = np.append(expected[full], MANY - expected[full].sum())
        assert stats.chisquare(observed, wanted).pvalue > 1e-4
    for axis in range(2):
        density = mass.sum(1 - axis)
        # A cell's probability is spread evenly over it; with 1600 cells KS can't see that.
        edge = np.concatenate([[0.0], density.cumsum()])
        ends = np.linspace(lo[axis], hi[axis], len(edge))
        assert stats.kstest(draws[:, axis], lambda x, e=ends, c=edge: np.interp(x, e, c)).pvalue > 1e-4
        mean = float(density @ centres[axis])
        deviation = draws[:, axis] - mean
        assert abs(deviation.mean()) < 4.0 * deviation.std() / math.sqrt(MANY)
        square = deviation**2
        variance = float(density @ (centres[axis] - mean) ** 2)
        assert abs(square.mean() - variance) < 4.0 * square.std() / math.sqrt(MANY)


def test_radius_of_the_ring() -> None:
    # The rejection step moves the width by 1 %, which is lost in the coordinates' marginals.
    def moment(power: int) -> float:
        value, _ = integrate.quad(lambda r: r ** (1 + power) * math.exp(-(((r - 2.0) / 0.3) ** 2) / 2.0), 0.0, 6.0)
        return float(value)

    radius = TOYS["ring"].sample(MANY, seed=8).norm(dim=-1).numpy()
    mean, second = (moment(power) / moment(0) for power in (1, 2))
    assert abs(radius.mean() - mean) < 4.0 * radius.std() / math.sqrt(MANY)
    square = (radius - mean) ** 2
    assert abs(square.mean() - (second - mean**2)) < 4.0 * square.std() / math.sqrt(MANY)


def test_marginals_of_the_funnel() -> None:
    draws = TOYS["funnel"].sample(DRAWS, seed=3).numpy()
    assert stats.kstest(draws[:, 0], stats.norm(0.0, 3.0).cdf).pvalue > 1e-4
    v = np.linspace(-24.0, 24.0, 2001)
    weight = stats.norm.pdf(v, 0.0, 3.0)
    x = np.sinh(np.linspace(-16.0, 16.0, 4001))  # dense near 0, where the neck lies
    cdf = np.array([(stats.norm.cdf(value * np.exp(-v / 2.0)) * weight).sum() * (v[1] - v[0]) for value in x])
    for column in range(1, 10):
        assert stats.kstest(draws[:, column], lambda value: np.interp(value, x, cdf)).pvalue > 1e-4
    standard = draws[:, 1:] * np.exp(-0.5 * draws[:, :1])
    error = np.abs(standard.T @ standard / DRAWS - np.eye(9)) * math.sqrt(DRAWS) / np.sqrt(1.0 + np.eye(9))
    assert error.max() < limit(45)


@pytest.mark.parametrize("dim", [20, 50])
def test_moments_and_marginals_of_the_gaussians(dim: int) -> None:
    toy = TOYS[f"gaussian_{dim}"]
    standard = toy.sample(DRAWS, seed=4).numpy() / np.geomspace(1e-2, 1e2, dim)
    correlation = CorrelatedNormal(dim).correlation.numpy()
    assert np.abs(standard.mean(0)).max() < limit(dim) / math.sqrt(DRAWS)
    # Var(z_i z_j) = 1 + rho^2
    error = np.sqrt((1.0 + correlation**2) / DRAWS)
    deviation = np.abs(standard.T @ standard / DRAWS - correlation) / error
    assert deviation.max() < limit(dim * (dim + 1) // 2)
    for column in standard.T:
        assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_draws_satisfy_steins_identity(name: str) -> None:
    # In the funnel z_i grad_j log p has heavy tails for some (i, j). These are odd in a normal
    # factor, and the ratio to the sample's own standard error of symmetric terms has tails no heavier than
    # a normal's (Efron 1969), so that the bound holds there as well.
    toy = TOYS[name]
    z = toy.sample(DRAWS, seed=5).requires_grad_()
    (score,) = torch.autograd.grad(toy.log_prob(z).sum(), z)
    z = z.detach()
    assert float((score.mean(0) / score.std(0)).abs().max()) * math.sqrt(DRAWS) < limit(toy.dim)
    product = z.mT @ score / DRAWS
    error = ((z.square().mT @ score.square() / DRAWS - product.square()) / DRAWS).sqrt()
    assert float(((product + torch.eye(toy.dim)) / error).abs().max()) < limit(toy.dim**2)


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_seeded_and_leave_the_global_state_alone(name: str) -> None:
    toy = TOYS[name]
    state = torch.random.get_rng_state()
    first = toy.sample(50, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, toy.sample(50, seed=1))
    assert not torch.equal(first, toy.sample(50, seed=2))
    assert first.shape == (50, toy.dim)
    assert first.dtype == torch.float64
    assert toy.sample(1, seed=1).shape == (1, toy.dim)
    assert first.unique(dim=0).shape[0] == 50
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        toy.sample(0, seed=1)


@pytest.mark.parametrize("name", NAMES)
def test_device_dtype_and_shapes(name: str, device: torch.device) -> None:
    toy = TOYS[name]
    z = toy.sample(12, seed=6)
    exact = toy.log_prob(z)
    for dtype in (torch.float32, torch.float64):
        value = toy.log_prob(z.view(4, 3, toy.dim).to(device, dtype))
        assert (value.shape, value.dtype, value.device.type) == ((4, 3), dtype, device.type)
        # Inverse sds of up to 1000 / sqrt(l) multiply the rounding of the Gaussians' coordinates.
        tolerance = 1e-3 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(value.cpu().double().flatten(), exact, rtol=tolerance, atol=tolerance)
    assert toy.log_prob(z[0]).shape == ()
    with pytest.raises(ValueError, match=rf"z must have shape \(\*batch, {toy.dim}\), got \(2, {toy.dim + 1}\)"):
        toy.log_prob(torch.zeros(2, toy.dim + 1))


def test_the_collection() -> None:
    assert {name: toy.name for name, toy in TOYS.items()} == {name: name for name in TOYS}
    assert {name: toy.log_evidence for name, toy in TOYS.items()} == LOG_EVIDENCE
    assert set(BOXES) == {name for name, toy in TOYS.items() if toy.dim == 2}
    for name, toy in TOYS.items():
        again = pickle.loads(pickle.dumps(toy))
        assert torch.equal(again.sample(3, seed=0), toy.sample(3, seed=0)), name


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_target_of_avbvi(name: str) -> None:
    toy = TOYS[name]
    density = LogDensity(toy.log_prob, event_shape=(toy.dim,))
    z = toy.sample(5, seed=7)
    torch.testing.assert_close(density.evaluate({"z": z}), toy.log_prob(z))
