"""Encoders without a density: z = f(noise, x), one posterior per datum (AVB, section 5.2, supplement III and IV).

A sampler maps noise (*S, B, noise_dim) and a context (B, context_dim), a datum flattened per row, to draws
(*S, B, dim) in the unconstrained space of one datum's latents.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..arguments import flag, integer, integers, number, positive_number
from ..samplers import Sampler
from .gaussians import GaussianHead, Gaussians
from .networks import (
    BasisNetworks,
    ContextNetwork,
    InjectedNetwork,
    Smoothing,
    body_width,
    checked_body,
    checked_layers,
    checked_noise,
    checked_slope,
    checked_smoothing,
    fixed_noise,
    scaled_rows,
    small_positive,
)

#: Fewest coordinates of noise that a sampler takes unless told.
LEAST_NOISE = 8


class AmortisedSampler(Sampler):
    """Base class of samplers with a context; a guide with such a sampler is amortised over the model's plate.

    A subclass calls ``super().__init__(context_dim)``, creates its networks in ``_build(dim)`` and defines
    ``forward(noise, context)``.

    Args:
        context_dim: width of a datum's context, which the guide flattens.

    Raises:
        TypeError: ``context_dim`` is no integer.
        ValueError: it is less than 1.

    Example:
        An encoder of one's own; ``AVBGuide(model, sampler=Encoder(...))`` is amortised by it.

        >>> import torch, avbvi
        >>> class Encoder(avbvi.AmortisedSampler):
        ...     def _build(self, dim):
        ...         self.noise_dim = 4
        ...         self.network = torch.nn.Linear(self.context_dim + 4, dim)
        ...     def forward(self, noise, context=None):
        ...         rows = context.expand(*noise.shape[:-1], self.context_dim)
        ...         return self.network(torch.cat([noise, rows], -1))
        >>> encoder = Encoder(context_dim=5)
        >>> encoder.build(2)
        >>> noise = encoder.sample_noise((7, 3), like=torch.zeros(()))  # 7 draws for each of 3 data
        >>> encoder(noise, torch.randn(3, 5)).shape
        torch.Size([7, 3, 2])
    """

    context_dim: int
    #: Whether :meth:`moments` is there; a contrast then needs no draws.
    has_moments: ClassVar[bool] = False
    #: Whether :meth:`split` is there; the gradient in loc and L is then exact whatever the adversary has learned.
    splits: ClassVar[bool] = False

    def __init__(self, context_dim: int) -> None:
        super().__init__()
        self.context_dim = integer("context_dim", context_dim, 1)

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, dim) and covariance (B, dim, dim) of q(z | x) for each row of the context (B, context_dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no analytic moments")

    def marginal_moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variances of q(z | x), both (B, dim), for each row of the context (B, context_dim)."""
        loc, covariance = self.moments(context)
        return loc, covariance.diagonal(dim1=-2, dim2=-1)

    def gaussians(self, context: Tensor) -> Gaussians | None:
        """The Gaussians, one per row of the context (B, context_dim), that the sampler departs from, z = loc + L e.

        ``None`` if there are none.
        """
        return None

    def split(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Gaussians]:
        """e (*S, B, dim) and the Gaussians of the draws z = loc + L e that :meth:`forward` gives.

        The noise is (*S, B, noise_dim), the context (B, context_dim).
        """
        raise NotImplementedError(f"{type(self).__name__} does not depart from a Gaussian")

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise (*S, B, noise_dim) and context (B, context_dim) to draws (*S, B, dim)."""
        raise NotImplementedError

    def _required(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(f"{type(self).__name__} needs a context (B, {self.context_dim}), found None")
        return context


class EncodingSampler(AmortisedSampler):
    """Base class of samplers that see their context through a network of it alone, the body.

    Args:
        context_dim: width of a datum's context.
        context_hidden: widths of the body's layers.
        body: a module (B, context_dim) -> (B, width) of your own in place of that.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.
    """

    def __init__(
        self, context_dim: int, context_hidden: tuple[int, ...], body: nn.Module | None, slope: float | None
    ) -> None:
        super().__init__(context_dim)
        self.context_hidden: tuple[int, ...] = integers("context_hidden", context_hidden, "widths of the body's layers")
        self.slope: float | None = checked_slope(slope)
        self.body: nn.Module | None = checked_body(body)
        if body is not None:
            self.width: int = body_width(body, self.context_dim)

    @property
    def is_rebuildable(self) -> bool:
        return self.body is None and super().is_rebuildable

    def build(self, dim: int) -> None:
        if self.dim is None and self.body is None:
            self.own_body: ContextNetwork = ContextNetwork(self.context_dim, self.context_hidden, self.slope)
            self.width = self.own_body.width
        super().build(dim)

    def features(self, context: Tensor | None) -> Tensor:
        """What the body makes of the context: (B, context_dim) -> (B, width)."""
        context = self._required(context)
        features: Tensor = self.own_body(context) if self.body is None else self.body(context)
        return features


class ConditionalSampler(EncodingSampler):
    """A fully connected network with noise and context added into every hidden layer.

    z = b(c) + A n + f(n, c) + s(c) m with c the body's features: b linear, A a matrix, f as in
    :class:`~avbvi.amortised.networks.InjectedNetwork`, with 0 at its start, and m independent noise of the latents'
    width, which keeps draws off thin folds (:class:`~avbvi.amortised.networks.Smoothing`). So z starts normal, with
    standard deviation ``start_scale`` in every direction, about a location that depends on the context.

    Args:
        context_dim: width of a datum's context.
        hidden: widths of the layers into which the noise goes.
        network_noise: width of n; ``None`` takes twice that of the latents, and at least 8.
        context_hidden: widths of the layers of the network of x alone.
        start_scale: standard deviation of the draws at the start.
        smoothing: s at the start, in units of ``start_scale``, in [0, 1); 0 leaves m out.
        body: a module (B, context_dim) -> (B, width) in place of the network of x alone.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: an argument is of the wrong kind, or the body returns no tensor.
        ValueError: an argument is out of range, the body fails on a context (B, context_dim), does not return
            (B, width), or normalises over the minibatch.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.ConditionalSampler(context_dim=5, hidden=(16,), context_hidden=(16,))
        >>> sampler.build(2)  # a guide does so at its set-up
        >>> x = torch.randn(3, 5)
        >>> sampler(sampler.sample_noise((7, 3), like=x), x).shape  # 7 draws for each of 3 data
        torch.Size([7, 3, 2])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 5.2 and supplement, section IV: noise added to every
    hidden layer; the noise m is this project's (docs/decisions.md).
    """

    def __init__(
        self,
        context_dim: int,
        hidden: tuple[int, ...] = (128, 128),
        network_noise: int | None = None,
        context_hidden: tuple[int, ...] = (128,),
        start_scale: float = 0.5,
        smoothing: float = 0.2,
        body: nn.Module | None = None,
        slope: float | None = None,
    ) -> None:
        super().__init__(context_dim, context_hidden, body, slope)
        self.hidden: tuple[int, ...] = checked_layers("hidden", hidden)
        self.network_noise: int | None = checked_noise("network_noise", network_noise)
        self.start_scale: float = positive_number("start_scale", start_scale)
        self.smoothing: float = checked_smoothing(smoothing)

    def _build(self, dim: int) -> None:
        self.inner_dim: int = max(LEAST_NOISE, 2 * dim) if self.network_noise is None else self.network_noise
        self.noise_dim: int | None = self.inner_dim + (dim if self.smoothing else 0)
        self.location: nn.Linear = nn.Linear(self.width, dim)
        self.linear: nn.Linear = scaled_rows(self.inner_dim, dim, math.sqrt(1.0 - self.smoothing**2) * self.start_scale)
        self.network: InjectedNetwork = InjectedNetwork(
            self.inner_dim, self.width, self.hidden, dim, self.slope, zero_last=True
        )
        if self.smoothing:
            self.smooth: Smoothing = Smoothing(self.width, dim, self.smoothing * self.start_scale)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        features, inner = self.features(context), noise[..., : self.inner_dim]
        draws: Tensor = self.location(features) + self.linear(inner) + self.network(inner, features)
        if self.smoothing:
            draws = draws + self.smooth(features) * noise[..., self.inner_dim :]
        return draws


class NoiseBasisSampler(EncodingSampler):
    """z_k = b_k(x) + sum_i v_ik(n_i) a_ik(x): learned noise vectors, weighted by the context (AVB, supplement III).

    The v_i are small networks of noise alone, so that the moments follow from those of v
    (eq. III.2-III.3), and the full covariance just as well: C(x) = sum_i diag(a_i) Cov(v_i) diag(a_i). Mean and
    covariance of v come from ``moment_draws`` draws, whose noise is drawn once at set-up and shared by all data and
    steps: moments that jump from step to step would hide a part of KL(q, r) from the adversary. A sum of many
    independent terms is nearly Gaussian: few bases keep q flexible.

    Args:
        context_dim: width of a datum's context.
        bases: number m of noise vectors.
        basis_noise: width of each n_i.
        basis_hidden: widths of the hidden layers of each v_i.
        context_hidden: widths of the layers of the network of x alone.
        moment_draws: number of draws of v for the moments.
        offset: a = elu(h(x) - offset) + 1, so that the noise starts at about exp(-offset).
        body: a module (B, context_dim) -> (B, width) in place of the network of x alone.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: as :class:`ConditionalSampler`.
        ValueError: as :class:`ConditionalSampler`.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.NoiseBasisSampler(context_dim=5, bases=3)
        >>> sampler.build(2)
        >>> mean, covariance = sampler.moments(torch.randn(4, 5))
        >>> mean.shape, covariance.shape
        (torch.Size([4, 2]), torch.Size([4, 2, 2]))

    Source: AVB (Mescheder, Nowozin and Geiger 2017), supplement, section III, eq. III.1 to III.3.
    """

    has_moments = True
    noise_dim: int
    moment_noise: Tensor

    def __init__(
        self,
        context_dim: int,
        bases: int = 8,
        basis_noise: int = 8,
        basis_hidden: tuple[int, ...] = (64, 64),
        context_hidden: tuple[int, ...] = (128, 128),
        moment_draws: int = 2048,
        offset: float = 5.0,
        body: nn.Module | None = None,
        slope: float | None = None,
    ) -> None:
        super().__init__(context_dim, context_hidden, body, slope)
        self.bases: int = integer("bases", bases, 1)
        self.basis_noise: int = integer("basis_noise", basis_noise, 1)
        self.basis_hidden: tuple[int, ...] = integers(
            "basis_hidden", basis_hidden, "widths of the hidden layers of each basis"
        )
        self.moment_draws: int = integer("moment_draws", moment_draws, 2)
        self.offset: float = number("offset", offset)
        if not abs(self.offset) < 50.0:
            raise ValueError(f"offset must lie between -50 and 50, found {offset}")
        self.noise_dim = self.bases * self.basis_noise

    def _build(self, dim: int) -> None:
        self.register_buffer("moment_noise", fixed_noise(self.moment_draws, self.noise_dim))
        self.basis: BasisNetworks = BasisNetworks(self.bases, (self.basis_noise, *self.basis_hidden, dim), self.slope)
        self.location: nn.Linear = nn.Linear(self.width, dim)
        self.coefficients: nn.Linear = nn.Linear(self.width, self.bases * dim)

    def _location_and_coefficients(self, context: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.features(context)
        a = small_positive(self.coefficients(features), self.offset)
        return self.location(features), a.unflatten(-1, (self.bases, -1))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        loc, a = self._location_and_coefficients(context)
        return loc + (self.basis(noise) * a).sum(-2)

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        loc, a = self._location_and_coefficients(context)
        v = self.basis(self.moment_noise)
        mean = v.mean(0)
        centred = (v - mean).transpose(0, 1)
        basis_covariance = centred.mT @ centred / (len(v) - 1)
        # One product per pair of coordinates (k, l), summed over bases: (B, m) weights a_ik, and a_il C_ikl.
        weighted = torch.einsum("bil,ikl->bikl", a, basis_covariance)
        return loc + (a * mean).sum(-2), torch.einsum("bik,bikl->bkl", a, weighted)

    def marginal_moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        loc, a = self._location_and_coefficients(context)
        v = self.basis(self.moment_noise)
        return loc + (a * v.mean(0)).sum(-2), (a.square() * v.var(0)).sum(-2)


class ConditionalGaussianSampler(EncodingSampler):
    """z = mu(x) + L(x) n: the encoder of a variational autoencoder, whose density is known exactly.

    Args:
        context_dim: width of a datum's context.
        context_hidden: widths of the layers of the network of x alone.
        full: a full Cholesky factor L, else a diagonal one.
        start_scale: standard deviation of the draws at the start.
        body: a module (B, context_dim) -> (B, width) in place of the network of x alone.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: as :class:`ConditionalSampler`.
        ValueError: as :class:`ConditionalSampler`.

    Example:
        >>> import torch, avbvi
        >>> encoder = avbvi.ConditionalGaussianSampler(context_dim=5)
        >>> encoder.build(2)
        >>> encoder.log_prob(torch.zeros(7, 4, 2), torch.randn(4, 5)).shape
        torch.Size([7, 4])

    Source: Kingma and Welling (2014), Auto-encoding variational Bayes, ICLR.
    """

    has_moments = True
    splits = True

    def __init__(
        self,
        context_dim: int,
        context_hidden: tuple[int, ...] = (128, 128),
        full: bool = False,
        start_scale: float = 0.5,
        body: nn.Module | None = None,
        slope: float | None = None,
    ) -> None:
        super().__init__(context_dim, context_hidden, body, slope)
        self.full: bool = flag("full", full)
        self.start_scale: float = positive_number("start_scale", start_scale)

    def _build(self, dim: int) -> None:
        self.noise_dim: int | None = dim
        self.head: GaussianHead = GaussianHead(self.width, dim, self.full, self.start_scale)

    def gaussians(self, context: Tensor) -> Gaussians:
        """mu(x) and L(x) of each row of the context (B, context_dim)."""
        return self.head.gaussians(self.features(context))

    def split(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Gaussians]:
        return noise, self.gaussians(context)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        return self.head.carry(noise, self.features(context))

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(context)
        factor = self.head.factor(features)
        return self.head.loc(features), factor @ factor.mT

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """log q(z | x) in nats, exact: z (*S, B, dim) and context (B, context_dim) to (*S, B)."""
        return self.gaussians(context).log_prob(z)
