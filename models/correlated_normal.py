"""Badly scaled, strongly correlated normal distributions."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .constants import Constant

__all__ = ["CorrelatedNormal"]


class CorrelatedNormal:
    """A centred normal with sds from .01 to 100 and strong correlation: badly scaled in every direction.

    The correlation matrix is Q diag(l) Q' rescaled to a unit diagonal, with a random rotation Q
    and l spaced geometrically from 1 to 1000. With seed 0 its condition number is 724 in 20
    dimensions and 953 in 50. The sds are spaced geometrically, so that the covariance matrix has
    condition number 3.3e9 in both.

    Args:
        dim: number of coordinates, at least 2.
        seed: of the rotation.

    Raises:
        ValueError: dim < 2.
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}.")
        self.dim = dim
        self.seed = seed

    @cached_property
    def sds(self) -> Tensor:
        """Standard deviations, shape (dim,), float64."""
        return torch.logspace(-2.0, 2.0, self.dim, dtype=torch.float64, device="cpu")

    @cached_property
    def correlation(self) -> Tensor:
        """Correlation matrix, shape (dim, dim), float64."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        # The signs of Q's columns, which depend on the linear algebra library, cancel in Q diag(l) Q'.
        rotation, _ = torch.linalg.qr(
            torch.randn(self.dim, self.dim, generator=generator, dtype=torch.float64, device="cpu")
        )
        spectrum = torch.logspace(0.0, 3.0, self.dim, dtype=torch.float64, device="cpu")
        matrix = (rotation * spectrum) @ rotation.mT
        scale = matrix.diagonal().rsqrt()
        return scale.unsqueeze(-1) * matrix * scale

    @property
    def covariance(self) -> Tensor:
        """Covariance matrix, shape (dim, dim), float64."""
        return self.sds.unsqueeze(-1) * self.correlation * self.sds

    @cached_property
    def _factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self.correlation)
        return factor

    @cached_property
    def _whitener(self) -> Constant:
        inverse = torch.linalg.solve_triangular(self._factor, torch.diag(1.0 / self.sds), upper=False)
        return Constant(inverse)

    @property
    def log_evidence(self) -> float:
        """Log of the integral of exp(log_prob), in nats."""
        log_det = self._factor.diagonal().log().sum() + self.sds.log().sum()
        return 0.5 * self.dim * math.log(2.0 * math.pi) + float(log_det)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density without its constant.

        Args:
            z: points, shape (*batch, dim).

        Returns:
            -z' S^-1 z / 2 with the covariance S, shape (*batch,).

        Raises:
            ValueError: the last dimension of z is not dim.
        """
        if z.shape[-1:] != (self.dim,):
            raise ValueError(f"z must have shape (*batch, {self.dim}), got {tuple(z.shape)}.")
        return -0.5 * (z @ self._whitener.like(z).mT).square().sum(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent draws, shape (n, dim), float64 on the CPU."""
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device="cpu")
        return (noise @ self._factor.mT) * self.sds
