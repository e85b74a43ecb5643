"""BlockShuffleSampler: permutations with the stated law, in bounded memory, begun anywhere."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from avbvi.data.block_shuffle import BlockShuffleSampler


@pytest.mark.parametrize(("size", "block", "pooled"), [(1, 4, 2), (12, 4, 2), (13, 4, 2), (103, 10, 3), (50, 1, 64)])
def test_every_datum_once(size: int, block: int, pooled: int) -> None:
    sampler = BlockShuffleSampler(range(size), block=block, pooled=pooled)
    passes = [list(sampler) for _ in range(3)]
    assert len(sampler) == size
    for order in passes:
        assert sorted(order) == list(range(size))
    if size > 10:
        assert passes[0] != passes[1] != passes[2]


def frequencies_agree(counts: Counter, cells: int, probability: float, draws: int) -> None:
    """Each of the cells has its probability, within 5 standard errors."""
    sigma = math.sqrt(draws * probability * (1.0 - probability))
    assert len(counts) <= cells
    assert all(abs(counts[cell] - draws * probability) < 5.0 * sigma for cell in counts)
    assert len(counts) == cells


def test_places_are_equally_likely() -> None:
    size, passes = 12, 6000
    sampler = BlockShuffleSampler(range(size), block=2, pooled=2)
    counts = Counter((place, datum) for _ in range(passes) for place, datum in enumerate(sampler))
    frequencies_agree(counts, size * size, 1.0 / size, passes)


@pytest.mark.parametrize(("block", "pooled"), [(1, 2), (2, 2), (1, 9)])
def test_all_orders_are_equally_likely_where_that_is_said(block: int, pooled: int) -> None:
    passes = 5000
    sampler = BlockShuffleSampler(range(4), block=block, pooled=pooled)
    counts = Counter(tuple(sampler) for _ in range(passes))
    frequencies_agree(counts, 24, 1.0 / 24.0, passes)


def test_blocks_meet_in_pools() -> None:
    """Two data of a block are in one pool always, two of other blocks with probability (pooled - 1) / (blocks - 1)."""
    passes, blocks, block, pooled = 4000, 6, 3, 2
    sampler = BlockShuffleSampler(range(blocks * block), block=block, pooled=pooled)
    together = Counter()
    for _ in range(passes):
        pool = {datum: place // (block * pooled) for place, datum in enumerate(sampler)}
        assert len({pool[3], pool[4], pool[5]}) == 1
        together[pool[0] == pool[3]] += 1
    p = (pooled - 1) / (blocks - 1)
    assert abs(together[True] - passes * p) < 4.0 * math.sqrt(passes * p * (1 - p))


@pytest.mark.parametrize("skipped", [0, 1, 20, 29, 30, 31, 100, 103])
def test_a_pass_can_begin_anywhere(skipped: int) -> None:
    generator = torch.Generator().manual_seed(3)
    sampler = BlockShuffleSampler(range(103), block=10, pooled=3, generator=generator)
    state = generator.get_state()
    whole, following = list(sampler), list(sampler)
    generator.set_state(state)
    sampler.skip(skipped)
    assert list(sampler) == whole[skipped:]
    assert list(sampler) == following


def test_the_global_generator_gives_one_number_for_a_pass() -> None:
    torch.manual_seed(5)
    torch.randint(2**62, ())
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = list(BlockShuffleSampler(range(1000)))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    assert list(BlockShuffleSampler(range(1000))) == first


def test_memory_does_not_grow_with_the_data() -> None:
    """Python's integers for one pool, and a number for each block: RandomSampler would take 5 GB here."""
    size = 10**8
    sampler = BlockShuffleSampler(range(size))
    tracemalloc.start()
    loader = iter(DataLoader(range(size), batch_size=8, sampler=sampler))
    first = [next(loader) for _ in range(2)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len({int(i) for batch in first for i in batch}) == 16
    assert peak < 2 * 40 * 64 * 256
    sampler.skip(size // 2)
    assert 0 <= next(iter(sampler)) < size


def test_refusals() -> None:
    with pytest.raises(TypeError, match="data must have a length, found generator; a stream is shuffled by"):
        BlockShuffleSampler(i for i in range(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must not be empty"):
        BlockShuffleSampler([])
    for name in ("block", "pooled"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, found 0"):
            BlockShuffleSampler(range(3), **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, found int"):
        BlockShuffleSampler(range(3), generator=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must be at least 0, found -1"):
        BlockShuffleSampler(range(3)).skip(-1)
