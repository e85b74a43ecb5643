"""Samplers z = f(noise): reparameterised, without a density (AVB, Mescheder et al. 2017, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .parts import Part, ResidualNetwork, mlp
from .trunks import Trunk

LOG_SCALE_LIMIT = 4.0


class Sampler(Part):
    """Base class of neural samplers: noise in, draws in the trunk's base coordinates out.

    A subclass creates its network in ``_build(dim)`` and defines ``forward``. The noise may have any
    width and, by overriding :meth:`sample_noise`, any law. ``context_dim`` is ``None`` for a sampler of
    one posterior; a sampler that takes a context makes the guide amortised (not supported yet).
    """

    context_dim: int | None = None
    noise_dim: int | None = None

    def build_on(self, trunk: Trunk) -> None:
        """Create what the sampler needs in the base coordinates of a trunk that is built."""
        self.build(trunk.base_dim)

    def begin(self, trunk: Trunk) -> None:
        """The adversarial stage begins: take from the fitted trunk what is of use, the law of its base draws, say."""

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        """Noise of shape (*shape, noise_dim), standard normal unless overridden, with dtype and device of ``like``."""
        if self.noise_dim is None:
            raise ValueError(f"{type(self).__name__} has no noise_dim; set it in _build(dim)")
        return torch.randn(*shape, self.noise_dim, dtype=like.dtype, device=like.device)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise (*batch, noise_dim) to draws (*batch, dim)."""
        raise NotImplementedError


class ResidualSampler(Sampler):
    """A network of one noise vector plus independent noise whose scale that network learns (semi-implicit).

    e = c + L (A n + f(n, c) + exp(s(n, c)) h m) with n and m independent standard normal, c and L the location and
    Cholesky factor of a Gaussian drawn from the trunk's base density (0 and I unless that is a mixture). It starts
    exactly at its trunk (A^2 + h^2 = 1, f = s = 0). The second noise keeps draws off thin surfaces, which no
    adversary can see (docs/decisions.md). The noise is wider than the latent space, so there is no density.

    Args:
        hidden: width of the residual blocks.
        blocks: number of residual blocks.
        noise_factor: width of n, in units of the latent dimension.
        smoothing: h, the sd of the second noise at the start, in (0, 1).
    """

    log_weights: Tensor
    locs: Tensor
    scale_trils: Tensor

    def __init__(self, hidden: int = 64, blocks: int = 2, noise_factor: int = 2, smoothing: float = 0.5) -> None:
        super().__init__()
        if noise_factor < 1:
            raise ValueError(f"noise_factor must be at least 1, found {noise_factor}")
        if not 0.0 < smoothing < 1.0:
            raise ValueError(f"smoothing must be in (0, 1), found {smoothing}")
        self.hidden = hidden
        self.blocks = blocks
        self.noise_factor = noise_factor
        self.smoothing = smoothing
        self._places = 1

    def build_on(self, trunk: Trunk) -> None:
        self._places = len(trunk.gaussians()[0])
        super().build_on(trunk)

    def _build(self, dim: int) -> None:
        k = self._places
        self.inner_dim = self.noise_factor * dim
        # The last coordinate of the noise is discrete: which Gaussian.
        self.noise_dim = self.inner_dim + dim + int(k > 1)
        seen = self.inner_dim + (dim if k > 1 else 0)
        self.network = ResidualNetwork(seen, 2 * dim, hidden=self.hidden, blocks=self.blocks)
        self.linear = nn.Linear(self.inner_dim, dim, bias=False)
        if k > 1:
            self.register_buffer("log_weights", torch.full((k,), -math.log(k)))
            self.register_buffer("locs", torch.zeros(k, dim))
            self.register_buffer("scale_trils", torch.eye(dim).expand(k, dim, dim).clone())
        with torch.no_grad():
            self.linear.weight.copy_(math.sqrt(1.0 - self.smoothing**2) * torch.eye(dim, self.inner_dim))

    @torch.no_grad()
    def begin(self, trunk: Trunk) -> None:
        if self._places > 1:
            for own, fitted in zip((self.log_weights, self.locs, self.scale_trils), trunk.gaussians(), strict=True):
                own.copy_(fitted)

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        noise = super().sample_noise(shape, like=like)
        if self._places > 1:
            k = torch.multinomial(self.log_weights.exp(), math.prod(shape), replacement=True)
            noise[..., -1] = k.reshape(shape).to(noise)
        return noise

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        width = self.linear.out_features
        inner, outer = noise[..., : self.inner_dim], noise[..., self.inner_dim : self.inner_dim + width]
        seen = inner
        if self._places > 1:
            k = noise[..., -1].long()
            seen = torch.cat([inner, self.locs[k]], -1)
        shift, log_scale = self.network(seen).chunk(2, dim=-1)
        scale = self.smoothing * log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT).exp()
        draws: Tensor = self.linear(inner) + shift + scale * outer
        if self._places > 1:
            draws = self.locs[k] + torch.einsum("...ij,...j->...i", self.scale_trils[k], draws)
        return draws


class MLPSampler(Sampler):
    """A plain fully connected network with ELU units: the paper's sampler for Eight Schools (128-128).

    Args:
        hidden: widths of the hidden layers.
        noise_dim: width of the noise; ``None`` takes that of the latent space.
    """

    def __init__(self, hidden: tuple[int, ...] = (128, 128), noise_dim: int | None = None) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.noise_dim = noise_dim

    def _build(self, dim: int) -> None:
        self.noise_dim = dim if self.noise_dim is None else self.noise_dim
        self.network = mlp([self.noise_dim, *self.hidden, dim], nn.ELU)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        draws: Tensor = self.network(noise)
        return draws


class ModuleSampler(Sampler):
    """A user's own module as a sampler: anything that maps noise (*batch, noise_dim) to draws (*batch, dim).

    Args:
        module: the network; it may define ``sample_noise(shape, like=...)`` for noise of another law.
        noise_dim: width of the noise; by default the module's own ``noise_dim``.

    Raises:
        TypeError: the module has no ``noise_dim`` and none is given.
    """

    def __init__(self, module: nn.Module, noise_dim: int | None = None) -> None:
        super().__init__()
        width = getattr(module, "noise_dim", None) if noise_dim is None else noise_dim
        if not isinstance(width, int):
            raise TypeError(
                f"sampler={type(module).__name__} must say how wide its noise is: give it an integer attribute "
                "noise_dim, or pass ModuleSampler(module, noise_dim=...)"
            )
        self.module = module
        self.noise_dim = width

    @property
    def is_rebuildable(self) -> bool:
        return False

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        own = getattr(self.module, "sample_noise", None)
        return super().sample_noise(shape, like=like) if own is None else own(shape, like=like)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        draws: Tensor = self.module(noise)
        return draws


def as_sampler(module: nn.Module) -> Sampler:
    """The module itself if it is a :class:`Sampler`, else a :class:`ModuleSampler` around it."""
    if isinstance(module, Sampler):
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(f"sampler must be a torch.nn.Module, found {type(module).__name__}")
    return ModuleSampler(module)
