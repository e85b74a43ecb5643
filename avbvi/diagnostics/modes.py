"""Modes that the start found and the draws dropped or mis-weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .limits import LEAST_MODE_SHARE, LEAST_MODE_WEIGHT

if TYPE_CHECKING:
    from ..guides import AVBGuide


@dataclass(frozen=True)
class ModeShares:
    """The modes that the start found: how much each should hold, and how many draws it got.

    A point belongs to a mode by the responsibilities of the Laplace approximations: rough where modes overlap.

    Attributes:
        weights: of the M modes (M,), by their importance-weighted evidence; they sum to 1.
        shares: of the draws (M,); they sum to 1.
    """

    weights: Tensor
    shares: Tensor

    @property
    def lost(self) -> Tensor:
        """Which modes of weight above .05 got less than a tenth of it (M,)."""
        return (self.weights > LEAST_MODE_WEIGHT) & (self.shares < LEAST_MODE_SHARE * self.weights)

    @property
    def total_variation(self) -> float:
        """Half of the sum of |share - weight|: the mass that is in the wrong mode."""
        return 0.5 * float((self.shares - self.weights).abs().sum())


@torch.no_grad()
def mode_shares(guide: AVBGuide, z: Tensor) -> ModeShares | None:
    """Shares of a guide's draws by the modes that its start found.

    Args:
        guide: set up and started.
        z: unconstrained draws (n, dim); those that are not finite are left out.

    Returns:
        The modes' weights and shares (M,); ``None`` if the start found fewer than two, or no draw is finite.
    """
    if guide.modes is None or len(guide.modes.locs) < 2:
        return None
    inside = z[torch.isfinite(z).all(-1)]
    if not len(inside):
        return None
    return ModeShares(guide.modes.log_weights.exp(), guide.modes.shares(inside))
