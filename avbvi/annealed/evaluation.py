"""Log-densities by datum with their gradients: some chains at a time, and of a Pyro model without Pyro."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..recording.densities import value_and_score
from ..recording.graphs import TracingError, record

logger: logging.Logger = logging.getLogger(__name__)

#: A model is recorded at this evaluation of a shape, before it is captured: it takes as long as some evaluations.
RECORDED_AT_CPU, RECORDED_AT_CUDA = 40, 2
#: Relative agreement of a recording with the model, by the size of the dtype's rounding error.
AGREEMENT = 1e5


class Evaluation:
    """A log-density of chains z (n, B, dim) and its gradient; no gradient is taken in anything but z.

    Args:
        log_prob: (n, B, dim) -> (n, B), differentiable.
        chains_at_once: the most chains whose activations are in memory together; all by default.
        recorded: whether the density always runs the same operations, so that these can be recorded once and run
            without the Python, and the graph of autograd, that they came of. A recording that does not give the values
            of the density, at another point too, is not used.

    Attributes:
        reason: why the density is not recorded, in words; ``None`` while nothing speaks against it.
    """

    def __init__(
        self, log_prob: Callable[[Tensor], Tensor], chains_at_once: int | None = None, *, recorded: bool = False
    ) -> None:
        self.log_prob: Callable[[Tensor], Tensor] = log_prob
        self.chains_at_once: int | None = chains_at_once
        self.reason = None if recorded else "it was not asked for"
        self._requests: dict[Any, int] = {}
        self._graphs: dict[Any, Callable[[Tensor], tuple[Tensor, Tensor]]] = {}

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n, B) and gradients (n, B, dim), both detached."""
        z = z.detach().contiguous()
        if self.chains_at_once is None or len(z) <= self.chains_at_once:
            return self._evaluated(z)
        parts = [self._evaluated(part) for part in z.split(self.chains_at_once)]
        # Values of a wrong shape are for the caller to refuse.
        return torch.cat([value for value, _ in parts]), torch.cat([gradient for _, gradient in parts])

    def _evaluated(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.reason is not None:
            return self._plain(z)
        key = (z.shape, z.dtype, z.device)
        if key in self._graphs:
            # Of parameters it would build a graph of its own.
            with torch.no_grad():
                return self._graphs[key](z)
        count = self._requests[key] = self._requests.get(key, 0) + 1
        if count == (RECORDED_AT_CUDA if z.is_cuda else RECORDED_AT_CPU):
            self._record(key, z)
        return self._plain(z)

    def _record(self, key: Any, z: Tensor) -> None:
        try:
            graph = record(self._plain, z)
            # At these points, and halfway between a chain and the next.
            for where in (z, 0.5 * (z + z.roll(1, 0))):
                with torch.no_grad():
                    found = graph(where)
                self._compare(found, self._plain(where))
        except TracingError as error:
            self.reason = str(error)
            self._graphs.clear()
            logger.info("annealed chains run the model as it is at every step, since it can't be recorded: %s", error)
            return
        self._graphs[key] = graph

    @staticmethod
    def _compare(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        for a, b in zip(found, expected, strict=True):
            tolerance = AGREEMENT * torch.finfo(b.dtype).eps
            scale = b.nan_to_num(0.0, 0.0, 0.0).abs().amax()
            if a.shape != b.shape or not torch.allclose(
                a, b, rtol=tolerance, atol=tolerance * float(scale), equal_nan=True
            ):
                raise TracingError("its graph gives other values than the model itself")

    def _plain(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_score(self.log_prob, z)
