"""What a search for a start found to be wrong with a target, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .laplace import Optima
from .lbfgs import LogDensityFunction, Paths
from .modes import LaplaceModes, gaussian_bounds
from .pathfinder import pathfinder
from .tails import axes, named_coordinates, open_directions

#: A Gaussian narrower than this many units of rounding cannot be drawn from.
_ROUNDING = 16.0
#: An end is higher than what is known if it is so by this many nats.
_HIGHER = 1.0
#: Ends of paths that found no optimum hold mass that matters if their bound is within this of the best one's (nats).
_MATTERS = 3.0


@torch.no_grad()
def what_is_wrong(
    log_prob: LogDensityFunction,
    draws: Tensor,
    covariance: Tensor,
    modes: LaplaceModes | None,
    paths: Paths | None,
    optima: Optima | None,
    names: Sequence[str],
) -> tuple[list[str], bool]:
    """Notes on tails that do not fall off, peaks that can't be resolved and optima at infinity.

    Args:
        log_prob: (n, dim) -> (n,).
        draws: approximately of the target (n, dim).
        covariance: of the start (dim, dim).
        modes: its Gaussians, if any.
        paths, optima: of the search, if any.
        names: of the coordinates.

    Returns:
        The notes, and whether no fit is to be trusted because of them. A place of high density and little mass (a
        scale near 0 in a centred hierarchical model) is worth a note, but no reason for distrust.
    """
    notes, suspect = [], False
    sd = covariance.diagonal().clamp_min(1e-30).sqrt()
    open_names = _open_coordinates(log_prob, draws, covariance, sd, paths, names)
    if open_names:
        suspect = True
        notes.append(
            f"the density does not fall off along {open_names}: the posterior seems to be improper, its optimum "
            "perhaps at infinity, and draws along it mean nothing; give these latents a proper prior, or fix them"
        )
    narrow = _unresolved(modes, names)
    if narrow:
        suspect = True
        notes.append(
            f"the density has a peak along {narrow} that is narrower than {str(sd.dtype).removeprefix('torch.')} "
            "resolves: the likelihood may be unbounded (a scale that may go to 0), or the coordinate is far from 0 for "
            "its spread; give scales a prior that keeps them from 0, centre the coordinate, or use float64"
        )
    if paths is not None and not suspect:
        note, suspect = _run_off(log_prob, paths, optima, modes, sd, draws, names)
        notes += note
    return notes, suspect


def _unresolved(modes: LaplaceModes | None, names: Sequence[str]) -> str:
    if modes is None:
        return ""
    top = int(modes.log_weights.argmax())
    rounding = _ROUNDING * torch.finfo(modes.locs.dtype).eps * modes.locs[top].abs()
    narrow = modes.covariances[top].diagonal().sqrt() < rounding
    return named_coordinates(narrow.double()[None], torch.ones_like(rounding), names) if bool(narrow.any()) else ""


def _open_coordinates(
    log_prob: LogDensityFunction,
    draws: Tensor,
    covariance: Tensor,
    sd: Tensor,
    paths: Paths | None,
    names: Sequence[str],
) -> str:
    along = axes(len(sd), sd)
    is_open = open_directions(log_prob, draws, along, torch.cat([sd, sd]))
    if bool(is_open.any()):
        return named_coordinates(along[is_open], torch.ones_like(sd), names)
    if paths is None:
        return ""
    # Combinations of coordinates: where paths went, where they ended as seen from the origin, and the widest ones.
    longest = paths.travelled(sd).argsort(descending=True)[:8]
    ends = paths.ends()[longest]
    vectors = torch.linalg.eigh((covariance / torch.outer(sd, sd)).double().nan_to_num(0.0)).eigenvectors
    widest = (sd[:, None] * vectors.to(sd))[:, -3:].mT
    along = torch.cat([ends - paths.points[longest, 0], ends, widest, -widest])
    along = along / along.norm(dim=-1, keepdim=True)
    along = along[torch.isfinite(along).all(-1)]
    is_open = open_directions(log_prob, draws, along, (along.square() @ sd.square()).sqrt())
    return named_coordinates(along[is_open], sd, names) if bool(is_open.any()) else ""


def _run_off(
    log_prob: LogDensityFunction,
    paths: Paths,
    optima: Optima | None,
    modes: LaplaceModes | None,
    sd: Tensor,
    draws: Tensor,
    names: Sequence[str],
) -> tuple[list[str], bool]:
    """A note on paths that found no optimum but a higher density than where the mass is, if any did.

    And whether there is as much mass at their ends as elsewhere, by the bound of the evidence: it may then go on
    without end.
    """
    lost = paths.ran_off.clone()
    if optima is None:
        lost |= True
    else:
        lost |= (optima.basin < 0) | ~optima.settled[optima.basin.clamp_min(0)]
    # What ended beside known optima, for rounding or for want of steps, is no discovery.
    known = draws if optima is None else torch.cat([draws, optima.modes.locs[optima.settled]])
    if len(known):
        heights = paths.values[torch.arange(len(lost), device=lost.device), paths.lengths - 1]
        lost &= heights > float(log_prob(known).nan_to_num(-torch.inf).max()) + _HIGHER
    if not bool(lost.any()):
        return [], False
    index = lost.nonzero().squeeze(-1)
    moved = (paths.ends() - paths.points[torch.arange(len(lost), device=lost.device), paths.lengths // 2])[index]
    found = (
        f"the search found no optimum from {len(index)} of {len(lost)} starts, which went off along "
        f"{named_coordinates(moved, sd, names)} to where the density is higher"
    )
    if modes is not None:
        last = pathfinder(log_prob, paths.rows(index[:16]), points=1)
        usable = torch.isfinite(last.elbos) & torch.isfinite(last.covariances).all((1, 2))
        usable &= torch.linalg.cholesky_ex(last.covariances.nan_to_num())[1] == 0
        ends = LaplaceModes(last.locs[usable], last.covariances[usable], last.elbos[usable])
        mass, here = gaussian_bounds(log_prob, ends, 200), gaussian_bounds(log_prob, modes, 200)
        if len(mass) and float(mass.max()) > float(here.max()) - _MATTERS:
            return [
                f"{found} still, and holds as much mass as anywhere else: it may be unbounded (a scale that may go to "
                "0), or its optimum lie at infinity; give these latents a prior that keeps them from there"
            ], True
    return [
        f"{found} but holds little mass by importance-weighted draws: a narrow neck, or an optimum at infinity (a "
        "scale that may go to 0); the fit starts elsewhere, and a prior that keeps this away would make it easier"
    ], False
