"""Contrasts r(z | x), one simple density per datum: Adaptive Contrast for amortised guides (AVB, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import flag, integer, integers, number, positive_number
from ..contrasts import Contrast, DatumPrior, GivenContrast
from ..samplers import Sampler
from .gaussians import GaussianHead, Gaussians
from .networks import ContextNetwork, body_width, checked_body, checked_slope
from .samplers import AmortisedSampler

#: Fewest and most draws per datum that estimated moments take unless told.
LEAST_DRAWS, MOST_DRAWS = 64, 512


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

    The moments are analytic where the sampler has them. Otherwise they come from fresh draws, n for each datum, and
    the correlations are shrunk by dim / (n + dim). The error of such estimates is hidden from the adversary, which
    then sees less of KL(q, r) than there is: about dim / n nats for a diagonal and dim (dim + 3) / (4 n) for a full
    covariance. So n has to be large, or the moments analytic or learned (:class:`LearnedGaussianContrast`).

    Args:
        full: full covariance instead of the paper's diagonal, which leaves all correlations of q to the adversary.
        draws: n; ``None`` takes 16 per latent coordinate, within 64 and 512.
        jitter: added to the variances, relative to them.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.
    """

    def __init__(self, full: bool = True, draws: int | None = None, jitter: float = 1e-6) -> None:
        super().__init__()
        self.full = flag("full", full)
        self.draws = None if draws is None else integer("draws", draws, 2)
        self.jitter = number("jitter", jitter)
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter must be in [0, 1), found {jitter}")

    @torch.no_grad()
    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        if isinstance(sampler, AmortisedSampler) and sampler.has_moments:
            loc, moment = sampler.moments(context) if self.full else sampler.marginal_moments(context)
        else:
            loc, moment = self._estimated(sampler, context)
        return GivenGaussians(Gaussians(loc, self._factor(moment)))

    def _estimated(self, sampler: Sampler, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, dim) and covariance (B, dim, dim), or variances (B, dim), from fresh draws."""
        dim = self.feature_dim
        n = min(max(16 * dim, LEAST_DRAWS), MOST_DRAWS) if self.draws is None else self.draws
        z = sampler(sampler.sample_noise(torch.Size((n, len(context))), like=context), context)
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

    Unlike moments estimated from a few draws they are no noise that is hidden from the adversary, and a step costs
    no more draws than the adversary's own. They lag behind the sampler, which costs the adversary no accuracy: r may
    be any density. Where the sampler departs from a Gaussian (:class:`ConditionalResidualSampler`) the network
    describes e in z = mu(x) + L(x) e: r begins as that Gaussian and moves with mu and L at once.

    Args:
        hidden: widths of the network's layers.
        full: a full Cholesky factor, else a diagonal one.
        start_scale: standard deviation at the start where the sampler departs from no Gaussian.
        body: a module (B, context_dim) -> (B, width) in place of the network's hidden layers.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or (at set-up) the body does not fit.
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
        self.hidden = integers("hidden", hidden, "widths of the network's layers")
        self.full = flag("full", full)
        self.start_scale = positive_number("start_scale", start_scale)
        self.body = checked_body(body)
        self.slope = checked_slope(slope)

    @property
    def is_rebuildable(self) -> bool:
        return self.body is None and super().is_rebuildable

    def build_for(self, dim: int, context_dim: int) -> None:
        if self.dim is None:
            if self.body is None:
                self.own_body = ContextNetwork(context_dim, self.hidden, self.slope)
                width = self.own_body.width
            else:
                width = body_width(self.body, context_dim)
            self.head = GaussianHead(width, dim, self.full, 1.0, constant=True)
        self.build(dim)

    def _gaussians(self, sampler: Sampler, context: Tensor) -> Gaussians:
        """r(z | x), with a gradient to the network's parameters alone."""
        with torch.no_grad():
            base = _departure(sampler, context)
        inner = self.head.gaussians(self.own_body(context) if self.body is None else self.body(context))
        if base is None:
            base = Gaussians(torch.zeros_like(inner.loc), torch.full_like(inner.loc, self.start_scale))
        return base.carry(inner)

    @torch.no_grad()
    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        return GivenGaussians(self._gaussians(sampler, context))

    def loss(self, draws: Tensor, context: Tensor, sampler: Sampler) -> Tensor:
        return -self._gaussians(sampler, context).log_prob(draws.detach()).mean()


class OwnGaussianContrast(Contrast):
    """The Gaussian from which the sampler itself departs: of a :class:`ConditionalResidualSampler`, that of its start.

    It costs no draws and is exact at the start. It follows q only as far as the sampler's own location and scale do.
    """

    @torch.no_grad()
    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        gaussians = _departure(sampler, context)
        if gaussians is None:
            raise ValueError(
                "contrast=OwnGaussianContrast() needs a sampler that departs from a Gaussian, such as "
                f"ConditionalResidualSampler; with {type(sampler).__name__} use ConditionalGaussianContrast()"
            )
        return GivenGaussians(gaussians)


def _departure(sampler: Sampler, context: Tensor) -> Gaussians | None:
    """The Gaussians from which the sampler departs, if there are any."""
    return sampler.gaussians(context) if isinstance(sampler, AmortisedSampler) else None
