"""Batches that are fetched ahead: the same ones, with a state that does not run ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from avbvi.data.batches import FixedArguments, LoaderBatches
from avbvi.data.prefetch import PrefetchedBatches, batches_of
from avbvi.data.tensor_loader import TensorLoader

from .test_batches import ALL, X, steps

CPU = torch.device("cpu")


def ahead(name: str, device: torch.device = CPU) -> PrefetchedBatches:
    return PrefetchedBatches(LoaderBatches(ALL[name]()), device)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_the_batches_are_those_of_the_loader(name: str, device: torch.device) -> None:
    torch.manual_seed(1)
    expected = LoaderBatches(ALL[name]())
    torch.manual_seed(1)
    found = ahead(name, device)
    assert torch.equal(found.reference[0].cpu(), expected.reference[0])
    for _ in range(9):
        (batch,) = found.next()
        torch.rand(2)
        assert batch.device.type == device.type
        assert torch.equal(batch.cpu(), expected.next()[0])
        assert found.epoch == expected.epoch
    assert found.settings() == expected.settings()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_checkpoint_does_not_see_the_batch_on_its_way(name: str, taken: int) -> None:
    torch.manual_seed(1)
    batches = ahead(name)
    for _ in range(taken):
        batches.next()
    state = batches.state_dict()
    rest = [batches.next()[0] for _ in range(6)]
    # By itself, and by a run that does not read ahead.
    resumed = ahead(name)
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.state_dict()["epoch"]) == (state["epoch"], state["epoch"])
    assert same(rest, [resumed.next()[0] for _ in range(6)])
    plain = LoaderBatches(ALL[name]())
    plain.load_state_dict(state)
    assert same(rest, steps(plain, 6))


class Broken(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield from X[:4]
        raise OSError("the disk failed")


def test_an_error_comes_when_its_batch_is_asked_for() -> None:
    batches = PrefetchedBatches(LoaderBatches(DataLoader(Broken(), batch_size=2)), CPU)
    assert [len(batches.next()[0]) for _ in range(2)] == [2, 2]
    with pytest.raises(OSError, match="the disk failed"):
        batches.next()


def test_which_source_an_argument_gets() -> None:
    fixed = batches_of((X, 3))
    assert isinstance(fixed, FixedArguments)
    for device in (None, CPU):
        assert isinstance(batches_of((DataLoader(TensorDataset(X), batch_size=4),), device), LoaderBatches)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_reading_ahead_waits_for_nothing() -> None:
    assert isinstance(batches_of((TensorLoader(X, batch_size=4).to("cuda"),), torch.device("cuda")), LoaderBatches)
    data: Any = DataLoader(TensorDataset(X), batch_size=4)
    batches = batches_of((data,), torch.device("cuda"))
    assert isinstance(batches, PrefetchedBatches)
    batches.next()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [batches.next()[0] for _ in range(4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat(found).cpu().sort(0).values[:1], X[:1])
