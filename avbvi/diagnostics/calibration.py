"""Held-out calibration of the adversary: does T tell the draws of q from those of the contrast as well as it says?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..distributions import Draw
from ..estimates import Estimate
from .classify import cross_entropies, held_out_log_ratio

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Predicted probability that a draw is q's against how often it was, by bins of equal width.

    Attributes:
        predicted: mean of sigmoid(T) in the bin (bins,), a probability; NaN in empty bins.
        observed: share of q's draws in the bin (bins,); NaN in empty bins.
        counts: number of draws of both in the bin (bins,).
        error: expected calibration error, the mean of |observed - predicted| over draws: 0 for the exact T up to noise
            of about sqrt(bins / n).

    Source: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML.
    """

    predicted: Tensor
    observed: Tensor
    counts: Tensor
    error: float


def reliability(t_q: Tensor, t_r: Tensor, bins: int = BINS) -> Reliability:
    """Reliability of T = log q - log r at held-out draws, both laws with equal weight.

    Args:
        t_q: T at draws of q (n,), in nats.
        t_r: T at draws of r (m,), in nats.
        bins: number of bins of the predicted probability.

    Returns:
        Probabilities and shares by bin, with the calibration error.

    Raises:
        ValueError: no draws of one kind, or fewer than one bin.

    Example:
        The exact T of two normals one standard deviation apart, and the same made overconfident:

        >>> import torch
        >>> from avbvi.diagnostics import reliability
        >>> _ = torch.manual_seed(0)
        >>> t_q, t_r = torch.randn(20_000) + 0.5, torch.randn(20_000) - 0.5  # T(z) = z for means of +-1/2
        >>> reliability(t_q, t_r).error < 0.02, reliability(3 * t_q, 3 * t_r).error > 0.1
        (True, True)

    Source: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, found {bins}")
    if not len(t_q) or not len(t_r):
        raise ValueError(f"t_q and t_r must hold draws of both kinds, found {len(t_q)} and {len(t_r)}")
    probability = torch.sigmoid(torch.cat([t_q, t_r]).double())
    label = torch.cat([torch.ones_like(t_q), torch.zeros_like(t_r)]).double()
    weight = label * (0.5 / len(t_q)) + (1.0 - label) * (0.5 / len(t_r))
    index = (probability * bins).long().clamp(0, bins - 1)

    def binned(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add(0, index, values)

    mass = binned(weight)
    predicted, observed = binned(weight * probability) / mass, binned(weight * label) / mass
    error = float((mass * (observed - predicted).abs()).nan_to_num().sum())
    return Reliability(predicted, observed, binned(torch.ones_like(weight)), error)


@dataclass(frozen=True)
class Calibration:
    """How well a guide's adversary does on held-out draws, beside one trained anew.

    Attributes:
        reliability: of the guide's T.
        cross_entropy: of the guide's T, in nats per draw; chance is log 2.
        fresh_cross_entropy: of the new T, in nats per draw.
        excess: the former less the latter, with the standard error of the pairs: clearly positive where the guide's T
            misses something.
        log_weights: log p - log q (n,) by the new T at the held-out draws of q, in nats.
    """

    reliability: Reliability
    cross_entropy: Estimate
    fresh_cross_entropy: Estimate
    excess: Estimate
    log_weights: Tensor


@torch.no_grad()
def calibrate(guide: AVBGuide, target: UnconstrainedTarget, n: int = 4000) -> Calibration:
    """Hold the guide's adversary against fresh draws of q and of the contrast, and an adversary trained on them.

    The new one sees the contrast's features, log p - log r and the target's score, whether or not the guide's own does.

    Args:
        guide: in its adversarial stage.
        target: what it approximates.
        n: draws of each kind.

    Returns:
        Reliability, cross-entropies in nats per draw, and log weights (n,).

    Raises:
        ValueError: the guide is in the trunk's stage, where log q is exact.

    Source: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML; the fresh adversary
    is this project's.
    """
    if not guide.is_adversarial:
        raise ValueError("guide is in its trunk's stage, where log q is exact and no adversary is in force")
    contrast, trunk = guide.part("contrast"), guide.part("trunk")
    q, r = guide.draw_base(n), contrast.sample(n)
    base = torch.cat([q, r])
    log_r = contrast.log_prob(base)
    with torch.enable_grad():
        leaf = base.detach().requires_grad_()
        z, log_det = trunk(leaf)
        log_p = target.log_prob(z) + log_det
        (score,) = torch.autograd.grad(log_p.sum(), leaf)
    draw = Draw(z.detach(), base, log_det.detach())
    t = (guide.base_log_prob(draw, target.args, target.kwargs) - log_r).double()
    log_p = log_p.detach().nan_to_num(-1e6, 1e6, -1e6)
    hint = 20.0 * torch.tanh((log_p - log_r - (log_p - log_r)[:n].median()) / 20.0)
    seen = torch.cat([contrast.features(base), hint[:, None], torch.asinh(0.5 * score.nan_to_num())], -1)
    fresh_q, fresh_r = held_out_log_ratio(seen[:n], seen[n:])
    mine, new = cross_entropies(t[:n], t[n:]), cross_entropies(fresh_q, fresh_r)
    return Calibration(
        reliability(t[:n], t[n:]),
        _mean(mine),
        _mean(new),
        _mean(mine - new),
        (log_p - log_r)[:n].double() - fresh_q,
    )


def _mean(terms: Tensor) -> Estimate:
    return Estimate(float(terms.mean()), float(terms.std() / math.sqrt(len(terms))))
