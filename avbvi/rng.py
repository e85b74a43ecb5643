"""Random state: a seed that leaves the caller's generators alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block with torch's, numpy's and Python's generators seeded, then restore the caller's state.

    With ``None`` the block draws from the caller's generators as they are.
    """
    if seed is None:
        yield
        return
    with rng_untouched():
        pyro.set_rng_seed(seed)
        yield


def rng_state() -> dict[str, Any]:
    """States of torch's, numpy's and Python's generators as plain data, for checkpoints."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 (Pyro draws from it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


@contextmanager
def rng_untouched() -> Iterator[None]:
    """Run the block and restore all generators afterwards."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


@contextmanager
def forked() -> Iterator[None]:
    """Run the block with generators that are seeded from the caller's, which stay as they are."""
    with rng_untouched():
        pyro.set_rng_seed(int(torch.randint(2**31, ())))
        yield


class RandomStream:
    """States of all generators for one part of a program, so that it draws the same whatever the others draw.

    Args:
        seed: where the stream begins.
    """

    def __init__(self, seed: int) -> None:
        self._bits: Any = np.random.MT19937()
        self._torch: Any = None
        self._cuda: Any = None
        self._python: Any = None
        with seeded(seed):
            self.load_state_dict(rng_state())

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Run the block with this stream's generators in place of the caller's."""
        outer = self._exchange((self._torch, self._cuda, self._bits, self._python))
        try:
            yield
        finally:
            self._torch, self._cuda, self._bits, self._python = self._exchange(outer)

    @staticmethod
    def _exchange(states: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        """Put states in force; returns those that were. Copies nothing of NumPy's, whose states are slow to copy."""
        cuda = torch.cuda.is_available()
        found = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if cuda else [],
            get_bit_generator(),
            random.getstate(),
        )
        torch.set_rng_state(states[0])
        if cuda and states[1]:
            torch.cuda.set_rng_state_all(states[1])
        set_bit_generator(states[2])
        random.setstate(states[3])
        return found

    def state_dict(self) -> dict[str, Any]:
        """As plain data, for checkpoints."""
        with rng_untouched(), self.in_use():
            return rng_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        kind, keys, position, has_gauss, cached = state["numpy"]
        version, internal, gauss = state["python"]
        self._torch, self._cuda = state["torch"], state["cuda"]
        self._python = (version, tuple(internal), gauss)
        outer = get_bit_generator()
        set_bit_generator(self._bits)
        try:
            np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
        finally:
            set_bit_generator(outer)
