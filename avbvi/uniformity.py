"""Are ranks uniform? Exact simultaneous bands of their distribution function, p-values, intervals of a share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

#: Points at which the distribution function is looked at, if there are as many ranks.
MOST_POINTS = 100
# Two tail probabilities that differ by less are the same one, rounded differently.
_ROUNDING = 1e-9

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Where the empirical distribution function of n uniform ranks stays throughout, with probability ``level``.

    At ``points`` (k,), strictly between 0 and 1, the number of ranks below points * (draws + 1) is between
    ``lower`` and ``upper`` (k,), both included. ``level`` is at least what was asked for: counts are discrete.
    """

    n: int
    points: Floats
    lower: Counts
    upper: Counts
    level: float


def rank_counts(ranks: Tensor, draws: int) -> Counts:
    """Numbers of the ranks (n,), integers from 0 to ``draws``, below each of the band's points.

    Raises:
        ValueError: there are no ranks, or they lie outside of 0 to ``draws``.
    """
    found = np.sort(ranks.detach().cpu().numpy().reshape(-1))
    if not len(found) or found[0] < 0 or found[-1] > draws:
        raise ValueError(f"ranks must be one or more integers from 0 to draws={draws}, found {found}")
    return np.searchsorted(found, _thresholds(draws), side="left").astype(np.int64)


def band(n: int, draws: int, level: float = 0.95) -> Band:
    """The simultaneous band for n independent ranks that are uniform on 0..``draws``.

    At every point it is a two-sided binomial interval of the same tail probability, which is the largest that
    keeps the joint probability at ``level``. That probability is computed without simulation, by recursion over the
    points: given the count at one, the further count at the next is binomial.

    Raises:
        ValueError: n or draws is less than 1, or level is not between 0 and 1.

    Source: Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity and its applications in
    goodness-of-fit evaluation and multiple sample comparison, Statistics and Computing 32, 32: the recursion of
    section 2.2 for one sample, here for ranks, whose thresholds are integers.
    """
    if n < 1 or draws < 1:
        raise ValueError(f"n and draws must be at least 1, found {n} and {draws}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    return _band(n, draws, level)


@cache
def _band(n: int, draws: int, level: float) -> Band:
    tails = _tails(n, draws)
    candidates = np.unique(tails)
    low, high = -1, len(candidates) - 1  # the index of the largest limit that still holds the level, and of one too far
    while high - low > 1:
        middle = (low + high) // 2
        if _leaving_probability(n, draws, candidates[middle]) <= 1.0 - level:
            low = middle
        else:
            high = middle
    limit = candidates[low] if low >= 0 else 0.0
    inside = tails > limit * (1.0 + _ROUNDING)
    lower = inside.argmax(1)
    upper = n - inside[:, ::-1].argmax(1)
    points = _thresholds(draws) / (draws + 1)
    return Band(n, points, lower, upper, 1.0 - _leaving_probability(n, draws, limit))


def uniformity_p_value(ranks: Tensor, draws: int) -> float:
    """Probability that uniform ranks leave a band that these ranks (n,) just leave: exact, no simulation.

    Below 1 - level exactly where the empirical distribution function leaves :func:`band`.

    Raises:
        ValueError: there are no ranks, or they lie outside of 0 to ``draws``.
    """
    counts = rank_counts(ranks, draws)
    n = ranks.numel()
    least = _tails(n, draws)[np.arange(len(counts)), counts].min()
    return _leaving_probability(n, draws, float(least))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: rejecting those below alpha errs with probability at most alpha, whatever their dependence.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 65-70.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for i, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def binomial_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of which ``count`` of ``n`` were seen; it holds the share with at least this probability.

    Source: Clopper and Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the
    binomial, Biometrika 26, 404-413.
    """
    tail = 0.5 * (1.0 - level)
    low = 0.0 if count == 0 else float(stats.beta.ppf(tail, count, n - count + 1))
    high = 1.0 if count == n else float(stats.beta.ppf(1.0 - tail, count + 1, n - count))
    return low, high


@cache
def _thresholds(draws: int) -> Counts:
    """Integers t: the function is looked at as the number of ranks below t, whose probability is t / (draws + 1)."""
    points = min(MOST_POINTS, draws + 1)
    return np.unique(np.arange(1, points, dtype=np.int64) * (draws + 1) // points)


@cache
def _tails(n: int, draws: int) -> Floats:
    """Two-sided tail probability of each count 0..n at each threshold (k, n + 1), at most 1."""
    p = _thresholds(draws)[:, None] / (draws + 1)
    count = np.arange(n + 1)
    below, above = stats.binom.cdf(count, n, p), stats.binom.sf(count - 1, n, p)
    return np.minimum(1.0, 2.0 * np.minimum(below, above))


def _leaving_probability(n: int, draws: int, limit: float) -> float:
    """Probability that some count's tail probability is ``limit`` or less."""
    inside = _tails(n, draws) > limit * (1.0 + _ROUNDING)
    left = 0.0
    count, mass = np.zeros(1, dtype=np.int64), np.ones(1)
    before = 0
    for row, threshold in zip(inside, _thresholds(draws), strict=True):
        p = (threshold - before) / (draws + 1 - before)
        allowed = np.flatnonzero(row)
        if not len(allowed):
            return 1.0
        step = stats.binom.pmf(allowed[None] - count[:, None], n - count[:, None], p)
        # What leaves is added up: one less what stays would lose small probabilities to rounding.
        below = stats.binom.cdf(allowed[0] - 1 - count, n - count, p)
        left += float(mass @ (below + stats.binom.sf(allowed[-1] - count, n - count, p)))
        count, mass = allowed, mass @ step
        before = threshold
    return min(1.0, left)
