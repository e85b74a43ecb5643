"""The search for a start: optimisation from many points, Gaussians along the way, the best kept by their evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .laplace import Optima, distinct_optima
from .lbfgs import LogDensityFunction, Paths, climb_paths
from .modes import LEAST_EVIDENCE, LaplaceModes, gaussian_bounds, importance_bound
from .notes import what_is_wrong
from .pathfinder import pathfinder
from .refine import improved_gaussians, weights_by_draws

#: A coarse bound that is this many nats below the best is not looked at again.
_HOPELESS = 20.0
#: What broad draws, or a Gaussian of their moments, must be better by, in nats, to replace the modes.
_BROAD_MARGIN = 2.0
#: What Pathfinder's Gaussian must be better by than Laplace's at the same optimum: its noise differs from mode to mode.
_PATH_MARGIN = 2.0
#: Fewer draws than this are not worth moving Gaussians for.
_LEAST_TO_IMPROVE = 500


class Effort(NamedTuple):
    """How much a search may cost.

    Args:
        starts: points to optimise from, in each of at most ``rounds`` rounds.
        rounds: another is made while some optimum was reached only once, others therefore perhaps not at all.
        evaluations: of the gradient at all points together, per round.
        path_points, path_draws: Gaussians tried along a path, and draws of each.
        draws: of each Gaussian that is judged.
        ray_draws: draws from which the tails are looked at.
    """

    starts: int = 64
    rounds: int = 2
    evaluations: int = 200
    path_points: int = 24
    path_draws: int = 8
    draws: int = 1000
    ray_draws: int = 32


FULL_EFFORT = Effort()
#: For log-densities that have to be evaluated point by point.
SMALL_EFFORT = Effort(4, 1, 100, 6, 4, 80, 2)


@dataclass(frozen=True)
class Start:
    """Where to start.

    ``modes`` are the Gaussians that describe the target best, ``None`` where broad draws did better; ``loc`` (dim,)
    and ``covariance`` (dim, dim) are the moments to start from, ``None`` where nothing finite was found. ``notes``
    say in words what was found to be wrong; ``suspect`` tells whether a fit can't be trusted because of it.
    """

    modes: LaplaceModes | None
    loc: Tensor | None
    covariance: Tensor | None
    notes: list[str] = field(default_factory=list)
    suspect: bool = False


class _Candidates(NamedTuple):
    """Gaussians, the optimum that each stands for (``basin``, -1 for none), and what is deducted from its bound."""

    locs: Tensor
    covariances: Tensor
    basin: Tensor
    margin: Tensor

    def rows(self, index: Tensor) -> _Candidates:
        return _Candidates(*(part[index] for part in self))

    def as_modes(self) -> LaplaceModes:
        return LaplaceModes(self.locs, self.covariances, self.locs.new_zeros(len(self.locs)))


@torch.no_grad()
def find_start(
    log_prob: LogDensityFunction,
    points: Callable[[int], Tensor],
    broad: tuple[Tensor, Tensor],
    names: Sequence[str],
    effort: Effort = FULL_EFFORT,
) -> Start:
    """Find Gaussians that a fit of ``log_prob`` can start from, and say what is wrong with it.

    L-BFGS from ``effort.starts`` points; at each distinct optimum the Laplace approximation and the best Pathfinder
    Gaussian of the paths that led there, whichever has the larger importance-weighted bound of the evidence;
    Pathfinder's alone where a path led to none. They are weighted by their evidence, and kept within 7 nats of the
    best. A Gaussian of the broad draws' moments, moved towards the target by importance-weighted draws, or these draws
    themselves are taken in their place where they have the larger bound.

    Args:
        log_prob: (n, dim) -> (n,), differentiable; may be NaN or infinite in places.
        points: gives n starting points (n, dim).
        broad: draws (n, dim) of a broad density, the prior say, and their log-density (n,).
        names: of the dim coordinates, for the notes.
        effort: what the search may cost.
    """
    log_prob = tolerant(log_prob)
    broad_weights = log_prob(broad[0]) - broad[1]
    broad_bound = importance_bound(broad_weights)
    starting = points(effort.starts)
    starting = starting[torch.isfinite(log_prob(starting))]
    if len(starting) == 0:
        return _from_broad(log_prob, broad, broad_weights, names, None, None, effort)
    paths = climb_paths(log_prob, starting, effort.evaluations)
    optima = distinct_optima(log_prob, paths)
    for _ in range(effort.rounds - 1):
        if optima is None or not optima.has_rare():
            break
        more = torch.cat([points(effort.starts // 2), _around(optima.modes, effort.starts // 2)])
        more = more[torch.isfinite(log_prob(more))]
        if len(more) == 0:
            break
        paths = paths.and_more(climb_paths(log_prob, more, effort.evaluations))
        optima = distinct_optima(log_prob, paths, optima)
    candidates = _candidates(log_prob, paths, optima, effort)
    kept, bounds = _best_of_each(log_prob, candidates, effort)
    if kept is None:
        return _from_broad(log_prob, broad, broad_weights, names, paths, optima, effort)
    modes = kept.as_modes()._replace(log_weights=torch.log_softmax(bounds, 0))
    if effort.draws >= _LEAST_TO_IMPROVE:
        # Few modes can afford more draws each: equal ones are then described equally well.
        n = max(effort.draws, min(4, 16 // len(modes.locs)) * effort.draws)
        modes, bounds = improved_gaussians(log_prob, modes, bounds, n)
        modes = weights_by_draws(log_prob, modes, n)
        alive = (modes.log_weights > -LEAST_EVIDENCE).nonzero().squeeze(-1)
        modes = modes.picked(alive, modes.log_weights[alive])
    z, log_q = modes.draw(effort.draws)
    bound = importance_bound(log_prob(z) - log_q)
    wide = _broad_gaussian(log_prob, broad, broad_weights, effort)
    if wide is not None and wide[1] > bound + _BROAD_MARGIN:
        modes, bound = wide
    if broad_bound > bound + _BROAD_MARGIN:
        return _from_broad(log_prob, broad, broad_weights, names, paths, optima, effort)
    z, log_q = modes.draw(max(effort.draws // 4, 2 * effort.ray_draws))
    loc, covariance = modes.moments()
    draws = _resampled(z, log_prob(z) - log_q, effort.ray_draws)
    notes, suspect = what_is_wrong(log_prob, draws, covariance, modes, paths, optima, names)
    return Start(modes, loc, covariance, notes, suspect)


def tolerant(log_prob: LogDensityFunction) -> LogDensityFunction:
    """The log-density with -inf at points where it raises an error (a matrix that is not positive, say).

    A batch that fails is halved until the points at fault are alone; if all fail, the error is raised.
    """

    def safe(z: Tensor) -> Tensor:
        try:
            return log_prob(z)
        except (RuntimeError, ValueError):
            if len(z) < 2:
                raise
        parts, failure, failed = [], None, 0
        for part in (z[: len(z) // 2], z[len(z) // 2 :]):
            try:
                parts.append(safe(part))
            except (RuntimeError, ValueError) as error:
                failure, failed = error, failed + 1
                parts.append(part.sum(-1) * 0.0 - math.inf)
        if failed == len(parts) and failure is not None:
            raise failure
        return torch.cat(parts)

    return safe


def _around(modes: LaplaceModes, n: int) -> Tensor:
    """Points (n, dim) of a normal with twice the covariance of all the modes together."""
    loc, covariance = modes.moments()
    even = modes._replace(log_weights=torch.zeros_like(modes.log_weights).log_softmax(0))
    if len(modes.locs) > 1:
        loc, covariance = even.moments()
    factor, info = torch.linalg.cholesky_ex(2.0 * covariance)
    if int(info) or not bool(torch.isfinite(factor).all()):
        return modes.locs[:0]
    return loc + torch.randn(n, len(loc), dtype=loc.dtype).to(loc.device) @ factor.mT


def _candidates(log_prob: LogDensityFunction, paths: Paths, optima: Optima | None, effort: Effort) -> _Candidates:
    basin = torch.full_like(paths.lengths, -1) if optima is None else optima.basin
    # Eight paths of each basin tell as much as all of them.
    chosen = torch.cat([(basin == b).nonzero().squeeze(-1)[: 8 if b >= 0 else 24] for b in basin.unique().tolist()])
    chosen = chosen[~paths.ran_off[chosen]]
    found = []
    if optima is not None:
        index = torch.arange(len(optima.settled), device=basin.device)
        found.append(_Candidates(optima.modes.locs, optima.modes.covariances, index, torch.zeros_like(index).double()))
    if len(chosen):
        gaussians = pathfinder(log_prob, paths.rows(chosen), points=effort.path_points, draws=effort.path_draws)
        usable = torch.isfinite(gaussians.elbos)
        for b in basin[chosen].unique().tolist():
            mine = ((basin[chosen] == b) & usable).nonzero().squeeze(-1)
            mine = mine[gaussians.elbos[mine].argsort(descending=True)][: 1 if b >= 0 else 8]
            margin = torch.full_like(gaussians.elbos[mine], _PATH_MARGIN if b >= 0 else 0.0)
            at = torch.full_like(mine, b)
            found.append(_Candidates(gaussians.locs[mine], gaussians.covariances[mine], at, margin))
    if not found:
        like = paths.points
        empty = like.new_zeros(0, like.shape[2])
        return _Candidates(empty, empty[:, :, None] @ empty[:, None], basin[:0], empty[:, 0].double())
    return _Candidates(*(torch.cat(part) for part in zip(*found, strict=True)))


def _best_of_each(
    log_prob: LogDensityFunction, candidates: _Candidates, effort: Effort
) -> tuple[_Candidates | None, Tensor]:
    """The candidates of the largest bound, one for each optimum, and those of no optimum that lie elsewhere."""
    _, info = torch.linalg.cholesky_ex(candidates.covariances)
    fine = (info == 0) & torch.isfinite(candidates.covariances).all((1, 2)) & torch.isfinite(candidates.locs).all(1)
    candidates = candidates.rows(fine.nonzero().squeeze(-1))
    coarse = gaussian_bounds(log_prob, candidates.as_modes(), max(effort.draws // 4, 80))
    promising = (coarse > coarse.max() - _HOPELESS) if len(coarse) else torch.zeros(0, dtype=torch.bool)
    index = (promising & torch.isfinite(coarse)).nonzero().squeeze(-1)
    if len(index) == 0:
        return None, coarse
    candidates = candidates.rows(index)
    bounds = gaussian_bounds(log_prob, candidates.as_modes(), effort.draws)
    kept: list[int] = []
    for i in (bounds - candidates.margin.to(bounds)).argsort(descending=True).tolist():
        if bounds[i] < bounds.max() - LEAST_EVIDENCE:
            continue
        basin = int(candidates.basin[i])
        same = [k for k in kept if int(candidates.basin[k]) == basin >= 0]
        # A Gaussian that stands for no optimum is kept where no other one lies, one for an optimum always.
        if not same and (basin >= 0 or not _covered(candidates, kept, i)):
            kept.append(i)
    index = torch.tensor(kept, device=bounds.device)
    return candidates.rows(index), bounds[index]


def _covered(candidates: _Candidates, kept: list[int], i: int) -> bool:
    dim = candidates.locs.shape[1]
    for k in kept:
        apart = candidates.locs[i] - candidates.locs[k]
        for j in (i, k):
            factor = torch.linalg.cholesky(candidates.covariances[j])
            if float(torch.linalg.solve_triangular(factor, apart[:, None], upper=False).square().sum()) < 2.0 * dim:
                return True
    return False


def _broad_gaussian(
    log_prob: LogDensityFunction, broad: tuple[Tensor, Tensor], log_weights: Tensor, effort: Effort
) -> tuple[LaplaceModes, float] | None:
    """A Gaussian with the moments of the broad draws, moved towards the target, and its bound."""
    inside = broad[0][torch.isfinite(log_weights)]
    if effort.draws < _LEAST_TO_IMPROVE or len(inside) < 4 * broad[0].shape[1]:
        return None
    covariance = torch.cov(inside.mT).reshape(2 * (inside.shape[1],))
    if int(torch.linalg.cholesky_ex(covariance)[1]) or not bool(torch.isfinite(covariance).all()):
        return None
    wide = LaplaceModes(inside.mean(0)[None], covariance[None], covariance.new_zeros(1))
    bounds = gaussian_bounds(log_prob, wide, effort.draws)
    wide, bounds = improved_gaussians(log_prob, wide, bounds, effort.draws, rounds=10, tempered=True)
    return wide, float(bounds)


def _resampled(z: Tensor, log_weights: Tensor, n: int) -> Tensor:
    finite = torch.isfinite(log_weights)
    if not bool(finite.any()):
        return z[:0]
    weights = torch.softmax(log_weights[finite].double(), 0)
    return z[finite][torch.multinomial(weights, n, replacement=True)]


def _from_broad(
    log_prob: LogDensityFunction,
    broad: tuple[Tensor, Tensor],
    log_weights: Tensor,
    names: Sequence[str],
    paths: Paths | None,
    optima: Optima | None,
    effort: Effort,
) -> Start:
    inside = broad[0][torch.isfinite(log_weights)]
    if len(inside) < 2:
        note = (
            "the log-density is finite at hardly any broad draw and no optimum was found: give init= inside the support"
        )
        return Start(None, None, None, [note], suspect=True)
    covariance = torch.cov(inside.mT).reshape(2 * (inside.shape[1],))
    draws = _resampled(broad[0], log_weights, effort.ray_draws)
    notes, suspect = what_is_wrong(log_prob, draws, covariance, None, paths, optima, names)
    return Start(None, inside.mean(0), covariance, notes, suspect)
