"""Trunks: maps from base coordinates to the latent space whose log-determinant is known.

A guide's draw is z = G(e), with e from a sampler without density. Density ratios do not change under
G, so the adversary works on e, and log|det dG/de| is exact. The identity gives the paper's AVB, an
affine trunk whitens, a normalizing flow is "a better contrasting distribution" (AVB, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from .parts import Part

LogDensityFunction = Callable[[Tensor], Tensor]
LOG_SCALE_LIMIT = 4.0


def standard_normal_log_prob(e: Tensor) -> Tensor:
    """log N(e; 0, I) over the last dimension: (*batch, dim) -> (*batch,)."""
    return -0.5 * (e.square().sum(-1) + e.shape[-1] * math.log(2 * math.pi))


class Trunk(Part):
    """Base class of trunks. ``forward`` and ``inverse`` both return log|det dG/de| in the forward direction.

    The density of a draw is asked through :meth:`log_prob` alone, with the density of the base handed
    in, so that a trunk that is no bijection (a mixture of maps) can sum over its components there.
    """

    #: Width of the base coordinates; a trunk may use more coordinates than the latent space has.
    base_dim: int

    #: Whether the trunk has parameters to be fitted by the plain ELBO before the adversarial stage.
    is_trainable: bool = False

    def build(self, dim: int) -> None:
        self.base_dim = dim
        super().build(dim)

    def start(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Place the trunk so that standard normal draws get mean ``loc`` (dim,) and covariance ``L L^T`` (dim, dim)."""

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Base coordinates (*batch, dim) to z (*batch, dim) and log|det dG/de| (*batch,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (*batch, dim) to base coordinates (*batch, dim) and log|det dG/de| there (*batch,)."""
        raise NotImplementedError

    def reference_coordinates(self, z: Tensor) -> Tensor:
        """z in the coordinates in which the starting point is standard; annealing of log p is done there."""
        return z

    def log_prob(self, z: Tensor, base_log_prob: LogDensityFunction | None = None) -> Tensor:
        """Density of G(e) at z (*batch, dim) -> (*batch,), e of density ``base_log_prob`` (else standard normal)."""
        e, log_det = self.inverse(z)
        return (base_log_prob or standard_normal_log_prob)(e) - log_det


class IdentityTrunk(Trunk):
    """No trunk: base coordinates are the latent ones (the paper's AVB)."""

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        return e, e.new_zeros(e.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z.new_zeros(z.shape[:-1])


class AffineTrunk(Trunk):
    """z = loc + L e with fixed location and lower-triangular L, set at the start: whitening."""

    loc: Tensor
    scale_tril: Tensor

    def _build(self, dim: int) -> None:
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale_tril", torch.eye(dim))

    def start(self, loc: Tensor, scale_tril: Tensor) -> None:
        if not bool((scale_tril.diagonal() > 0).all()):
            raise ValueError("scale_tril must have a positive diagonal")
        self.loc.copy_(loc)
        self.scale_tril.copy_(scale_tril)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        log_det = self.scale_tril.diagonal().log().sum()
        return self.loc + e @ self.scale_tril.mT, log_det.expand(e.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        e = self.reference_coordinates(z)
        return e, self.scale_tril.diagonal().log().sum().expand(e.shape[:-1])

    def reference_coordinates(self, z: Tensor) -> Tensor:
        flat = (z - self.loc).reshape(-1, z.shape[-1])
        return torch.linalg.solve_triangular(self.scale_tril, flat.mT, upper=False).mT.reshape(z.shape)


class FlowTrunk(AffineTrunk):
    """A normalizing flow in whitened coordinates: Pyro's transforms followed by the affine start.

    By default masked affine autoregressive transforms (IAF: Kingma et al. 2016) with the order of the
    coordinates reversed between them, near the identity at the start; in one dimension a monotone
    rational spline.

    Args:
        layers: number of autoregressive transforms.
        hidden: hidden widths of each one's masked network (raised to ``dim`` where smaller).
        transforms: Pyro transforms with inverse and log-determinant to be used instead; such a trunk
            can't be rebuilt from a file without ``guide=``.
    """

    is_trainable = True

    def __init__(
        self,
        layers: int = 3,
        hidden: tuple[int, ...] = (64, 64),
        transforms: Sequence[torch.distributions.Transform] | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.hidden = tuple(hidden)
        self.transforms = transforms

    @property
    def is_rebuildable(self) -> bool:
        return self.transforms is None and super().is_rebuildable

    def _build(self, dim: int) -> None:
        super()._build(dim)
        if self.transforms is not None:
            self._steps = list(self.transforms)
        elif dim == 1:
            self._steps = [_identity_spline(count_bins=16, bound=6.0)]
        else:
            self._steps = [self._autoregressive(dim, flip=bool(i % 2)) for i in range(self.layers)]
        self.flow = nn.ModuleList(t for t in self._steps if isinstance(t, nn.Module))

    def _autoregressive(self, dim: int, *, flip: bool) -> torch.distributions.Transform:
        order = torch.arange(dim)
        network = AutoRegressiveNN(
            dim,
            [max(h, dim) for h in self.hidden],
            permutation=order.flip(0) if flip else order,
            nonlinearity=nn.Tanh(),
        )
        with torch.no_grad():
            network.layers[-1].weight.mul_(0.01)
            network.layers[-1].bias.zero_()
        return _MaskedAffine(network)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        log_det = e.new_zeros(e.shape[:-1])
        for t in self._steps:
            y = t(e)
            log_det = log_det + _sum_to(t.log_abs_det_jacobian(e, y), log_det.dim())
            _forget(t)
            e = y
        z, affine = super().forward(e)
        return z, log_det + affine

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().inverse(z)
        for t in reversed(self._steps):
            e = t.inv(y)
            log_det = log_det + _sum_to(t.log_abs_det_jacobian(e, y), log_det.dim())
            _forget(t)
            y = e
        return y, log_det


class _MaskedAffine(pyro_transforms.AffineAutoregressive):
    """Pyro's affine autoregressive transform, with an inverse that keeps the dtype of its argument.

    Pyro's own inverse starts from float32 zeros, which fails for float64 networks.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, log_scale_min_clip=-LOG_SCALE_LIMIT, log_scale_max_clip=LOG_SCALE_LIMIT)

    def _inverse(self, y: Tensor) -> Tensor:
        # Jacobi iteration: pass i fixes the i-th coordinate of the autoregressive order, so dim passes are exact.
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            mean, log_scale = self.arn(x)
            x = (y - mean) * torch.exp(-log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT))
        self._cached_log_scale = None
        return x


def _identity_spline(count_bins: int, bound: float) -> pyro_transforms.Spline:
    """Pyro's spline in one dimension, which would start at random, started at the identity."""
    spline = pyro_transforms.Spline(1, count_bins=count_bins, bound=bound)
    with torch.no_grad():
        spline.unnormalized_widths.zero_()
        spline.unnormalized_heights.zero_()
        # softplus of this is the derivative at the inner knots: 1 as at the ends.
        spline.unnormalized_derivatives.fill_(math.log(math.expm1(1.0 - 1e-3)))
    return spline


def _sum_to(log_det: Tensor, batch_dims: int) -> Tensor:
    return log_det.sum(-1) if log_det.dim() > batch_dims else log_det


def _forget(transform: torch.distributions.Transform) -> None:
    """Drop what Pyro's transforms cache: it holds the autograd graph and breaks ``deepcopy``."""
    # A coupling or a composition holds transforms with caches of their own.
    parts = transform.modules() if isinstance(transform, nn.Module) else [transform]
    for part in parts:
        if not isinstance(part, torch.distributions.Transform):
            continue
        cast("Any", part)._cached_x_y = (None, None)
        for name in ("_cached_log_scale", "_cached_logDetJ", "_cache_log_detJ"):
            if hasattr(part, name):
                setattr(part, name, None)
