"""Maximum mean discrepancy and energy distance against closed forms, enumeration and naive sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from scipy.special import gammaln
from torch import Tensor

from avbvi.divergences import MMDTest, energy_distance, mmd2
from avbvi.divergences.kernels import _pair_sums, _value_and_stderr, _variance_parts
from avbvi.divergences.samples import Draws
from avbvi.estimates import Estimate

Array = NDArray[np.float64]


def normal(n: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def rotation(dim: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, 99)).Q


def naive(xx: Array, yy: Array, xy: Array) -> float:
    """E k(x, x') + E k(y, y') - 2 E k(x, y) from full kernel matrices, the diagonals left out."""
    n, m = xy.shape
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2.0 * xy.mean())


def naive_mmd2(x: Array, y: Array, h: float) -> float:
    gauss = [np.exp(-cdist(a, b, "sqeuclidean") / (2.0 * h * h)) for a, b in ((x, x), (y, y), (x, y))]
    return naive(*gauss)


def gauss_energy(dim: int, scale: float, shift: float = 0.0) -> float:
    """E|v| for v ~ N(shift, scale^2 I); a shift in one dimension only."""
    if shift:
        assert dim == 1
        z = shift / scale
        return scale * math.sqrt(2.0 / math.pi) * math.exp(-z * z / 2.0) + shift * math.erf(z / math.sqrt(2.0))
    return scale * math.sqrt(2.0) * math.exp(gammaln((dim + 1) / 2.0) - gammaln(dim / 2.0))


def gauss_kernel_mean(dim: int, h: float, variance: float, shift: float = 0.0) -> float:
    """E exp(-|v|^2 / (2 h^2)) for v normal with that variance per coordinate and mean (shift, ..., shift)."""
    total = h * h + variance
    return float((h * h / total) ** (dim / 2.0) * math.exp(-dim * shift**2 / (2.0 * total)))


def gauss_mmd2(dim: int, h: float, scale: float, shift: float) -> float:
    """Squared discrepancy of N(0, I) and N(shift, scale^2 I)."""
    return (
        gauss_kernel_mean(dim, h, 2.0)
        + gauss_kernel_mean(dim, h, 2.0 * scale**2)
        - 2.0 * gauss_kernel_mean(dim, h, 1.0 + scale**2, shift)
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 29, 64, 1000])
def test_values_equal_the_full_matrices(chunk_size: int | None, device: torch.device) -> None:
    x, y = normal(30, 3, 1, 0.4), normal(40, 3, 2, 0.0, 1.3)
    a, b = x.numpy(), y.numpy()
    q, p = x.to(device), y.to(device)
    energy = naive(-cdist(a, a), -cdist(b, b), -cdist(a, b))
    assert energy_distance(q, p, chunk_size=chunk_size).value == pytest.approx(energy, abs=1e-12)
    test = mmd2(q, p, bandwidth=0.7, permutations=0, chunk_size=chunk_size)
    assert test.value == pytest.approx(naive_mmd2(a, b, 0.7), abs=1e-12)
    assert math.isnan(test.p_value)
    # 70 points have an odd number of pairs, so that the median is one of the distances.
    h = float(np.median(pdist(np.concatenate([a, b]))))
    assert mmd2(q, p, permutations=0).value == pytest.approx(naive_mmd2(a, b, h), abs=1e-12)


def test_neither_blocks_nor_device_change_the_errors(device: torch.device) -> None:
    x, y = normal(30, 3, 1, 0.4), normal(40, 3, 2)
    energy, test = energy_distance(x, y, chunk_size=70), mmd2(x, y, chunk_size=70, permutations=50)
    assert 0.0 < test.p_value < 1.0
    for chunk_size in (None, 1, 13):
        q, p = x.to(device), y.to(device)
        assert energy_distance(q, p, chunk_size=chunk_size) == pytest.approx(energy, abs=1e-12)
        assert mmd2(q, p, chunk_size=chunk_size, permutations=50) == pytest.approx(test, abs=1e-12)


def finite_law_parts(kernel: Array, q: Array, p: Array, n: int, m: int) -> tuple[float, float, float]:
    """Value and both parts of the variance for laws q and p on finitely many points, by their definition."""
    a_q, a_p = kernel @ q, kernel @ p
    qq, pp, qp = q @ a_q, p @ a_p, q @ a_p
    h_q, h_p = a_q - a_p, a_p - a_q
    first = 4.0 * (q @ h_q**2 - (q @ h_q) ** 2) / n + 4.0 * (p @ h_p**2 - (p @ h_p) ** 2) / m
    k_qq = kernel - a_q[:, None] - a_q[None] + qq
    k_pp = kernel - a_p[:, None] - a_p[None] + pp
    k_qp = kernel - a_p[:, None] - a_q[None] + qp
    second = (
        2.0 * (q @ k_qq**2 @ q) / (n * (n - 1))
        + 2.0 * (p @ k_pp**2 @ p) / (m * (m - 1))
        + 4.0 * (q @ k_qp**2 @ p) / (n * m)
    )
    return float(qq + pp - 2.0 * qp), float(first), float(second)


@pytest.mark.parametrize(
    ("q", "p", "n", "m"),
    [
        ([0.5, 0.2, 0.3], [0.6, 0.4, 0.0], 4, 4),
        ([0.3, 0.7, 0.0], [0.3, 0.7, 0.0], 4, 5),  # equal laws: only the second-order part is left
        ([1.0, 0.0, 0.0], [0.2, 0.5, 0.3], 4, 5),
    ],
)
def test_variance_is_unbiased_for_every_sample_of_a_finite_law(q: list[float], p: list[float], n: int, m: int) -> None:
    # All samples of a law on three points with their probabilities: expectations without error.
    points = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    none = torch.zeros(n + m, 0, dtype=torch.bool)
    kernel = -cdist(points.numpy(), points.numpy())
    value, first, second = finite_law_parts(kernel, np.array(q), np.array(p), n, m)
    got = np.zeros(4)
    supports = [[i for i in range(3) if law[i] > 0.0] for law in (q, p)]
    for drawn_x in itertools.product(supports[0], repeat=n):
        for drawn_y in itertools.product(supports[1], repeat=m):
            weight = math.prod(q[i] for i in drawn_x) * math.prod(p[i] for i in drawn_y)
            sums = _pair_sums(points[[*drawn_x, *drawn_y]], n, lambda s: s.sqrt_().neg_(), none, None)
            estimate = _value_and_stderr(sums, n)[0]
            parts = _variance_parts(sums, n)
            got += weight * np.array([estimate, (estimate - value) ** 2, *parts])
    assert got == pytest.approx([value, first + second, first, second], abs=1e-6)  # distances of 0 round to 1e-8


Judge = Callable[..., MMDTest | Estimate]


def fixed_mmd2(x: Draws, y: Draws) -> MMDTest:
    return mmd2(x, y, bandwidth=1.5, permutations=0)


@pytest.mark.parametrize(("dim", "n", "m"), [(1, 80, 80), (4, 60, 150)])
@pytest.mark.parametrize(
    ("judge", "exact"),
    [
        (fixed_mmd2, lambda dim, scale, shift: gauss_mmd2(dim, 1.5, scale, shift)),
        (
            energy_distance,
            lambda dim, scale, shift: (
                2.0 * gauss_energy(dim, math.hypot(1.0, scale), shift)
                - gauss_energy(dim, math.sqrt(2.0))
                - gauss_energy(dim, math.sqrt(2.0) * scale)
            ),
        ),
    ],
)
def test_value_and_error_against_normals(
    judge: Judge, exact: Callable[[int, float, float], float], dim: int, n: int, m: int
) -> None:
    # Unequal laws: unbiased, and the squared error matches the squared deviation on average.
    scale, shift = 1.6, 0.5 if dim == 1 else 0.0
    truth, count = exact(dim, scale, shift), 400
    results = [judge(normal(n, dim, 2 * s), normal(m, dim, 2 * s + 1, shift, scale)) for s in range(count)]
    deviation = np.array([r.value for r in results]) - truth
    excess = np.array([r.stderr for r in results]) ** 2 - deviation**2
    for mean_zero in (deviation, excess):
        assert abs(mean_zero.mean()) < 4.0 * mean_zero.std(ddof=1) / math.sqrt(count)

    # Equal laws: the value's mean is 0. The squared error relative to the variance is on average
    # 1 + 2 E(Q - 1)+ with Q a weighted mean of chi-squares, which is largest for a single one
    # (E(Q - 1)+ = .484), since a negative first-order part is cut off.
    results = [judge(normal(n, dim, 2 * s), normal(m, dim, 2 * s + 1)) for s in range(count)]
    values = np.array([r.value for r in results])
    assert abs(values.mean()) < 4.0 * values.std(ddof=1) / math.sqrt(count)
    squared_error = np.array([r.stderr for r in results]) ** 2
    for factor, sign in ((1.0, 1.0), (1.97, -1.0)):
        excess = squared_error - factor * values**2
        assert sign * excess.mean() > -4.0 * excess.std(ddof=1) / math.sqrt(count)


@pytest.mark.parametrize("shift", [0.0, 0.8, 20.0])
def test_p_value_against_all_divisions(shift: float) -> None:
    # Of 8 points there are 70 divisions, a rate of which is the exact p-value. The observed one
    # and its mirror image are among them, so that ties have to count.
    x, y = normal(4, 2, 3), normal(4, 2, 4, shift)
    pooled = torch.cat([x, y]).numpy()
    observed = naive_mmd2(pooled[:4], pooled[4:], 1.0)
    values = []
    for first in itertools.combinations(range(8), 4):
        rest = [i for i in range(8) if i not in first]
        values.append(naive_mmd2(pooled[list(first)], pooled[rest], 1.0))
    exact = float(np.mean(np.array(values) >= observed - 1e-12))
    count = 4000
    p_value = mmd2(x, y, bandwidth=1.0, permutations=count).p_value
    assert abs(p_value - exact) < 4.0 * math.sqrt(exact * (1.0 - exact) / count) + 1.0 / count


def test_p_value_is_uniform_for_equal_laws() -> None:
    # With 19 permutations the p-value takes .05, .10, ..., 1 with equal probability.
    count = 400
    p_values = [mmd2(normal(15, 2, s), normal(25, 2, 5000 + s), permutations=19, seed=s).p_value for s in range(count)]
    for level in (0.05, 0.2, 0.5):
        rate = float(np.mean(np.array(p_values) <= level + 1e-9))
        assert abs(rate - level) < 4.0 * math.sqrt(level * (1.0 - level) / count)


def test_p_value_of_unequal_laws_is_the_least() -> None:
    assert mmd2(normal(200, 2, 1), normal(300, 2, 2, 1.0), permutations=99).p_value == pytest.approx(0.01)
    assert mmd2(normal(200, 2, 1), normal(300, 2, 2, 0.0, 2.0), permutations=99).p_value == pytest.approx(0.01)


def test_invariances() -> None:
    x, y = normal(120, 4, 1, 0.3), normal(90, 4, 2)
    energy, test = energy_distance(x, y), mmd2(x, y, permutations=100)
    assert 0.0 < test.p_value < 1.0
    turned, order = rotation(4), torch.randperm(120)
    for q, p in ((x[order], y), (x @ turned, y @ turned), (x + 1e6, y + 1e6)):
        assert energy_distance(q, p) == pytest.approx(energy, rel=1e-7)
        moved = mmd2(q, p, permutations=100)
        assert (moved.value, moved.stderr) == pytest.approx((test.value, test.stderr), rel=1e-7)
    assert energy_distance(y, x) == pytest.approx(energy, rel=1e-9)
    for unit in (1e-5, 1e5):
        scaled = energy_distance(unit * x, unit * y)
        assert (scaled.value, scaled.stderr) == pytest.approx((unit * energy.value, unit * energy.stderr), rel=1e-9)
        assert mmd2(unit * x, unit * y, permutations=100) == pytest.approx(test, rel=1e-9)


def test_bandwidth_of_a_large_sample_is_seeded_and_near_the_median() -> None:
    x, y = normal(1500, 2, 1), normal(1500, 2, 2, 1.0)
    h = float(np.median(pdist(torch.cat([x, y]).numpy())))
    state = torch.get_rng_state()
    test = mmd2(x, y, permutations=3, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert mmd2(x, y, permutations=3, seed=5) == test
    assert mmd2(x, y, permutations=3, seed=6).value != test.value
    # The median of 2000 points' distances is known to about 1 %; the value hardly moves with it.
    low, high = (mmd2(x, y, bandwidth=f * h, permutations=0).value for f in (1.05, 0.95))
    assert low < test.value < high


def test_median_bandwidth_is_blind_to_narrow_modes() -> None:
    # Four modes far apart, of standard deviation .1 in one sample and .3 in the other: at the
    # distance between the modes as bandwidth both look the same, at .3 they do not.
    centres = torch.tensor([[0.0, 0.0], [0.0, 100.0], [100.0, 0.0], [100.0, 100.0]], dtype=torch.float64)
    which = torch.arange(400) % 4
    x, y = centres[which] + normal(400, 2, 1, 0.0, 0.1), centres[which] + normal(400, 2, 2, 0.0, 0.3)
    assert mmd2(x, y).p_value > 0.5
    assert mmd2(x, y, bandwidth=0.3).p_value == pytest.approx(1.0 / 201.0)
    # In the exact laws the discrepancy is far below the noise of even a hundred thousand draws
    # (whose standard error at equal laws is of the order of 1/n).
    h = 100.0
    within = [gauss_kernel_mean(2, h, variance) for variance in (2 * 0.01, 2 * 0.09, 0.01 + 0.09)]
    assert within[0] + within[1] - 2.0 * within[2] < 1e-9
    # The energy distance, dominated by the distances between the modes, does not see it either.
    energy = energy_distance(x, y)
    assert energy.value < energy.stderr


def test_takes_arrays_single_precision_and_gradients() -> None:
    x, y = normal(50, 3, 1).float(), normal(60, 3, 2).float()
    array = x.numpy()
    for judge in (fixed_mmd2, energy_distance):
        result = judge(x.clone().requires_grad_(), y)
        assert float(result) == result.value
        np.testing.assert_array_equal(judge(x.double(), y.double()), result)
        np.testing.assert_array_equal(judge(array, y.numpy()), result)
    assert isinstance(mmd2(x, y), MMDTest)
    assert isinstance(energy_distance(x, y), Estimate)


@pytest.mark.parametrize("judge", [mmd2, energy_distance])
def test_faulty_samples_are_refused(judge: Judge) -> None:
    x = normal(50, 3, 1)
    bad = x.clone()
    bad[3, 1] = math.nan
    with pytest.raises(ValueError, match="y holds NaN or infinite values in 1 of 50"):
        judge(x, bad)
    with pytest.raises(ValueError, match="same dimension, got 3 and 2"):
        judge(x, x[:, :2])
    with pytest.raises(ValueError, match="y has 3 draws; at least 4"):
        judge(x, x[:3])
    with pytest.raises(ValueError, match="chunk_size must be at least 1, found 0"):
        judge(x, x, chunk_size=0)
    with pytest.raises(TypeError, match="chunk_size must be an integer, found float"):
        judge(x, x, chunk_size=8.0)


def test_faulty_options_are_refused() -> None:
    x = normal(50, 3, 1)
    with pytest.raises(ValueError, match="permutations must be at least 0, found -1"):
        mmd2(x, x, permutations=-1)
    with pytest.raises(TypeError, match="seed must be an integer, found NoneType"):
        mmd2(x, x, seed=None)  # type: ignore[arg-type]
    for bandwidth in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            mmd2(x, x, bandwidth=bandwidth)
    constant = torch.zeros(40, 3)
    with pytest.raises(ValueError, match=r"median distance of the pooled draws is 0.*[Gg]ive a bandwidth"):
        mmd2(constant, torch.cat([constant[:30], torch.ones(3, 3)]))
    assert mmd2(constant, constant, bandwidth=1.0, permutations=5) == (0.0, 0.0, 1.0)
