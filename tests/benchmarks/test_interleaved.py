"""Timing in turn: who is called when, and the statistics of pairs."""

import time

import pytest

from benchmarks.interleaved import Times, interleaved, paired_difference, paired_ratio


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = interleaved({name: (lambda n=name: order.append(n)) for name in "ab"}, repeats=3, seconds=0.0, warm_up=1)
    # A warm-up and one call to learn how long a call takes, of each; then in turn.
    assert order == [*"ab", *"ab", *"ababab"]
    assert len(times["a"].wall) == len(times["b"].cpu) == 3


def test_seconds_are_those_of_one_call() -> None:
    found = interleaved({"wait": lambda: time.sleep(3e-3)}, repeats=3, seconds=0.02, warm_up=0)["wait"]
    assert all(3e-3 <= s < 30e-3 for s in found.wall)
    # Waiting takes time and no processor.
    assert all(s < 2e-3 for s in found.cpu)


def test_pairs_share_what_disturbs_them() -> None:
    # The machine was four times as slow in the second repetition: the ratio is the same.
    assert paired_ratio([2.0, 8.0, 2.2], [1.0, 4.0, 1.0]) == 2.0
    assert paired_difference([3.0, 5.0, 4.0], [2.0, 3.0, 1.0]) == (1.5, 2.0, 2.5)


def test_quartiles() -> None:
    assert Times(wall=[1.0, 2.0, 3.0, 4.0, 5.0]).quartiles() == (2.0, 3.0, 4.0)
    assert Times(wall=[7.0]).quartiles() == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])
