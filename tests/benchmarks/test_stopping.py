"""The board of the stopping rule: its curves, its intervals, its counts."""

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import stopping


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 50), (50, 50), (31, 2400)])
def test_interval_agrees_with_scipy(hits: int, trials: int) -> None:
    exact = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert stopping.clopper_pearson(hits, trials) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_steps_needed() -> None:
    missing = np.array([1.0, 0.2, 0.04, -0.06, 0.05, 0.0])
    assert stopping.needed(missing) == 5
    assert stopping.needed(np.zeros(3)) == 1
    assert stopping.needed(missing[:4]) == 5  # one more than there are


@pytest.mark.parametrize("family", stopping.GUARDED)
def test_curves_go_to_zero_no_slower_than_the_guarded_law(family: str) -> None:
    for seed in range(20):
        missing = np.abs(stopping.GUARDED[family](np.random.default_rng(seed)))
        assert len(missing) == stopping.LENGTH
        # The largest of each quarter of the logarithmic scale, against n^-1/2 (a swing may begin at its low).
        late, middle = missing[10_000:].max(), missing[2_500:10_000].max()
        assert late <= middle * 0.51
        assert missing[0] > stopping.TOLERANCE or family == "damped"


@pytest.mark.parametrize("noise", ["normal-.3", "t3-.3", "ar.9-.1", "ar.99-.03"])
def test_noise_has_the_standard_deviation_of_its_name(noise: str) -> None:
    errors = stopping.NOISES[noise](np.zeros(stopping.LENGTH), np.random.default_rng(0))
    # Correlated by .99, 40,000 values are worth about 400; squares of t3 have no variance, hence its width.
    assert errors.std() == pytest.approx(float(noise.rpartition("-")[2]), rel=0.15)


def test_moving_average_stops_after_the_second_of_two_close_blocks() -> None:
    trace = np.repeat([0.0, 1.0, 2.0, 2.01, 3.0], stopping.BLOCK)
    assert stopping.moving_average(trace) == 4 * stopping.BLOCK
    assert stopping.moving_average(trace[: 3 * stopping.BLOCK]) is None


def test_a_cell_counts_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that stops at once is wrong always, one that waits until the end never."""
    monkeypatch.setattr(stopping, "RULES", {"hasty": (lambda t: 1, 1), "slow": (len, 1), "never": (lambda t: None, 1)})
    hasty, slow, never = stopping.measured("exponential", "normal-.03", traces=8, seed=1)
    assert (hasty["false_alarms"], hasty["rate"], hasty["overshoot"]) == (8, 1.0, None)
    assert (slow["false_alarms"], slow["rate"]) == (0, 0.0)
    assert slow["overshoot"] > 1.0
    assert (never["stops"], never["decided"]) == (0, 0.0)
    (pooled,) = stopping.pooled([hasty, hasty], "family")
    assert (pooled["traces"], pooled["false_alarms"], pooled["rate"]) == (16, 16, 1.0)
