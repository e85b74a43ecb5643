"""Samplers z = f(noise): reparameterised, without a density (AVB, Mescheder et al. 2017, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .arguments import flag, instance, integer, integers, number
from .parts import Part, ResidualNetwork, mlp
from .rng import rng_untouched
from .trunks import Trunk

LOG_SCALE_LIMIT = 4.0
START_DRAWS = 4096
#: What surrounds a user's module is stored divided by this, so that Adam moves it that much faster than a weight.
RATE = 5.0
#: Eigenvalues of the correlations of a module's draws: below the first a direction counts as not filled, below the
#: second it is not stretched to unit variance in full.
FLAT, LEAST_VARIANCE = 1e-6, 1e-3


class Sampler(Part):
    """Base class of neural samplers: noise in, draws in the trunk's base coordinates out.

    A subclass creates its network in ``_build(dim)`` and defines ``forward``. The noise may have any
    width and, by overriding :meth:`sample_noise`, any law. ``context_dim`` is ``None`` for a sampler of
    one posterior; a sampler that takes a context makes the guide amortised.

    Example:
        A sampler of one's own; ``AVBGuide(model, sampler=Shifted())`` builds it for the model's latents.

        >>> import torch, avbvi
        >>> class Shifted(avbvi.Sampler):
        ...     def _build(self, dim):
        ...         self.noise_dim = dim
        ...         self.shift = torch.nn.Parameter(torch.zeros(dim))
        ...     def forward(self, noise, context=None):
        ...         return noise + self.shift
        >>> sampler = Shifted()
        >>> sampler.build(3)
        >>> sampler(sampler.sample_noise((10,), like=torch.zeros(()))).shape
        torch.Size([10, 3])
    """

    context_dim: int | None = None
    noise_dim: int | None = None

    def build_on(self, trunk: Trunk) -> None:
        """Create what the sampler needs in the base coordinates of a trunk that is built."""
        self.build(trunk.base_dim)

    def begin(self, trunk: Trunk) -> None:
        """The adversarial stage begins: take from the fitted trunk what is of use, the law of its base draws, say."""

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        """Noise of shape (*shape, noise_dim), standard normal unless overridden, with dtype and device of ``like``.

        Raises:
            ValueError: the sampler has no ``noise_dim``.
        """
        if self.noise_dim is None:
            raise ValueError(f"{type(self).__name__} has no noise_dim; set it in _build(dim)")
        return torch.randn(*shape, self.noise_dim, dtype=like.dtype, device=like.device)

    def start(self, like: Tensor) -> None:
        """Called at the guide's set-up, when all parameters have their final dtype and device, as ``like`` () has."""

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise (*batch, noise_dim) to draws (*batch, dim), given a ``context`` (B, context_dim) if it has one."""
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

    Raises:
        TypeError: an argument is no number, or no integer where it has to be.
        ValueError: a width or ``noise_factor`` below 1, ``blocks`` below 0, or ``smoothing`` outside (0, 1).

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.ResidualSampler(hidden=16, blocks=1)
        >>> trunk = avbvi.AffineTrunk()
        >>> trunk.build(2)
        >>> sampler.build_on(trunk)  # a guide does so at its set-up
        >>> noise = sampler.sample_noise((5,), like=torch.zeros(()))
        >>> noise.shape, sampler(noise).shape
        (torch.Size([5, 6]), torch.Size([5, 2]))

    Source: semi-implicit distributions, Yin and Zhou (2018), Semi-implicit variational inference, ICML; the start from
    a trunk and the width of the noise are this project's (docs/decisions.md).
    """

    log_weights: Tensor
    locs: Tensor
    scale_trils: Tensor

    def __init__(self, hidden: int = 64, blocks: int = 2, noise_factor: int = 2, smoothing: float = 0.5) -> None:
        super().__init__()
        self.hidden: int = integer("hidden", hidden, 1)
        self.blocks: int = integer("blocks", blocks, 0)
        self.noise_factor: int = integer("noise_factor", noise_factor, 1)
        self.smoothing: float = number("smoothing", smoothing)
        if not 0.0 < self.smoothing < 1.0:
            raise ValueError(f"smoothing must be in (0, 1), found {smoothing}")
        self._places = 1

    def build_on(self, trunk: Trunk) -> None:
        self._places = len(trunk.gaussians()[0])
        super().build_on(trunk)

    def _build(self, dim: int) -> None:
        k = self._places
        self.inner_dim: int = self.noise_factor * dim
        # The last coordinate of the noise is discrete: which Gaussian.
        self.noise_dim: int | None = self.inner_dim + dim + int(k > 1)
        seen = self.inner_dim + (dim if k > 1 else 0)
        self.network: ResidualNetwork = ResidualNetwork(seen, 2 * dim, hidden=self.hidden, blocks=self.blocks)
        self.linear: nn.Linear = nn.Linear(self.inner_dim, dim, bias=False)
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

    Raises:
        TypeError: ``hidden`` is no tuple of integers, or ``noise_dim`` no integer.
        ValueError: a width is less than 1.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.MLPSampler(hidden=(32, 32), noise_dim=4)
        >>> sampler.build(2)
        >>> sampler(torch.randn(5, 4)).shape
        torch.Size([5, 2])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 5.1.
    """

    def __init__(self, hidden: tuple[int, ...] = (128, 128), noise_dim: int | None = None) -> None:
        super().__init__()
        self.hidden: tuple[int, ...] = integers("hidden", hidden, "widths of the hidden layers")
        self.noise_dim = None if noise_dim is None else integer("noise_dim", noise_dim, 1)

    def _build(self, dim: int) -> None:
        self.noise_dim = dim if self.noise_dim is None else self.noise_dim
        self.network: nn.Sequential = mlp([self.noise_dim, *self.hidden, dim], nn.ELU)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        draws: Tensor = self.network(noise)
        return draws


class ModuleSampler(Sampler):
    """A user's own module as a sampler: e = M W (f(n) - c) + b + exp(s) h m, f the module, n its noise.

    The module may be anything that maps noise to as many coordinates as the model has latents: a
    generator network, a simulator, steps of a stochastic dynamics. Its noise may be narrower or wider than
    that, discrete, or of any other law. What is put around it makes all of these start alike and keeps
    them where an adversary can judge them:

    - c and W standardise the module's draws at the start and are then fixed;
    - M and b are learned, from M = sqrt(1 - h^2) I and b = 0, so that the draws begin with mean 0 and
      covariance I in the trunk's base coordinates;
    - m is standard normal of the latents' width and its scales are learned: a map of discrete or
      narrow noise fills no volume and has no density, nor could an adversary see a fold.

    The module keeps the mode (``train`` or ``eval``) in which it was handed over: dropout is noise like any other, and
    the law of the draws must not change after training.

    Args:
        module: noise (n, noise_dim) to draws (n, dim); it may define ``sample_noise(shape, like=...)``
            giving (*shape, noise_dim) for noise of another law or dtype.
        noise_dim: width of the noise; by default the module's own ``noise_dim``, else that of its ``sample_noise``.
        smoothing: h, the sd of m at the start, in [0, 1); 0 leaves it out.
        standardise: put c, W, M and b around the module; without them its draws are taken as they are, as
            base coordinates (with ``trunk=IdentityTrunk()`` as the latents themselves).

    Raises:
        TypeError: the module is no module, or nothing says how wide its noise is.
        ValueError: a non-positive ``noise_dim``, ``smoothing`` outside [0, 1), a module with batch normalisation
            in training mode, or (at set-up) noise of another shape, draws that are not finite, or without
            smoothing draws that fill no volume.

    Example:
        >>> import torch, avbvi
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        >>> sampler = avbvi.ModuleSampler(network, noise_dim=4)
        >>> sampler.build(2)  # a guide does so at its set-up, AVBGuide(model, sampler=sampler)
        >>> sampler.start(torch.zeros(()))
        >>> draws = sampler(sampler.sample_noise((4000,), like=torch.zeros(())))
        >>> bool((draws.mean(0).abs() < 0.1).all()), bool(((draws.std(0) - 1.0).abs() < 0.1).all())
        (True, True)

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 3, takes any network of noise as a sampler; what is put
    around it is this project's.
    """

    def __init__(
        self, module: nn.Module, noise_dim: int | None = None, *, smoothing: float = 0.5, standardise: bool = True
    ) -> None:
        super().__init__()
        instance("module", module, nn.Module, "a torch.nn.Module")
        smoothing, standardise = number("smoothing", smoothing), flag("standardise", standardise)
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing must be in [0, 1), found {smoothing}")
        for name, part in module.named_modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
                raise ValueError(
                    f"sampler={type(module).__name__} normalises over the batch ({name}), so that its draws depend on "
                    "each other; use LayerNorm, or hand the module over in eval mode"
                )
        width = getattr(module, "noise_dim", None) if noise_dim is None else noise_dim
        self.noise_dtype: torch.dtype | None = None
        own = getattr(module, "sample_noise", None)
        if own is not None:
            with torch.no_grad(), rng_untouched():
                example = own(torch.Size((2,)), like=torch.zeros(()))
            width = example.shape[-1] if width is None else width
            # Beside the smoothing noise, discrete noise travels as floating-point numbers.
            self.noise_dtype = None if example.is_floating_point() else example.dtype
        if width is None:
            raise TypeError(
                f"sampler={type(module).__name__} must say how wide its noise is: give it an integer attribute "
                "noise_dim, or pass ModuleSampler(module, noise_dim=...)"
            )
        self.module = module
        self.width: int = integer("noise_dim", width, 1)
        self.noise_dim = self.width
        self.smoothing = smoothing
        self.standardise = standardise

    @property
    def is_rebuildable(self) -> bool:
        return False

    center: Tensor
    whitening: Tensor
    identity: Tensor

    def train(self, mode: bool = True) -> ModuleSampler:
        self.training = mode  # not the module's: see above
        return self

    def _build(self, dim: int) -> None:
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        if self.standardise:
            self.register_buffer("identity", torch.eye(dim))
            self.matrix_part: nn.Parameter = nn.Parameter(torch.zeros(dim, dim))
            self.shift_part: nn.Parameter = nn.Parameter(torch.zeros(dim))
        if self.smoothing:
            self.log_scale_part: nn.Parameter = nn.Parameter(torch.zeros(dim))
            self.noise_dim: int | None = self.width + dim

    @torch.no_grad()
    def start(self, like: Tensor) -> None:
        self._check(like)
        draws = self._draws(self._own_noise(torch.Size((START_DRAWS,)), like=like)).to(like)
        name = type(self.module).__name__
        if not bool(torch.isfinite(draws).all()):
            raise ValueError(
                f"sampler={name} gives draws that are not finite, but NaN or infinite, before any training"
            )
        scale = draws.std(0)
        # A coordinate that does not vary is left to the smoothing noise.
        scale = torch.where(scale > 0.0, scale, scale.max().clamp_min(torch.finfo(scale.dtype).tiny))
        values, vectors = torch.linalg.eigh(torch.cov(((draws - draws.mean(0)) / scale).mT).reshape(draws.shape[1], -1))
        filled = int((values > FLAT).sum())
        if not self.smoothing and (filled < draws.shape[1] or self.width < draws.shape[1]):
            raise ValueError(
                f"the draws of sampler={name} fill only {min(filled, self.width)} of {draws.shape[1]} directions, so "
                "that they have no density; widen the noise, or pass ModuleSampler(module, smoothing=0.5)"
            )
        if self.standardise:
            # Flat directions are not blown up.
            self.center.copy_(draws.mean(0))
            self.whitening.copy_(vectors @ torch.diag(values.clamp_min(LEAST_VARIANCE).rsqrt()) @ vectors.mT / scale)

    def _check(self, like: Tensor) -> None:
        """Two draws: their shape, and whether they carry a gradient."""
        name = type(self.module).__name__
        noise = self._own_noise(torch.Size((2,)), like=like)
        if tuple(noise.shape) != (2, self.width):
            raise ValueError(
                f"sample_noise of sampler={name} must give noise (2, {self.width}) for shape (2,); "
                f"found {tuple(noise.shape)}"
            )
        try:
            with torch.enable_grad():
                draws = self.module(noise)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"sampler failed on noise of shape (2, {self.width}): {error}") from error
        if not isinstance(draws, Tensor):
            raise TypeError(f"sampler must return a torch.Tensor, found {type(draws).__name__}")
        if tuple(draws.shape) != (2, self.dim):
            raise ValueError(
                f"sampler must map noise (2, {self.width}) to (2, {self.dim}), one coordinate per unconstrained latent "
                f"of the model; found {tuple(draws.shape)}"
            )
        if draws.dtype != like.dtype:
            raise ValueError(
                f"sampler must return dtype {like.dtype}, that of the model's latents, found {draws.dtype}; make its "
                "noise and constants with dtype=like.dtype"
            )
        if not draws.requires_grad and any(p.requires_grad for p in self.module.parameters()):
            raise ValueError(
                f"the draws of sampler={name} carry no gradient to its parameters; compute them in torch, without "
                "no_grad() or detach()"
            )

    def _own_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        own: Callable[..., Tensor] | None = getattr(self.module, "sample_noise", None)
        if own is None:
            return torch.randn(*shape, self.width, dtype=like.dtype, device=like.device)
        noise = own(shape, like=like)
        return noise

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        """The module's noise, followed by that of the smoothing: (*shape, noise_dim), on the device of ``like``."""
        noise = self._own_noise(shape, like=like)
        if not self.smoothing:
            return noise
        return torch.cat(
            [noise.to(like), torch.randn(*shape, len(self.center), dtype=like.dtype, device=like.device)], -1
        )

    def _draws(self, noise: Tensor) -> Tensor:
        draws: Tensor = self.module(noise.reshape(-1, self.width))
        return draws.reshape(*noise.shape[:-1], -1)

    def smoothing_scale(self) -> Tensor:
        """exp(s) h, the sd of the smoothing noise in each base coordinate (dim,)."""
        return self.smoothing * (RATE * self.log_scale_part).clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT).exp()

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        own = noise[..., : self.width]
        draws = self._draws(own if self.noise_dtype is None else own.to(self.noise_dtype))
        if self.standardise:
            matrix = math.sqrt(1.0 - self.smoothing**2) * self.identity + RATE * self.matrix_part
            draws = (draws - self.center) @ (matrix @ self.whitening).mT + RATE * self.shift_part
        if self.smoothing:
            draws = draws + self.smoothing_scale() * noise[..., self.width :]
        return draws


def as_sampler(module: nn.Module) -> Sampler:
    """The module itself if it is a :class:`Sampler`, else a :class:`ModuleSampler` around it."""
    if isinstance(module, Sampler):
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(f"sampler must be a torch.nn.Module, found {type(module).__name__}")
    return ModuleSampler(module)
