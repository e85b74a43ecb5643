"""The first stage of a run: candidates for the trunk are fitted in turn, the best is trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from . import distributed
from .diagnostics import pareto_smooth, trunk_weights
from .schedules import OpenEnded, Schedule
from .trunks import BestTrunk, Trunk

if TYPE_CHECKING:
    from .guides import AVBGuide
    from .targets import UnconstrainedTarget

DECISION_DRAWS = 8000
#: From 1 on the weights have no mean: they say nothing of the evidence.
LARGEST_K_HAT = 1.0


class TrunkStage:
    """Where a guide stands in its trunk stage.

    Args:
        guide: the guide, set up.
        schedule: division of the run.
        share: the trunk stage's share of the run, where an adversarial stage follows.
        target: what the guide approximates; ``None`` where it has no joint density of its own.
        weighted: whether the loss takes weighted draws; if not, candidates that need them are left out.
        length: of a run that a stopping rule ends.
    """

    def __init__(
        self,
        guide: AVBGuide,
        schedule: Schedule,
        share: float,
        target: UnconstrainedTarget | None,
        *,
        weighted: bool,
        length: OpenEnded | None = None,
    ) -> None:
        self.guide: AVBGuide = guide
        self.schedule: Schedule = schedule
        self.target: UnconstrainedTarget | None = target
        self.trunk: Trunk = guide.part("trunk")
        self.share: float = 1.0 if bool(guide.trunk_suffices) else share
        candidates = self.trunk.candidates
        self.usable: list[int] = [i for i, t in enumerate(candidates) if weighted or t.is_reparameterised]
        if not self.usable:
            raise ValueError(
                f"trunk={type(candidates[0]).__name__}() is fitted from weighted draws, which this loss does not take; "
                "use trunk=FlowTrunk(), or AdversarialELBO() around a plain Trace_ELBO with vectorised particles"
            )
        self.race: float = schedule.race * share if target is not None else 0.0
        self.length = length
        if length is not None:
            length.share = self.share

    def advance(self, progress: float) -> tuple[float, float]:
        """Beta and the learning rate's factor at a point of the run; puts the right candidate in force.

        With several candidates each gets an equal part of the race. It ends early when one is good enough.
        """
        raced = self._raced(progress)
        if raced >= 1.0 or len(self.usable) == 1 or bool(self.guide.trunk_decided):
            if not bool(self.guide.trunk_decided):
                self._decide()
            return self._alone(progress)
        leg, within = divmod(raced * len(self.usable), 1.0)
        index = self.usable[int(leg)]
        if int(leg) and self._active() != index:
            # The last candidate is done. Good enough? Then the others need not be tried.
            if self._suffices():
                self._settle()
                return self._alone(progress)
            self._put_in_force(index)
        elif self._active() != index:
            self._put_in_force(index)
        floor = self.schedule.race_floor
        beta = self.schedule.beta(within) if self.trunk.candidates[index].is_annealed else 1.0
        return beta, floor + (1.0 - floor) * self.schedule.factor(within)

    def _raced(self, progress: float) -> float:
        if self.length is not None and self.target is not None:
            return int(self.guide.step_count) / self.length.warm
        return progress / self.race if self.race else 1.0

    def _alone(self, progress: float) -> tuple[float, float]:
        """The one trunk in force is trained to the end of the stage."""
        annealed = self.trunk.candidates[self._active()].is_annealed
        if self.length is not None:
            warmed, decayed = self.length.trunk_progress(int(self.guide.step_count))
            if len(self.usable) > 1:
                return 1.0, self.schedule.race_floor * self.schedule.factor(decayed)
            return self.schedule.beta(warmed) if annealed else 1.0, self.schedule.factor(decayed)
        if len(self.usable) == 1 or self.race == 0.0:
            done = progress / self.share
            return self.schedule.beta(done) if annealed else 1.0, self.schedule.factor(done)
        done = max(progress - self.race, 0.0) / (self.share - self.race)
        return 1.0, self.schedule.race_floor * self.schedule.factor(done)

    def _active(self) -> int:
        return int(self.trunk.active) if isinstance(self.trunk, BestTrunk) else 0

    def _put_in_force(self, index: int) -> None:
        for p in self.trunk.parameters():
            p.grad = None  # gradients of zero would still move the others, by Adam's momentum
        if isinstance(self.trunk, BestTrunk):
            self.trunk.choose(index)

    def _decide(self) -> None:
        """The end of the race: the candidate of the highest exact ELBO stays."""
        if self.target is None or len(self.usable) == 1:
            self._put_in_force(self.usable[0])
        else:
            elbos = []
            for index in self.usable:
                self._put_in_force(index)
                elbos.append(self._log_weights().mean())
            best = torch.stack(elbos).nan_to_num(-math.inf).argmax()
            self._put_in_force(distributed.agreed(self.usable[int(best)]))
        if len(self.usable) > 1 and self._suffices():
            self._settle()
        self.guide.trunk_decided.fill_(True)

    def _settle(self) -> None:
        self.guide.trunk_suffices.fill_(True)
        self.guide.trunk_decided.fill_(True)
        self.share = 1.0
        if self.length is not None:
            self.length.share = 1.0

    def _suffices(self) -> bool:
        """Whether the trunk in force is close enough to the posterior to gain more from its own training.

        KL(q, p) is taken from the trunk's exact importance weights, log Z less ELBO.
        """
        if self.target is None:
            return False
        return distributed.agreed(self._weighs_enough(self._log_weights()))

    def _weighs_enough(self, log_weights: torch.Tensor) -> bool:
        if not bool(torch.isfinite(log_weights).all()):
            return False
        _, k_hat = pareto_smooth(log_weights)
        log_z = float(torch.logsumexp(log_weights, 0)) - math.log(len(log_weights))
        return k_hat < LARGEST_K_HAT and log_z - float(log_weights.mean()) < self.schedule.settle

    def _log_weights(self) -> torch.Tensor:
        assert self.target is not None
        return trunk_weights(self.guide, self.target, DECISION_DRAWS)[1].double()
