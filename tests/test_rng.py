"""Seeds: the same seed gives the same draws, and the caller's generators do not notice."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from avbvi.rng import seeded


def draws() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def start_generators() -> None:
    torch.manual_seed(11)
    np.random.seed(12)  # noqa: NPY002
    random.seed(13)


def test_the_callers_generators_are_left_alone() -> None:
    start_generators()
    expected = [draws(), draws()]
    start_generators()
    first = draws()
    with seeded(5):
        inside = draws()
        torch.randn(100)
    assert [first, draws()] == expected
    assert inside not in expected


def test_they_are_left_alone_by_a_failing_block_too() -> None:
    start_generators()
    expected = draws()
    start_generators()

    def fail() -> None:
        with seeded(5):
            draws()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert draws() == expected


def test_the_same_seed_gives_the_same_draws() -> None:
    results = []
    for seed in (5, 5, 6):
        with seeded(seed):
            results.append(draws())
        draws()  # the caller goes on in between
    assert results[0] == results[1]
    assert all(a != b for a, b in zip(results[0], results[2], strict=True))


def test_blocks_nest() -> None:
    with seeded(5):
        expected = [draws(), draws()]
    with seeded(5):
        first = draws()
        with seeded(6):
            draws()
        assert [first, draws()] == expected


def test_without_a_seed_the_callers_generators_are_used() -> None:
    start_generators()
    expected = [draws(), draws()]
    start_generators()
    with seeded(None):
        first = draws()
    assert [first, draws()] == expected
