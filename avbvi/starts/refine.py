"""Gaussians brought nearer to a target by importance-weighted draws, and their weights by evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from .modes import LaplaceModes, LogDensityFunction, gaussian_bounds

#: Gain of the bound, in nats, that a change of a Gaussian has to bring.
_LEAST_GAIN = 0.1
_MOST_POINTS = 16_000


class _Weighted:
    """Equally many draws of each Gaussian, and their importance weights against the equal mixture of these."""

    def __init__(self, log_prob: LogDensityFunction, modes: LaplaceModes, n: int) -> None:
        count = len(modes.locs)
        factors = torch.linalg.cholesky(modes.covariances)
        noise = torch.randn(count, n, modes.locs.shape[1], dtype=modes.locs.dtype).to(modes.locs.device)
        self.z = (modes.locs[:, None] + noise @ factors.mT).flatten(0, 1)
        log_weights = log_prob(self.z).double() - torch.logsumexp(modes.component_log_probs(self.z).double(), -1)
        log_weights = log_weights.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        self.usable = bool(torch.isfinite(log_weights).any())
        self.log_weights = log_weights
        self.weights = torch.softmax(log_weights, 0) if self.usable else torch.zeros_like(log_weights)

    def effective(self) -> float:
        """Effective number of draws."""
        return float(1.0 / self.weights.square().sum()) if self.usable else 0.0

    def moments(self, modes: LaplaceModes, *, tempered: bool = False) -> tuple[LaplaceModes, Tensor]:
        """The modes moved to the moments of their shares of the draws, and which (M,) can be: by enough draws."""
        owned = torch.softmax(modes.component_log_probs(self.z).double() + modes.log_weights.double(), -1)
        least = 2.0 * len(modes.locs) * _least_effective(self.z.shape[1])
        owned = owned * (self._tempered(least) if tempered else self.weights)[:, None]
        effective = owned.sum(0).square() / owned.square().sum(0).clamp_min(1e-300)
        owned = owned / owned.sum(0).clamp_min(1e-300)
        z = self.z.double()
        locs = owned.mT @ z
        centred = z - locs[:, None]
        covariances = torch.einsum("mn,mni,mnj->mij", owned.mT, centred, centred).to(modes.locs)
        _, info = torch.linalg.cholesky_ex(covariances)
        able = (effective > _least_effective(z.shape[1])) & (info == 0)
        return LaplaceModes(locs.to(modes.locs), covariances, modes.log_weights), able

    def _tempered(self, least: float) -> Tensor:
        """The weights, or a power of them below 1 with which the effective number of draws is at least ``least``."""
        if not self.usable or self.effective() >= least:
            return self.weights
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = 0.5 * (low + high)
            weights = torch.softmax(middle * self.log_weights, 0)
            low, high = (middle, high) if float(1.0 / weights.square().sum()) >= least else (low, middle)
        return torch.softmax(max(low, 1e-9) * self.log_weights, 0)


def _least_effective(dim: int) -> float:
    return max(4.0 * dim, 40.0)


@torch.no_grad()
def improved_gaussians(
    log_prob: LogDensityFunction,
    modes: LaplaceModes,
    bounds: Tensor,
    n: int = 1000,
    rounds: int = 3,
    *,
    tempered: bool = False,
) -> tuple[LaplaceModes, Tensor]:
    """Move each Gaussian to the moments of its importance-weighted share of the draws, where the bounds then rise.

    All Gaussians move, or none, as equal modes are to be described equally well; but for those that lose by it.

    Returns the modes, weighted by their bounds, and the bounds (M,).

    Args:
        log_prob: (n, dim) -> (n,).
        modes: the Gaussians.
        bounds: their importance-weighted bounds of the evidence (M,).
        n: draws of each Gaussian in a round.
        rounds: at most; the first in which nothing gains is the last.
        tempered: where few draws have most of the weight, take a power of the weights with which 8 dim draws per
            Gaussian count; for Gaussians that are far from the target.

    Source: Cappé, Douc, Guillin, Marin and Robert (2008), Adaptive importance sampling in general mixture classes,
    Statistics and Computing 18, 447-459.
    """
    for _ in range(rounds):
        drawn = _Weighted(log_prob, modes, n)
        trial, able = drawn.moments(modes, tempered=tempered)
        index = able.nonzero().squeeze(-1)
        if not drawn.usable or len(index) == 0:
            break
        new = bounds.clone()
        new[index] = gaussian_bounds(log_prob, trial.picked(index, trial.log_weights[index]), n)
        better = new > bounds - _LEAST_GAIN
        gain = float((modes.log_weights.exp() * (new - bounds))[better].nan_to_num(0.0).sum())
        if gain < _LEAST_GAIN:
            break
        bounds = torch.where(better, new, bounds)
        modes = LaplaceModes(
            torch.where(better[:, None], trial.locs, modes.locs),
            torch.where(better[:, None, None], trial.covariances, modes.covariances),
            torch.log_softmax(bounds, 0),
        )
    return modes, bounds


@torch.no_grad()
def weights_by_draws(log_prob: LogDensityFunction, modes: LaplaceModes, n: int = 1000) -> LaplaceModes:
    """The modes with the weights of the mixture that is nearest to the target in KL(p, q), its Gaussians being fixed.

    The maximum of the importance-weighted mean of log q, which is concave in the weights, by the EM algorithm: where
    Gaussians are apart these are their shares of the evidence, where they overlap nothing is counted twice. Weights
    are left as they are if the effective number of draws is below 20 per Gaussian or a
    twentieth of all.

    Args:
        log_prob: (n, dim) -> (n,).
        modes: the Gaussians, and weights to start from.
        n: draws of each, at most 16,000 in all.
    """
    count = len(modes.locs)
    if count == 1:
        return modes
    n = min(n, _MOST_POINTS // count)
    drawn, proposal = _Weighted(log_prob, modes, n), modes
    # Gaussians of the modes' moments reach what those at the optima of bent ones seldom do.
    for _ in range(2):
        moved, able = drawn.moments(modes)
        index = able.nonzero().squeeze(-1)
        if not drawn.usable or len(index) == 0:
            break
        proposal = LaplaceModes(*(torch.cat([part, more[index]]) for part, more in zip(modes, moved, strict=True)))
        drawn = _Weighted(log_prob, proposal, n)
    if drawn.effective() < max(20.0 * count, 0.05 * len(drawn.z)):
        return modes
    log_q = modes.component_log_probs(drawn.z).double()
    relative = (log_q - log_q.amax(-1, keepdim=True)).exp()
    share = torch.softmax(modes.log_weights.double(), 0).clamp_min(1e-6)
    for _ in range(100):
        owned = relative * share
        share = drawn.weights @ (owned / owned.sum(-1, keepdim=True))
    return modes._replace(log_weights=share.clamp_min(1e-30).log().log_softmax(0).to(modes.locs))
