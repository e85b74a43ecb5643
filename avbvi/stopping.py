"""Stopping: when a noisy ELBO has no more than a tolerance left to gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from .estimates import Estimate

#: Two adjacent windows of the run, as shares of it: (begin of the earlier, their common border); the later ends now.
#: The long pair carries through noise; the short one is sooner past the start of the run.
WINDOWS = ((0.25, 0.5), (0.5, 0.75))
#: The run is kept as 16 to 32 batch means, and looked at with 16, 20, 24 and 28 of them.
BATCHES = 16
LOOKS = BATCHES // 4


class Stopping:
    """Stop once the ELBO's remaining gain is below a tolerance, by a confidence bound.

    Takes one noisy ELBO estimate per step of a stage with a constant learning rate, and compares means of adjacent
    windows that grow with the run: n/4..n/2 with n/2..n, and n/2..3n/4 with 3n/4..n. For an ELBO that approaches its
    limit as n^-a, the gain d from window to window means that F_a d is still to come,

        1 / F_a = M(u, v) - M(v, 1),    M(u, v) = (v^(1-a) - u^(1-a)) / ((1 - a) (v - u)),

    with F_(1/2) = 2.1 and 5.0 for the two pairs. F_a falls with a, so a faster approach, an exponential one included,
    is bounded as well. The rule fires when for either pair

        F_a (|d| + t se(d)) < tolerance,

    where se(d) comes from batch means, which autocorrelation up to a thirtieth of the run hardly impairs, and t is
    Student's quantile with Welch's degrees of freedom, the error shared between both pairs. A falling ELBO does not
    stop the run either, nor one that swings with a period of the order of the run. Looks are n = 16 b, 20 b, 24 b,
    28 b for b = minimum / 16 times powers of two; memory is 32 numbers.

    Not seen in principle: a plateau that fills the last half of the run, and a slower approach than n^-exponent.
    The benchmark ``stopping`` has false-alarm rates. Independent estimates with standard deviation s need about
    180 (s / tolerance)^2 steps, so a tolerance far below s hardly ever stops.

    Args:
        tolerance: what may remain to be gained, in nats.
        confidence: probability with which one look keeps a run going that has more to gain.
        exponent: a, the slowest approach to the limit that is guarded against.
        minimum: steps before the first look, rounded up to a multiple of 16.

    Raises:
        ValueError: a non-positive number, or ``confidence`` outside (0.5, 1).

    Example:
        >>> import math, random, avbvi
        >>> random.seed(0)
        >>> trace = [-2.0 - math.exp(-n / 100) + random.gauss(0.0, 0.1) for n in range(5000)]
        >>> rule = avbvi.Stopping(tolerance=0.05)  # fit(..., stopping=rule)
        >>> any(rule.update(elbo) for elbo in trace), rule.stopped_at < 5000
        (True, True)
        >>> rule.first_stop(trace) == rule.stopped_at
        True

    Source: this project's. The standard error is that of batch means (Glynn and Whitt 1991, Estimating the asymptotic
    variance with batch means, Oper. Res. Lett. 10); bounds by Monte Carlo standard errors in place of differences of
    single estimates follow Dhaka et al. (2020), Robust, accurate stochastic optimization for variational inference,
    NeurIPS; extrapolating a fitted law of convergence, Welandawe et al. (2022), arXiv 2203.15945.
    """

    def __init__(
        self, tolerance: float = 0.05, *, confidence: float = 0.95, exponent: float = 0.5, minimum: int = 1024
    ) -> None:
        for name, value in (("tolerance", tolerance), ("exponent", exponent), ("minimum", minimum)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Stopping({name}=...) must be positive and finite, found {value}")
        if not 0.5 < confidence < 1.0:
            raise ValueError(f"Stopping(confidence=...) must be in (0.5, 1), found {confidence}")
        self.tolerance: float = float(tolerance)
        self.confidence: float = float(confidence)
        self.exponent: float = float(exponent)
        self.minimum: int = int(minimum)
        #: Finite estimates taken so far.
        self.count: int = 0
        #: Value of ``count`` at which the rule fired, or None.
        self.stopped_at: int | None = None
        #: Gain that remains, as of the last look, with its standard error (None before the first), in nats.
        self.remaining: Estimate | None = None
        #: Confidence bound of it, which the rule compares with ``tolerance``.
        self.bound: float = math.inf
        self._size = math.ceil(self.minimum / BATCHES)
        self._sum, self._in_batch = 0.0, 0
        self._means: list[float] = []

    def update(self, elbo: float) -> bool:
        """Take one step's estimate ``elbo``, in nats; whether the stage has converged, by this step or before.

        A NaN or infinite estimate is that of a skipped step and is left out.
        """
        if self.stopped_at is not None or not math.isfinite(elbo):
            return self.stopped_at is not None
        self.count += 1
        self._sum += elbo
        self._in_batch += 1
        if self._in_batch == self._size:
            self._close_batch()
        return self.stopped_at is not None

    def first_stop(self, elbos: Sequence[float] | np.ndarray[Any, Any]) -> int | None:
        """Number of finite estimates after which an unused rule of these settings stops on ``elbos`` (n,), or None."""
        trace = np.asarray(elbos, dtype=np.float64)
        trace = trace[np.isfinite(trace)]
        rule = Stopping(**self.settings())
        begin = 0
        while rule.stopped_at is None and begin + rule._size <= len(trace):
            batch = trace[begin : begin + rule._size]
            begin += len(batch)
            rule.count, rule._sum = begin, float(batch.sum())
            rule._close_batch()
        return rule.stopped_at

    def settings(self) -> dict[str, Any]:
        """The arguments, as plain data."""
        return {
            "tolerance": self.tolerance,
            "confidence": self.confidence,
            "exponent": self.exponent,
            "minimum": self.minimum,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that decisions to come depend on, as plain numbers and lists."""
        return {
            "settings": self.settings(),
            "count": self.count,
            "stopped_at": self.stopped_at,
            "remaining": None if self.remaining is None else list(self.remaining),
            "bound": self.bound,
            "size": self._size,
            "sum": self._sum,
            "in_batch": self._in_batch,
            "means": list(self._means),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: the state is that of a rule with other settings.
        """
        if state["settings"] != self.settings():
            raise ValueError(
                f"state is of a rule with {state['settings']}, this one has {self.settings()}; make the rule with "
                "the same arguments"
            )
        self.count = state["count"]
        self.stopped_at = state["stopped_at"]
        self.remaining = None if state["remaining"] is None else Estimate(*state["remaining"])
        self.bound = state["bound"]
        self._size = state["size"]
        self._sum, self._in_batch = state["sum"], state["in_batch"]
        self._means = list(state["means"])

    def _close_batch(self) -> None:
        self._means.append(self._sum / self._size)
        self._sum, self._in_batch = 0.0, 0
        if len(self._means) == 2 * BATCHES:
            self._means = [0.5 * (a + b) for a, b in zip(self._means[::2], self._means[1::2], strict=True)]
            self._size *= 2
        if len(self._means) >= BATCHES and len(self._means) % LOOKS == 0:
            self._look()

    def _look(self) -> None:
        means = np.array(self._means)
        level = 1.0 - (1.0 - self.confidence) / len(WINDOWS)
        self.bound = math.inf
        for begin, border in WINDOWS:
            first, last = (round(share * len(means)) for share in (begin, border))
            gain, quantile = _welch(means[first:last], means[last:], level)
            still = _still_to_come(begin, border, self.exponent)
            bound = still * (abs(gain.value) + quantile * gain.stderr)
            if bound < self.bound:
                self.bound, self.remaining = bound, Estimate(still * gain.value, still * gain.stderr)
        if self.bound < self.tolerance:
            self.stopped_at = self.count


def _welch(earlier: np.ndarray[Any, Any], later: np.ndarray[Any, Any], level: float) -> tuple[Estimate, float]:
    """Difference of the means of two samples, and Student's quantile with Welch's degrees of freedom."""
    difference = float(later.mean() - earlier.mean())
    a, b = (float(x.var(ddof=1)) / len(x) for x in (earlier, later))
    if a + b == 0.0:
        return Estimate(difference, 0.0), 0.0
    # In shares of the sum: the squares of variances may leave the range of floats.
    share = a / (a + b)
    freedom = 1.0 / (share**2 / (len(earlier) - 1) + (1.0 - share) ** 2 / (len(later) - 1))
    return Estimate(difference, math.sqrt(a + b)), float(stdtrit(freedom, level))


def _still_to_come(begin: float, border: float, exponent: float) -> float:
    """F_a: what remains of C n^-a at n, over what it fell from one window's mean to the next one's."""

    def mean(u: float, v: float) -> float:
        if abs(1.0 - exponent) < 1e-6:
            return math.log(v / u) / (v - u)
        return float(v ** (1.0 - exponent) - u ** (1.0 - exponent)) / ((1.0 - exponent) * (v - u))

    return 1.0 / (mean(begin, border) - mean(border, 1.0))
