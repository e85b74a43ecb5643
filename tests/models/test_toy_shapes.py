"""The harder shapes against independent densities, and their draws and modes against the densities."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from models.quadrature import quadrature_log_evidence
from models.toy_densities import TOYS, ToyDensity
from models.toy_shapes import MODES, SHAPES, CircleOfModes, Modes

DRAWS = 200_000
# Half-widths of squares that leave out less than 1e-10 of the mass, and points per axis for 1e-8.
BOXES = {"eight_modes_05": (8.0, 801), "eight_modes_02": (6.0, 801), "thin_ring": (2.8, 801), "soft_square": (5.0, 801)}
Array = np.ndarray[Any, np.dtype[np.float64]]


def limit(comparisons: int) -> float:
    """Bound in standard errors that the largest of so many normal deviations exceeds once in 10 000 times."""
    return float(stats.norm.isf(0.5e-4 / comparisons))


def circle(z: Array, width: float) -> Array:
    parts = [
        stats.multivariate_normal([4.0 * math.cos(a), 4.0 * math.sin(a)], width**2 * np.eye(2)).pdf(z)
        for a in np.pi / 4.0 * np.arange(8)
    ]
    return np.log(np.mean(parts, 0))


def eight_modes_05(z: Array) -> Array:
    return circle(z, 0.5)


def eight_modes_02(z: Array) -> Array:
    return circle(z, 0.2)


def bananas_10d(z: Array) -> Array:
    parts = []
    for k, corner in enumerate([(-6.0, -6.0), (6.0, -6.0), (-6.0, 6.0), (6.0, 6.0)]):
        first, second = z[:, 2 * k], z[:, 2 * k + 1]
        rest = np.delete(z[:, :8], [2 * k, 2 * k + 1], 1)
        total = stats.norm.logpdf(first, 0.0, 2.0) + stats.norm.logpdf(second, 0.5 * first**2 - 2.0, 1.0)
        parts.append(total + stats.norm.logpdf(rest).sum(1) + stats.norm.logpdf(z[:, 8:], corner, 1.0).sum(1))
    return special.logsumexp(parts, axis=0, b=np.array([[0.1], [0.2], [0.3], [0.4]]))


def thin_ring(z: Array) -> Array:
    total, _ = integrate.quad(lambda r: r * math.exp(-(((r - 2.0) / 0.1) ** 2) / 2.0), 0.0, 4.0, points=[2.0])
    return -(((np.hypot(z[:, 0], z[:, 1]) - 2.0) / 0.1) ** 2) / 2.0 - math.log(2.0 * math.pi * total)


def soft_square(z: Array) -> Array:
    # The density of uniform plus logistic is a difference of distribution functions.
    density = (stats.logistic.cdf(z, -2.0, 0.1) - stats.logistic.cdf(z, 2.0, 0.1)) / 4.0
    return np.log(density).sum(1)


@pytest.mark.parametrize("normalised", [eight_modes_05, eight_modes_02, bananas_10d, thin_ring, soft_square])
def test_log_density_less_log_evidence_is_the_normalised_density(normalised: Callable[[Array], Array]) -> None:
    shape = SHAPES[normalised.__name__]
    draws = shape.sample(100, seed=1)
    z = torch.cat([draws, draws + 0.2 * torch.randn(draws.shape, dtype=torch.float64)])
    value = (shape.log_prob(z) - shape.log_evidence).numpy()
    np.testing.assert_allclose(value, normalised(z.numpy()), rtol=1e-9, atol=1e-8)
    single = shape.log_prob(z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), shape.log_prob(z), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=rf"z must have shape \(\*batch, {shape.dim}\)"):
        shape.log_prob(torch.zeros(2, shape.dim + 1))


@pytest.mark.parametrize("name", BOXES)
def test_stated_log_evidence(name: str) -> None:
    half, points = BOXES[name]
    value = quadrature_log_evidence(SHAPES[name].log_prob, -half, half, points)
    assert value == pytest.approx(SHAPES[name].log_evidence, abs=1e-8)


@pytest.mark.parametrize("name", BOXES)
def test_draws_in_the_plane_follow_the_density(name: str) -> None:
    """Chi-square over cells whose probabilities come from the midpoint rule."""
    shape = SHAPES[name]
    half, _ = BOXES[name]
    fine, cells = 800, 40
    edges = np.linspace(-half, half, fine + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    grid = torch.from_numpy(np.stack(np.meshgrid(centres, centres, indexing="ij"), -1))
    mass = (shape.log_prob(grid) - shape.log_evidence).exp().numpy() * (edges[1] - edges[0]) ** 2
    size = fine // cells
    expected = DRAWS * mass.reshape(cells, size, cells, size).sum((1, 3))
    z = shape.sample(DRAWS, seed=2).numpy()
    counts, _, _ = np.histogram2d(z[:, 0], z[:, 1], bins=cells, range=[(-half, half)] * 2)
    full = expected >= 10.0
    assert full.sum() > 50
    observed = np.append(counts[full], DRAWS - counts[full].sum())
    wanted = np.append(expected[full], DRAWS - expected[full].sum())
    assert stats.chisquare(observed, wanted).pvalue > 1e-4


def test_draws_of_the_bananas_follow_each_bananas_law() -> None:
    z = SHAPES["bananas_10d"].sample(DRAWS, seed=3)
    mode = MODES["bananas_10d"].assign(z)
    corners = torch.tensor([(-6.0, -6.0), (6.0, -6.0), (-6.0, 6.0), (6.0, 6.0)], dtype=torch.float64)
    for k in range(4):
        standard = z[mode == k].clone()
        standard[:, 2 * k + 1] -= 0.5 * (standard[:, 2 * k].square() - 4.0)
        standard[:, 2 * k] /= 2.0
        standard[:, 8:] -= corners[k]
        for column in standard.numpy().T:
            assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-4
        n = len(standard)
        error = (standard.mT @ standard / n - torch.eye(10)).abs() * math.sqrt(n) / (1.0 + torch.eye(10)).sqrt()
        assert float(error.max()) < limit(55)


@pytest.mark.parametrize("name", list(SHAPES))
def test_draws_satisfy_steins_identity(name: str) -> None:
    shape = SHAPES[name]
    z = shape.sample(DRAWS, seed=5).requires_grad_()
    (score,) = torch.autograd.grad(shape.log_prob(z).sum(), z)
    z = z.detach()
    assert bool(torch.isfinite(score).all())
    assert float((score.mean(0) / score.std(0)).abs().max()) * math.sqrt(DRAWS) < limit(shape.dim)
    product = z.mT @ score / DRAWS
    error = ((z.square().mT @ score.square() / DRAWS - product.square()) / DRAWS).sqrt()
    assert float(((product + torch.eye(shape.dim)) / error).abs().max()) < limit(shape.dim**2)


@pytest.mark.parametrize("name", list(MODES))
def test_shares_of_exact_draws_are_the_weights_of_the_modes(name: str) -> None:
    target: ToyDensity = {**TOYS, **SHAPES}[name]
    modes = MODES[name]
    assert sum(modes.weights) == pytest.approx(1.0, abs=1e-12)
    weights = torch.tensor(modes.weights, dtype=torch.float64)
    z = target.sample(DRAWS, seed=4)
    error = (weights * (1.0 - weights) / DRAWS).sqrt()
    assert float(((modes.shares(z) - weights) / error).abs().max()) < limit(len(weights))
    # A draw near a mode's centre belongs to that mode alone.
    if name.startswith("eight"):
        centres = CircleOfModes(0.5).centres(z)
        assert modes.assign(centres).tolist() == list(range(8))
        assert bool((centres.norm(dim=-1) - 4.0).abs().max() < 1e-12)


def test_figures_tell_wrong_weights_and_lost_modes() -> None:
    modes = Modes((0.5, 0.25, 0.25), lambda z: z[:, 0].long())
    z = torch.tensor([0.0] * 50 + [1.0] * 48 + [2.0] * 2).unsqueeze(-1)
    # Shares .5, .48, .02: relative errors 0, .92, -.92; the last mode has 8 % of its weight.
    assert modes.figures(z) == {"mode_weight_error": pytest.approx(0.92, abs=1e-12), "modes_lost": 1}
    assert modes.figures(torch.zeros(10, 1))["modes_lost"] == 2


def test_the_collection() -> None:
    assert {name: shape.name for name, shape in SHAPES.items()} == {name: name for name in SHAPES}
    assert not set(SHAPES) & set(TOYS)
    for name, shape in SHAPES.items():
        draws = pickle.loads(pickle.dumps(shape)).sample(3, seed=0)
        assert torch.equal(draws, shape.sample(3, seed=0)), name
        assert draws.shape == (3, shape.dim)
        assert draws.dtype == torch.float64
