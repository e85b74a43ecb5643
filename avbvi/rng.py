"""Random state: a seed that leaves the caller's generators alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Run the block with torch's, numpy's and Python's generators seeded, then restore the caller's state.

    With ``None`` the block draws from the caller's generators as they are.
    """
    if seed is None:
        yield
        return
    state = get_rng_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)
