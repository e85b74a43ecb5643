"""Trunks: maps from base coordinates to the latent space whose log-determinant is known.

A guide's draw is z = G(e), with e from a sampler without density. Density ratios do not change under
G, so the adversary works on e, and log|det dG/de| is exact. The identity gives the paper's AVB, an
affine trunk whitens, a flow or a mixture is "a better contrasting distribution" (AVB, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..parts import Part
from ..starts.modes import LaplaceModes

LogDensityFunction = Callable[[Tensor], Tensor]


def standard_normal_log_prob(e: Tensor) -> Tensor:
    """log N(e; 0, I) over the last dimension: (*batch, dim) -> (*batch,)."""
    return -0.5 * (e.square().sum(-1) + e.shape[-1] * math.log(2 * math.pi))


class Trunk(Part):
    """Base class of trunks. ``forward`` and ``inverse`` both return log|det dG/de| in the forward direction.

    By itself a trunk is the distribution of G(e) with e from its own base density, a standard normal unless
    :meth:`sample_base` and :meth:`base_log_prob` say otherwise; in the adversarial stage e comes from a sampler.

    Example:
        A trunk of one's own: z = sinh(e) in each coordinate, which has heavier tails than a normal.

        >>> import torch, avbvi
        >>> class SinhTrunk(avbvi.Trunk):
        ...     def forward(self, e):
        ...         return e.sinh(), e.cosh().log().sum(-1)
        ...     def inverse(self, z):
        ...         e = z.asinh()
        ...         return e, e.cosh().log().sum(-1)
        >>> trunk = SinhTrunk()
        >>> trunk.build(2)
        >>> trunk.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    #: Width of the base coordinates.
    base_dim: int

    #: Whether the trunk has parameters to be fitted by the plain ELBO before the adversarial stage.
    is_trainable: bool = False

    #: Whether the gradient of all parameters flows through plain draws; if not, :meth:`weighted_base` is needed.
    is_reparameterised: bool = True

    #: Whether the target is annealed while the trunk is fitted.
    is_annealed: bool = True

    def build(self, dim: int) -> None:
        self.base_dim = dim
        super().build(dim)

    @property
    def candidates(self) -> tuple[Trunk, ...]:
        """The trunks among which training is to choose: this one alone, unless it is a :class:`BestTrunk`."""
        return (self,)

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), locations (K, dim) and Cholesky factors (K, dim, dim) of the base density, detached.

        The number K depends on the built trunk alone, not on how it was trained.
        """
        return torch.zeros(1), torch.zeros(1, self.base_dim), torch.eye(self.base_dim)[None]

    def start(self, loc: Tensor, scale_tril: Tensor) -> None:
        """Place the trunk so that its draws get mean ``loc`` (dim,) and Cholesky factor ``scale_tril`` (dim, dim)."""

    def start_at(self, modes: LaplaceModes) -> None:
        """After :meth:`start` with their moments: use the single Gaussians, ``modes``, that were found at the start."""

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Base coordinates ``e`` (*batch, dim) to z (*batch, dim) and log|det dG/de| (*batch,)."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (*batch, dim) to base coordinates (*batch, dim) and log|det dG/de| there (*batch,)."""
        raise NotImplementedError

    def reference_coordinates(self, z: Tensor) -> Tensor:
        """z (*batch, dim) in coordinates (*batch, dim) in which the start is standard; log p is annealed there."""
        return z

    def sample_base(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        """Draws of the trunk's own base density, (*shape, dim), with dtype and device of ``like``."""
        return torch.randn(*shape, self.base_dim, dtype=like.dtype, device=like.device)

    def weighted_base(self, n: int, *, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """About n base draws (m, dim), as ``like`` (), and their weights (m,), which sum to one (``None``: all equal).

        Expectations by these weights are differentiable in all of the base density's parameters.
        """
        return self.sample_base(torch.Size((n,)), like=like), None

    def base_log_prob(self, e: Tensor) -> Tensor:
        """The trunk's own base density (*batch, dim) -> (*batch,), its parameters detached.

        Their gradient has expectation zero (AVB, Prop. 2), which leaves the path through e.
        """
        return standard_normal_log_prob(e)

    def log_prob(self, z: Tensor, base_log_prob: LogDensityFunction | None = None) -> Tensor:
        """Density of G(e) at z (*batch, dim) -> (*batch,), e of density ``base_log_prob`` (else the trunk's own)."""
        e, log_det = self.inverse(z)
        return (base_log_prob or self.base_log_prob)(e) - log_det


class IdentityTrunk(Trunk):
    """No trunk: base coordinates are the latent ones (the paper's AVB).

    Example:
        >>> import torch, avbvi
        >>> z, log_det = avbvi.IdentityTrunk()(torch.ones(3, 2))
        >>> log_det
        tensor([0., 0., 0.])
    """

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        return e, e.new_zeros(e.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z.new_zeros(z.shape[:-1])


class AffineTrunk(Trunk):
    """z = loc + L e with fixed location and lower-triangular L, set at the start: whitening.

    Example:
        >>> import torch, avbvi
        >>> trunk = avbvi.AffineTrunk()
        >>> trunk.build(2)  # a guide does so at its set-up, and places the trunk where a search finds the mass
        >>> trunk.start(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([0.5, 2.0])))
        >>> z, log_det = trunk(torch.zeros(1, 2))
        >>> z, log_det
        (tensor([[1., 2.]]), tensor([0.]))
    """

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
