"""Where a sampler starts: optimisation from several points, and a Laplace approximation at each optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensityFunction = Callable[[Tensor], Tensor]
#: Draws in a group of the importance-weighted bound.
CANDIDATES = 8


class LaplaceModes(NamedTuple):
    """Gaussians at the optima of a log-density, weighted by their Laplace evidence.

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

    def shares(self, z: Tensor) -> Tensor:
        """Share of the points z (n, dim) that belongs to each mode (M,), by the Gaussians' responsibilities."""
        gaussians = torch.distributions.MultivariateNormal(self.locs, self.covariances, validate_args=False)
        return torch.softmax(gaussians.log_prob(z[:, None]) + self.log_weights, -1).mean(0)


def laplace_modes(
    log_prob: LogDensityFunction, points: Tensor, *, adam_steps: int = 200, lbfgs_steps: int = 100
) -> LaplaceModes | None:
    """Optimise from all points at once and approximate the log-density at each distinct optimum.

    Adam brings all starts near optima, L-BFGS nearer, Newton steps in whitened coordinates converge
    them; duplicates are merged. Directions in which the Hessian is not negative get the curvature of
    the others' median.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        points: starting points (n, dim).

    Returns:
        The modes, or ``None`` when no start led to a finite optimum.
    """
    finite = torch.isfinite(log_prob(points))
    if not bool(finite.any()):
        return None
    z = _adam(log_prob, points[finite], adam_steps)
    z = _lbfgs(log_prob, z, lbfgs_steps)
    with torch.no_grad():
        value = log_prob(z)
    keep = torch.isfinite(value) & torch.isfinite(z).all(-1)
    if not bool(keep.any()):
        return None
    z, covariance = _newton(log_prob, z[keep])
    with torch.no_grad():
        value = log_prob(z)
    order = value.argsort(descending=True)
    return _distinct(z[order], covariance[order], value[order])


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
    n = len(broad_log_weights)
    bounds = torch.tensor(
        [_gaussian_bound(log_prob, loc, cov, n) for loc, cov in zip(modes.locs, modes.covariances, strict=True)]
    ).to(modes.locs)
    best = float(bounds.max())
    if best == -math.inf or best < importance_bound(broad_log_weights):
        return None
    keep = bounds > best - 7.0
    return LaplaceModes(modes.locs[keep], modes.covariances[keep], torch.log_softmax(bounds[keep], 0))


def _gaussian_bound(log_prob: LogDensityFunction, loc: Tensor, covariance: Tensor, n: int) -> float:
    gaussian = torch.distributions.MultivariateNormal(loc, covariance, validate_args=False)
    z = gaussian.sample(torch.Size((n,)))
    return importance_bound(log_prob(z) - gaussian.log_prob(z))


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


def _adam(log_prob: LogDensityFunction, z: Tensor, steps: int) -> Tensor:
    """The best points of Adam's ways from all points at once, with steps that suit a point's own scale."""
    scale = 0.1 * (1.0 + z.abs().amax(-1, keepdim=True))
    offset = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, highest = z, torch.full_like(z[:, 0], -math.inf)
    for _ in range(steps):
        point = z + scale * offset
        value = log_prob(point)
        higher = value.detach() > highest  # a way may end where the density is not finite
        best, highest = torch.where(higher[:, None], point.detach(), best), torch.where(higher, value.detach(), highest)
        (gradient,) = torch.autograd.grad(-value.nan_to_num(0.0, 0.0, 0.0).sum(), offset)
        offset.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimiser.step()
        schedule.step()
    return best


def _lbfgs(log_prob: LogDensityFunction, z: Tensor, steps: int) -> Tensor:
    # In units of the optima's scale: else the first step may be too small to change the sum in float32.
    scale = 0.1 * (1.0 + z.abs().max())
    x = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [x], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        value = log_prob(z + scale * x)
        # Where the density is not finite the line search has to turn back: it can't use NaN.
        loss = -torch.where(torch.isfinite(value), value, -1e10).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        return loss

    optimiser.step(closure)
    result = (z + scale * x).detach()
    # A line search that left the support is undone, point by point.
    with torch.no_grad():
        worse = ~(log_prob(result) >= log_prob(z))
    return torch.where(worse[:, None], z, result)


def _newton(log_prob: LogDensityFunction, z: Tensor, *, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Newton's method from all points (n, dim) at once: optima (n, dim) and Laplace covariances (n, dim, dim).

    Each point has coordinates of its own, z + factor u, that are whitened anew at every step. Of a nearly
    degenerate posterior (a regression on a covariate far from zero) the Hessian in the given
    coordinates is a small difference of large numbers, which float32 loses; in whitened ones it is
    near the identity. Curvature of the wrong sign is used by its size, so that saddle points repel
    (Dauphin et al. 2014), and a step is halved until it climbs.
    """
    n, dim = z.shape
    factor = torch.eye(dim).to(z).expand(n, dim, dim)
    rounding = torch.finfo(z.dtype).eps ** 0.75
    white = False
    for _ in range(steps):
        gradient, hessian = _derivatives(log_prob, z, factor)
        curvature, vectors = _eigen(-hessian)
        # What is lost in rounding is stretched until it can be seen.
        precision = curvature.abs().clamp_min(1e-14)
        precision = torch.maximum(precision, rounding * precision.amax(-1, keepdim=True))
        slope = (vectors.mT @ gradient.double().nan_to_num(0.0, 0.0, 0.0)[:, :, None])[:, :, 0]
        step = (vectors @ (slope / precision)[:, :, None])[:, :, 0].to(z)
        converged = white and bool(((slope.square() / precision).sum(-1) < 1e-4).all())
        white = bool(((precision > 0.5) & (precision < 2.0)).all())
        if not converged:
            z = _climb(log_prob, z, (factor @ step[:, :, None])[:, :, 0])
        factor = factor @ (vectors * precision.rsqrt()[:, None, :]).to(z)
        if converged:
            break
    # At an optimum the curvature in whitened coordinates is 1; along a ridge it stays lost in rounding.
    curvature, vectors = _eigen(-_derivatives(log_prob, z, factor)[1])
    whole = (curvature > rounding).all(-1)
    factor = factor @ (vectors * curvature.clamp_min(rounding).rsqrt()[:, None, :]).to(z)
    covariance = factor @ factor.mT
    if not bool(whole.all()):
        plain = torch.eye(dim).to(z).expand(n, dim, dim)
        covariance = torch.where(whole[:, None, None], covariance, _covariance(-_derivatives(log_prob, z, plain)[1]))
    return z, 0.5 * (covariance + covariance.mT)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, dim) and eigenvectors (n, dim, dim) in float64."""
    values, vectors = torch.linalg.eigh(matrix.double().nan_to_num(0.0, 0.0, 0.0))
    return values, vectors


def _covariance(precision: Tensor) -> Tensor:
    """Inverse of precisions (n, dim, dim) whose eigenvalues, where not positive beyond rounding, are the others'
    median (1 if there are none)."""
    values, vectors = _eigen(precision)
    # Along a ridge the curvature is zero up to rounding, relative to the largest one.
    floor = (torch.finfo(precision.dtype).eps ** 0.75 * values.abs().amax(-1, keepdim=True)).clamp_min(1e-14)
    positive = values.where(values > floor, torch.nan)
    fallback = positive.nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
    values = values.where(values > floor, fallback)
    return ((vectors / values[:, None, :]) @ vectors.mT).to(precision)


def _derivatives(log_prob: LogDensityFunction, z: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n, dim) and Hessian (n, dim, dim) with respect to u at z + factor u, u = 0."""
    u = torch.zeros_like(z, requires_grad=True)
    value = log_prob(z + (factor @ u[:, :, None])[:, :, 0])
    (gradient,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    if not gradient.requires_grad:  # a density that is linear
        return gradient, torch.zeros_like(factor)
    rows = [torch.autograd.grad(gradient[:, i].sum(), u, retain_graph=True)[0] for i in range(z.shape[1])]
    hessian = torch.stack(rows, 1)
    return gradient.detach(), 0.5 * (hessian + hessian.mT)


@torch.no_grad()
def _climb(log_prob: LogDensityFunction, z: Tensor, step: Tensor, halvings: int = 8) -> Tensor:
    """z + step / 2^k (n, dim) with the smallest k for which the density is larger; z where there is none."""
    value, result = log_prob(z), z
    waiting = torch.ones(len(z), dtype=torch.bool, device=z.device)
    for k in range(halvings):
        trial = z + step * 0.5**k
        better = waiting & (log_prob(trial) > value)
        result = torch.where(better[:, None], trial, result)
        waiting = waiting & ~better
        if not bool(waiting.any()):
            break
    return result


def _distinct(z: Tensor, covariance: Tensor, value: Tensor, most: int = 32) -> LaplaceModes | None:
    """Merge optima that agree to within half a posterior sd, best first, and weight what is left, if anything."""
    dim = z.shape[-1]
    kept: list[int] = []
    factors, info = torch.linalg.cholesky_ex(covariance)
    for i in range(len(z)):
        if len(kept) == most:
            break
        if int(info[i]) or not bool(torch.isfinite(covariance[i]).all()):
            continue
        apart = torch.linalg.solve_triangular(factors[kept], (z[i] - z[kept])[:, :, None], upper=False)
        if not bool((apart.square().sum((1, 2)) < 0.25 * dim).any()):
            kept.append(i)
    if not kept:
        return None
    log_det = 2.0 * factors[kept].diagonal(dim1=1, dim2=2).log().sum(-1)
    log_weights = value[kept] + 0.5 * dim * math.log(2 * math.pi) + 0.5 * log_det
    return LaplaceModes(z[kept], covariance[kept], torch.log_softmax(log_weights, 0))
