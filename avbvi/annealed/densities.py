"""The two ends of an annealing path: joint log-densities by datum, and densities to start from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..arguments import found, instance, positive_number
from ..hmc import DiagonalMetric, Metric

#: Draws that a scale is read off, at least.
_LEAST_DRAWS = 8


@runtime_checkable
class DatumDensity(Protocol):
    """Joint log-densities log p(x_i, z_i) of a batch of data in unconstrained coordinates."""

    @property
    def batch(self) -> int:
        """Number of data B."""
        ...

    @property
    def dim(self) -> int:
        """Coordinates of one datum's latents."""
        ...

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x_i, z_i) with the constraints' Jacobian: (*S, B, dim) -> (*S, B), differentiable in z."""
        ...


@runtime_checkable
class PriorDensity(DatumDensity, Protocol):
    """A :class:`DatumDensity` whose prior can be drawn from."""

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z_i): (*S, B, dim) -> (*S, B), differentiable in z."""
        ...

    def sample_prior(self, n: int) -> Tensor:
        """n draws for each datum (n, B, dim)."""
        ...


class DenseBatchMetric(Metric):
    """Lower-triangular L_i, one per datum, (B, dim, dim), for states (chains, B, dim)."""

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def scale(self, r: Tensor) -> Tensor:
        return _multiplied(self.factors, r)

    def pull(self, gradient: Tensor) -> Tensor:
        return _multiplied(self.factors.mT, gradient)

    def whiten(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factors, z.permute(1, 2, 0), upper=False).permute(2, 0, 1)


def _multiplied(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Each datum's matrix (B, dim, dim) times its vectors (chains, B, dim), as one batched product."""
    return torch.bmm(matrices, vectors.permute(1, 2, 0)).permute(2, 0, 1)


class StartDensity(ABC):
    """A normalised density for each datum, to draw from: where an annealing path begins."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws for each datum (n, B, dim), without gradient; random by ``generator``, or torch's global one."""

    def at(self, noise: Tensor) -> Tensor | None:
        """Draws (n, B, dim) made of standard normal ``noise`` of that shape, one of a datum from its own alone.

        ``None`` where draws can't be made so; they come from :meth:`sample` then, and those of a datum differ with the
        data that it is drawn along with.
        """
        return None

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """(*S, B, dim) -> (*S, B), differentiable in z."""

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log_prob (chains, B) at z (chains, B, dim) and its gradient (chains, B, dim), both detached."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self.log_prob(leaf)
            gradient = torch.autograd.grad(value.sum(), leaf)[0]
        return value.detach(), gradient

    @abstractmethod
    def metric(self, draws: Tensor) -> Metric:
        """Inverse mass for HMC along the path; ``draws`` (n, B, dim) are of this density, and used for nothing else."""

    @abstractmethod
    def part(self, begin: int, end: int) -> StartDensity:
        """The density of data ``begin`` to ``end`` - 1."""


class GaussianStart(StartDensity):
    """A Gaussian for each datum.

    Args:
        loc: means (B, dim).
        covariance: covariances (B, dim, dim), or variances (B, dim).
        inflation: factor of the covariance. Weights from too narrow a start have heavy tails, those from too wide a one
            only ask for more temperatures.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape, or a covariance that is not positive definite.

    Source: Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based generative models,
    ICLR, section 3: chains that start from the encoder.
    """

    def __init__(self, loc: Tensor, covariance: Tensor, *, inflation: float = 1.0) -> None:
        for name, value in (("loc", loc), ("covariance", covariance)):
            instance(name, value, Tensor, "a tensor")
            if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must hold finite floating-point numbers, found {found(value)}")
        if loc.dim() != 2 or 0 in loc.shape:
            raise ValueError(f"loc must have shape (B, dim), one row per datum, found {tuple(loc.shape)}")
        if covariance.shape not in (loc.shape, (*loc.shape, loc.shape[1])):
            raise ValueError(
                f"covariance must have shape {(*loc.shape, loc.shape[1])}, or {tuple(loc.shape)} for variances, to go "
                f"with loc, found {tuple(covariance.shape)}"
            )
        covariance = positive_number("inflation", inflation) * covariance.detach().double()
        covariance = covariance if covariance.dim() == 3 else torch.diag_embed(covariance)
        factor, info = torch.linalg.cholesky_ex(covariance)
        bad = (info != 0).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"covariance is not positive definite for {len(bad)} of {len(loc)} data, the first of them "
                f"{int(bad[0])}; add a little to its diagonal"
            )
        eye = torch.eye(loc.shape[1], dtype=factor.dtype, device=factor.device)
        self.loc: Tensor = loc.detach()
        self._factor = factor.to(loc)
        # Inverted once in float64: products are much faster than triangular solves of every evaluation.
        self._inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).to(loc)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._log_constant = (-log_det - 0.5 * loc.shape[1] * math.log(2.0 * math.pi)).to(loc)

    @classmethod
    def of_draws(cls, draws: Tensor, *, inflation: float = 1.0, floor: float = 1e-3) -> GaussianStart:
        """The Gaussians with the moments of draws (n, B, dim).

        Correlations are multiplied by n / (n + dim), so that few draws give proper covariances, and standard deviations
        are at least ``floor`` times the median one of the datum; ``inflation`` is a factor of the covariances.

        Raises:
            ValueError: fewer than two draws, or draws that are not finite.
        """
        if draws.dim() != 3 or len(draws) < 2:
            raise ValueError(f"draws must have shape (n, B, dim), n at least 2, found {tuple(draws.shape)}")
        if not bool(torch.isfinite(draws).all()):
            raise ValueError("draws must be finite, found NaN or infinite values")
        n, _, dim = draws.shape
        x = draws.detach().double()
        loc = x.mean(0)
        centred = x - loc
        scale = centred.square().mean(0).sqrt()
        least = floor * scale.median(-1, keepdim=True).values
        scale = scale.clamp_min(1e-12).maximum(least)
        white = centred / scale
        correlation = torch.einsum("nbi,nbj->bij", white, white) / n * (n / (n + dim))
        correlation.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        covariance = scale[..., :, None] * correlation * scale[..., None, :]
        return cls(loc.to(draws), covariance.to(draws), inflation=inflation)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(
            n, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device, generator=generator
        )  # fmt: skip
        return self.at(noise)

    def at(self, noise: Tensor) -> Tensor:
        return self.loc + _multiplied(self._factor, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        white = torch.einsum("bij,...bj->...bi", self._inverse, z - self.loc)
        return self._log_constant - 0.5 * white.square().sum(-1)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        white = _multiplied(self._inverse, z.detach() - self.loc)
        return self._log_constant - 0.5 * white.square().sum(-1), -_multiplied(self._inverse.mT, white)

    def metric(self, draws: Tensor) -> Metric:
        return DenseBatchMetric(self._factor)

    def part(self, begin: int, end: int) -> GaussianStart:
        other = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(other, name, value[begin:end])
        return other


class PriorStart(StartDensity):
    """The prior p(z) of a density's data: needs no encoder, and many temperatures where the data say much.

    Args:
        density: a :class:`PriorDensity`.

    Raises:
        TypeError: a density whose prior can't be drawn from.
    """

    def __init__(self, density: PriorDensity) -> None:
        if not isinstance(density, PriorDensity):
            raise TypeError(
                f"density must have log_prior and sample_prior to start from its prior, found {found(density)}; give "
                "start=GaussianStart(...)"
            )
        self.density = density

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        # The model draws from torch's global generator.
        return self.density.sample_prior(n).detach()

    def log_prob(self, z: Tensor) -> Tensor:
        return self.density.log_prior(z)

    def metric(self, draws: Tensor) -> Metric:
        flat = draws.flatten(0, 1)
        if len(flat) < _LEAST_DRAWS:
            return DiagonalMetric(torch.ones_like(flat[0]))
        # Over chains and data; quartiles, since priors may have heavy tails.
        low, high = flat.sort(0).values[[len(flat) // 4, (3 * len(flat)) // 4]]
        scales = (high - low) / 1.349
        return DiagonalMetric(torch.where(scales > 0.0, scales, 1.0))

    def part(self, begin: int, end: int) -> StartDensity:
        raise TypeError("a PriorStart belongs to its density; leave start out, and each part has its own prior")
