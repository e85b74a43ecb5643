"""A Gaussian encoder whose mean is itself random: flexible, and never thinner than its Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arguments import flag, integer, positive_number
from ..trunks import standard_normal_log_prob
from .gaussians import GaussianHead, Gaussians
from .networks import InjectedNetwork, checked_layers, checked_noise, fixed_noise
from .samplers import EncodingSampler

#: Fewest coordinates of m unless told.
LEAST_EXTRA = 2
#: The last layer of g starts as torch's own times this.
SMALL_START = 0.1
#: A density is summed in pieces of about so many terms.
MIXTURE_TERMS = 2**24


class SemiImplicitSampler(EncodingSampler):
    """z = mu(x) + L(x) (f(m, c) + n): a Gaussian encoder whose mean a bounded network of more noise moves about.

    n and m are standard normal, c the body's features, f = b tanh(g(m, c) / b) with g as in
    :class:`~avbvi.amortised.networks.InjectedNetwork`, small at the start: the sampler starts near the encoder of a
    variational autoencoder. Given m it is Gaussian, so that it is a semi-implicit distribution: nothing is thinner
    than n, where adversaries are blind, and its density, an integral over m, can be estimated for a check. The bound
    keeps f from running away to where the adversary has seen nothing.

    Its moments, mu + L E f and L (I + Cov f) L^T, come from ``moment_draws`` draws of f, whose noise is drawn once at
    set-up and shared by all data and steps; I is exact.

    Args:
        context_dim: width of a datum's context.
        hidden: widths of the hidden layers of g.
        extra_noise: width of m; ``None`` takes half that of the latents, and at least 2.
        context_hidden: widths of the layers of the network of x alone.
        full: a full Cholesky factor L, else a diagonal one.
        start_scale: standard deviation of the draws at the start.
        limit: b, in standard deviations of n.
        moment_draws: number of draws of f for the moments.
        body: a module (B, context_dim) -> (B, width) in place of the network of x alone.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: as :class:`~avbvi.ConditionalSampler`.
        ValueError: as :class:`~avbvi.ConditionalSampler`.

    Example:
        >>> import torch, avbvi
        >>> encoder = avbvi.SemiImplicitSampler(context_dim=5, hidden=(16,), context_hidden=(16,))
        >>> encoder.build(2)
        >>> x = torch.randn(3, 5)
        >>> noise = encoder.sample_noise((7, 3), like=x)
        >>> lower, upper = encoder.log_prob_bounds(noise, x, draws=100)
        >>> lower.shape, bool(lower.mean() < upper.mean())
        (torch.Size([7, 3]), True)

    Source: Yin and Zhou (2018), Semi-implicit variational inference, ICML; the bounds of the density, Sobolev and
    Vetrov (2019), Importance weighted hierarchical variational inference, NeurIPS.
    """

    has_moments = True
    splits = True
    noise_dim: int
    moment_noise: Tensor

    def __init__(
        self,
        context_dim: int,
        hidden: tuple[int, ...] = (100, 100),
        extra_noise: int | None = None,
        context_hidden: tuple[int, ...] = (200, 200),
        full: bool = True,
        start_scale: float = 0.5,
        limit: float = 2.0,
        moment_draws: int = 32,
        body: nn.Module | None = None,
        slope: float | None = None,
    ) -> None:
        super().__init__(context_dim, context_hidden, body, slope)
        self.hidden: tuple[int, ...] = checked_layers("hidden", hidden)
        self.extra_noise: int | None = checked_noise("extra_noise", extra_noise)
        self.full: bool = flag("full", full)
        self.start_scale: float = positive_number("start_scale", start_scale)
        self.limit: float = positive_number("limit", limit)
        self.moment_draws: int = integer("moment_draws", moment_draws, 2)

    def _build(self, dim: int) -> None:
        extra = max(LEAST_EXTRA, dim // 2) if self.extra_noise is None else self.extra_noise
        self.noise_dim = dim + extra
        self.register_buffer("moment_noise", fixed_noise(self.moment_draws, extra))
        self.head: GaussianHead = GaussianHead(self.width, dim, self.full, self.start_scale)
        self.network: InjectedNetwork = InjectedNetwork(extra, self.width, self.hidden, dim, self.slope)
        with torch.no_grad():
            for p in self.network.leave.parameters():
                p.mul_(SMALL_START)

    def gaussians(self, context: Tensor) -> Gaussians:
        """mu(x) and L(x), of f = 0, for each row of the context (B, context_dim)."""
        return self.head.gaussians(self.features(context))

    def shift(self, extra: Tensor, features: Tensor) -> Tensor:
        """f: m, the ``extra`` noise, (*S, B, extra_noise) and features (B, width) to (*S, B, dim)."""
        return self.limit * torch.tanh(self.network(extra, features) / self.limit)

    def split(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Gaussians]:
        features, dim = self.features(context), self.head.dim
        return noise[..., :dim] + self.shift(noise[..., dim:], features), self.head.gaussians(features)

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        features, dim = self.features(context), self.head.dim
        return self.head.carry(noise[..., :dim] + self.shift(noise[..., dim:], features), features)

    def _shift_draws(self, features: Tensor) -> Tensor:
        return self.shift(self.moment_noise[:, None].expand(-1, len(features), -1), features)

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(context)
        f = self._shift_draws(features)
        mean = f.mean(0)
        spread = (f - mean).transpose(0, 1) / math.sqrt(len(f) - 1)
        factor = self.head.factor(features)
        inner = torch.eye(self.head.dim, dtype=f.dtype, device=f.device) + spread.mT @ spread
        return self.head.carry(mean, features), factor @ inner @ factor.mT

    def log_prob(self, z: Tensor, context: Tensor, draws: int = 1000) -> Tensor:
        """log q(z | x) in nats, estimated with ``draws`` fresh m per datum.

        It is too low on average, so that an ELBO from it is too high: see :meth:`log_prob_bounds`.

        Args:
            z: latents (*S, B, dim).
            context: (B, context_dim).
            draws: number of m.

        Returns:
            The estimates (*S, B).

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: it is less than 1.
        """
        draws = integer("draws", draws, 1)
        gaussians = self.gaussians(context)
        total = self._log_mixture(gaussians.standardise(z), self.features(context), draws)
        return total - math.log(draws) - gaussians.log_det

    def log_prob_bounds(self, noise: Tensor, context: Tensor, draws: int = 1000) -> tuple[Tensor, Tensor]:
        """Bounds of log q(z | x) in nats, on average, at the draws z that come of ``noise``.

        The lower one averages q(z | x, m) over fresh m, the upper one over those and the m that z came from.

        Args:
            noise: (*S, B, noise_dim).
            context: (B, context_dim).
            draws: number of fresh m per datum.

        Returns:
            The lower and the upper bound, (*S, B) each.

        Raises:
            TypeError: ``draws`` is no integer.
            ValueError: it is less than 1.
        """
        draws = integer("draws", draws, 1)
        features, dim, log_det = self.features(context), self.head.dim, self.gaussians(context).log_det
        e = noise[..., :dim] + self.shift(noise[..., dim:], features)
        fresh = self._log_mixture(e, features, draws)
        all_of_them = torch.logaddexp(fresh, standard_normal_log_prob(noise[..., :dim]))
        return fresh - math.log(draws) - log_det, all_of_them - math.log(draws + 1) - log_det

    def _log_mixture(self, e: Tensor, features: Tensor, draws: int) -> Tensor:
        """log sum_k N(e; f(m_k, c), I) over ``draws`` fresh m per datum: (*S, B, dim) -> (*S, B)."""
        m = torch.randn(draws, len(features), self.noise_dim - self.head.dim, dtype=e.dtype, device=e.device)
        sums = []
        for some in m.split(max(1, MIXTURE_TERMS // max(1, e.shape[:-1].numel()))):
            f = self.shift(some, features)
            # |e - f|^2 by a matrix product: (*S, B, n).
            product = torch.einsum("...bd,nbd->...bn", e, f)
            distance = e.square().sum(-1)[..., None] - 2.0 * product + f.square().sum(-1).mT
            sums.append(torch.logsumexp(-0.5 * distance, -1))
        return torch.logsumexp(torch.stack(sums), 0) - 0.5 * e.shape[-1] * math.log(2.0 * math.pi)
