"""Placing a guide's trunk where the target's mass is, before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from .starts import FULL_EFFORT, SMALL_EFFORT, Effort, find_start
from .targets import UnconstrainedTarget
from .trunks import Trunk

if TYPE_CHECKING:
    from .guides import AVBGuide

PRIOR_DRAWS = 1000


def place_by_search(guide: AVBGuide, target: UnconstrainedTarget, effort: Effort | None = None) -> None:
    """Place the trunk where a search finds the mass of the target; the guide keeps what else was found."""
    trunk, like = guide.part("trunk"), guide.anchor
    # A model that has to be run draw by draw gets fewer starts: the search would take longer than the fit.
    effort = effort or (FULL_EFFORT if target.vectorize else SMALL_EFFORT)
    # Without validation: a search that wanders off to NaN is undone, not an error.
    with pyro.validation_enabled(False):
        draws, log_q = target.broad_draws(effort.draws)
        found = find_start(
            target.log_prob,
            lambda n: target.starting_points(n).to(like),
            (draws.to(like), log_q.to(like)),
            target.layout.coordinate_names,
            effort,
        )
    guide.modes, guide.start_notes, guide.start_suspect = found.modes, found.notes, found.suspect
    if found.loc is not None and found.covariance is not None:
        placed = place(trunk, found.loc, found.covariance)
        if placed and found.modes is not None:
            trunk.start_at(found.modes)


def place_by_prior(trunk: Trunk, prior: UnconstrainedTarget, like: Tensor) -> None:
    """Place the trunk by the moments of the prior."""
    draws = prior.sample_prior(PRIOR_DRAWS).to(like)
    place(trunk, draws.mean(0), torch.cov(draws.mT).reshape(draws.shape[1], draws.shape[1]))


def place(trunk: Trunk, loc: Tensor, covariance: Tensor) -> bool:
    """Give the trunk's draws these moments, if they are sound; tells whether they were."""
    ridge = 1e-6 * torch.diag_embed(covariance.diagonal().clamp_min(1e-30))
    factor, info = torch.linalg.cholesky_ex(covariance + ridge)
    sound = int(info) == 0 and bool(torch.isfinite(factor).all()) and bool(torch.isfinite(loc).all())
    if sound:
        trunk.start(loc, factor)
    return sound
