"""Steps that are masked where they are computed, instead of being skipped by a host that has read what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


@contextmanager
def unless(wrong: Tensor, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the block, then give the modules' buffers their former values where ``wrong`` () is true; reads nothing."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, former in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(wrong, former, buffer))


def make_capturable(optimiser: torch.optim.Adam, like: Tensor) -> None:
    """Let an optimiser's steps be captured where ``like`` lies on a device that captures."""
    optimiser.defaults["capturable"] = like.is_cuda
    for group in optimiser.param_groups:
        group["capturable"] = like.is_cuda
    # Such a step may also be run by itself, on which torch would comment.
    cast("Any", optimiser)._warned_capturable_if_run_uncaptured = True


@contextmanager
def skipping(optimiser: torch.optim.Adam, skipped: Tensor) -> Iterator[None]:
    """Run the block, in which the fused optimiser's steps change nothing where ``skipped`` (), float32, is 1."""
    own: Any = optimiser
    own.found_inf = skipped
    try:
        yield
    finally:
        del own.found_inf
