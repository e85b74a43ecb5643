"""Contrasts r: simple densities that the adversary compares the sampler with (Adaptive Contrast, AVB section 4).

A contrast lives in the trunk's base coordinates. It follows the sampler's draws, is never
differentiated through its own parameters (they are buffers, or trained by maximum likelihood apart
from the ELBO), and it whitens: the adversary sees coordinates in which r is about standard.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .arguments import flag, integer, number
from .mixtures import component_log_probs, inverse_factors
from .parts import Part
from .trunks import Trunk, standard_normal_log_prob

if TYPE_CHECKING:
    from .samplers import Sampler
    from .targets import UnconstrainedTarget

LEAST_COMPONENTS = 4


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


def _jitter(value: Any) -> float:
    jitter = number("jitter", value)
    if not 0.0 <= jitter < math.inf:
        raise ValueError(f"jitter must be finite and not negative, found {value}")
    return jitter


class PriorContrast(Contrast):
    """r = the model's prior: the paper's Algorithm 1. Needs a Pyro model with a prior and the identity trunk.

    In an amortised guide r(z | x) is the prior of each datum's latents, and the features are z itself.

    Example:
        >>> import avbvi, pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> guide = avbvi.AVBGuide(model, trunk=avbvi.IdentityTrunk(), contrast=avbvi.PriorContrast())

    Source: AVB (Mescheder, Nowozin and Geiger 2017), Algorithm 1.
    """

    def _build(self, dim: int) -> None:
        self._target: UnconstrainedTarget | None = None

    def bind(self, target: UnconstrainedTarget | None) -> None:
        if target is None:
            raise ValueError(
                "contrast=PriorContrast() needs the joint density of the model, which a guide inside an "
                "AutoGuideList does not have; use GaussianContrast()"
            )
        target.require_prior("contrast=PriorContrast()")
        self._target = target

    def _prior(self) -> UnconstrainedTarget:
        if self._target is None:
            raise RuntimeError("PriorContrast is not bound to a model yet: train the guide, or load it with its model")
        return self._target

    def sample(self, n: int) -> Tensor:
        return self._prior().sample_prior(n)

    def log_prob(self, e: Tensor) -> Tensor:
        return self._prior().log_prior(e)

    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        return GivenPrior(prior)


class GivenPrior:
    """The prior of each datum's latents as a contrast."""

    def __init__(self, prior: DatumPrior) -> None:
        self._prior = prior

    def sample(self, n: int) -> Tensor:
        return self._prior.sample_prior(n)

    def log_prob(self, z: Tensor) -> Tensor:
        return self._prior.log_prior(z)

    def features(self, z: Tensor) -> Tensor:
        return z


class GaussianContrast(Contrast):
    """A Gaussian with the sampler's mean and (co)variance: the paper's Adaptive Contrast (Algorithm 2).

    Args:
        full: full covariance instead of the paper's diagonal.
        momentum: weight of the past in the running moments; 0 takes each batch's own, as the paper does.
        jitter: added to the variances, in units of the base coordinates squared.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``momentum`` outside [0, 1), or a negative or infinite ``jitter``.

    Example:
        >>> import torch, avbvi
        >>> contrast = avbvi.GaussianContrast(full=True)
        >>> contrast.build(2)
        >>> contrast.update(3.0 + 2.0 * torch.randn(10_000, 2))
        >>> contrast.features(torch.tensor([3.0, 3.0])).round(decimals=1).abs().tolist()  # whitened
        [0.0, 0.0]

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 4 and Algorithm 2.
    """

    loc: Tensor
    scale_tril: Tensor
    covariance: Tensor

    def __init__(self, full: bool = False, momentum: float = 0.0, jitter: float = 1e-6) -> None:
        super().__init__()
        self.full: bool = flag("full", full)
        self.momentum: float = number("momentum", momentum)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), found {momentum}")
        self.jitter: float = _jitter(jitter)

    def _build(self, dim: int) -> None:
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("scale_tril", torch.eye(dim))

    def reset(self, draws: Tensor) -> None:
        self._follow(draws, 0.0)

    def update(self, draws: Tensor) -> None:
        self._follow(draws, self.momentum)

    @torch.no_grad()
    def _follow(self, draws: Tensor, momentum: float) -> None:
        loc = draws.mean(0)
        centred = draws - loc
        if self.full:
            covariance = centred.mT @ centred / (draws.shape[0] - 1)
        else:
            covariance = torch.diag_embed(centred.square().sum(0) / (draws.shape[0] - 1))
        self.loc.lerp_(loc, 1.0 - momentum)
        self.covariance.lerp_(covariance, 1.0 - momentum)
        ridge = self.covariance + self.jitter * torch.eye(len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        if self.full:
            factor, info = torch.linalg.cholesky_ex(ridge)
            # A batch of collapsed draws has no Cholesky factor: keep the last one, the next batch will do.
            self.scale_tril.copy_(torch.where(info == 0, factor, self.scale_tril))
        else:
            self.scale_tril.copy_(ridge.sqrt())

    def sample(self, n: int) -> Tensor:
        noise = torch.randn(n, self.loc.shape[0], dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + noise @ self.scale_tril.mT

    def log_prob(self, e: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal().log().sum()
        return standard_normal_log_prob(self.features(e)) - log_det

    def features(self, e: Tensor) -> Tensor:
        if not self.full:
            return (e - self.loc) / self.scale_tril.diagonal()
        flat = (e - self.loc).reshape(-1, e.shape[-1])
        return torch.linalg.solve_triangular(self.scale_tril, flat.mT, upper=False).mT.reshape(e.shape)


class MixtureContrast(Contrast):
    """A mixture of full-covariance Gaussians that follows the sampler by stepwise expectation-maximisation.

    Each :meth:`update` moves the sufficient statistics towards those of the batch: one maximum-likelihood step per
    iteration, no learning rate to choose.

    Above a mixture trunk it begins as the trunk's own base density.

    Args:
        components: number of Gaussians K; by default the trunk's, and at least 4.
        rate: step size of the running statistics.
        jitter: added to each component's variances, relative to the overall variance.

    Raises:
        TypeError: an argument is no number.
        ValueError: ``components`` below 1, ``rate`` outside (0, 1], or a negative or infinite ``jitter``.

    Example:
        >>> import torch, avbvi
        >>> contrast = avbvi.MixtureContrast(components=2)
        >>> contrast.build(1)
        >>> draws = torch.cat([torch.randn(500, 1) - 5.0, torch.randn(500, 1) + 5.0])
        >>> contrast.reset(draws)
        >>> sorted(contrast.locs.flatten().round().tolist())
        [-5.0, 5.0]

    Source: Cappé and Moulines (2009), On-line expectation-maximization algorithm for latent data models, JRSS B 71(3),
    eq. 7, as the adaptive contrast of AVB (Mescheder, Nowozin and Geiger 2017), section 4.
    """

    log_weights: Tensor
    locs: Tensor
    scale_trils: Tensor
    inverse_trils: Tensor
    counts: Tensor
    first: Tensor
    second: Tensor
    center: Tensor
    whitening: Tensor
    inverse_whitening: Tensor

    def __init__(self, components: int | None = None, rate: float = 0.1, jitter: float = 1e-3) -> None:
        super().__init__()
        self.components: int | None = None if components is None else integer("components", components, 1)
        self.rate: float = number("rate", rate)
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be in (0, 1], found {rate}")
        self.jitter: float = _jitter(jitter)
        self._least = LEAST_COMPONENTS

    def build_on(self, trunk: Trunk) -> None:
        self._least = max(LEAST_COMPONENTS, len(trunk.gaussians()[0]))
        super().build_on(trunk)

    def _build(self, dim: int) -> None:
        k = self._least if self.components is None else self.components
        self.register_buffer("log_weights", torch.full((k,), -math.log(k)))
        self.register_buffer("locs", torch.zeros(k, dim))
        self.register_buffer("scale_trils", torch.eye(dim).expand(k, dim, dim).clone())
        self.register_buffer("inverse_trils", torch.eye(dim).expand(k, dim, dim).clone())
        # Running sufficient statistics: responsibilities, weighted first and second moments.
        self.register_buffer("counts", torch.full((k,), 1.0 / k))
        self.register_buffer("first", torch.zeros(k, dim))
        self.register_buffer("second", torch.eye(dim).expand(k, dim, dim).clone() / k)
        # Overall location and Cholesky factor, for the adversary's coordinates, and that factor's inverse.
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))
        self.register_buffer("inverse_whitening", torch.eye(dim), persistent=False)

    @torch.no_grad()
    def begin(self, trunk: Trunk, draws: Tensor) -> None:
        log_weights, locs, scale_trils = (t.to(self.locs) for t in trunk.gaussians())
        if not 1 < len(locs) == len(self.locs):
            self.reset(draws)
            return
        covariances = scale_trils @ scale_trils.mT + locs[:, :, None] * locs[:, None, :]
        self.counts.copy_(log_weights.exp())
        self.first.copy_(self.counts[:, None] * locs)
        self.second.copy_(self.counts[:, None, None] * covariances)
        self.log_weights.copy_(log_weights)
        self.locs.copy_(locs)
        self.scale_trils.copy_(scale_trils)
        self._invert()
        loc = self.first.sum(0)
        self._set_overall(loc, self.second.sum(0) - loc[:, None] * loc)

    @torch.no_grad()
    def reset(self, draws: Tensor) -> None:
        """Fit r to ``draws`` (n, dim): centres at spread-out ones, then expectation-maximisation to the end."""
        loc = draws.mean(0)
        covariance = torch.cov(draws.mT).reshape(draws.shape[1], draws.shape[1])
        self._set_overall(loc, covariance)
        self.locs.copy_(self._spread(self._standardise(draws), draws))
        self.scale_trils.copy_(self.whitening.expand_as(self.scale_trils))
        self._invert()
        self.log_weights.fill_(-math.log(len(self.locs)))
        for _ in range(20):
            self._expectation_maximisation(draws, 1.0)

    def _spread(self, standard: Tensor, draws: Tensor) -> Tensor:
        """K draws far from each other (the seeding of k-means++: Arthur and Vassilvitskii 2007)."""
        index = torch.randint(len(draws), (1,), device=draws.device)
        distance = torch.full_like(standard[:, 0], math.inf)
        for _ in range(len(self.locs) - 1):
            distance = torch.minimum(distance, (standard - standard[index[-1]]).square().sum(-1))
            index = torch.cat([index, torch.multinomial(distance.clamp_min(1e-12), 1)])
        return draws[index]

    @torch.no_grad()
    def update(self, draws: Tensor) -> None:
        self._expectation_maximisation(draws, self.rate)

    def _expectation_maximisation(self, draws: Tensor, rate: float) -> None:
        responsibility = torch.softmax(self._component_log_probs(draws), -1)
        n = draws.shape[0]
        self.counts.lerp_(responsibility.mean(0), rate)
        self.first.lerp_(responsibility.mT @ draws / n, rate)
        weighted = responsibility.mT[..., None] * draws
        self.second.lerp_(weighted.mT @ draws / n, rate)
        counts = self.counts.clamp_min(1e-8)
        locs = self.first / counts[:, None]
        overall_loc = self.first.sum(0)
        overall = self.second.sum(0) - overall_loc[:, None] * overall_loc
        covariances = self.second / counts[:, None, None] - locs[:, :, None] * locs[:, None, :]
        covariances = covariances + self.jitter * torch.diag_embed(overall.diagonal().clamp_min(1e-12))
        factors, info = torch.linalg.cholesky_ex(covariances)
        # A component that lost its draws keeps its last shape and fades by its weight.
        usable = ((info == 0) & (self.counts > 1e-4))[:, None]
        self.locs.copy_(torch.where(usable, locs, self.locs))
        self.scale_trils.copy_(torch.where(usable[..., None], factors, self.scale_trils))
        self._invert()
        self.log_weights.copy_(torch.log_softmax(counts.log(), 0))
        self._set_overall(overall_loc, overall)

    def _invert(self) -> None:
        self.inverse_trils.copy_(inverse_factors(self.scale_trils))

    def _set_overall(self, loc: Tensor, covariance: Tensor) -> None:
        factor, info = torch.linalg.cholesky_ex(covariance)
        self.center.copy_(loc)
        self.whitening.copy_(torch.where(info == 0, factor, self.whitening))
        self.inverse_whitening.copy_(inverse_factors(self.whitening))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if hasattr(self, "whitening"):
            self.inverse_whitening.copy_(inverse_factors(self.whitening.detach()))

    def _component_log_probs(self, e: Tensor) -> Tensor:
        return component_log_probs(e, self.log_weights, self.locs, self.inverse_trils)

    def sample(self, n: int) -> Tensor:
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        noise = torch.randn(n, self.locs.shape[-1], dtype=self.locs.dtype, device=self.locs.device)
        # A few products more than needed are cheaper than a factor fetched for each draw.
        draws = torch.baddbmm(self.locs[:, None], noise.expand(len(self.locs), -1, -1), self.scale_trils.mT)
        return draws[k, torch.arange(n, device=k.device)]

    def log_prob(self, e: Tensor) -> Tensor:
        return torch.logsumexp(self._component_log_probs(e), -1)

    def _standardise(self, e: Tensor) -> Tensor:
        return (e - self.center) @ self.inverse_whitening.mT

    def features(self, e: Tensor) -> Tensor:
        return self._standardise(e)
