"""The draws of a minibatch, in the coordinates in which their density is learned."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions import Draw
from ..divided.division import own_data
from ..samplers import Sampler
from .gaussians import Gaussians
from .samplers import AmortisedSampler


class MinibatchDraws:
    """One call's draws z = mu(x) + L(x) e of a sampler that splits so, and e = z of others.

    Density ratios are the same in e, so that log q(z | x) = log q(e | x) - log|L(x)|: where e travels with z, adversary
    and contrast see e alone, and the gradient in mu and L is that of a Gaussian encoder, exact whatever the
    adversary has learned.

    Args:
        sampler: the sampler.
        context: the data's context (B, context_dim).
        trailing: number of plates on the right of the data's, each a dimension of 1 in all shapes here.
        like: gives dtype and device.
    """

    def __init__(self, sampler: Sampler, context: Tensor, trailing: int, like: Tensor) -> None:
        self._sampler, self._context, self._like = sampler, context, like
        self._ones = (1,) * trailing
        self._places: Gaussians | None = None
        self._splits = isinstance(sampler, AmortisedSampler) and sampler.splits

    def base(self, shape: torch.Size) -> Tensor:
        """Draws of e for a batch shape (*S, B, 1...): (*S, B, 1..., dim)."""
        inner = torch.Size(shape[: len(shape) - len(self._ones)])
        noise = own_data(lambda s: self._sampler.sample_noise(s, like=self._like), inner)
        if isinstance(self._sampler, AmortisedSampler) and self._splits:
            e, self._places = self._sampler.split(noise, self._context)
        else:
            e = self._sampler(noise, self._context)
        return self._outside(e)

    def trunk(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """e (*S, B, 1..., dim) to z and log|L| (*S, B, 1...)."""
        if not self._splits:
            return e, e.new_zeros(e.shape[:-1])
        places, inner = self._gaussians(), self._inside(e)
        return self._outside(places.place(inner)), self._spread(places.log_det, inner)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (*S, B, 1..., dim) to e and log|L| (*S, B, 1...)."""
        if not self._splits:
            return z, z.new_zeros(z.shape[:-1])
        places, inner = self._gaussians(), self._inside(z)
        return self._outside(places.standardise(inner)), self._spread(places.log_det, inner)

    def fixed(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """z of a draw as mu and L fixed would place it, (*S, B, dim), and log|L| (*S, B, 1...), fixed too."""
        if not self._splits:
            return self._inside(draw.z), draw.log_det
        return self._gaussians().detached().place(self._inside(draw.base)), draw.log_det.detach()

    def outside(self, value: Tensor) -> Tensor:
        """Numbers (*S, B) as (*S, B, 1...)."""
        return value.reshape(*value.shape, *self._ones)

    def _gaussians(self) -> Gaussians:
        if self._places is None:
            assert isinstance(self._sampler, AmortisedSampler)
            self._places = self._sampler.gaussians(self._context)
            assert self._places is not None
        return self._places

    def _inside(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(*vectors.shape[: vectors.dim() - 1 - len(self._ones)], vectors.shape[-1])

    def _outside(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(*vectors.shape[:-1], *self._ones, vectors.shape[-1])

    def _spread(self, log_det: Tensor, vectors: Tensor) -> Tensor:
        return self.outside(log_det.expand(vectors.shape[:-1]))
