"""Peak memory: known allocations, also those that are freed again, within one another, after others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peak_memory import PeakMemory, resident

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")

MIB = 2**20
#: Pages that the interpreter takes meanwhile.
SLACK = 3 * MIB


def take(mib: int) -> None:
    """Use so much memory and free it."""
    np.ones(mib * MIB, dtype=np.uint8)


def use(mib: int) -> int:
    with PeakMemory() as peak:
        take(mib)
    assert peak.bytes is not None
    return peak.bytes


@pytest.mark.parametrize("mib", [0, 40])
def test_a_known_allocation(mib: int) -> None:
    held = np.ones(60 * MIB, dtype=np.uint8)
    assert abs(use(mib) - mib * MIB) < SLACK
    del held
    # What was larger before, or is freed now, changes nothing.
    take(100)
    assert abs(use(mib) - mib * MIB) < SLACK


def test_small_blocks_that_were_freed_before_count_again() -> None:
    def many() -> list[bytes]:
        return [bytes(1000) for _ in range(30_000)]

    kept = many()
    del kept
    with PeakMemory() as peak:
        kept = many()
    assert peak.bytes is not None
    assert peak.bytes > 15 * MIB
    del kept


def test_contexts_within_one_another() -> None:
    with PeakMemory() as outer:
        take(50)
        with PeakMemory() as inner:
            take(20)
        take(10)
    assert inner.bytes is not None
    assert outer.bytes is not None
    assert abs(inner.bytes - 20 * MIB) < SLACK
    assert abs(outer.bytes - 50 * MIB) < SLACK
    with PeakMemory() as outer:
        with PeakMemory() as inner:
            take(30)
        take(60)
    assert abs(inner.bytes - 30 * MIB) < SLACK
    assert abs(outer.bytes - 60 * MIB) < SLACK


def test_an_exception_ends_the_measurement() -> None:
    with pytest.raises(KeyError), PeakMemory() as peak:
        raise KeyError
    assert peak.bytes is not None
    assert PeakMemory._active == []


def test_this_process() -> None:
    assert resident("RssAnon") <= resident() <= resident("VmHWM")
    with pytest.raises(KeyError):
        resident("VmNothing")


@pytest.mark.cuda
def test_memory_of_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with PeakMemory("cuda") as peak:
        torch.ones(40 * MIB, dtype=torch.uint8, device="cuda")
    assert peak.bytes == 40 * MIB
