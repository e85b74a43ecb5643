"""Several trunks of which training keeps the best."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..host_buffers import HostBuffers
from ..starts.modes import LaplaceModes
from .base import Trunk
from .flows import FlowTrunk
from .mixtures import MixtureTrunk


class BestTrunk(HostBuffers, Trunk):
    """Trunks that are fitted one after the other; the one with the highest exact ELBO is trained on.

    A mixture of Gaussians reaches separated, folded and thin shapes in few dimensions; a flow reaches shapes whose
    scale changes from place to place, in many. Which one fits a posterior is decided by the evidence bound of each.

    Args:
        candidates: the trunks, in the order in which they are fitted; by default a mixture and a flow.

    Raises:
        ValueError: fewer than two candidates.
        TypeError: a candidate is no trunk that can be trained.

    Example:
        >>> import avbvi
        >>> trunk = avbvi.BestTrunk((avbvi.MixtureTrunk(4), avbvi.FlowTrunk(layers=2, hidden=(16,))))
        >>> trunk.build(3)
        >>> type(trunk.chosen).__name__  # until training has compared them
        'MixtureTrunk'

    Source: this project's; docs/decisions.md has what it was chosen by.
    """

    is_trainable = True
    ON_HOST: ClassVar[tuple[str, ...]] = ("active",)
    active: Tensor

    def __init__(self, candidates: tuple[Trunk, ...] | None = None) -> None:
        super().__init__()
        candidates = (MixtureTrunk(), FlowTrunk()) if candidates is None else candidates
        if len(candidates) < 2:
            raise ValueError(f"candidates must be at least two trunks, found {len(candidates)}")
        for c in candidates:
            if not isinstance(c, Trunk) or not c.is_trainable:
                raise TypeError(f"candidates must be trainable trunks, found {type(c).__name__}")
        self.members: nn.ModuleList = nn.ModuleList(candidates)

    @property
    def candidates(self) -> tuple[Trunk, ...]:
        return tuple(t for t in self.members if isinstance(t, Trunk))

    @property
    def is_rebuildable(self) -> bool:
        return all(t.is_rebuildable for t in self.candidates) and super().is_rebuildable

    @property
    def chosen(self) -> Trunk:
        """The candidate that is in force."""
        return self.candidates[int(self.active)]

    @property
    def is_reparameterised(self) -> bool:  # type: ignore[override]
        return self.chosen.is_reparameterised

    def choose(self, index: int) -> None:
        """Put the candidate number ``index`` in force."""
        self.active.fill_(index)

    def _build(self, dim: int) -> None:
        self.register_on_host(active=0)
        for t in self.candidates:
            t.build(dim)

    def gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        found = [t.gaussians() for t in self.candidates]
        most = max(len(log_weights) for log_weights, _, _ in found)
        log_weights, locs, scale_trils = found[int(self.active)]
        # The number of Gaussians must not depend on the choice: a component is repeated, its weight shared.
        repeat = torch.arange(most, device=log_weights.device) % len(log_weights)
        counts = torch.bincount(repeat)[repeat].to(log_weights)
        return log_weights[repeat] - counts.log(), locs[repeat], scale_trils[repeat]

    def start(self, loc: Tensor, scale_tril: Tensor) -> None:
        for t in self.candidates:
            t.start(loc, scale_tril)

    def start_at(self, modes: LaplaceModes) -> None:
        for t in self.candidates:
            t.start_at(modes)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        return self.chosen.forward(e)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.chosen.inverse(z)

    def reference_coordinates(self, z: Tensor) -> Tensor:
        return self.chosen.reference_coordinates(z)

    def sample_base(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        return self.chosen.sample_base(shape, like=like)

    def weighted_base(self, n: int, *, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.chosen.weighted_base(n, like=like)

    def base_log_prob(self, e: Tensor) -> Tensor:
        return self.chosen.base_log_prob(e)
