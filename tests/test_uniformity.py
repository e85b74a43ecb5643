"""Bands and p-values of uniform ranks against enumeration of all outcomes."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from avbvi import uniformity
from avbvi.uniformity import band, binomial_interval, holm, rank_counts, uniformity_p_value

N, DRAWS = 4, 3


def outcomes() -> np.ndarray:
    """All (DRAWS + 1) ** N equally likely ranks (outcomes, N)."""
    return np.array(list(itertools.product(range(DRAWS + 1), repeat=N)))


def least_tail(ranks: np.ndarray) -> np.ndarray:
    """Smallest two-sided binomial tail probability over all thresholds, by scipy's exact distribution function."""
    least = np.ones(len(ranks))
    for threshold in range(1, DRAWS + 1):
        count = (ranks < threshold).sum(1)
        law = stats.binom(N, threshold / (DRAWS + 1))
        least = np.minimum(least, 2.0 * np.minimum(law.cdf(count), 1.0 - law.cdf(count - 1)))
    return least


def test_p_value_is_the_share_of_outcomes_at_least_as_uneven() -> None:
    ranks = outcomes()
    least = least_tail(ranks)
    for row, own in zip(ranks[::7], least[::7], strict=True):
        expected = (least <= own * (1.0 + 1e-9)).mean()
        assert uniformity_p_value(torch.tensor(row), DRAWS) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_band_holds_the_outcomes_that_it_says(level: float) -> None:
    found = band(N, DRAWS, level)
    counts = np.stack([(outcomes() < t).sum(1) for t in range(1, DRAWS + 1)], 1)
    inside = ((counts >= found.lower) & (counts <= found.upper)).all(1)
    assert found.level == pytest.approx(inside.mean(), abs=1e-12)
    assert found.level >= level
    # The next narrower band would hold less than it has to.
    narrower = least_tail(outcomes()) > least_tail(outcomes())[inside].min() * (1.0 + 1e-9)
    assert narrower.mean() < level
    np.testing.assert_allclose(found.points, [0.25, 0.5, 0.75])


def test_band_and_p_value_agree_in_every_outcome() -> None:
    found = band(N, DRAWS, 0.8)
    for row in outcomes()[::5]:
        counts = rank_counts(torch.tensor(row), DRAWS)
        leaves = bool(((counts < found.lower) | (counts > found.upper)).any())
        assert leaves == (uniformity_p_value(torch.tensor(row), DRAWS) <= 1.0 - found.level + 1e-12)


def test_band_of_a_usual_size_holds_uniform_ranks_as_often_as_it_says() -> None:
    n, draws, repeats = 100, 999, 4000
    found = band(n, draws)
    assert 0.95 <= found.level < 0.955
    ranks = np.random.default_rng(0).integers(0, draws + 1, (repeats, n))
    inside = np.ones(repeats, dtype=bool)
    for point, low, high in zip(found.points, found.lower, found.upper, strict=True):
        count = (ranks < round(point * (draws + 1))).sum(1)
        inside &= (low <= count) & (count <= high)
    se = np.sqrt(found.level * (1.0 - found.level) / repeats)
    assert abs(inside.mean() - found.level) < 4.0 * se


def test_small_p_values_are_not_lost_to_rounding() -> None:
    # All ranks in the lowest of 100 bins: the count at 1/100 alone has probability 1e-120.
    p = uniformity_p_value(torch.zeros(60, dtype=torch.long), 99)
    assert 1e-120 < p < 1e-100


def test_draws_that_no_number_of_points_divides() -> None:
    thresholds = uniformity._thresholds(136)
    assert len(thresholds) == 99
    assert thresholds.min() >= 1
    assert thresholds.max() <= 136
    np.testing.assert_allclose(band(10, 136).points, thresholds / 137)
    # Ranks below a threshold are counted, the threshold itself is not.
    counts = rank_counts(torch.tensor([0, int(thresholds[0]), 136]), 136)
    assert counts[0] == 1
    assert counts[1] == 2
    assert counts[-1] == 2 + (thresholds[-1] > 136)


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"b": 0.04, "c": 0.09, "a": 0.09, "d": 0.9})
    assert list(adjusted) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("count", "n"), [(0, 20), (7, 20), (20, 20)])
def test_binomial_interval_is_scipys(count: int, n: int) -> None:
    expected = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert binomial_interval(count, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, found 1\.0"):
        band(10, 9, 1.0)
    with pytest.raises(ValueError, match="n and draws must be at least 1, found 0 and 9"):
        band(0, 9)
    with pytest.raises(ValueError, match="from 0 to draws=9"):
        uniformity_p_value(torch.tensor([3, 10]), 9)
    with pytest.raises(ValueError, match="one or more"):
        uniformity_p_value(torch.tensor([], dtype=torch.long), 9)
