"""The implicit distribution: draws from a sampler, a density from the adversary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Draw(NamedTuple):
    """Latent z, base coordinates e and log|det dG/de|; ``forward`` tells that z was computed from e."""

    z: Tensor
    base: Tensor
    log_det: Tensor
    forward: bool = True


class ImplicitDistribution(TorchDistribution):
    """z = G(e) with e from a sampler: ``rsample`` from the sampler, ``log_prob`` learned.

    log q(z) = log q_base(e) - log|det dG/de|, where log q_base = T + log r is handed in as a function of
    a :class:`Draw` whose own parameters must be detached. By Prop. 2 of AVB (E_q[grad log q] = 0) the
    gradient of E_q[log p - log q] through z alone is then the ELBO's gradient.

    Args:
        draw_base: shape -> base draws (*shape, base_dim); the noise is drawn inside, so that it is not
            counted as entropy by Pyro.
        trunk: the map G, base coordinates (*batch, base_dim) to z (*batch, dim) and log|det dG/de| (*batch,).
        inverse: z (*batch, dim) to base coordinates and the same log|det dG/de|; called only for values that were not
            drawn here.
        base_log_prob: :class:`Draw` -> log q_base (*batch,).
        dim: width of z.
        batch_shape: shape of the batch of such distributions, each the same.

    Example:
        An affine map whose base density is known; an adversary would give ``base_log_prob`` otherwise.

        >>> import torch, avbvi
        >>> from avbvi.trunks import standard_normal_log_prob
        >>> trunk = avbvi.AffineTrunk()
        >>> trunk.build(3)
        >>> q = avbvi.ImplicitDistribution(lambda shape: torch.randn(*shape, 3), trunk, trunk.inverse,
        ...                                lambda draw: standard_normal_log_prob(draw.base), dim=3)
        >>> z = q.rsample((5,))
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([5, 3]), torch.Size([5]))

    Source: AVB (Mescheder, Nowozin and Geiger 2017), Prop. 1 and 2; the trunk is this project's.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support: constraints.Constraint = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        draw_base: Callable[[torch.Size], Tensor],
        trunk: Callable[[Tensor], tuple[Tensor, Tensor]],
        inverse: Callable[[Tensor], tuple[Tensor, Tensor]],
        base_log_prob: Callable[[Draw], Tensor],
        dim: int,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self._draw_base = draw_base
        self._trunk = trunk
        self._inverse = inverse
        self._base_log_prob = base_log_prob
        self._last: Draw | None = None
        super().__init__(batch_shape, torch.Size((dim,)), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> ImplicitDistribution:
        return ImplicitDistribution(
            self._draw_base,
            self._trunk,
            self._inverse,
            self._base_log_prob,
            self.event_shape[0],
            torch.Size(batch_shape),
        )

    def draw(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Draw:
        """z with its base coordinates and log-determinant, shapes (*sample_shape, *batch_shape, ...)."""
        base = self._draw_base(torch.Size(sample_shape) + self.batch_shape)
        z, log_det = self._trunk(base)
        return Draw(z, base, log_det)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        # The last draw is remembered, so that its density needs no inverse of the trunk.
        self._last = self.draw(sample_shape)
        return self._last.z

    def log_prob(self, value: Tensor) -> Tensor:
        """Learned log q at ``value`` (*batch, dim) -> (*batch,), in nats."""
        if self._last is not None and value is self._last.z:
            return self.draw_log_prob(self._last)
        base, log_det = self._inverse(value)
        return self.draw_log_prob(Draw(value, base, log_det, forward=False))

    def draw_log_prob(self, draw: Draw) -> Tensor:
        """Learned log q (*batch,) of a ``draw`` (a :class:`Draw`), without an inverse."""
        return self._base_log_prob(draw) - draw.log_det
