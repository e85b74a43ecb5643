"""Minibatches without end, which a resumed run takes up where it stood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from avbvi.rng import rng_state, set_rng_state

Loader = DataLoader[Any] | Sequence[Tensor]


class Batches:
    """Minibatches without end; where it stands is the random state at the epoch's beginning and a position in it.

    Args:
        loader: gives minibatches, the first of each being the data if it is a tuple, epoch after epoch.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._generator: torch.Generator | None = getattr(loader, "generator", None)
        self._iterator: Iterator[Any] | None = None
        self._begun: dict[str, Any] = {}
        self._position = 0

    def next(self) -> Tensor:
        """The next minibatch.

        Raises:
            ValueError: the loader gives none.
        """
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        batch = next(self._iterator, None)
        if batch is None:
            self._begin()
            batch = next(self._iterator, None)
        if batch is None:
            raise ValueError("loader gives no batch; hand in data, or drop_last=False")
        self._position += 1
        result: Tensor = batch[0] if isinstance(batch, tuple | list) else batch
        return result

    def _begin(self) -> None:
        self._begun, self._position = self._state(), 0
        self._iterator = iter(self._loader)

    def _state(self) -> dict[str, Any]:
        return {"rng": rng_state(), "own": None if self._generator is None else self._generator.get_state()}

    def _restore(self, state: dict[str, Any]) -> None:
        set_rng_state(state["rng"])
        if self._generator is not None:
            self._generator.set_state(state["own"])

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        return {"begun": self._begun, "position": self._position, "now": self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw the epoch's order again, pass over the batches that are done, and take the random state from then."""
        if state["begun"]:
            self._restore(state["begun"])
            self._begin()
            for _ in range(state["position"]):
                self.next()
        self._restore(state["now"])
