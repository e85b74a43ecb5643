"""Batches: what a loader would give, from a random stream of its own, repeatable from any point."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from avbvi import CheckpointError
from avbvi.data.array_files import ArrayFileDataset
from avbvi.data.batches import FixedArguments, LoaderBatches, is_loader, one_pass, reference_batch
from avbvi.data.block_shuffle import BlockShuffleSampler
from avbvi.data.tensor_loader import TensorLoader

N = 10
X = torch.arange(float(N))[:, None]


class Fresh(Dataset[Tensor]):
    """Rows with noise from all three generators at each access."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        noise = [float(torch.rand(())), random.random(), np.random.rand()]  # noqa: NPY002
        return torch.tensor([float(index), *noise])


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.rand(5, 2))


class Counted(Dataset[Tensor]):
    """Rows without noise, which counts how many are taken."""

    is_deterministic = True

    def __init__(self) -> None:
        self.taken = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        self.taken += 1
        return X[index]


class Resumable(IterableDataset[Tensor]):
    """A noisy stream that tells where it stands; each pass has `length` rows, or it has no end."""

    def __init__(self, length: int | None = 7) -> None:
        self.length, self.place, self.taken, self._goes_on = length, 0, 0, False

    def __iter__(self) -> Iterator[Tensor]:
        if not self._goes_on:
            self.place = 0
        self._goes_on = False
        while self.length is None or self.place < self.length:
            self.place += 1
            self.taken += 1
            yield torch.cat([torch.tensor([float(self.place)]), torch.rand(1)])

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self._goes_on = state["place"], True


class StatefulLoader(DataLoader[Any]):
    """What torchdata's StatefulDataLoader does, for the data set above."""

    def state_dict(self) -> dict[str, Any]:
        return {"dataset": self.dataset.state_dict()}  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dataset.load_state_dict(state["dataset"])  # type: ignore[attr-defined]


def shuffled(batch_size: int = 4, data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(Fresh() if data is None else data, batch_size=batch_size, shuffle=True, **options)


LOADERS = {
    "shuffled": shuffled,
    "own generator": lambda: shuffled(generator=torch.Generator().manual_seed(5)),
    "replacement": lambda: DataLoader(Fresh(), batch_size=4, sampler=RandomSampler(Fresh(), replacement=True)),
    "weighted": lambda: DataLoader(Fresh(), batch_size=4, sampler=WeightedRandomSampler(torch.ones(N), N)),
    "in order": lambda: DataLoader(Fresh(), batch_size=4),
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "stream with a state": lambda: DataLoader(Resumable(), batch_size=2),
    "endless stream with a state": lambda: DataLoader(Resumable(None), batch_size=2),
    "loader with a state": lambda: StatefulLoader(Resumable(), batch_size=2),
    "tensors": lambda: TensorLoader(X, batch_size=4),
    "blocks": lambda: DataLoader(Counted(), batch_size=4, sampler=BlockShuffleSampler(range(N), block=2, pooled=2)),
}

#: What a seed does not change.
OWN = {"tensors, own generator": lambda: TensorLoader(X, batch_size=4, generator=torch.Generator().manual_seed(5))}
ALL = {**LOADERS, **OWN}


def steps(batches: LoaderBatches, n: int, disturb: bool = False) -> list[Tensor]:
    found = []
    for _ in range(n):
        found.append(batches.next()[0])
        if disturb:
            torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    return found


def test_fixed_arguments_draw_nothing() -> None:
    before = torch.get_rng_state()
    batches = FixedArguments((X, 3))
    assert batches.next() is batches.reference
    assert torch.equal(torch.get_rng_state(), before)
    assert batches.state_dict() is None
    assert not is_loader((X,))
    assert not is_loader((shuffled(), X))


def test_every_pass_has_every_datum_once_in_another_order() -> None:
    batches = LoaderBatches(shuffled())
    passes = [torch.cat(steps(batches, 3))[:, 0] for _ in range(3)]
    for order in passes:
        assert torch.equal(order.sort().values, X[:, 0])
    assert not torch.equal(passes[0], passes[1])
    assert (batches.epoch, batches.position, batches.steps_per_epoch) == (3, 3, 3)
    assert [len(b) for b in steps(batches, 3)] == [4, 4, 2]


@pytest.mark.parametrize("name", LOADERS)
def test_batches_do_not_depend_on_what_others_draw(name: str) -> None:
    torch.manual_seed(1)
    alone = steps(LoaderBatches(LOADERS[name]()), 8)
    torch.manual_seed(1)
    disturbed = steps(LoaderBatches(LOADERS[name]()), 8, disturb=True)
    assert all(torch.equal(a, b) for a, b in zip(alone, disturbed, strict=True))
    torch.manual_seed(2)
    other = steps(LoaderBatches(LOADERS[name]()), 8)
    assert not all(torch.equal(a, b) for a, b in zip(alone, other, strict=True))


def test_the_callers_generators_give_one_number() -> None:
    torch.manual_seed(1)
    torch.randint(2**31, ())
    expected = torch.rand(2), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(1)
    steps(LoaderBatches(shuffled()), 7)
    assert torch.equal(torch.rand(2), expected[0])
    assert random.getstate() == expected[1]
    np.testing.assert_array_equal(np.random.get_state()[1], expected[2])  # noqa: NPY002


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("taken", [0, 1, 3, 5, 6])
def test_resumed_batches_are_those_of_the_run(name: str, taken: int) -> None:
    torch.manual_seed(1)
    batches = LoaderBatches(ALL[name]())
    steps(batches, taken)
    state = batches.state_dict()
    rest = steps(batches, 6)
    torch.manual_seed(77)
    resumed = LoaderBatches(ALL[name]())
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(rest, steps(resumed, 6), strict=True))
    assert (resumed.epoch, resumed.position) == (batches.epoch, batches.position)


@pytest.mark.parametrize("kind", [DataLoader, StatefulLoader])
def test_a_state_saves_a_resumed_run_what_was_used(kind: type[DataLoader[Any]], caplog: Any) -> None:
    batches = LoaderBatches(kind(Resumable(), batch_size=2))
    steps(batches, 2)
    resumed = LoaderBatches(kind(Resumable(), batch_size=2))
    taken = resumed.loader.dataset.taken  # type: ignore[attr-defined]
    with caplog.at_level(logging.INFO, "avbvi"):
        resumed.load_state_dict(batches.state_dict())
    assert resumed.loader.dataset.taken == taken  # type: ignore[attr-defined]
    assert not caplog.records
    assert torch.equal(resumed.next()[0], batches.next()[0])
    assert resumed.loader.dataset.taken == taken + 2  # type: ignore[attr-defined]


class Continuing(Resumable):
    """A pass goes on where the last one was left, even if that was half-way."""

    def __iter__(self) -> Iterator[Tensor]:
        self._goes_on = True
        return super().__iter__()


@pytest.mark.parametrize("data", [Resumable, Continuing])
@pytest.mark.parametrize("kind", [DataLoader, StatefulLoader])
def test_the_reference_batch_is_not_taken_from_the_run(kind: type[DataLoader[Any]], data: type[Resumable]) -> None:
    first = LoaderBatches(kind(data(), batch_size=2)).next()[0]
    assert first[:, 0].tolist() == [1.0, 2.0]


def test_samplers_save_a_resumed_run_what_was_used(caplog: pytest.LogCaptureFixture) -> None:
    def loader(sampler: Any) -> DataLoader[Any]:
        return DataLoader(Counted(), batch_size=4, sampler=sampler)

    for sampler, again in ((BlockShuffleSampler(range(N), block=2), 0), (RandomSampler(range(N)), 8)):
        batches = LoaderBatches(loader(sampler))
        steps(batches, 2)
        resumed = LoaderBatches(loader(sampler))
        taken = resumed.loader.dataset.taken  # type: ignore[attr-defined]
        with caplog.at_level(logging.INFO, "avbvi"):
            resumed.load_state_dict(batches.state_dict())
        assert resumed.loader.dataset.taken == taken + again  # type: ignore[attr-defined]
    (message,) = (r.getMessage() for r in caplog.records)
    assert message == "resuming: 2 batches that the run had used are taken from the DataLoader once more"


def test_noisy_data_are_not_skipped() -> None:
    """Their noise moves the stream: it has to be drawn again."""

    def loader() -> DataLoader[Any]:
        return DataLoader(Fresh(), batch_size=4, sampler=BlockShuffleSampler(range(N)))

    torch.manual_seed(1)
    batches = LoaderBatches(loader())
    steps(batches, 2)
    resumed = LoaderBatches(loader())
    resumed.load_state_dict(batches.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(steps(batches, 4), steps(resumed, 4), strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_resumed(tmp_path: Path, workers: int) -> None:
    np.save(tmp_path / "x.npy", np.arange(50.0))

    def batches() -> LoaderBatches:
        return LoaderBatches(ArrayFileDataset(tmp_path / "x.npy").loader(8, num_workers=workers))

    torch.manual_seed(1)
    whole = batches()
    steps(whole, 4)
    resumed = batches()
    resumed.load_state_dict(whole.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(steps(whole, 6), steps(resumed, 6), strict=True))


def test_states_that_do_not_fit() -> None:
    class Odd(Resumable):
        def state_dict(self) -> dict[str, Any]:
            return {"place": self.place, "seen": [np.zeros(2)]}

    batches = LoaderBatches(DataLoader(Odd(), batch_size=2))
    batches.next()
    with pytest.raises(CheckpointError, match=r"Odd.state_dict\(\)\['seen'\]\[0\] must be .*found ndarray of dtype"):
        batches.state_dict()
    batches = LoaderBatches(DataLoader(Resumable(), batch_size=2))
    batches.next()
    with pytest.raises(CheckpointError, match="this one has none; give it the same"):
        LoaderBatches(DataLoader(Stream(), batch_size=2)).load_state_dict(batches.state_dict())
    longer = LoaderBatches(TensorLoader(X, batch_size=2))
    steps(longer, 5)
    with pytest.raises(CheckpointError, match="gives 3 batches, the run in the checkpoint had taken 5"):
        LoaderBatches(TensorLoader(X, batch_size=4)).load_state_dict(longer.state_dict())


def test_a_resumed_run_can_be_saved_again() -> None:
    torch.manual_seed(1)
    batches = LoaderBatches(shuffled())
    steps(batches, 5)
    resumed = LoaderBatches(shuffled())
    resumed.load_state_dict(batches.state_dict())
    steps(resumed, 3), steps(batches, 3)
    third = LoaderBatches(shuffled())
    third.load_state_dict(resumed.state_dict())
    assert torch.equal(third.next()[0], batches.next()[0])


def test_workers_give_the_same_again() -> None:
    def loader() -> DataLoader[Any]:
        return shuffled(num_workers=1)

    torch.manual_seed(1)
    batches = LoaderBatches(loader())
    steps(batches, 4)
    state, expected = batches.state_dict(), batches.next()[0]
    resumed = LoaderBatches(loader())
    resumed.load_state_dict(state)
    assert torch.equal(resumed.next()[0], expected)


def test_a_shorter_loader_is_refused() -> None:
    batches = LoaderBatches(shuffled())
    steps(batches, 3)
    shorter = LoaderBatches(shuffled(batch_size=6))
    with pytest.raises(CheckpointError, match="gives 2 batches, the run in the checkpoint had taken 3"):
        shorter.load_state_dict(batches.state_dict())
    assert shorter.settings() != batches.settings()


def test_the_reference_is_the_same_in_any_run_and_moves_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = shuffled(generator=generator)
    before, own = torch.get_rng_state(), generator.get_state()
    first = reference_batch(loader)[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), own)
    torch.rand(4)
    assert torch.equal(reference_batch(shuffled(generator=torch.Generator().manual_seed(6)))[0], first)


def test_forms_of_a_batch() -> None:
    pairs = TensorDataset(X, 2.0 * X)
    found = LoaderBatches(DataLoader(pairs, batch_size=3)).next()
    assert isinstance(found, tuple)
    assert torch.equal(found[1], 2.0 * found[0])
    (whole,) = zip(*one_pass(DataLoader(X, batch_size=4)), strict=True)
    assert torch.equal(torch.cat(whole), X)
    for wrong, kind in (([{"x": X}], "dict"), ([[]], "list"), ([3.0], "float")):
        loader = DataLoader(wrong, batch_size=None, collate_fn=lambda b: b)  # type: ignore[arg-type,var-annotated]
        with pytest.raises(TypeError, match=f"a batch of the DataLoader must be a tensor.*found {kind}"):
            LoaderBatches(loader)


def test_a_loader_without_batches() -> None:
    with pytest.raises(ValueError, match="gives no batch"):
        LoaderBatches(DataLoader(TensorDataset(X[:0]), batch_size=2))
    with pytest.raises(ValueError, match="gives no batch"):
        LoaderBatches(DataLoader(TensorDataset(X), batch_size=2 * N, drop_last=True))


def test_another_default_device() -> None:
    """A loader's generators are the CPU's; a random order under another default device fails in torch."""
    with torch.device("meta"):
        (batch,) = LoaderBatches(shuffled(data=X)).next()
    assert batch.device.type == "cpu"
    assert torch.isin(batch, X).all()
