"""How the work of a training step is divided among processes: rows of draws, or the data of a minibatch.

Noise is drawn whole by every process, from equal generators, and each keeps its rows: many processes see the same
numbers as one. Noise is cheap beside the networks and densities that it goes through.

Without other processes everything here hands on what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import NoReturn

import pyro
import torch
from torch import Tensor

from .. import distributed
from ..rng import rng_untouched


@dataclass(frozen=True)
class Division:
    """One process's rows of a whole, which lie together; or of several wholes, one after the other.

    Args:
        counts: number of rows of each process in one whole.
        rank: number of this process.
        groups: number of wholes.
        singly: draws are made one at a time.
    """

    counts: tuple[int, ...]
    rank: int
    groups: int = 1
    singly: bool = False

    @property
    def whole(self) -> int:
        """Rows of all processes."""
        return self.groups * sum(self.counts)

    @property
    def size(self) -> int:
        """Rows of this process."""
        return self.groups * self.counts[self.rank]

    @property
    def start(self) -> int:
        """Its first row in a whole."""
        return sum(self.counts[: self.rank])

    @property
    def share(self) -> float:
        """This process's part of the whole, in (0, 1]."""
        return self.size / self.whole

    def own(self, rows: Tensor) -> Tensor:
        """This process's rows of all (whole, *shape): (size, *shape)."""
        each = rows.unflatten(0, (self.groups, -1))
        return each.narrow(1, self.start, self.counts[self.rank]).flatten(0, 1)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows of all processes, (whole, *shape), from this one's (size, *shape) and the others'."""
        counts = [self.groups * count for count in self.counts]
        parts = distributed.gathered(rows, counts).split(counts)
        return torch.cat([part.unflatten(0, (self.groups, -1)) for part in parts], 1).flatten(0, 1)


def divide(name: str, whole: int, remedy: str) -> Division:
    """Parts of about ``whole / processes`` rows, one after the other.

    Raises:
        ValueError: there are fewer rows than processes; the message names them, and ends in the ``remedy``.
    """
    n = distributed.world_size()
    if whole < n:
        raise ValueError(f"{name}={whole} can't be divided among {n} processes; {remedy}")
    borders = [whole * i // n for i in range(n + 1)]
    return Division(tuple(b - a for a, b in pairwise(borders)), distributed.rank())


def equal_parts(size: int) -> Division:
    """Parts of ``size`` rows each."""
    return Division((size,) * distributed.world_size(), distributed.rank())


#: What is divided in the step under way: the draws, or the data of a minibatch.
_draws: ContextVar[Division | None] = ContextVar("avbvi_divided_draws", default=None)
_data: ContextVar[Division | None] = ContextVar("avbvi_divided_data", default=None)


@contextmanager
def _in_force(variable: ContextVar[Division | None], division: Division | None) -> Iterator[None]:
    token = variable.set(division)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def draws_divided(name: str, n: int, *, groups: int = 1, singly: bool = False) -> Iterator[int]:
    """Divide ``n`` draws; gives the number of this process's. Where data are divided, or nothing is, they stay whole.

    Args:
        name: what the number is called by those who can change it.
        n: number of draws.
        groups: how many times as many are made at once.
        singly: they are made one at a time.

    Raises:
        ValueError: there are fewer draws than processes, or draws made singly are not as many in each process.
    """
    if distributed.world_size() == 1 or _data.get() is not None:
        yield groups * n
        return
    made = divide(name, n, f"take at least {distributed.world_size()}")
    if singly and len(set(made.counts)) > 1:
        raise ValueError(
            f"{name}={n} draws, made one by one, can't be divided evenly among {len(made.counts)} processes; take a "
            "multiple"
        )
    made = Division(made.counts, made.rank, groups, singly)
    with _in_force(_draws, made):
        yield made.size


@contextmanager
def data_divided(division: Division | None) -> Iterator[None]:
    """The minibatch in the block is this part of a whole one."""
    with _in_force(_data, division):
        yield


def data_division() -> Division | None:
    """How the minibatch is divided; ``None`` if it is not."""
    return _data.get()


# -- draws ------------------------------------------------------------------------------------------------


def own_draws(make: Callable[[torch.Size], Tensor], shape: torch.Size) -> Tensor:
    """``make(shape)``, or of more draws along the first dimension this process's."""
    division = _draws.get()
    if division is None:
        return make(shape)
    if not shape and division.singly:
        return make(torch.Size((len(division.counts),)))[division.rank]
    if shape and shape[0] != division.size:
        raise RuntimeError(f"{division.size} of {division.whole} draws are this process's, asked for {shape[0]}")
    own = division.own(make(torch.Size((division.whole, *shape[1:]))))
    return own if shape else own[0]


def own_part(rows: Tensor) -> Tensor:
    """This process's part of rows (m, *shape) that all processes have: m is the number of draws, or about it."""
    division = _draws.get()
    if division is None:
        return rows
    if len(rows) != division.whole:
        division = divide("number of draws", len(rows), "take more")
    return division.own(rows)


def whole_number(n: int) -> int:
    """The number of all processes' draws, of which n are this one's."""
    division = _draws.get()
    return n if division is None else division.whole


def share_of_draws() -> float:
    """This process's part of the draws; 1 where they are not divided."""
    division = _draws.get()
    return 1.0 if division is None else division.share


def share() -> float:
    """This process's part of the step under way, by which its means are weighted."""
    division = _draws.get() or _data.get()
    return 1.0 / distributed.world_size() if division is None else division.share


def own_data(make: Callable[[torch.Size], Tensor], shape: torch.Size) -> Tensor:
    """``make(shape)``, or of a whole minibatch along the last dimension of ``shape`` this process's data."""
    division = _data.get()
    if division is None:
        return make(shape)
    if not shape or shape[-1] != division.size:
        raise RuntimeError(
            f"{division.size} of {division.whole} data are this process's, asked for noise of shape {tuple(shape)}"
        )
    whole = make(torch.Size((*shape[:-1], division.whole)))
    return whole.narrow(len(shape) - 1, division.start, division.size)


@contextmanager
def own_stream() -> Iterator[None]:
    """Draw in the block from generators of this process's own, where data are divided; the others stay equal."""
    if _data.get() is None:
        yield
        return
    seed = int(torch.randint(2**31 - 1, (), device="cpu"))
    with rng_untouched():
        pyro.set_rng_seed((seed + distributed.rank()) % 2**31)
        yield


# -- what processes add up --------------------------------------------------------------------------------


def everyones_draws(rows: Tensor) -> Tensor:
    """Rows (n, *shape) of this process's draws, and those of all others: (whole, *shape)."""
    division = _draws.get()
    return rows if division is None else division.gathered(rows)


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, means over this process's part, by the means over all."""
    distributed.sum_(tensors, share())


@contextmanager
def hint_shared(numbers: Tensor) -> Iterator[None]:
    """A block that comes before :func:`everyones_draws` of tensors like ``numbers``, and may fail.

    The others, who wait for them, then get infinities, or NaN where a matrix is singular: see :func:`check_hint`.
    """
    try:
        yield
    except Exception as error:
        if _draws.get() is not None:
            everyones_draws(torch.full_like(numbers, torch.nan if is_singular(error) else torch.inf))
        raise


def check_hint(log_ratio: Tensor) -> Tensor:
    """The log-ratios of all processes, if none has failed.

    Raises:
        LinAlgError, RuntimeError: as :func:`fail_with_others`.
    """
    if _draws.get() is not None and not bool(torch.isfinite(log_ratio).all()):
        fail_with_others(singular=not bool(torch.isinf(log_ratio).any()))
    return log_ratio


def is_singular(error: Exception) -> bool:
    """Whether it is a matrix without inverse or factor, which other draws may have."""
    return isinstance(error, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


class OtherFailed(RuntimeError):
    """Another process of the group has failed; its own message says why."""


def fail_with_others(*, singular: bool) -> NoReturn:
    """Fail as another process has.

    Raises:
        LinAlgError: there a matrix is ``singular``.
        OtherFailed: it has another reason.
    """
    if singular:
        raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
            "in another process a matrix of the model is singular at some draw"
        )
    raise OtherFailed("another process has failed in this step; see its own error message")
