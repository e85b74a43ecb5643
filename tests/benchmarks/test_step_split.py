"""The split of a step's time: what belongs to a part, and that the parts add up."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import step_marks, step_split
from benchmarks.reference_step import ReferenceStep
from benchmarks.step_problems import EIGHT_SCHOOLS
from benchmarks.step_split import PARTS, Split, Sums, combined, marked, split


class Parts:
    """A step of known parts: two layers, the second much wider, and a function that only waits."""

    def __init__(self) -> None:
        self.small, self.large = nn.Linear(8, 8), nn.Linear(512, 512)

    def sampler(self, x: Tensor) -> Tensor:
        return self.large(x)

    def adversary(self, x: Tensor) -> Tensor:
        return self.small(x)

    def wait(self) -> None:
        time.sleep(5e-3)

    def __call__(self) -> None:
        loss = self.sampler(torch.randn(512, 512)).sum() + self.adversary(torch.randn(8, 8)).sum()
        loss.backward()
        self.wait()


MARKS = {(Parts, "sampler"): "sampler", (Parts, "adversary"): "adversary", (Parts, "wait"): "log p"}


def events_by_part(step: Callable[[], object]) -> dict[str, int]:
    """Operations of one step by part."""
    with marked(MARKS), profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(step_split.STEP):
        step()
    (events,) = step_split._by_step(profiler.events() or [])
    return dict(step_split._sums(events, 1.0, False).counts)


def test_backward_passes_belong_to_the_operation_that_they_differentiate() -> None:
    parts = Parts()
    x = torch.randn(4, 512)
    parts()
    forward = events_by_part(lambda: parts.sampler(x))
    found = events_by_part(lambda: parts.sampler(x).sum().backward())
    # The node, the product that gives the weight's gradient, the sum that gives the bias's, and what they call.
    assert found["sampler"] >= forward["sampler"] + 4
    assert "adversary" not in found
    # Sum, its node and the leaves' accumulation belong to no part.
    assert found[""] > 0


def test_time_goes_to_the_part_that_takes_it() -> None:
    found = split(Parts(), MARKS, blocks=2, clock=time.process_time)
    assert found.arithmetic["sampler"] > 5 * found.arithmetic["adversary"]


def test_python_of_a_part_is_what_passes_outside_of_operations() -> None:
    found = split(Parts(), MARKS, blocks=1)
    assert 5e-3 < found.python["log p"] < found.total
    assert found.arithmetic["log p"] == 0.0


def test_parts_and_rest_add_up() -> None:
    found = split(Parts(), MARKS, blocks=1, steps=3)
    figures = found.figures()
    parts = sum(figures[f"{p.replace(' ', '_')}_seconds"] for p in PARTS)
    assert parts + figures["python_seconds"] == pytest.approx(found.total, rel=1e-12)


def test_what_the_profiler_adds_is_taken_off_by_event() -> None:
    seen = [
        Sums(1.5, {"sampler": 0.6, "adversary": 0.3}, {"sampler": 0.1}, {"sampler": 30, "adversary": 10, "": 10}),
    ] * 3
    found = combined(1.0, seen)
    # Fifty events cost half a second more.
    assert found.arithmetic["sampler"] == pytest.approx(0.6 - 30 * 0.01)
    assert found.arithmetic["adversary"] == pytest.approx(0.3 - 10 * 0.01)
    assert found.events == 50
    assert found.rest == pytest.approx(1.0 - 0.3 - 0.2 - 0.1)


def test_functions_are_restored() -> None:
    before = Parts.sampler
    with marked(MARKS):
        assert Parts.sampler is not before
    assert Parts.sampler is before


def test_a_mark_of_what_is_not_there_is_refused() -> None:
    before = Parts.sampler
    with pytest.raises(ValueError, match="Parts has no function 'gone'"), marked(MARKS | {(Parts, "gone"): "log p"}):
        pass
    assert Parts.sampler is before


@pytest.mark.parametrize("marks", [step_marks.AVBVI, step_marks.REFERENCE])
def test_marks_name_functions_that_there_are(marks: dict[tuple[object, str], str]) -> None:
    assert set(marks.values()) == set(PARTS)
    with marked(marks):
        pass


def test_every_part_of_the_yardstick_is_seen() -> None:
    step = ReferenceStep(EIGHT_SCHOOLS.by_hand(), EIGHT_SCHOOLS.dim)
    found: Split = split(step.step, step_marks.REFERENCE, blocks=1)
    assert all(found.arithmetic[part] + found.python[part] > 0.0 for part in PARTS)
    # The adversary's network is run four times as often as the sampler's, and differentiated.
    assert found.arithmetic["adversary"] > found.arithmetic["sampler"]
