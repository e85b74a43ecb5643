"""Gaussians that describe where a posterior's mass lies, and the bound of the evidence that judges them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

LogDensityFunction = Callable[[Tensor], Tensor]
#: Draws in a group of the importance-weighted bound.
CANDIDATES = 8
#: Modes that lie further below the best, in nats of evidence, are left out.
LEAST_EVIDENCE = 7.0


class LaplaceModes(NamedTuple):
    """Gaussians at the modes of a log-density, weighted by their evidence.

    Shapes: locs (M, dim), covariances (M, dim, dim), log_weights (M,), normalised.
    """

    locs: Tensor
    covariances: Tensor
    log_weights: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (dim,) and covariance (dim, dim) of the mixture: between the modes plus within them."""
        w = self.log_weights.exp()
        loc = w @ self.locs
        centred = self.locs - loc
        between = torch.einsum("m,mi,mj->ij", w, centred, centred)
        return loc, between + torch.einsum("m,mij->ij", w, self.covariances)

    def component_log_probs(self, z: Tensor) -> Tensor:
        """Log-densities (n, M) of the Gaussians, without their weights, at points z (n, dim)."""
        log_probs: Tensor = MultivariateNormal(self.locs, self.covariances, validate_args=False).log_prob(z[:, None])
        return log_probs

    def shares(self, z: Tensor) -> Tensor:
        """Share of the points z (n, dim) that belongs to each mode (M,), by the Gaussians' responsibilities."""
        return torch.softmax(self.component_log_probs(z) + self.log_weights, -1).mean(0)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """n independent draws (n, dim) of the mixture and their log-density (n,)."""
        index = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        factors = torch.linalg.cholesky(self.covariances)
        noise = torch.randn(n, self.locs.shape[1]).to(self.locs)
        z = self.locs[index] + (factors[index] @ noise[:, :, None])[:, :, 0]
        return z, torch.logsumexp(self.component_log_probs(z) + self.log_weights, -1)

    def picked(self, index: Tensor, log_evidence: Tensor) -> LaplaceModes:
        """The modes of these indices, weighted by their log-evidence."""
        return LaplaceModes(self.locs[index], self.covariances[index], torch.log_softmax(log_evidence, 0))


def judged_by_draws(
    modes: LaplaceModes, log_prob: LogDensityFunction, broad_log_weights: Tensor
) -> LaplaceModes | None:
    """The modes weighted by a bound of the evidence from draws of their Gaussians; ``None`` if broad draws do better.

    The height of an optimum may mislead: a narrow spike may be high and hold nothing (Neal's funnel). The bound is
    importance-weighted (Burda, Grosse and Salakhutdinov 2016), with 8 draws in a group. Modes more than 7
    nats below the best are left out.

    Args:
        modes: Laplace approximations.
        log_prob: (n, dim) -> (n,).
        broad_log_weights: log p - log q (n,) of draws of a broad q: the prior, say. As many are drawn of each mode.
    """
    bounds = gaussian_bounds(log_prob, modes, len(broad_log_weights))
    best = float(bounds.max())
    if best == -math.inf or best < importance_bound(broad_log_weights):
        return None
    keep = (bounds > best - LEAST_EVIDENCE).nonzero().squeeze(-1)
    return modes.picked(keep, bounds[keep])


@torch.no_grad()
def gaussian_bounds(log_prob: LogDensityFunction, modes: LaplaceModes, n: int) -> Tensor:
    """Importance-weighted bounds (M,) of the evidence, from n draws of each mode's Gaussian."""
    bounds = []
    for loc, covariance in zip(modes.locs, modes.covariances, strict=True):
        gaussian = MultivariateNormal(loc, covariance, validate_args=False)
        z = gaussian.sample(torch.Size((n,)))
        bounds.append(importance_bound(log_prob(z) - gaussian.log_prob(z)))
    return torch.tensor(bounds).to(modes.locs)


def importance_bound(log_weights: Tensor) -> float:
    """Importance-weighted lower bound of the evidence, from log p - log q (n,) of q's draws in groups of 8.

    Groups without any density are left out, and their share counted against the bound.
    """
    usable = len(log_weights) // CANDIDATES * CANDIDATES
    groups = log_weights[:usable].double().nan_to_num(-math.inf, -math.inf, -math.inf).reshape(-1, CANDIDATES)
    bounds = groups.logsumexp(-1) - math.log(CANDIDATES)
    finite = torch.isfinite(bounds)
    if not bool(finite.any()):
        return -math.inf
    return float(bounds[finite].mean() + finite.double().mean().log())
