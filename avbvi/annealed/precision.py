"""Matrix products in lower precision while chains move, and what makes up for it exactly in their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from .densities import DatumDensity


class ProductPrecision(ABC):
    """How precisely matrix products of a joint density are taken while chains move.

    The density computed so is another function, log j~, as good a target for the chains as log j: they go from the
    start to j~, whose evidence is slightly another. At their last state each weight is multiplied by j(z) / j~(z),
    one evaluation in full precision, as if j were one more temperature. So the weights stay unbiased for the evidence
    of j, whatever the precision, and what the rounding costs is seen: their variance grows by that of log j - log j~.
    """

    @abstractmethod
    def in_force(self, device: torch.device) -> AbstractContextManager[None]:
        """Context in which products are so precise."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class BFloat16Products(ProductPrecision):
    """Products of bfloat16 numbers (8 bits): ``torch.autocast`` around the joint density, but not the start."""

    @contextmanager
    def in_force(self, device: torch.device) -> Iterator[None]:
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield


class TF32Products(ProductPrecision):
    """Products of numbers rounded to 11 bits, added in single precision, on CUDA; elsewhere nothing changes."""

    @contextmanager
    def in_force(self, device: torch.device) -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        # On the CPU "high" may mean bfloat16.
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


class LowPrecisionDensity:
    """The joint density j~ that lower precision makes of another.

    Args:
        density: in full precision.
        precision: of the products.
    """

    def __init__(self, density: DatumDensity, precision: ProductPrecision) -> None:
        self.density, self.precision = density, precision
        self.batch, self.dim = density.batch, density.dim

    def log_joint(self, z: Tensor) -> Tensor:
        with self.precision.in_force(z.device):
            value = self.density.log_joint(z)
        return value.to(z.dtype)
