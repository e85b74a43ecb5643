"""A mixture of Gaussians that follows the sampler."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..arguments import integer, number
from ..mixtures import component_log_probs, inverse_factors
from ..trunks import Trunk
from .base import Contrast, checked_jitter

LEAST_COMPONENTS = 4


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
        self.jitter: float = checked_jitter(jitter)
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
