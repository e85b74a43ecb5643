"""Laplace approximations: the distinct optima that several paths lead to, with the curvature there."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..second_order import SecondOrder
from .lbfgs import LogDensityFunction, Paths, climb_paths, value_and_gradient
from .modes import LaplaceModes

#: Optima that are kept, and endpoints that Newton's method takes up at once.
MOST_MODES, _AT_ONCE = 32, 8
#: So many groups of ends in a row none of which settled, and the rest is given up.
_PATIENCE = 2
#: Squared distance per dimension, in posterior sds, below which optima are the same.
SAME = 0.25
#: Gain in nats that Newton's method may still promise at a point that counts as an optimum.
_SETTLED = 0.5


class Optima(NamedTuple):
    """Distinct optima with their Laplace approximations, best first, and which paths led there.

    ``basin`` (n,) is the index of each path's optimum, -1 where it ended at none; ``settled`` (M,) tells at which
    the density is stationary.
    """

    modes: LaplaceModes
    basin: Tensor
    settled: Tensor

    def has_rare(self) -> bool:
        """Whether a single path ended at some optimum: others have perhaps been missed (Good 1953)."""
        counts = torch.bincount(self.basin[self.basin >= 0], minlength=len(self.settled))
        return bool(((counts == 1) & self.settled).any())


def laplace_modes(log_prob: LogDensityFunction, points: Tensor, *, evaluations: int = 200) -> LaplaceModes | None:
    """Optimise from all points and approximate the log-density at each distinct optimum.

    L-BFGS brings each start near an optimum, Newton steps in whitened coordinates converge it; duplicates are
    merged. Directions in which the Hessian is not negative get the curvature of the others' median.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        points: starting points (n, dim).
        evaluations: of the log-density and its gradient at all points together, before Newton's steps.

    Returns:
        The modes, or ``None`` when no start led to a finite optimum.
    """
    with torch.no_grad():
        finite = torch.isfinite(log_prob(points))
    if not bool(finite.any()):
        return None
    optima = distinct_optima(log_prob, climb_paths(log_prob, points[finite], evaluations))
    return None if optima is None else optima.modes


def distinct_optima(log_prob: LogDensityFunction, paths: Paths, known: Optima | None = None) -> Optima | None:
    """Converge the paths' ends, best first, by Newton's method; those near an optimum known already are spared.

    Paths that ran off are left out. ``known`` are optima of some of these paths, found before.
    """
    ends = paths.ends()
    value = paths.values[torch.arange(len(ends)), paths.lengths - 1]
    waiting = (torch.isfinite(value) & ~paths.ran_off).nonzero().squeeze(-1)
    waiting = waiting[value[waiting].argsort(descending=True)]
    dim = ends.shape[1]
    basin = torch.full((len(ends),), -1, device=ends.device)
    locs, covariances = ends.new_zeros(0, dim), ends.new_zeros(0, dim, dim)
    factors = covariances
    heights, settled = ends.new_zeros(0), basin.new_zeros(0, dtype=torch.bool)
    if known is not None:
        locs, covariances, settled = known.modes.locs, known.modes.covariances, known.settled
        factors = torch.linalg.cholesky(covariances)
        with torch.no_grad():
            heights = log_prob(locs)
        waiting = _sent_home(locs, factors, ends, waiting, basin)
    fruitless = 0
    while len(waiting) and len(locs) < MOST_MODES and fruitless < _PATIENCE:
        taken, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
        z, covariance, decrement = _newton(log_prob, ends[taken])
        with torch.no_grad():
            reached = log_prob(z)
        factor, info = torch.linalg.cholesky_ex(covariance)
        fruitless = 0 if bool((decrement < _SETTLED).any()) else fruitless + 1
        whole = (info == 0) & torch.isfinite(factor).all((1, 2)) & torch.isfinite(z).all(1) & torch.isfinite(reached)
        for i in range(len(taken)):
            if not bool(whole[i]):
                continue
            home = _nearest(locs, factors, z[i])
            if home < 0 and len(locs) < MOST_MODES:
                home = len(locs)
                locs, factors = torch.cat([locs, z[i : i + 1]]), torch.cat([factors, factor[i : i + 1]])
                covariances = torch.cat([covariances, covariance[i : i + 1]])
                heights = torch.cat([heights, reached[i : i + 1]])
                settled = torch.cat([settled, decrement[i : i + 1] < _SETTLED])
            basin[taken[i]] = home
        waiting = _sent_home(locs, factors, ends, waiting, basin)
    if not len(locs):
        return None
    log_det = 2.0 * factors.diagonal(dim1=1, dim2=2).log().sum(-1)
    evidence = heights + 0.5 * dim * math.log(2 * math.pi) + 0.5 * log_det
    order = heights.argsort(descending=True)
    rank = order.argsort()
    modes = LaplaceModes(locs, covariances, evidence).picked(order, evidence[order])
    return Optima(modes, torch.where(basin < 0, basin, rank[basin]), settled[order])


def _sent_home(locs: Tensor, factors: Tensor, ends: Tensor, waiting: Tensor, basin: Tensor) -> Tensor:
    """Enter the optima that the waiting ends are near in ``basin``; what is left waits on."""
    homes = [_nearest(locs, factors, ends[i]) for i in waiting.tolist()]
    basin[waiting] = torch.tensor(homes, dtype=basin.dtype, device=basin.device)
    return waiting[basin[waiting] < 0]


def _nearest(locs: Tensor, factors: Tensor, z: Tensor) -> int:
    """Index of the optimum that z (dim,) agrees with to within half a posterior sd, the nearest; -1 for none."""
    if not len(locs):
        return -1
    apart = torch.linalg.solve_triangular(factors, (z - locs)[:, :, None], upper=False).square().sum((1, 2))
    nearest = int(apart.argmin())
    return nearest if float(apart[nearest]) < SAME * z.shape[0] else -1


def _newton(log_prob: LogDensityFunction, z: Tensor, *, steps: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Newton's method from all points (n, dim) at once: optima (n, dim), Laplace covariances (n, dim, dim), and twice
    the gain (n,) in nats that a further step would promise.

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
    plain = torch.eye(dim).to(z).expand(n, dim, dim)
    whole = (curvature > rounding).all(-1)
    factor = factor @ (vectors * curvature.clamp_min(rounding).rsqrt()[:, None, :]).to(z)
    covariance = factor @ factor.mT
    if not bool(whole.all()):
        covariance = torch.where(whole[:, None, None], covariance, _covariance(-_derivatives(log_prob, z, plain)[1]))
    covariance = 0.5 * (covariance + covariance.mT)
    _, gradient = value_and_gradient(log_prob, z)
    return z, covariance, (gradient * (covariance.double() @ gradient[:, :, None])[:, :, 0]).sum(-1)


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


@torch.enable_grad()
def _derivatives(log_prob: LogDensityFunction, z: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n, dim) and Hessian (n, dim, dim) with respect to u at z + factor u, u = 0."""
    u = torch.zeros_like(z, requires_grad=True)
    with SecondOrder():
        value = log_prob(z + (factor @ u[:, :, None])[:, :, 0])
    if not value.requires_grad:  # a density that is constant
        return torch.zeros_like(z), torch.zeros_like(factor)
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
