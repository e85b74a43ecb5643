"""What a model is called with, step by step: always the same arguments, or the batches of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .arguments import found
from .devices import moved
from .errors import CheckpointError
from .rng import RandomStream, rng_state, seeded

Arguments = tuple[Any, ...]


def is_loader(args: Arguments) -> bool:
    """Whether a model's arguments are one DataLoader, to be iterated."""
    return len(args) == 1 and isinstance(args[0], DataLoader)


class Batches(Protocol):
    """A source of a model's positional arguments."""

    #: Arguments that stand for all others: for set-up, checks and the verdict.
    reference: Arguments
    #: Passes over all data that were begun; 0 where there are none.
    epoch: int

    def next(self) -> Arguments:
        """The arguments of the next step."""

    def settings(self) -> dict[str, Any] | None:
        """What distinguishes this source from another, as plain data."""

    def state_dict(self) -> dict[str, Any] | None:
        """Where it stands, as plain data."""

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state_dict` gave."""


class FixedArguments:
    """The same arguments at every step.

    Args:
        args: the arguments.
    """

    epoch = 0

    def __init__(self, args: Arguments) -> None:
        self.reference = args

    def next(self) -> Arguments:
        return self.reference

    def settings(self) -> dict[str, Any] | None:
        return None

    def state_dict(self) -> dict[str, Any] | None:
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        return None


class LoaderBatches:
    """The batches of a DataLoader, pass after pass.

    A batch is one tensor, or a tuple or list of the model's arguments. The loader draws from a random stream of its own
    (order, augmentation, fresh pixels), which begins with one draw from the caller's: the batches do not depend on
    what the training draws. So a pass can be repeated up to where a checkpoint left it. A generator that the loader
    brings along goes on from where it stands.

    ``reference`` is the first batch of a pass seeded with 0.

    Args:
        loader: the loader.
        device: where the batches are moved; ``None`` leaves them.

    Raises:
        TypeError: a batch is of another kind.
        ValueError: the loader gives no batch.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None = None) -> None:
        self.loader, self.device = loader, device
        self._generators = _own_generators(loader)
        #: Passes that were begun, and batches taken from the last one.
        self.epoch, self.position = 0, 0
        self.reference = reference_batch(loader, device)
        self._stream = RandomStream(int(torch.randint(2**31, (), device="cpu")))
        self._iterator: Iterator[Any] | None = None
        self._beginning = self._random_state()

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches in a pass; ``None`` where the loader does not tell."""
        return length_of(self.loader)

    def next(self) -> Arguments:
        """The arguments of the next step.

        Raises:
            TypeError, ValueError: as in the constructor.
        """
        # Order and generators are the CPU's, also where another device is the default.
        with self._stream.in_use(), torch.device("cpu"):
            batch = self._fetch()
        return _arguments(batch, self.device)

    def _fetch(self) -> Any:
        batch = _END if self._iterator is None else next(self._iterator, _END)
        if batch is _END:
            batch = _first(self._begin())
        self.position += 1
        return batch

    def _begin(self) -> Iterator[Any]:
        """Begin a pass, while the stream is in use."""
        self._iterator = None  # the workers of the last pass end before others begin
        self._beginning = {"random": rng_state(), "generators": [g.get_state() for g in self._generators]}
        set_epoch = getattr(self.loader.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.epoch)
        self.epoch, self.position = self.epoch + 1, 0
        self._iterator = iter(self.loader)
        return self._iterator

    # -- as plain data ------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return {
            "batches": self.steps_per_epoch,
            "data": length_of(self.loader.dataset),
            "batch_size": self.loader.batch_size,
        }

    def _random_state(self) -> dict[str, Any]:
        return {"random": self._stream.state_dict(), "generators": [g.get_state() for g in self._generators]}

    def state_dict(self) -> dict[str, Any]:
        """Pass, batches taken from it, and the random state at its beginning."""
        return {"epoch": self.epoch, "position": self.position, **self._beginning}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Repeat the pass that :meth:`state_dict` found under way, up to the batch it had reached.

        Raises:
            CheckpointError: this loader's pass is shorter.
        """
        assert state is not None
        self._iterator, self.epoch, self.position = None, max(state["epoch"] - 1, 0), 0
        self._stream.load_state_dict(state["random"])
        _set_states(self._generators, state["generators"])
        self._beginning = {"random": state["random"], "generators": state["generators"]}
        if not state["epoch"]:
            return
        with self._stream.in_use(), torch.device("cpu"):
            iterator = self._begin()
            for i in range(state["position"]):
                if next(iterator, _END) is _END:
                    raise CheckpointError(
                        f"the DataLoader gives {i} batches, the run in the checkpoint had taken {state['position']} "
                        "from it; give it the same data and batch size"
                    )
        self.position = state["position"]


def reference_batch(loader: DataLoader[Any], device: torch.device | None = None) -> Arguments:
    """The arguments in the first batch of a loader's pass that is seeded with 0; nothing goes on from it.

    Raises:
        TypeError, ValueError: as for :class:`LoaderBatches`.
    """
    generators = _own_generators(loader)
    states = [g.get_state() for g in generators]
    with seeded(0), torch.device("cpu"):
        for generator in generators:
            generator.manual_seed(0)
        batch = _first(iter(loader))
    _set_states(generators, states)
    return _arguments(batch, device)


def one_pass(loader: DataLoader[Any], device: torch.device | None = None) -> Iterator[Arguments]:
    """The arguments in each batch of one pass over a loader, as it is.

    Raises:
        TypeError, ValueError: as for :class:`LoaderBatches`.
    """
    with torch.device("cpu"):
        iterator = iter(loader)
        batch = _first(iterator)
    while batch is not _END:
        yield _arguments(batch, device)
        with torch.device("cpu"):
            batch = next(iterator, _END)


def _arguments(batch: Any, device: torch.device | None) -> Arguments:
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, tuple | list) or not batch:
        raise TypeError(
            "a batch of the DataLoader must be a tensor, or a tuple or list of the model's arguments, found "
            f"{found(batch)}; give the loader a collate_fn that makes one"
        )
    return tuple(batch) if device is None else tuple(moved(value, device) for value in batch)


_END = object()


def _first(iterator: Iterator[Any]) -> Any:
    batch = next(iterator, _END)
    if batch is _END:
        raise ValueError(
            "the DataLoader gives no batch: its data set is empty, can be iterated only once, or drop_last leaves "
            "nothing"
        )
    return batch


def length_of(sized: Any) -> int | None:
    """Its length; ``None`` where there is none, as of an IterableDataset."""
    try:
        return len(sized)
    except TypeError:
        return None


def _own_generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Generators that a loader, its samplers and its data set hold."""
    holders = (
        loader,
        loader.sampler,
        loader.batch_sampler,
        getattr(loader.batch_sampler, "sampler", None),
        loader.dataset,
    )
    held = (getattr(holder, "generator", None) for holder in holders)
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


def _set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
