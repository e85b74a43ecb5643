"""Where the time of a training step goes: sampler, contrast, adversary, log p, optimiser, and Python beside them.

The step runs under PyTorch's profiler with the methods of each part marked as a range. An operation belongs to the
range it was called in; one of a backward pass to the range of the operation that it differentiates. What the
operations take is a part's *arithmetic*; what passes inside a range and outside of operations is its *Python*. The
profiler slows every event a little: that is measured (the same step without it) and taken off event by event. The
parts and the rest add up to the step's time by construction, since the rest is what remains.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["PARTS", "Split", "marked", "split"]

PARTS = ("sampler", "contrast", "adversary", "log p", "optimiser")
PREFIX = "part: "
STEP = "whole step"
BACKWARD = "autograd::engine::evaluate_function"

#: (class or module, name of its function) -> part.
Marks = Mapping[tuple[Any, str], str]


@dataclass(frozen=True)
class Split:
    """Seconds of one step.

    Args:
        total: of the step without profiler.
        arithmetic: part -> seconds in its operations, backward passes included; on CUDA those of its kernels.
        python: part -> seconds inside its functions and outside of operations.
        events: operations of a step that the profiler saw.
    """

    total: float
    arithmetic: dict[str, float] = field(default_factory=dict)
    python: dict[str, float] = field(default_factory=dict)
    events: int = 0

    @property
    def rest(self) -> float:
        """What no part has: other operations, Python between the parts."""
        return self.total - sum(self.arithmetic.values()) - sum(self.python.values())

    def figures(self) -> dict[str, float]:
        """As flat figures of a record, in seconds."""
        rows = {f"{part.replace(' ', '_')}_seconds": self.arithmetic.get(part, 0.0) for part in PARTS}
        return rows | {"python_seconds": self.rest + sum(self.python.values()), "log_p_python_seconds": self.python.get(
            "log p", 0.0)}  # fmt: skip


@contextmanager
def marked(marks: Marks) -> Iterator[None]:
    """Context in which calls of these functions are ranges of the profiler."""
    with ExitStack() as restore:
        for (owner, name), part in marks.items():
            own = vars(owner).get(name)
            if own is None:
                raise ValueError(f"marks: {owner.__name__} has no function {name!r} of its own")
            setattr(owner, name, _ranged(own, PREFIX + part))
            restore.callback(setattr, owner, name, own)
        yield


def _ranged(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @wraps(function)
    def ranged(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return function(*args, **kwargs)

    return ranged


@dataclass
class Sums:
    """What the profiler saw of one step: seconds of it, of operations and of Python by part; operations by part."""

    seconds: float
    arithmetic: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    python: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def split(
    step: Callable[[], object],
    marks: Marks,
    *,
    blocks: int = 4,
    steps: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    cuda: bool = False,
) -> Split:
    """Split a step's time.

    Args:
        step: one training step; it is called about ``3 * blocks * steps`` times.
        marks: the functions of each part.
        blocks, steps: blocks of steps, in turn with and without profiler; medians are taken over all of them.
        clock: of the step's seconds; ``time.process_time`` does not count what other processes take of a core, and
            serves for one thread.
        cuda: whether kernels of the GPU are what a part's arithmetic costs; ``step`` is then to wait for them.

    Raises:
        ValueError: a mark names a function that its owner does not define.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    plain: list[float] = []
    seen: list[Sums] = []

    def timed() -> float:
        began = clock()
        step()
        return clock() - began

    for _ in range(steps):
        step()
    for _ in range(blocks):
        plain += [timed() for _ in range(steps)]
        with marked(marks), profile(activities=activities) as profiler:
            taken = []
            for _ in range(steps):
                with record_function(STEP):
                    taken.append(timed())
        events = [e for e in profiler.events() or [] if str(e.device_type).endswith("CPU")]
        found = _by_step(events)
        seen += [_sums(inside, seconds, cuda) for inside, seconds in zip(found, taken, strict=True)]
    return combined(statistics.median(plain), seen)


def combined(seconds: float, seen: Sequence[Sums]) -> Split:
    """Medians of the sums of several steps, less what the profiler adds to a step that takes ``seconds`` without it."""
    arithmetic, python = (
        {p: statistics.median(getattr(s, kind).get(p, 0.0) for s in seen) for p in PARTS}
        for kind in ("arithmetic", "python")
    )
    counts = {p: statistics.median(s.counts.get(p, 0) for s in seen) for p in PARTS}
    events = round(statistics.median(sum(s.counts.values()) for s in seen))
    # What one event costs more because it is looked at.
    overhead = max(statistics.median(s.seconds for s in seen) - seconds, 0.0) / max(events, 1)
    corrected = {p: max(arithmetic[p] - overhead * counts[p], 0.0) for p in PARTS}
    return Split(seconds, corrected, python, events)


def _by_step(events: Iterable[Any]) -> list[list[Any]]:
    """The profiler's events of each step, the step's own range first."""
    steps: list[list[Any]] = []
    ordered = sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end))
    for event in ordered:
        if event.name == STEP:
            steps.append([event])
        elif steps and event.time_range.start < steps[-1][0].time_range.end:
            steps[-1].append(event)
    return steps


def _sums(events: list[Any], seconds: float, cuda: bool) -> Sums:
    """The sums of one step, its own range first, that took ``seconds`` by the caller's clock."""
    whole, *inside = events
    # Where others had the core for a while the profiler's clock went on.
    unit = seconds / max(whole.cpu_time_total, 1e-3)
    owner: dict[int, str] = {}
    forward: dict[int, str] = {}
    sums = Sums(seconds)
    for event in inside:  # parents come before their children, forward operations before their derivatives
        above = owner.get(id(event.cpu_parent), "")
        if event.name.startswith(PREFIX):
            part = event.name.removeprefix(PREFIX)
            sums.python[part] += unit * event.self_cpu_time_total
        else:
            part = above
            if event.name.startswith(BACKWARD):
                part = forward.get(event.sequence_nr, above)
            elif event.sequence_nr >= 0:
                # The last operation of a number is the one that made the node.
                forward[event.sequence_nr] = part
            sums.arithmetic[part] += 1e-6 * event.self_device_time_total if cuda else unit * event.self_cpu_time_total
            sums.counts[part] += 1
        owner[id(event)] = part
    return sums
