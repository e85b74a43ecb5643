"""Random state: a seed that leaves the caller's generators alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch


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
