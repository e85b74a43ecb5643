"""Contrasts r(z | x), one simple density per datum: Adaptive Contrast for amortised guides (AVB, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import flag, integer, integers, number, positive_number
from ..contrasts import Contrast, DatumPrior, GivenContrast
from ..rng import seeded
from ..samplers import Sampler
from .gaussians import GaussianHead, Gaussians
from .networks import ContextNetwork, body_width, checked_body, checked_slope
from .samplers import AmortisedSampler

#: Fewest and most draws per datum that estimated moments take unless told.
LEAST_DRAWS, MOST_DRAWS = 64, 256


class GivenGaussians:
    """A Gaussian per datum as a contrast: constants, with standardised coordinates as features."""

    def __init__(self, gaussians: Gaussians) -> None:
        self.gaussians = gaussians

    def sample(self, n: int) -> Tensor:
        return self.gaussians.sample(n)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.gaussians.log_prob(z)

    def features(self, z: Tensor) -> Tensor:
        return self.gaussians.standardise(z)


class ConditionalGaussianContrast(Contrast):
    """A Gaussian with the mean and covariance of q(z | x) for each datum, the paper's Adaptive Contrast.

    The moments are analytic where the sampler has them. Otherwise they come from n draws for each datum, with the
    correlations shrunk by dim / (n + dim). Their noise is drawn once and for all: with fresh noise r(z | x) would
    jump from step to step, and the adversary, which sees only the average, would miss dim / n (diagonal) or
    dim (dim + 3) / (4 n) nats (full covariance) of KL(q, r). So the estimates' error is a function of x, a part of r.

    Args:
        full: full covariance instead of the paper's diagonal, which leaves all correlations of q to the adversary.
        draws: n; ``None`` takes 8 per latent coordinate, within 64 and 256.
        jitter: added to the variances, relative to them.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``draws`` below 2, or ``jitter`` outside [0, 1).

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.ConditionalSampler(context_dim=5)
        >>> sampler.build(2)
        >>> contrast = avbvi.ConditionalGaussianContrast()
        >>> contrast.build_for(dim=2, context_dim=5, sampler=sampler)
        >>> r = contrast.given(sampler, torch.randn(4, 5), None)  # r(z | x) of 4 data
        >>> r.log_prob(r.sample(7)).shape
        torch.Size([7, 4])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 4, with the moments of its supplement, eq. III.2 and
    III.3, where the sampler has them.
    """

    noise: Tensor

    def __init__(self, full: bool = True, draws: int | None = None, jitter: float = 1e-6) -> None:
        super().__init__()
        self.full: bool = flag("full", full)
        self.draws: int | None = None if draws is None else integer("draws", draws, 2)
        self.jitter: float = number("jitter", jitter)
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter must be in [0, 1), found {jitter}")

    def build_for(self, dim: int, context_dim: int, sampler: Sampler) -> None:
        if self.dim is None and not _has_moments(sampler):
            n = min(max(8 * dim, LEAST_DRAWS), MOST_DRAWS) if self.draws is None else self.draws
            with seeded(0):
                self.register_buffer("noise", sampler.sample_noise(torch.Size((n,)), like=torch.zeros(())))
        super().build_for(dim, context_dim, sampler)

    @torch.no_grad()
    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        if isinstance(sampler, AmortisedSampler) and sampler.has_moments:
            loc, moment = sampler.moments(context) if self.full else sampler.marginal_moments(context)
        else:
            loc, moment = self._estimated(sampler, context)
        return GivenGaussians(Gaussians(loc, self._factor(moment)))

    def _estimated(self, sampler: Sampler, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, dim) and covariance (B, dim, dim), or variances (B, dim), from draws."""
        n, dim = len(self.noise), self.feature_dim
        z = sampler(self.noise[:, None].expand(-1, len(context), -1), context)
        loc = z.mean(0)
        centred = (z - loc).transpose(0, 1)
        if not self.full:
            return loc, centred.square().sum(1) / (n - 1)
        covariance = centred.mT @ centred / (n - 1)
        diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        return loc, torch.lerp(covariance, diagonal, dim / (n + dim))

    def _factor(self, moment: Tensor) -> Tensor:
        """Standard deviations (B, dim) of variances, Cholesky factors (B, dim, dim) of covariances."""
        tiny = torch.finfo(moment.dtype).tiny ** 0.5
        if not self.full:
            return ((1.0 + self.jitter) * moment).clamp_min(tiny).sqrt()
        variance = moment.diagonal(dim1=-2, dim2=-1).clamp_min(tiny)
        factor, info = torch.linalg.cholesky_ex(moment + torch.diag_embed(self.jitter * variance))
        # Where rounding leaves no factor (a collapsed posterior, say) the correlations are let go.
        fallback = torch.diag_embed(variance.sqrt())
        return torch.where((info == 0)[:, None, None], factor, fallback)


class LearnedGaussianContrast(Contrast):
    """A Gaussian whose moments a network gives as a function of x, fitted to q's draws by maximum likelihood.

    A step costs no more draws than the adversary's own, whatever the dimension; but r lags behind the sampler. Where
    that departs from a Gaussian (:class:`~avbvi.amortised.semi_implicit.SemiImplicitSampler`) the network describes e
    in z = mu(x) + L(x) e: r begins as that Gaussian and moves with mu and L at once.

    Args:
        hidden: widths of the network's layers.
        full: a full Cholesky factor, else a diagonal one.
        start_scale: standard deviation at the start where the sampler departs from no Gaussian.
        body: a module (B, context_dim) -> (B, width) in place of the network's hidden layers.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or (at set-up) the body does not fit.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.ConditionalSampler(context_dim=5)
        >>> sampler.build(2)
        >>> contrast = avbvi.LearnedGaussianContrast(hidden=(16,))
        >>> contrast.build_for(dim=2, context_dim=5, sampler=sampler)
        >>> x = torch.randn(4, 5)
        >>> draws = sampler(sampler.sample_noise((7, 4), like=x), x)
        >>> contrast.loss(draws, x, sampler).shape  # minus the mean log-likelihood of the draws
        torch.Size([])

    Source: this project's, in place of the estimated moments of AVB (Mescheder, Nowozin and Geiger 2017), section 4.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (128, 128),
        full: bool = True,
        start_scale: float = 0.5,
        body: nn.Module | None = None,
        slope: float | None = None,
    ) -> None:
        super().__init__()
        self.hidden: tuple[int, ...] = integers("hidden", hidden, "widths of the network's layers")
        self.full: bool = flag("full", full)
        self.start_scale: float = positive_number("start_scale", start_scale)
        self.body: nn.Module | None = checked_body(body)
        self.slope: float | None = checked_slope(slope)

    @property
    def is_rebuildable(self) -> bool:
        return self.body is None and super().is_rebuildable

    def build_for(self, dim: int, context_dim: int, sampler: Sampler) -> None:
        if self.dim is None:
            if self.body is None:
                self.own_body: ContextNetwork = ContextNetwork(context_dim, self.hidden, self.slope)
                width = self.own_body.width
            else:
                width = body_width(self.body, context_dim)
            self.head: GaussianHead = GaussianHead(width, dim, self.full, 1.0, constant=True)
        super().build_for(dim, context_dim, sampler)

    def _gaussians(self, sampler: Sampler, context: Tensor) -> Gaussians:
        """r(z | x), with a gradient to the network's parameters alone."""
        with torch.no_grad():
            base = sampler.gaussians(context) if isinstance(sampler, AmortisedSampler) else None
        inner = self.head.gaussians(self.own_body(context) if self.body is None else self.body(context))
        if base is None:
            base = Gaussians(torch.zeros_like(inner.loc), torch.full_like(inner.loc, self.start_scale))
        return base.carry(inner)

    @torch.no_grad()
    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        return GivenGaussians(self._gaussians(sampler, context))

    def loss(self, draws: Tensor, context: Tensor, sampler: Sampler) -> Tensor:
        return -self._gaussians(sampler, context).log_prob(draws.detach()).mean()


def _has_moments(sampler: Sampler) -> bool:
    return isinstance(sampler, AmortisedSampler) and sampler.has_moments
