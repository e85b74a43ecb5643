"""Timing several callables side by side: repetitions in turn, so that what else the machine does falls on all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Times", "interleaved", "paired_difference", "paired_ratio"]

Call = Callable[[], object]


@dataclass
class Times:
    """Seconds of one call, repetition by repetition: by the wall clock and of the process's cores."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def quartiles(self) -> tuple[float, float, float]:
        """Of the wall clock's seconds."""
        return _quartiles(self.wall)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def interleaved(
    calls: Mapping[str, Call],
    *,
    repeats: int,
    seconds: float = 0.1,
    warm_up: int = 5,
    counts: Mapping[str, int] | None = None,
    wait: Call = lambda: None,
) -> dict[str, Times]:
    """Time callables in turn.

    Args:
        calls: by name.
        repeats: repetitions of each.
        seconds: that a repetition is to take about, of as many calls as that needs.
        warm_up: calls of each before.
        counts: how many of what is timed a call does, where that is not one.
        wait: what has to be called for all work to be done (a GPU's synchronisation).
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    wait()
    number = {name: max(1, math.ceil(seconds / max(_timed(call, 1, wait)[0], 1e-7))) for name, call in calls.items()}
    times = {name: Times() for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            wall, cpu = _timed(call, number[name], wait)
            count = (counts or {}).get(name, 1)
            times[name].wall.append(wall / count)
            times[name].cpu.append(cpu / count)
    return times


def _timed(call: Call, n: int, wait: Call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(n):
        call()
    wait()
    return (time.perf_counter() - wall) / n, (time.process_time() - cpu) / n


def paired_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over repetitions of one's seconds by the other's."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def paired_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles over repetitions of one's seconds less the other's."""
    return _quartiles([a - b for a, b in zip(one, other, strict=True)])
