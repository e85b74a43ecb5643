"""Wasserstein distances of marginals and projections against assignment, closed forms and spreads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

from avbvi.divergences import marginal_wasserstein, sliced_wasserstein, transport
from avbvi.estimates import Estimate


def normal(n: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)


def assigned(x: NDArray[np.float64], y: NDArray[np.float64], order: int) -> float:
    """Wasserstein distance of two samples in one dimension by optimal assignment of repeated points."""
    size = math.lcm(len(x), len(y))
    cost = np.abs(np.repeat(x, size // len(x))[:, None] - np.repeat(y, size // len(y))[None]) ** order
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1.0 / order))


@pytest.mark.parametrize(("n", "m"), [(40, 40), (2, 2), (2, 7), (12, 18), (35, 14), (15, 22)])
@pytest.mark.parametrize("order", [1, 2])
def test_marginal_distance_is_the_best_assignment(n: int, m: int, order: int, device: torch.device) -> None:
    x, y = normal(n, 3, 1), normal(m, 3, 2, 0.4, 1.5)
    x[1, 0] = x[0, 0]  # ties within and between the samples
    y[1, 0] = x[0, 0]
    distances = marginal_wasserstein(x.to(device), y.to(device), order=order)
    assert len(distances) == 3
    for i, distance in enumerate(distances):
        a, b = x[:, i].numpy(), y[:, i].numpy()
        assert distance.value == pytest.approx(assigned(a, b, order), rel=1e-10)
        if order == 1:
            assert distance.value == pytest.approx(wasserstein_distance(a, b), rel=1e-10)
        # One coordinate sliced is the coordinate itself, its error included.
        if order == 2:
            assert sliced_wasserstein(x[:, i : i + 1], y[:, i : i + 1]) == pytest.approx(distance, rel=1e-10)


def test_sliced_square_is_the_mean_over_directions() -> None:
    # In two dimensions an even grid of angles integrates over the directions almost exactly.
    x, y = normal(60, 2, 1), normal(45, 2, 2, 0.4, 1.5)
    angles = np.pi * (np.arange(64) + 0.5) / 64
    directions = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)]))
    squares = [d.value**2 for d in marginal_wasserstein(x @ directions, y @ directions, order=2)]
    count = 4000
    got = sliced_wasserstein(x, y, projections=count).value ** 2
    assert abs(got - np.mean(squares)) < 4.0 * np.std(squares) / math.sqrt(count)


@pytest.mark.parametrize("dim", [2, 5])
def test_sliced_distance_of_a_shifted_sample(dim: int) -> None:
    # W2^2 along theta is exactly (theta . a)^2, whose mean over directions is |a|^2 / d and whose
    # variance is |a|^4 (3 / (d (d + 2)) - 1 / d^2). The same sample shifted has no other noise.
    x, shift = normal(50, dim, 1), torch.arange(1.0, dim + 1.0, dtype=torch.float64)
    length, count = float(shift.square().sum()), 2000
    error = length * math.sqrt((3.0 / (dim * (dim + 2)) - 1.0 / dim**2) / count)
    turned = torch.linalg.qr(normal(dim, dim, 9)).Q
    for a in (shift, shift @ turned):
        for seed in range(3):
            square = sliced_wasserstein(x, x + a, projections=count, seed=seed).value ** 2
            assert abs(square - length / dim) < 4.0 * error


def test_sliced_distance_of_a_stretched_sample() -> None:
    # y = s x gives (s - 1)^2 E (theta . x)^2; with the axes' unit vectors as x, evenly spread, this is
    # (s - 1)^2 / d along every direction.
    dim, scale = 4, 1.7
    x = torch.cat([torch.eye(dim), -torch.eye(dim)]).double()
    distance = sliced_wasserstein(x, scale * x)
    assert distance.value == pytest.approx((scale - 1.0) / math.sqrt(dim), rel=1e-10)


def test_sliced_distance_of_normals() -> None:
    # N(0, I) and N(a, s^2 I): the square is |a|^2 / d + (s - 1)^2; the bias of 20 000 draws is of
    # the order of 1e-4 relative to it.
    dim, shift, scale = 3, 0.5, 1.5
    exact = math.sqrt(shift**2 + (scale - 1.0) ** 2)
    distance = sliced_wasserstein(normal(20_000, dim, 1), normal(15_000, dim, 2, shift, scale))
    assert distance.stderr < 0.03
    assert abs(distance.value - exact) < 4.0 * distance.stderr


def test_errors_from_known_potentials() -> None:
    # y = s x: the map is linear and the potentials are (1 - s) x^2 and (1 - 1/s) y^2.
    x, scale, n = normal(40, 1, 1), 1.7, 40
    distance = marginal_wasserstein(x, scale * x, order=2)[0]
    variance = (1.0 - scale) ** 2 * x.square().var() + (1.0 - 1.0 / scale) ** 2 * (scale * x).square().var()
    assert distance.stderr == pytest.approx(float((variance / n).sqrt()) / (2.0 * distance.value), rel=1e-9)
    # Samples that do not overlap: the distance of order 1 is the difference of the means.
    y = normal(25, 1, 2, 20.0)
    distance = marginal_wasserstein(x, y)[0]
    assert distance.value == pytest.approx(float(y.mean() - x.mean()), rel=1e-12)
    assert distance.stderr == pytest.approx(float((x.var() / n + y.var() / 25).sqrt()), rel=1e-9)


def distances_by(name: str, x: Tensor, y: Tensor, seed: int) -> Estimate:
    if name == "sliced":
        return sliced_wasserstein(x, y, projections=30, seed=seed)
    return marginal_wasserstein(x, y, order=int(name[-1]))[0]


@pytest.mark.parametrize(("n", "m"), [(200, 200), (150, 400)])
@pytest.mark.parametrize(("shift", "scale"), [(1.0, 1.0), (0.6, 1.5)])
@pytest.mark.parametrize(("name", "dim"), [("order 1", 1), ("order 2", 1), ("sliced", 3)])
def test_error_matches_the_spread_of_unequal_laws(
    name: str, dim: int, shift: float, scale: float, n: int, m: int
) -> None:
    # Samples and directions are drawn anew. Unequal shifts make the directions differ.
    count, a = 300, shift * torch.linspace(0.5, 1.5, dim, dtype=torch.float64)
    results = [
        distances_by(name, normal(n, dim, 2 * s), a + normal(m, dim, 2 * s + 1, 0.0, scale), s) for s in range(count)
    ]
    values = np.array([r.value for r in results])
    excess = np.array([r.stderr for r in results]) ** 2 - (values - values.mean()) ** 2 * count / (count - 1)
    assert abs(excess.mean()) < 4.0 * excess.std(ddof=1) / math.sqrt(count)


def test_error_counts_the_directions() -> None:
    # Fixed samples far apart along one axis: new directions are nearly all of the spread. On the
    # scale of the square they enter as a plain mean, and the error is that of a mean of four.
    x, y = normal(3000, 3, 1), normal(3000, 3, 2) + torch.tensor([3.0, 0.0, 0.0])
    count = 400
    results = [sliced_wasserstein(x, y, projections=4, seed=s) for s in range(count)]
    squares = np.array([r.value**2 for r in results])
    claimed = np.array([(2.0 * r.value * r.stderr) ** 2 for r in results])
    excess = claimed - (squares - squares.mean()) ** 2 * count / (count - 1)
    assert abs(excess.mean()) < 4.0 * excess.std(ddof=1) / math.sqrt(count)


def test_floor_at_equal_laws() -> None:
    # Two samples of n uniform draws: E W2^2 = (2/n) sum_i var(U_(i)) = 1 / (3 (n + 1)), not 0, and
    # the figure lies many of its standard errors from the truth.
    for n in (50, 800):
        rng, count = np.random.default_rng(n), 200
        results = [marginal_wasserstein(rng.random((n, 1)), rng.random((n, 1)), order=2)[0] for _ in range(count)]
        squares = np.array([r.value**2 for r in results])
        assert abs(squares.mean() - 1.0 / (3 * (n + 1))) < 4.0 * squares.std(ddof=1) / math.sqrt(count)
    floor = sliced_wasserstein(normal(1000, 10, 1), normal(1000, 10, 2))
    assert floor.value > 5.0 * floor.stderr


def test_invariances() -> None:
    x, y = normal(90, 3, 1), normal(60, 3, 2, 0.3, 1.4)
    sliced = sliced_wasserstein(x, y)
    order = torch.randperm(90)
    for q, p, unit in ((x[order], y, 1.0), (x + 1e3, y + 1e3, 1.0), (y, x, 1.0), (1e-6 * x, 1e-6 * y, 1e-6)):
        other = sliced_wasserstein(q, p)
        assert (other.value, other.stderr) == pytest.approx((unit * sliced.value, unit * sliced.stderr), rel=1e-9)
    units = torch.tensor([1e-4, 1.0, 1e4], dtype=torch.float64)
    for power in (1, 2):
        plain = marginal_wasserstein(x, y, order=power)
        scaled = marginal_wasserstein(units * x + 5.0, units * y + 5.0, order=power)
        for unit, before, after in zip(units.tolist(), plain, scaled, strict=True):
            assert (after.value, after.stderr) == pytest.approx((unit * before.value, unit * before.stderr), rel=1e-7)


def test_blocks_seed_and_global_generators(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    x, y = normal(90, 3, 1), normal(60, 3, 2, 0.3, 1.4)
    whole, marginal = sliced_wasserstein(x, y, seed=3), marginal_wasserstein(x, y)
    state = torch.get_rng_state()
    assert sliced_wasserstein(x, y, seed=3) == whole
    assert torch.equal(torch.get_rng_state(), state)
    assert sliced_wasserstein(x, y, seed=4).value != whole.value
    monkeypatch.setattr(transport, "_BLOCK_ELEMENTS_CPU", 300)  # two columns at a time
    monkeypatch.setattr(transport, "_BLOCK_ELEMENTS_CUDA", 300)
    assert sliced_wasserstein(x.to(device), y.to(device), seed=3) == pytest.approx(whole, rel=1e-10)
    np.testing.assert_allclose(marginal_wasserstein(x.to(device), y.to(device)), marginal, rtol=1e-10)


def test_equal_samples_have_no_error_figure() -> None:
    x = normal(50, 2, 1)
    for distance in (sliced_wasserstein(x, x), *marginal_wasserstein(x, x), *marginal_wasserstein(x, x, order=2)):
        assert distance.value == 0.0
        assert math.isnan(distance.stderr)


def test_takes_arrays_and_single_precision() -> None:
    x, y = normal(50, 3, 1).float(), normal(60, 3, 2).float()
    judges: tuple[Callable[..., object], ...] = (sliced_wasserstein, marginal_wasserstein)
    for judge in judges:
        result = judge(x.clone().requires_grad_(), y)
        assert judge(x.double(), y.double()) == result
        assert judge(x.numpy(), y.numpy()) == result


@pytest.mark.parametrize("judge", [sliced_wasserstein, marginal_wasserstein])
def test_faulty_samples_are_refused(judge: Callable[..., object]) -> None:
    x = normal(50, 3, 1)
    bad = x.clone()
    bad[3, 1] = math.inf
    with pytest.raises(ValueError, match="x holds NaN or infinite values in 1 of 50"):
        judge(bad, x)
    with pytest.raises(ValueError, match="same dimension, got 3 and 2"):
        judge(x, x[:, :2])
    with pytest.raises(ValueError, match="y has 1 draw; at least 2"):
        judge(x, x[:1])


def test_faulty_options_are_refused() -> None:
    x = normal(50, 3, 1)
    with pytest.raises(ValueError, match="projections must be at least 2, found 1"):
        sliced_wasserstein(x, x, projections=1)
    with pytest.raises(TypeError, match="projections must be an integer, found float"):
        sliced_wasserstein(x, x, projections=10.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an integer, found NoneType"):
        sliced_wasserstein(x, x, seed=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        marginal_wasserstein(x, x, order=3)
    with pytest.raises(TypeError, match="order must be an integer, found str"):
        marginal_wasserstein(x, x, order="1")  # type: ignore[arg-type]
