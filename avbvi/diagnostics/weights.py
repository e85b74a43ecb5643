"""Importance weights: Pareto smoothing, and the exact weights of a guide's trunk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..arguments import real_tensor

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget

#: Shape k-hat of the weights' tail below which estimates by them can be trusted.
K_HAT_LIMIT = 0.7


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao, Gabry 2024).

    The largest weights are replaced by expected order statistics of a generalised Pareto distribution
    fitted to them (Zhang and Stephens 2009, with the prior of Vehtari et al., appendix C).

    Args:
        log_weights: unnormalised log importance weights (n,); -inf is a weight of zero.

    Returns:
        Smoothed log weights (n,), normalised to sum to one, and the shape k-hat: below 0.7 estimates by
        these weights can be trusted, ``inf`` where a tail can't be fitted, ``-inf`` where all are equal.

    Raises:
        ValueError: NaN or +inf among the weights, all of them zero, or fewer than 25.
    """
    log_weights = real_tensor("log_weights", log_weights)
    if log_weights.dim() != 1 or log_weights.numel() < 25:
        raise ValueError(f"log_weights must have shape (n,) with n >= 25, found {tuple(log_weights.shape)}")
    if bool((torch.isnan(log_weights) | (log_weights == math.inf)).any()):
        raise ValueError("log_weights must be finite or -inf; found NaN or +inf")
    if bool((log_weights == -math.inf).all()):
        raise ValueError("log_weights are all -inf: no draw has any weight")
    lw = log_weights.double() - log_weights.double().max()
    n = lw.numel()
    tail = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))
    ordered, index = lw.sort()
    cutoff = ordered[-tail - 1].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    tail = int((ordered > cutoff).sum())  # what ties with the cutoff is no part of the tail
    if float(ordered[-1] - ordered[0]) < 1e-3:
        k_hat = -math.inf  # as good as equal: what differs may be rounding alone
    elif tail <= 4:
        k_hat = math.inf
    else:
        k_hat, sigma = fit_generalised_pareto(ordered[-tail:].exp() - cutoff.exp())
        probability = (torch.arange(tail, dtype=lw.dtype, device=lw.device) + 0.5) / tail
        smooth = sigma * torch.expm1(-k_hat * torch.log1p(-probability)) / k_hat
        lw = lw.clone()
        lw[index[-tail:]] = (smooth + cutoff.exp()).log().clamp_max(0.0)
    return lw - torch.logsumexp(lw, 0), k_hat


class WeightSummary(NamedTuple):
    """What importance weights of draws of q tell: log-evidence, KL(q, p) (nats), k-hat, share of effective draws."""

    log_evidence: float
    kl: float
    k_hat: float
    effective_share: float


def summarise_weights(log_weights: Tensor) -> WeightSummary:
    """Summary of log w = log p - log q (n,) at draws of q, p unnormalised; by Pareto-smoothed weights.

    KL(q, p) is log-evidence - E_q[log w]. Weights that are not finite count as zero in the evidence and are left
    out of the mean. With fewer than 25 finite ones all is NaN and k-hat ``inf``.
    """
    lw = log_weights.double()[torch.isfinite(log_weights)]
    if len(lw) < 25:
        return WeightSummary(math.nan, math.nan, math.inf, math.nan)
    smoothed, k_hat = pareto_smooth(lw)
    # The smallest weight is never smoothed: it tells the normalisation.
    least = int(lw.argmin())
    log_evidence = float(lw[least] - smoothed[least]) - math.log(len(log_weights))
    effective = 1.0 / (len(log_weights) * float(smoothed.exp().square().sum()))
    return WeightSummary(log_evidence, log_evidence - float(lw.mean()), k_hat, effective)


def fit_generalised_pareto(exceedance: Tensor) -> tuple[float, float]:
    """Shape k and scale sigma of a generalised Pareto distribution, from sorted positive values (n,)."""
    x = exceedance.double()
    n = x.numel()
    grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = 1.0 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=x.dtype, device=x.device) - 0.5))
    b = b / (3.0 * quartile) + 1.0 / x[-1]
    k = torch.log1p(-b[:, None] * x).mean(1)
    profile = n * (torch.log(-b / k) - k - 1.0)
    weights = torch.softmax(profile, 0)
    b_mean = (weights * b).sum()
    k_mean = torch.log1p(-b_mean * x).mean()
    sigma = float(-k_mean / b_mean)
    # A weak prior that draws the shape towards 1/2, worth ten observations.
    return float((n * k_mean + 10.0 * 0.5) / (n + 10.0)), sigma


@torch.no_grad()
def trunk_weights(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> tuple[Tensor, Tensor]:
    """n base draws of the trunk (n, dim) and their exact log importance weights log p - log q_trunk (n,)."""
    base = guide.trunk_base(torch.Size((n,)))
    return base, trunk_log_weight(guide, target, base)


@torch.no_grad()
def trunk_log_weight(guide: AVBGuide, target: UnconstrainedTarget, base: Tensor) -> Tensor:
    """log p(G(e)) + log|det dG/de| - log q_base(e) at base coordinates (n, dim) -> (n,)."""
    trunk = guide.part("trunk")
    z, log_det = trunk(base)
    return (target.log_prob(z) + log_det - trunk.base_log_prob(base)).nan_to_num(-math.inf, -math.inf, -math.inf)
