"""A normalizing flow as trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn

from ..arguments import instance, integer, integers
from .base import AffineTrunk

LOG_SCALE_LIMIT = 4.0


class FlowTrunk(AffineTrunk):
    """A normalizing flow in whitened coordinates: Pyro's transforms followed by the affine start.

    By default masked affine autoregressive transforms (IAF) with the order of the coordinates reversed between them,
    near the identity at the start; in one dimension a monotone rational spline.

    Args:
        layers: number of autoregressive transforms.
        hidden: hidden widths of each one's masked network (raised to ``dim`` where smaller).
        transforms: Pyro transforms with inverse and log-determinant to be used instead; such a trunk
            can't be rebuilt from a file without ``guide=``.

    Raises:
        TypeError: ``layers`` is no integer, ``hidden`` no tuple of integers, or ``transforms`` no list of transforms.
        ValueError: ``layers`` or a width is less than 1.

    Example:
        >>> import torch, avbvi
        >>> trunk = avbvi.FlowTrunk(layers=2, hidden=(16,))
        >>> trunk.build(2)
        >>> e = torch.randn(5, 2)
        >>> z, log_det = trunk(e)
        >>> bool(torch.allclose(trunk.inverse(z)[0], e, atol=1e-5)), log_det.shape
        (True, torch.Size([5]))

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improving variational inference with
    inverse autoregressive flow, NeurIPS; in one dimension Dolatabadi, Erfani and Leckie (2020), Invertible generative
    modeling using linear rational splines, AISTATS.
    """

    is_trainable = True

    def __init__(
        self,
        layers: int = 3,
        hidden: tuple[int, ...] = (64, 64),
        transforms: Sequence[torch.distributions.Transform] | None = None,
    ) -> None:
        super().__init__()
        self.layers: int = integer("layers", layers, 1)
        self.hidden: tuple[int, ...] = integers("hidden", hidden, "widths of the hidden layers")
        if transforms is not None:
            _check_transforms(transforms)
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
        self.flow: nn.ModuleList = nn.ModuleList(t for t in self._steps if isinstance(t, nn.Module))

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
            forget_cache(t)
            e = y
        z, affine = super().forward(e)
        return z, log_det + affine

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().inverse(z)
        for t in reversed(self._steps):
            e = t.inv(y)
            log_det = log_det + _sum_to(t.log_abs_det_jacobian(e, y), log_det.dim())
            forget_cache(t)
            y = e
        return y, log_det


def _check_transforms(transforms: Any) -> None:
    if not isinstance(transforms, Sequence) or not transforms:
        raise TypeError(f"transforms must be a list of Pyro transforms, found {type(transforms).__name__}")
    for i, t in enumerate(transforms):
        instance(f"transforms[{i}]", t, torch.distributions.Transform, "a Pyro transform")


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


def forget_cache(transform: torch.distributions.Transform) -> None:
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
