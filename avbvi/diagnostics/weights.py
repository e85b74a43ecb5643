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
    """Smooth the largest of importance weights (Pareto-smoothed importance sampling).

    The largest weights are replaced by expected order statistics of a generalised Pareto distribution
    fitted to them (Zhang and Stephens 2009, with the prior of Vehtari et al., appendix C).

    Args:
        log_weights: unnormalised log importance weights (n,); -inf is a weight of zero.

    Returns:
        Smoothed log weights (n,), normalised to sum to one, and the shape k-hat: below 0.7 estimates by
        these weights can be trusted, ``inf`` where a tail can't be fitted, ``-inf`` where all are equal.

    Raises:
        TypeError: the weights are no real numbers.
        ValueError: NaN or +inf among the weights, all of them zero, or fewer than 25.

    Example:
        Draws of a normal of half the standard deviation cannot stand for the tails of the other:

        >>> import torch
        >>> from avbvi.diagnostics import pareto_smooth
        >>> _ = torch.manual_seed(0)
        >>> z = torch.randn(10_000)
        >>> smoothed, k_hat = pareto_smooth(-0.5 * z**2 + 0.5 * (z / 2) ** 2)  # q too wide
        >>> round(float(smoothed.exp().sum()), 6), k_hat < 0.5
        (1.0, True)
        >>> pareto_smooth(-0.5 * (2 * z) ** 2 + 0.5 * (4 * z) ** 2)[1] > 0.7  # q too narrow
        True

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
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
    """What importance weights of draws of q tell.

    Attributes:
        log_evidence: log of the mean weight (nats).
        kl: KL(q, p) (nats).
        k_hat: shape of the weights' tail; below 0.7 the others can be trusted.
        effective_share: effective draws over draws, in (0, 1].
    """

    log_evidence: float
    kl: float
    k_hat: float
    effective_share: float


def summarise_weights(log_weights: Tensor) -> WeightSummary:
    """What importance weights tell of log-evidence and KL(q, p), by Pareto smoothing.

    KL(q, p) is log-evidence - E_q[log w]. Weights that are not finite count as zero in the evidence and are left
    out of the mean. With fewer than 25 finite ones all is NaN and k-hat ``inf``.

    Args:
        log_weights: log w = log p - log q (n,) at draws of q, p unnormalised.

    Returns:
        Log-evidence and divergence in nats, k-hat, and the share of effective draws.

    Example:
        q = N(0, 2^2) for p = N(0, 1) with evidence 1: KL(q, p) = 1.5 - log 2 = 0.81 nats.

        >>> import torch
        >>> from torch.distributions import Normal
        >>> from avbvi.diagnostics import summarise_weights
        >>> _ = torch.manual_seed(0)
        >>> q, p = Normal(0.0, 2.0), Normal(0.0, 1.0)
        >>> z = q.sample((20_000,))
        >>> found = summarise_weights(p.log_prob(z) - q.log_prob(z))
        >>> round(found.log_evidence, 1) + 0.0, round(found.kl, 1), found.k_hat < 0.7
        (0.0, 0.8, True)

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72); as a
    judge of variational inference Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?, ICML.
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
    """Fit a generalised Pareto distribution to exceedances of a threshold.

    Args:
        exceedance: sorted positive values (n,).

    Returns:
        The shape k, dimensionless and drawn weakly towards 1/2, and the scale sigma in the units of the values: two
        scalars.

    Source: Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
    Technometrics 51(3); the prior of k is that of Vehtari et al. (2024), appendix C.
    """
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
    """Draws of a guide's trunk with their exact importance weights.

    Args:
        guide: set up.
        target: what it approximates.
        n: number of draws.

    Returns:
        The draws in base coordinates (n, dim), and log p - log q_trunk there (n,), in nats.
    """
    base = guide.trunk_base(torch.Size((n,)))
    return base, trunk_log_weight(guide, target, base)


@torch.no_grad()
def trunk_log_weight(guide: AVBGuide, target: UnconstrainedTarget, base: Tensor) -> Tensor:
    """Exact log importance weights of a guide's trunk, log p(G(e)) + log|det dG/de| - log q_base(e).

    Args:
        guide: set up.
        target: what it approximates.
        base: base coordinates e (n, dim).

    Returns:
        The log weights (n,) in nats; -inf where they are not finite.
    """
    trunk = guide.part("trunk")
    z, log_det = trunk(base)
    return (target.log_prob(z) + log_det - trunk.base_log_prob(base)).nan_to_num(-math.inf, -math.inf, -math.inf)
