"""Joint densities in lower precision while chains move, which is made up for exactly in their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..precision import Precision
from .densities import DatumDensity


class LowPrecisionDensity:
    """The joint density j~ that lower precision makes of another, j.

    It is another function, as good a target for the chains as j: they go from the start to j~, whose evidence is
    slightly another. At their last state each weight is multiplied by j(z) / j~(z), one evaluation in full precision,
    as if j were one more temperature. So the weights stay unbiased for the evidence of j, whatever the precision, and
    what rounding costs is seen: the variance of log-weights grows by that of log j - log j~.

    Args:
        density: in full precision.
        precision: ``autocast`` is in force all around the density, ``tf32`` on CUDA.
    """

    def __init__(self, density: DatumDensity, precision: Precision) -> None:
        self.density: DatumDensity = density
        self.precision: Precision = precision
        self.batch: int = density.batch
        self.dim: int = density.dim

    def log_joint(self, z: Tensor) -> Tensor:
        with ExitStack() as contexts:
            if self.precision.autocast is not None:
                # Casts that are cached would be reused in the replay of another temperature.
                contexts.enter_context(torch.autocast(z.device.type, self.precision.autocast, cache_enabled=False))
            # On the CPU "high" may mean bfloat16.
            if self.precision.tf32 and z.is_cuda:
                contexts.enter_context(_tf32())
            value = self.density.log_joint(z)
        return value.to(z.dtype)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
