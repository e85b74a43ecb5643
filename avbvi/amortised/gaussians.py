"""Gaussians, one per datum: a network's output as such, and their densities."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor, nn

from ..divided.division import own_data
from ..mixtures import inverse_factors
from ..parts import zero_
from ..trunks import standard_normal_log_prob

#: Log-standard-deviations that a network gives are kept within this, around where they start.
LOG_SCALE_LIMIT = 6.0


class GaussianHead(nn.Module):
    """Features (B, width) to location (B, dim) and Cholesky factor (B, dim, dim) of a Gaussian.

    Args:
        width: width of the features.
        dim: dimension of the Gaussian.
        full: a full factor, else a diagonal one.
        start_scale: standard deviation that the Gaussian starts near.
        constant: start at mean 0 and that standard deviation exactly.
    """

    def __init__(self, width: int, dim: int, full: bool, start_scale: float, *, constant: bool = False) -> None:
        super().__init__()
        self.dim: int = dim
        self.full: bool = full and dim > 1
        self.start: float = math.log(start_scale)
        self.loc: nn.Linear = nn.Linear(width, dim)
        self.log_scale: nn.Linear = nn.Linear(width, dim)
        if self.full:
            self.lower: nn.Linear = nn.Linear(width, dim * (dim - 1) // 2)
            zero_(self.lower)
            self.register_buffer("places", torch.tril_indices(dim, dim, -1), persistent=False)
        if constant:
            zero_(self.loc)
            zero_(self.log_scale)

    places: Tensor

    def scale(self, features: Tensor) -> Tensor:
        """Diagonal of the factor, (B, dim)."""
        log_scale: Tensor = self.log_scale(features)
        return (log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT) + self.start).exp()

    def factor(self, features: Tensor) -> Tensor:
        """The Cholesky factor, (B, dim, dim)."""
        scale = self.scale(features)
        factor = torch.diag_embed(scale)
        if self.full:
            lower = torch.zeros_like(factor)
            lower[:, self.places[0], self.places[1]] = self.lower(features)
            # Rows in units of their own diagonal, so that the start is small whatever its scale.
            factor = factor + scale[:, :, None] * lower
        return factor

    def gaussians(self, features: Tensor) -> Gaussians:
        """The Gaussian of each row of the features."""
        return Gaussians(self.loc(features), self.factor(features) if self.full else self.scale(features))

    def carry(self, e: Tensor, features: Tensor) -> Tensor:
        """loc + L e: (*S, B, dim) -> (*S, B, dim)."""
        if not self.full:
            return self.loc(features) + self.scale(features) * e
        return self.loc(features) + apply_rows(self.factor(features), e)


def apply_rows(matrices: Tensor, e: Tensor) -> Tensor:
    """Each datum's own matrix (B, m, n) times its vectors (*S, B, n): (*S, B, m)."""
    return torch.einsum("bij,...bj->...bi", matrices, e)


class Gaussians:
    """One Gaussian per datum.

    Args:
        loc: means (B, dim).
        scale: standard deviations (B, dim), or Cholesky factors (B, dim, dim).

    ``log_det`` (B,) is the logarithm of the factors' determinants.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc: Tensor = loc
        self.scale: Tensor = scale
        self.full: bool = scale.dim() == 3
        diagonal = scale.diagonal(dim1=-2, dim2=-1) if self.full else scale
        self.log_det: Tensor = diagonal.log().sum(-1)

    @cached_property
    def _inverse(self) -> Tensor:
        return inverse_factors(self.scale) if self.full else self.scale.reciprocal()

    def detached(self) -> Gaussians:
        """The same without gradient to what made them."""
        return Gaussians(self.loc.detach(), self.scale.detach())

    def place(self, e: Tensor) -> Tensor:
        """loc + L e: (*S, B, dim) -> (*S, B, dim)."""
        return self.loc + (apply_rows(self.scale, e) if self.full else self.scale * e)

    def matrices(self) -> Tensor:
        """The Cholesky factors, (B, dim, dim)."""
        return self.scale if self.full else torch.diag_embed(self.scale)

    def carry(self, inner: Gaussians) -> Gaussians:
        """The Gaussians of loc + L e where e has the distribution ``inner``."""
        if not self.full and not inner.full:
            return Gaussians(self.loc + self.scale * inner.loc, self.scale * inner.scale)
        factor = self.matrices()
        return Gaussians(self.loc + apply_rows(factor, inner.loc), factor @ inner.matrices())

    def sample(self, n: int) -> Tensor:
        """n draws per datum, (n, B, dim)."""
        b, dim = self.loc.shape

        def draw(shape: torch.Size) -> Tensor:
            return torch.randn(*shape, dim, dtype=self.loc.dtype, device=self.loc.device)

        return self.place(own_data(draw, torch.Size((n, b))))

    def standardise(self, z: Tensor) -> Tensor:
        """L^-1 (z - loc): (*S, B, dim) -> (*S, B, dim)."""
        centred = z - self.loc
        return apply_rows(self._inverse, centred) if self.full else self._inverse * centred

    def log_prob(self, z: Tensor) -> Tensor:
        """(*S, B, dim) -> (*S, B)."""
        return standard_normal_log_prob(self.standardise(z)) - self.log_det
