"""The two-sample judges against closed forms, a naive rewrite, and controls."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from avbvi.divergences import classifier_two_sample_test, knn_kl
from avbvi.divergences.neighbours import _neighbours, _neighbours_by_blocks
from avbvi.estimates import Estimate


def normal(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift


def naive_knn_kl(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """The published formula, from full sorted distance matrices."""
    n, dim = x.shape
    rho = np.sort(cdist(x, x), axis=1)[:, k]  # column 0 is the point itself
    nu = np.sort(cdist(x, y), axis=1)[:, k - 1]
    return dim * float(np.mean(np.log(nu / rho))) + math.log(len(y) / (n - 1))


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(-12.7123, 0.0031), "-12.712 ± 0.003"),
        (Estimate(-12.7123, 0.0014), "-12.7123 ± 0.0014"),
        (Estimate(1234.4, 123.0), "1234 ± 123"),
        (Estimate(0.5, 0.0), "0.5 ± 0"),
        (Estimate(0.25, math.nan), "0.25 ± nan"),
    ],
)
def test_estimate_reads_as_its_error_warrants(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text
    assert float(estimate) == estimate.value


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 10, 20])
@pytest.mark.parametrize(("n", "m"), [(300, 300), (200, 350), (350, 200)])
@pytest.mark.parametrize("k", [1, 3])
def test_knn_kl_equals_the_formula(dim: int, n: int, m: int, k: int) -> None:
    x, y = normal(n, dim, 1, 0.3), normal(m, dim, 2)
    assert knn_kl(x, y, k).value == pytest.approx(naive_knn_kl(x.numpy(), y.numpy(), k), abs=1e-9)


def test_tree_and_blocks_agree_far_from_the_origin() -> None:
    # Coordinates of very different scale and a large offset: expanded squares alone would lose
    # the near distances.
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    x, y = normal(500, 3, 1) * scale, normal(400, 3, 2) * scale
    for points, same in ((y, False), (x, True)):
        tree = _neighbours(x, points, 4, None, same=same)
        for chunk in (None, 1, 77, 10_000):
            blocks = _neighbours_by_blocks(x, points, 4, chunk, same=same)
            torch.testing.assert_close(blocks, tree, rtol=1e-9, atol=0.0)
    shift = 1e6
    near = knn_kl(normal(500, 10, 1), normal(500, 10, 2)).value
    far = knn_kl(normal(500, 10, 1, shift), normal(500, 10, 2, shift)).value
    assert far == pytest.approx(near, abs=1e-6)


@pytest.mark.parametrize(("n", "m"), [(4, 3), (5, 4), (9, 30), (30, 9)])
def test_few_points(n: int, m: int) -> None:
    x, y = normal(n, 9, 1), normal(m, 9, 2)
    estimate = knn_kl(x, y)
    assert estimate.value == pytest.approx(naive_knn_kl(x.numpy(), y.numpy(), 3), abs=1e-9)
    assert math.isfinite(estimate.stderr)


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (1500, 4000)])
def test_knn_kl_finds_the_divergence_of_two_normals(n: int, m: int) -> None:
    # KL(N(0, s^2 I), N(0, I)) with s = 0.8 in two dimensions. q has the lighter tails, so the
    # bias is small; the mean over seeds has a known error.
    scale, dim = 0.8, 2
    exact = dim * (scale**2 - 1.0 - 2.0 * math.log(scale)) / 2.0
    estimates = [knn_kl(scale * normal(n, dim, s), normal(m, dim, 100 + s)) for s in range(20)]
    values = torch.tensor([e.value for e in estimates])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - exact) < 4.0 * error + 0.003
    # The reported standard error is that of the spread over seeds, within its own noise.
    typical = float(torch.tensor([e.stderr for e in estimates]).mean())
    assert 0.6 < typical / float(values.std()) < 1.8


def test_knn_kl_of_one_law_is_zero() -> None:
    estimate = knn_kl(normal(4000, 10, 1), normal(4000, 10, 2))
    assert abs(estimate.value) < 4.0 * estimate.stderr


@pytest.mark.parametrize("dim", [2, 10])
def test_knn_kl_does_not_depend_on_units(dim: int) -> None:
    x, y = normal(600, dim, 1, 0.2), normal(600, dim, 2)
    estimate = knn_kl(x, y)
    for unit in (1e-6, 1e6):
        other = knn_kl(unit * x, unit * y)
        assert other.value == pytest.approx(estimate.value, abs=1e-9)
        assert other.stderr == pytest.approx(estimate.stderr, abs=1e-9)


def test_knn_kl_takes_arrays_and_single_precision() -> None:
    x, y = normal(300, 10, 1).float(), normal(300, 10, 2).float()
    estimate = knn_kl(x.requires_grad_(), y)
    array = x.detach().numpy()
    array.flags.writeable = False
    assert knn_kl(array, y.numpy()) == estimate
    assert knn_kl(x.double(), y.double()) == estimate


@pytest.mark.parametrize("dim", [2, 10])
def test_knn_kl_refuses_repeated_points(dim: int) -> None:
    x, y = normal(200, dim, 1), normal(200, dim, 2)
    repeated = torch.cat([x[:150], x[:50]])
    with pytest.raises(ValueError, match=r"x holds 50 points.*[Tt]hin"):
        knn_kl(repeated, y)
    with pytest.raises(ValueError, match=r"y holds 50 points.*[Tt]hin"):
        knn_kl(y, repeated)
    with pytest.raises(ValueError, match="share 7 points"):
        knn_kl(x, torch.cat([y[7:], x[:7]]))
    with pytest.raises(ValueError, match="x and y share 200 points"):
        knn_kl(x, x)


def test_knn_kl_accepts_ties_by_rounding_in_one_dimension_only() -> None:
    x, y = normal(2000, 1, 1), normal(2000, 1, 2)
    x[1], x[2] = x[0], y[0]
    assert math.isfinite(knn_kl(x, y).value)
    with pytest.raises(ValueError, match="repeat"):
        knn_kl(x[:500], y)
    y[1] = y[2] = y[0]
    with pytest.raises(ValueError, match="k-th distance is 0"):
        knn_kl(x, y)


@pytest.mark.parametrize("judge", [knn_kl, classifier_two_sample_test])
def test_judges_name_the_faulty_argument(judge: Callable[..., Estimate]) -> None:
    x, y = normal(100, 3, 1), normal(100, 3, 2)
    bad = y.clone()
    bad[3, 1], bad[4, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="y holds NaN or infinite values in 2 of 100"):
        judge(x, bad)
    with pytest.raises(ValueError, match=r"x must have shape \(draws, dimension\)"):
        judge(x[:, 0], y)
    with pytest.raises(ValueError, match="same dimension, got 3 and 2"):
        judge(x, y[:, :2])
    with pytest.raises(ValueError, match="x is empty"):
        judge(x[:0], y)
    with pytest.raises(TypeError, match="x must be"):
        judge("draws", y)
    with pytest.raises(TypeError, match="y must hold real numbers"):
        judge(x, y.to(torch.complex128))


@pytest.mark.parametrize("dim", [2, 10])
def test_knn_kl_with_a_large_k(dim: int) -> None:
    x, y = normal(400, dim, 1), normal(400, dim, 2)
    for k in (70, 399):
        estimate = knn_kl(x, y, k)
        assert estimate.value == pytest.approx(naive_knn_kl(x.numpy(), y.numpy(), k), abs=1e-9)
        assert math.isfinite(estimate.stderr)


def test_knn_kl_refuses_a_k_beyond_the_samples() -> None:
    x, y = normal(3, 2, 1), normal(100, 2, 2)
    with pytest.raises(ValueError, match="x has 3 points; k = 3 needs at least 4"):
        knn_kl(x, y)
    with pytest.raises(ValueError, match="y has 3 points; k = 4"):
        knn_kl(y, x, k=4)
    with pytest.raises(ValueError, match="k must be at least 1"):
        knn_kl(y, y, k=0)
    with pytest.raises(TypeError, match="k must be an integer"):
        knn_kl(y, y, k=1.5)
