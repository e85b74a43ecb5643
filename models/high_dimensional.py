"""Targets in 50 and 100 dimensions with exact draws and their exact log-evidence, by name in `HIGH_DIMENSIONAL`.

| name | dim | what makes it hard |
|---|---|---|
| gaussian_100 | 100 | rotated, covariance with condition number 1e4 |
| student_50 | 50 | rotated, heavy tails (five degrees of freedom), condition number 100 |
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from .constants import Constant
from .toy_densities import ToyDensity, normal_draws

__all__ = ["HIGH_DIMENSIONAL", "RotatedNormal", "RotatedStudentT"]


class _Rotated:
    """A centred elliptical distribution with scale matrix Q diag(l) Q', Q a random rotation.

    The l are spaced geometrically from 1 / sqrt(condition) to sqrt(condition), so that the matrix has determinant 1.
    """

    def __init__(self, dim: int, condition: float, seed: int) -> None:
        if dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}.")
        if not 1.0 <= condition < math.inf:
            raise ValueError(f"condition must be finite and at least 1, got {condition}.")
        self.dim = dim
        self.condition = condition
        self.seed = seed

    @cached_property
    def _root(self) -> Tensor:
        """Q diag(sqrt(l)), shape (dim, dim), float64."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        rotation, triangle = torch.linalg.qr(normal_draws(generator, self.dim, self.dim))
        # With these signs Q does not depend on the linear algebra library, and draws can be repeated elsewhere.
        rotation = rotation * triangle.diagonal().sign()
        end = 0.5 * math.log10(self.condition)
        return rotation * torch.logspace(-end, end, self.dim, dtype=torch.float64, device="cpu").sqrt()

    @cached_property
    def _whitener(self) -> Constant:
        squares = self._root.square().sum(0)
        return Constant((self._root / squares).mT)

    @property
    def scale_matrix(self) -> Tensor:
        """Q diag(l) Q', shape (dim, dim), float64."""
        return self._root @ self._root.mT

    def _square(self, z: Tensor) -> Tensor:
        """z' S^-1 z with the scale matrix S: (*batch, dim) -> (*batch,)."""
        if z.shape[-1:] != (self.dim,):
            raise ValueError(f"z must have shape (*batch, {self.dim}), got {tuple(z.shape)}.")
        return (z @ self._whitener.like(z).mT).square().sum(-1)


class RotatedNormal(_Rotated):
    """A centred normal whose covariance has a given condition number, in no coordinate's direction.

    Args:
        dim: number of coordinates, at least 2.
        condition: of the covariance, whose eigenvalues are spaced geometrically about 1.
        seed: of the rotation.

    Raises:
        ValueError: dim < 2 or condition < 1.
    """

    def __init__(self, dim: int = 100, condition: float = 1e4, seed: int = 0) -> None:
        super().__init__(dim, condition, seed)

    @property
    def covariance(self) -> Tensor:
        """Covariance matrix, shape (dim, dim), float64."""
        return self.scale_matrix

    @property
    def log_evidence(self) -> float:
        """Log of the integral of exp(log_prob), in nats: the covariance has determinant 1."""
        return 0.5 * self.dim * math.log(2.0 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density without its constant.

        Args:
            z: points, shape (*batch, dim).

        Returns:
            -z' S^-1 z / 2 with the covariance S, shape (*batch,).

        Raises:
            ValueError: the last dimension of z is not dim.
        """
        return -0.5 * self._square(z)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent draws, shape (n, dim), float64 on the CPU."""
        return normal_draws(generator, n, self.dim) @ self._root.mT


class RotatedStudentT(_Rotated):
    """A centred multivariate Student-t: one chi-square variable widens all coordinates at once.

    Args:
        dim: number of coordinates, at least 2.
        df: degrees of freedom, an integer above 2; moments of order df and more do not exist.
        condition: of the scale matrix, whose eigenvalues are spaced geometrically about 1.
        seed: of the rotation.

    Raises:
        ValueError: dim < 2, df < 3 or condition < 1.
    """

    def __init__(self, dim: int = 50, df: int = 5, condition: float = 100.0, seed: int = 0) -> None:
        super().__init__(dim, condition, seed)
        if df < 3:
            raise ValueError(f"df must be at least 3, for a covariance to exist, got {df}.")
        self.df = df

    @property
    def covariance(self) -> Tensor:
        """Covariance matrix df / (df - 2) S with the scale matrix S, shape (dim, dim), float64."""
        return self.df / (self.df - 2.0) * self.scale_matrix

    @property
    def log_evidence(self) -> float:
        """Log of the integral of exp(log_prob), in nats: the scale matrix has determinant 1."""
        gammas = math.lgamma(0.5 * self.df) - math.lgamma(0.5 * (self.df + self.dim))
        return gammas + 0.5 * self.dim * math.log(self.df * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density without its constant.

        Args:
            z: points, shape (*batch, dim).

        Returns:
            -(df + dim) / 2 log(1 + z' S^-1 z / df) with the scale matrix S, shape (*batch,).

        Raises:
            ValueError: the last dimension of z is not dim.
        """
        return -0.5 * (self.df + self.dim) * torch.log1p(self._square(z) / self.df)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent draws, shape (n, dim), float64 on the CPU."""
        normal = normal_draws(generator, n, self.dim) @ self._root.mT
        # df is an integer: a sum of squares follows the chi-square law exactly.
        chi_square = normal_draws(generator, n, self.df).square().sum(-1, keepdim=True)
        return normal * (self.df / chi_square).sqrt()


_NORMAL = RotatedNormal()
_STUDENT = RotatedStudentT()

HIGH_DIMENSIONAL: dict[str, ToyDensity] = {
    toy.name: toy
    for toy in (
        ToyDensity("gaussian_100", _NORMAL.dim, _NORMAL.log_prob, _NORMAL.draw, _NORMAL.log_evidence),
        ToyDensity("student_50", _STUDENT.dim, _STUDENT.log_prob, _STUDENT.draw, _STUDENT.log_evidence),
    )
}
