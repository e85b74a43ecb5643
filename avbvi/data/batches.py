"""What a model is called with, step by step: always the same arguments, or the batches of a DataLoader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..arguments import found
from ..devices import moved
from ..errors import CheckpointError
from ..rng import RandomStream, rng_state, seeded

Arguments = tuple[Any, ...]

_log = logging.getLogger(__name__)


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

    A resumed run takes the batches that were used once more and leaves them, unless that can be saved: where the
    loader, or a data set for iteration in this process, has ``state_dict`` and ``load_state_dict`` (as torchdata's
    StatefulDataLoader) it goes on from its own state; where taking a datum draws nothing (``is_deterministic`` of the
    data set) the sampler or the loader leaves out what it is told to (``skip``).

    ``reference`` is the first batch of a pass seeded with 0.

    Args:
        loader: the loader.
        device: where the batches are moved; ``None`` leaves them.

    Raises:
        TypeError: a batch is of another kind.
        ValueError: the loader gives no batch.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None = None) -> None:
        self.loader: DataLoader[Any] = loader
        self.device: torch.device | None = device
        self._generators = _own_generators(loader)
        #: Passes that were begun, and batches taken from the last one.
        self.epoch: int = 0
        self.position: int = 0
        self.reference: Arguments = reference_batch(loader, device)
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

    @property
    def is_stateful(self) -> bool:
        """Whether the loader or its data set tells itself where it stands."""
        return _stateful(self.loader) is not None

    def state_dict(self) -> dict[str, Any]:
        """Pass, batches taken from it, and the random state at its beginning, or now beside the loader's own state.

        Raises:
            CheckpointError: the loader's state is not plain data.
        """
        keeper = _stateful(self.loader)
        state = {"epoch": self.epoch, "position": self.position}
        if keeper is None or not self.epoch:
            return {**state, **self._beginning}
        own = keeper.state_dict()
        _check_plain(own, f"{type(keeper).__name__}.state_dict()")
        return {**state, **self._random_state(), "loader": own}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on with the pass that :meth:`state_dict` found under way, behind the batch it had reached.

        Raises:
            CheckpointError: this loader's pass is shorter, or it has no state where the run's had one.
        """
        assert state is not None
        self._iterator, self.epoch, self.position = None, max(state["epoch"] - 1, 0), 0
        self._stream.load_state_dict(state["random"])
        _set_states(self._generators, state["generators"])
        self._beginning = {"random": state["random"], "generators": state["generators"]}
        if not state["epoch"]:
            return
        if "loader" in state:
            self._take_up(state)
        else:
            self._pass_over(state["position"])
        self.position = state["position"]

    def _take_up(self, state: dict[str, Any]) -> None:
        """Continue the pass from the loader's own state, and the stream from where it was then."""
        keeper = _stateful(self.loader)
        if keeper is None:
            raise CheckpointError(
                "the run in the checkpoint had a DataLoader or data set with a state (load_state_dict), this one has "
                "none; give it the same"
            )
        keeper.load_state_dict(state["loader"])
        with self._stream.in_use(), torch.device("cpu"):
            self._begin()
        self._stream.load_state_dict(state["random"])
        _set_states(self._generators, state["generators"])

    def _pass_over(self, position: int) -> None:
        """Repeat the pass up to its batch at a position."""
        known = self.steps_per_epoch
        skips = known is not None and _skip(self.loader, min(position, known))
        if position and not skips:
            _log.info("resuming: %d batches that the run had used are taken from the DataLoader once more", position)
        with self._stream.in_use(), torch.device("cpu"):
            iterator = self._begin()
            given = known if skips and known is not None else position
            for i in range(0 if skips else position):
                if next(iterator, _END) is _END:
                    given = i
                    break
        if given < position:
            raise CheckpointError(
                f"the DataLoader gives {given} batches, the run in the checkpoint had taken {position} from it; give "
                "it the same data and batch size"
            )


def reference_batch(loader: DataLoader[Any], device: torch.device | None = None) -> Arguments:
    """The arguments in the first batch of a loader's pass that is seeded with 0; nothing goes on from it.

    Raises:
        TypeError, ValueError: as for :class:`LoaderBatches`.
    """
    generators = _own_generators(loader)
    states = [g.get_state() for g in generators]
    data = _stateful_data(loader)
    state = None if data is None else data.state_dict()
    with seeded(0), torch.device("cpu"):
        for generator in generators:
            generator.manual_seed(0)
        batch = _first(iter(loader))
    _set_states(generators, states)
    if data is not None:
        data.load_state_dict(state)
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


def _stateful(loader: DataLoader[Any]) -> Any:
    """What tells where a pass stands: the loader, or its data set if it is iterated in this process; or None."""
    return loader if _has_state(loader) else _stateful_data(loader)


def _stateful_data(loader: DataLoader[Any]) -> Any:
    """The data set, if it is iterated in this process and tells where it stands; or None."""
    data = loader.dataset
    return data if isinstance(data, IterableDataset) and not loader.num_workers and _has_state(data) else None


def _has_state(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def _skip(loader: Any, batches: int) -> bool:
    """Have the next pass leave out so many batches, where that changes nothing else; tells whether it will."""
    if callable(getattr(loader, "skip", None)):
        loader.skip(batches)
        return True
    sampler, size = loader.sampler, loader.batch_size
    if size is None or not getattr(loader.dataset, "is_deterministic", False) or not hasattr(sampler, "skip"):
        return False
    sampler.skip(min(batches * size, len(sampler)))
    return True


def _check_plain(value: Any, name: str) -> None:
    """Raise a CheckpointError unless a value is made of what a checkpoint can hold."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_plain(entry, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            _check_plain(entry, f"{name}[{i}]")
    elif not (value is None or isinstance(value, bool | int | float | str | bytes | Tensor)):
        raise CheckpointError(
            f"{name} must be numbers, strings, tensors, and lists and dicts of them, to be written to a checkpoint; "
            f"found {found(value)}"
        )


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
