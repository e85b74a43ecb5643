"""What inference methods have in common: their interface, their result, snapshots along a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import avbvi
from avbvi.rng import rng_untouched
from benchmarks.problems import Draws, Problem

SNAPSHOT_DRAWS = 10_000


@dataclass(frozen=True)
class Snapshot:
    """Draws (n, d) in judging coordinates, taken after so many seconds and steps of a run."""

    seconds: float
    steps: int
    draws: Tensor


@dataclass
class Fitted:
    """What a method returns.

    Args:
        sample: n -> draws by site, deterministic sites included; at most n, all there are of a Markov chain.
        seconds: from call to return, starts included; verdict, ELBO and snapshots apart.
        elbo: E_q[log p - log q]; None where there is no q.
        exact: whether log q is exact, so that log Z - elbo is the KL divergence.
        figures: further figures for the record.
        snapshots: draws taken along the run, the last of them from the finished fit; empty if none were asked for.
    """

    sample: Callable[[int], Draws]
    seconds: float
    elbo: avbvi.Estimate | None = None
    exact: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)


def _nothing(problem: Problem) -> str | None:
    return None


@dataclass(frozen=True)
class Method:
    """A way to approximate a posterior, with the one configuration that it has on all problems.

    Args:
        name: its key in the registry and in the records.
        label: as it reads in tables.
        fit: (problem, seed, minutes, snapshots) -> the result.
        timed: whether ``minutes`` sets the length of the run; otherwise it is ignored.
        curves: whether it takes snapshots; otherwise it returns none.
        missing: says what is lacking here to run on a problem, None if nothing is.
        sources: files that a fit depends on, relative to the repository's root (see ``benchmarks.runner``).
    """

    name: str
    label: str
    fit: Callable[[Problem, int, float, Sequence[float]], Fitted]
    timed: bool = True
    curves: bool = True
    missing: Callable[[Problem], str | None] = _nothing
    sources: tuple[str, ...] = ()

    def __call__(self, problem: Problem, seed: int, minutes: float, snapshots: Sequence[float] = ()) -> Fitted:
        """Fit a problem.

        Args:
            problem: the target.
            seed: of all random numbers; it fixes the result for a given number of steps.
            minutes: wall time of the run.
            snapshots: seconds at which draws are taken, time spent on taking them not counted.

        Raises:
            ValueError: ``minutes`` or a snapshot's time is not positive.
            RuntimeError: something that the method needs is missing here.
        """
        if not minutes > 0.0:
            raise ValueError(f"minutes must be positive, found {minutes}")
        if any(not mark > 0.0 for mark in snapshots):
            raise ValueError(f"snapshots must be positive times in seconds, found {list(snapshots)}")
        lacking = self.missing(problem)
        if lacking is not None:
            raise RuntimeError(f"{self.name} can't run on {problem.name}: {lacking}")
        return self.fit(problem, seed, minutes, tuple(snapshots))


class Recorder:
    """Stopwatch of a run that takes snapshots at given times and does not count the time that they take.

    Args:
        problem: gives the judging coordinates.
        marks: times in seconds since the recorder was made.
        draws: number of draws in a snapshot.
    """

    def __init__(self, problem: Problem, marks: Sequence[float] = (), draws: int = SNAPSHOT_DRAWS) -> None:
        self.snapshots: list[Snapshot] = []
        self.spent = 0.0
        self._problem, self._draws = problem, draws
        self._marks = sorted(marks)
        self._wanted = bool(marks)
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Seconds of the run so far, snapshots not counted."""
        return time.monotonic() - self._started - self.spent

    def look(self, steps: int, sample: Callable[[int], Draws]) -> float:
        """Take a snapshot if its time has come, and return the seconds that it took, for other clocks of the run."""
        if not self._marks or self.seconds() < self._marks[0]:
            return 0.0
        return self._take(self.seconds(), steps, sample)

    def last(self, seconds: float, steps: int, sample: Callable[[int], Draws]) -> list[Snapshot]:
        """All snapshots, with one of the finished fit at the end if any were asked for."""
        if self._wanted:
            self._take(seconds, steps, sample)
        return self.snapshots

    def _take(self, seconds: float, steps: int, sample: Callable[[int], Draws]) -> float:
        began = time.monotonic()
        # The run goes on as if nobody had looked.
        with rng_untouched(), torch.no_grad():
            draws = self._problem.matrix(sample(self._draws))
        self.snapshots.append(Snapshot(seconds, steps, draws))
        # Times that passed together (during a long start, say) get one snapshot.
        self._marks = [mark for mark in self._marks if mark > seconds]
        spent = time.monotonic() - began
        self.spent += spent
        return spent


def mean_with_error(terms: Tensor) -> avbvi.Estimate:
    """Mean of independent terms (n,) with its standard error."""
    terms = terms.double()
    return avbvi.Estimate(float(terms.mean()), float(terms.std() / math.sqrt(len(terms))))
