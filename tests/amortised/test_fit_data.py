"""fit on data from everywhere: files, streams with and without end, tensors on the device, batches fetched ahead."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from avbvi import ArrayFileDataset, TensorLoader
from avbvi import training as training_module
from avbvi.data.batches import LoaderBatches
from avbvi.data.prefetch import PrefetchedBatches

from .known import LinearGaussian
from .test_fit import BATCH, N, Stopped, assert_same, fit, rows, state_of, stop_after

LONG = 1000


class Endless(IterableDataset[Any]):
    """The rows again and again in their order; with the number of all data beside each if it is told."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for row in itertools.cycle(rows()):
            yield row if self.size is None else (row, self.size)


class Resumable(Endless):
    """The same, which tells where it stands, and fails where it is read from the beginning again."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.read = 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        x = rows()
        while True:
            self.place += 1
            self.read += 1
            yield x[(self.place - 1) % N] + 0.1 * torch.randn(3)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Callable[[], DataLoader[Any]]]:
    np.save(tmp_path / "x.npy", rows().numpy())
    return {
        "files": lambda: ArrayFileDataset(tmp_path / "x.npy").loader(BATCH),
        "tensors": lambda: TensorLoader(rows(), batch_size=BATCH),
        "stream": lambda: DataLoader(Endless(), batch_size=BATCH),
        "stream with a state": lambda: DataLoader(Resumable(), batch_size=BATCH),
    }


NAMES = ["files", "tensors", "stream", "stream with a state"]


def halted(loader: DataLoader[Any], file: Path, steps: int) -> None:
    """Train so many steps and break off, with a checkpoint after each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "CHECKPOINT_SECONDS", -1.0)
        stop_after(patch, steps, Stopped())
        with pytest.raises(Stopped):
            fit(LinearGaussian(), loader, checkpoint=file)


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(name: str, sources: Any, tmp_path: Path) -> None:
    known, again = LinearGaussian(), LinearGaussian()
    whole = fit(known, sources[name]())
    halted(sources[name](), tmp_path / "run.pt", 7)
    resumed = fit(again, sources[name](), checkpoint=tmp_path / "run.pt")
    assert_same(state_of(resumed, again), state_of(whole, known))
    assert resumed.run.history == whole.run.history


def test_a_stream_with_a_state_is_not_read_again(tmp_path: Path) -> None:
    halted(DataLoader(Resumable(), batch_size=BATCH), tmp_path / "run.pt", 7)
    data = Resumable()
    fit(LinearGaussian(), DataLoader(data, batch_size=BATCH), checkpoint=tmp_path / "run.pt")
    # Set-up looks at a first batch, and five of twelve steps were left.
    assert data.read == BATCH * (1 + 5)
    assert data.place == BATCH * 12


def test_a_stream_gives_what_its_rows_give_in_memory() -> None:
    """N is a multiple of no batch here: a pass over all data takes five batches of four."""
    known, other = LinearGaussian(), LinearGaussian()
    stream = fit(known, DataLoader(Endless(), batch_size=4))
    passes = fit(other, DataLoader(TensorDataset(rows()), batch_size=4))
    assert_same(state_of(stream, known), state_of(passes, other))


def test_the_number_of_data_of_a_stream() -> None:
    """As a further argument beside each batch, or for all: it is the plate's size, by which the terms are scaled."""
    found = []
    for loader, options in (
        (DataLoader(Endless(), batch_size=BATCH), {}),
        (DataLoader(Endless(), batch_size=BATCH), {"model_kwargs": {"size": LONG}}),
        (DataLoader(Endless(LONG), batch_size=BATCH, collate_fn=sized), {}),
    ):
        known = LinearGaussian()
        posterior = fit(known, loader, **options)
        target = posterior.guide.minibatch(*posterior.args, **posterior.kwargs)  # type: ignore[attr-defined]
        found.append((target.frame.full_size, state_of(posterior, known), posterior.run.history["elbo"]))
    assert [size for size, _, _ in found] == [BATCH, LONG, LONG]
    assert_same(found[1][1], found[2][1])
    assert found[1][2] == found[2][2]


def sized(pairs: list[tuple[Tensor, int]]) -> tuple[Tensor, int]:
    """A batch with the number of all data, as a plain number."""
    return torch.stack([row for row, _ in pairs]), pairs[0][1]


def test_a_stream_needs_a_number_of_steps() -> None:
    with pytest.raises(ValueError, match="epochs needs a DataLoader of known length"):
        fit(LinearGaussian(), DataLoader(Endless(), batch_size=BATCH), steps=None, epochs=2)


def test_tensors_go_to_the_device_as_a_whole(device: torch.device) -> None:
    known = LinearGaussian()
    posterior = fit(known, TensorLoader(rows(), batch_size=BATCH), device=device)
    assert posterior.args[0].device.type == device.type
    if device.type == "cpu":
        other = LinearGaussian()
        assert_same(state_of(fit(other, TensorLoader(rows(), batch_size=BATCH)), other), state_of(posterior, known))


@pytest.mark.parametrize("name", NAMES)
def test_fetching_ahead_changes_nothing(name: str, sources: Any, tmp_path: Path) -> None:
    known, again, halfway = LinearGaussian(), LinearGaussian(), LinearGaussian()
    expected = state_of(fit(known, sources[name]()), known)

    def ahead(args: tuple[Any, ...], device: torch.device | None) -> PrefetchedBatches:
        return PrefetchedBatches(LoaderBatches(args[0]), torch.device("cpu"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "batches_of", ahead)
        assert_same(state_of(fit(again, sources[name]()), again), expected)
        halted(sources[name](), tmp_path / "run.pt", 5)
    # Taken up by a run that does not fetch ahead.
    resumed = fit(halfway, sources[name](), checkpoint=tmp_path / "run.pt")
    assert_same(state_of(resumed, halfway), expected)
