"""A Gaussian mixture as trunk: the family that reaches separated, folded and thin shapes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arguments import integer
from ..mixtures import component_log_probs, inverse_factors
from ..starts.modes import LaplaceModes
from .base import AffineTrunk

#: Width of a component's initial spread among those that share a mode, in the mode's sds.
JITTER = 0.5
#: Parameters are stored in this unit, so that Adam moves them that many times as fast as a network's weights.
UNIT = 20.0


class MixtureTrunk(AffineTrunk):
    """Whitening over a base density that is a mixture of Gaussians with full covariances.

    Locations, shapes and weights are learned by the ELBO from draws stratified by component, the weights through
    the strata's. One component begins at each mode found at the start, the others about them in proportion to
    the modes' weights. The map G is affine alone: log q is exact and as cheap as a draw.

    Args:
        components: number of Gaussians; by default 32 up to 16 dimensions, fewer in proportion above, at least 8.

    Raises:
        TypeError: ``components`` is no integer.
        ValueError: it is less than 1.

    Example:
        >>> import torch, avbvi
        >>> trunk = avbvi.MixtureTrunk(components=3)
        >>> trunk.build(2)
        >>> trunk.start(torch.zeros(2), torch.eye(2))
        >>> log_weights, locs, scale_trils = trunk.gaussians()
        >>> locs.shape, scale_trils.shape
        (torch.Size([3, 2]), torch.Size([3, 2, 2]))
        >>> trunk.log_prob(torch.zeros(5, 2)).shape  # exact
        torch.Size([5])

    Source: a mixture by the ELBO, with draws stratified by component, Morningstar, Vikram, Ham, Gallagher and Dillon
    (2021), Automatic differentiation variational inference with mixtures, AISTATS; the start at Laplace
    approximations is this project's.
    """

    is_trainable = True
    is_reparameterised = False
    # Annealing would merge the modes that the start has found.
    is_annealed = False

    def __init__(self, components: int | None = None) -> None:
        super().__init__()
        self.components: int | None = None if components is None else integer("components", components, 1)

    def _build(self, dim: int) -> None:
        super()._build(dim)
        k = max(8, min(32, 512 // dim)) if self.components is None else self.components
        self.scaled_locs: nn.Parameter = nn.Parameter(torch.zeros(k, dim))
        self.scaled_lower: nn.Parameter = nn.Parameter(torch.zeros(k, dim, dim))
        self.scaled_log_diagonal: nn.Parameter = nn.Parameter(torch.zeros(k, dim))
        self.scaled_logits: nn.Parameter = nn.Parameter(torch.zeros(k))

    @torch.no_grad()
    def start(self, loc: Tensor, scale_tril: Tensor) -> None:
        super().start(loc, scale_tril)
        k, dim = self.scaled_locs.shape
        noise = torch.randn(k, dim, dtype=loc.dtype, device=loc.device)
        self._set(torch.zeros(k).to(loc), JITTER * noise, torch.eye(dim).to(loc).expand(k, dim, dim))

    @torch.no_grad()
    def start_at(self, modes: LaplaceModes) -> None:
        k = len(self.scaled_logits)
        best = modes.log_weights.argsort(descending=True)[:k]
        log_weights = torch.log_softmax(modes.log_weights[best], 0)
        locs = self.reference_coordinates(modes.locs[best])
        factors = torch.linalg.solve_triangular(
            self.scale_tril, torch.linalg.cholesky(modes.covariances[best]), upper=False
        )
        others = torch.multinomial(log_weights.exp(), k - len(best), replacement=True) if k > len(best) else best[:0]
        index = torch.cat([torch.arange(len(best), device=others.device), others])
        shared = torch.bincount(index, minlength=len(best))[index]
        noise = torch.randn(k, locs.shape[1], dtype=locs.dtype, device=locs.device)
        shift = torch.einsum("kij,kj->ki", factors[index], noise)
        self._set(
            log_weights[index] - shared.log(),
            locs[index] + JITTER * (shared > 1)[:, None] * shift,
            factors[index],
        )

    def _set(self, log_weights: Tensor, locs: Tensor, scale_trils: Tensor) -> None:
        self.scaled_logits.copy_(log_weights / UNIT)
        self.scaled_locs.copy_(locs / UNIT)
        self.scaled_lower.copy_(torch.tril(scale_trils, -1) / UNIT)
        self.scaled_log_diagonal.copy_(scale_trils.diagonal(dim1=-2, dim2=-1).log() / UNIT)

    def _parameters_in_use(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), locations (K, dim) and factors (K, dim, dim), with gradient."""
        lower = torch.tril(UNIT * self.scaled_lower, -1)
        scale_trils = lower + torch.diag_embed((UNIT * self.scaled_log_diagonal).exp())
        return torch.log_softmax(UNIT * self.scaled_logits, 0), UNIT * self.scaled_locs, scale_trils

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        log_weights, locs, scale_trils = self._parameters_in_use()
        return log_weights.detach(), locs.detach(), scale_trils.detach()

    def sample_base(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        log_weights, locs, scale_trils = self._parameters_in_use()
        n = math.prod(shape)
        k = torch.multinomial(log_weights.detach().exp(), n, replacement=True)
        noise = torch.randn(n, locs.shape[1], dtype=like.dtype, device=like.device)
        draws: Tensor = locs[k] + torch.einsum("nij,nj->ni", scale_trils[k], noise)
        return draws.reshape(*shape, locs.shape[1])

    def weighted_base(self, n: int, *, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """About n draws (m, dim), as ``like`` (), as many of each component, with the components' weights (m,)."""
        log_weights, locs, scale_trils = self._parameters_in_use()
        k, dim = locs.shape
        each = max(n // k, 2)
        noise = torch.randn(k, each, dim, dtype=like.dtype, device=like.device)
        draws = locs[:, None] + noise @ scale_trils.mT
        weights = (log_weights.exp() / each)[:, None].expand(k, each)
        return draws.reshape(-1, dim), weights.reshape(-1)

    def base_log_prob(self, e: Tensor) -> Tensor:
        log_weights, locs, scale_trils = self.gaussians()
        return torch.logsumexp(component_log_probs(e, log_weights, locs, inverse_factors(scale_trils)), -1)
