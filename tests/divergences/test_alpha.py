"""The alpha-divergence family against closed forms for normals and against the published formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import gamma
from torch import Tensor

from avbvi.divergences import AlphaDivergence, Bhattacharyya, Hellinger, Renyi, Tsallis, knn_alpha_divergence, knn_kl


def normal(n: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_integral(alpha: float, scale: float, dim: int) -> float:
    """Integral of N(0, scale^2 I)^alpha N(0, I)^(1 - alpha)."""
    return (scale ** (-alpha) / math.sqrt(alpha / scale**2 + 1.0 - alpha)) ** dim


def expected(divergence: AlphaDivergence, integral: float) -> float:
    """The textbook definitions."""
    match divergence:
        case Renyi(alpha):
            return math.log(integral) / (alpha - 1.0)
        case Tsallis(alpha):
            return (integral - 1.0) / (alpha - 1.0)
        case Hellinger():
            return math.sqrt(max(0.0, 1.0 - integral))
        case Bhattacharyya():
            return -math.log(integral)
    raise AssertionError(divergence)


CASES = [Renyi(0.5), Renyi(0.9), Renyi(1.5), Tsallis(0.5), Tsallis(0.8), Tsallis(1.5), Hellinger(), Bhattacharyya()]


@pytest.mark.parametrize("divergence", CASES, ids=str)
def test_values_of_two_normals(divergence: AlphaDivergence) -> None:
    runs, scale, dim = 20, 0.7, 2
    values = torch.tensor(
        [
            knn_alpha_divergence(normal(2000, dim, s, scale), normal(2000, dim, 100 + s), divergence).value
            for s in range(runs)
        ]
    )
    exact = expected(divergence, gaussian_integral(divergence.alpha, scale, dim))
    assert abs(float(values.mean()) - exact) < 4.0 * float(values.std()) / math.sqrt(runs) + 0.01


@pytest.mark.parametrize("divergence", CASES, ids=str)
@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize("k", [2, 4])
def test_the_published_formula(divergence: AlphaDivergence, dim: int, k: int) -> None:
    x, y, alpha = normal(200, dim, 1, 0.6), normal(260, dim, 2), divergence.alpha
    rho = np.sort(cdist(x, x), axis=1)[:, k]
    nu = np.sort(cdist(x, y), axis=1)[:, k - 1]
    factor = gamma(k) ** 2 / (gamma(k - alpha + 1.0) * gamma(k + alpha - 1.0))
    integral = factor * float(np.mean((199 * rho**dim / (260 * nu**dim)) ** (1.0 - alpha)))
    estimate = knn_alpha_divergence(x, y, divergence, k)
    assert estimate.value == pytest.approx(expected(divergence, integral), rel=1e-9)


@pytest.mark.parametrize("make", [Renyi, Tsallis])
def test_the_limit_of_alpha_one_is_the_kl_divergence(make: type[Renyi] | type[Tsallis]) -> None:
    x, y = normal(400, 3, 1, 0.8), normal(400, 3, 2)
    # The factor B differs from 1 by terms of order (alpha - 1)^2.
    assert knn_alpha_divergence(x, y, make(1.0 - 1e-6)).value == pytest.approx(knn_kl(x, y).value, abs=1e-4)


def test_hellinger_is_zero_where_noise_exceeds_one() -> None:
    for seed in range(10):
        x, y = normal(100, 1, seed), normal(100, 1, 50 + seed)
        value = knn_alpha_divergence(x, y, Hellinger()).value
        integral = math.exp(-knn_alpha_divergence(x, y, Bhattacharyya()).value)
        assert value == pytest.approx(math.sqrt(max(0.0, 1.0 - integral)), abs=1e-7)


def test_bad_orders_are_refused() -> None:
    x, y = normal(50, 2, 1), normal(50, 2, 2)
    with pytest.raises(ValueError, match="not 1"):
        knn_alpha_divergence(x, y, Renyi(1.0))
    with pytest.raises(ValueError, match=r"needs k > \|alpha - 1\|"):
        knn_alpha_divergence(x, y, Tsallis(4.5))
    with pytest.raises(ValueError, match="Hellinger is defined for alpha = 1/2"):
        Hellinger(0.7)
    with pytest.raises(ValueError, match="Bhattacharyya is defined"):
        Bhattacharyya(0.4)
