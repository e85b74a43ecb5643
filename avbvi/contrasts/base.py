"""What every contrast does, and what one gives for the data of a minibatch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..arguments import number
from ..parts import Part
from ..trunks import Trunk

if TYPE_CHECKING:
    from ..samplers import Sampler
    from ..targets import UnconstrainedTarget


class DatumPrior(Protocol):
    """The prior p(z) of one datum's latents, on their unconstrained scale."""

    def sample_prior(self, n: int) -> Tensor:
        """n draws per datum, (n, B, dim)."""

    def log_prior(self, z: Tensor) -> Tensor:
        """(*S, B, dim) -> (*S, B)."""


class GivenContrast(Protocol):
    """r(z | x) for the B data of one minibatch, without gradient to the contrast's own parameters."""

    def sample(self, n: int) -> Tensor:
        """n draws per datum, (n, B, dim)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log r(z | x): (*S, B, dim) -> (*S, B), differentiable in ``z`` alone."""

    def features(self, z: Tensor) -> Tensor:
        """What the adversary sees of ``z``: whitened coordinates (*S, B, feature_dim)."""


class Contrast(Part):
    """Base class of contrasts.

    A contrast of one posterior follows the sampler's draws; one of an amortised guide is asked for r(z | x), one
    density per datum, by :meth:`given`.

    Example:
        A contrast of one's own: a Laplace distribution about the draws' means.

        >>> import torch, avbvi
        >>> class LaplaceContrast(avbvi.Contrast):
        ...     def _build(self, dim):
        ...         self.register_buffer("loc", torch.zeros(dim))
        ...         self.register_buffer("scale", torch.ones(dim))
        ...     def update(self, draws):
        ...         self.loc.copy_(draws.mean(0))
        ...         self.scale.copy_((draws - self.loc).abs().mean(0))
        ...     def sample(self, n):
        ...         return torch.distributions.Laplace(self.loc, self.scale).sample((n,))
        ...     def log_prob(self, e):
        ...         return torch.distributions.Laplace(self.loc, self.scale).log_prob(e).sum(-1)
        ...     def features(self, e):
        ...         return (e - self.loc) / self.scale
        >>> contrast = LaplaceContrast()
        >>> contrast.build(2)
        >>> contrast.update(torch.randn(100, 2))
        >>> contrast.log_prob(contrast.sample(5)).shape
        torch.Size([5])
    """

    #: Width of what :meth:`features` returns.
    feature_dim: int

    def build(self, dim: int) -> None:
        self.feature_dim = dim
        super().build(dim)

    def build_on(self, trunk: Trunk) -> None:
        """Create what the contrast needs in the base coordinates of a trunk that is built."""
        self.build(trunk.base_dim)

    def build_for(self, dim: int, context_dim: int, sampler: Sampler) -> None:
        """Create what an amortised guide's contrast needs.

        Args:
            dim: width of one datum's latents.
            context_dim: width of its context.
            sampler: the guide's sampler, which is built already.
        """
        self.build(dim)

    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        """r(z | x) for a minibatch, of which ``context`` (B, context_dim), ``sampler`` and ``prior`` tell.

        Raises:
            ValueError: this contrast follows one posterior only, or needs another sampler.
        """
        raise ValueError(
            f"contrast={type(self).__name__}() follows a single posterior; with a sampler that takes a context use "
            "ConditionalGaussianContrast() or PriorContrast()"
        )

    def loss(self, draws: Tensor, context: Tensor, sampler: Sampler) -> Tensor | None:
        """What the contrast's own parameters minimise, a scalar; ``None`` if it has none.

        Args:
            draws: (n, B, dim) of q(z | x).
            context: (B, context_dim).
            sampler: what they were drawn by.
        """
        return None

    def bind(self, target: UnconstrainedTarget | None) -> None:
        """Tell the contrast which ``target`` is being fitted; only the prior contrast needs it."""

    def begin(self, trunk: Trunk, draws: Tensor) -> None:
        """The adversarial stage begins: fit r to the sampler's ``draws`` (n, dim), or take it from the ``trunk``."""
        self.reset(draws)

    def reset(self, draws: Tensor) -> None:
        """Fit r to ``draws`` (n, dim) from scratch."""
        self.update(draws)

    def update(self, draws: Tensor) -> None:
        """Let r follow the sampler's current ``draws`` (n, dim), without gradient to the sampler."""

    def sample(self, n: int) -> Tensor:
        """n draws of r, shape (n, dim)."""
        raise NotImplementedError

    def log_prob(self, e: Tensor) -> Tensor:
        """log r(e): (*batch, dim) -> (*batch,), differentiable in ``e`` alone."""
        raise NotImplementedError

    def features(self, e: Tensor) -> Tensor:
        """What the adversary sees of ``e``: whitened coordinates (*batch, feature_dim)."""
        return e


def checked_jitter(value: Any) -> float:
    """The argument ``jitter``, which is added to variances."""
    jitter = number("jitter", value)
    if not 0.0 <= jitter < math.inf:
        raise ValueError(f"jitter must be finite and not negative, found {value}")
    return jitter
