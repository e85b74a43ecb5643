"""How a run is divided: trunk stage, adversarial stage, annealing, learning-rate decay."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arguments import flag, number
from .masking import skipping
from .stopping import Stopping

#: What a step of the adversarial stage costs, in steps of the trunk's: runs of given steps and runs of given
#: minutes are divided alike.
ADVERSARIAL_STEP_COST = 4.0
#: Runs that a stopping rule ends: steps of annealing, and of decay as a share of those before it.
ANNEAL_STEPS = 1000
#: Pyro takes no weight of zero.
LEAST_KL_WEIGHT = 1e-3
DECAY_SHARE = 0.25


@dataclass(frozen=True)
class Schedule:
    """Fractions of a run given to its parts.

    Args:
        trunk: share of the run's work in which a trainable trunk is fitted by the plain ELBO, before it is frozen;
            1 fits the trunk alone.
        race: share of the trunk stage in which the candidates of a :class:`~avbvi.BestTrunk` are fitted in turn,
            before the best of them is trained on.
        race_floor: learning rate at the end of a candidate's part of the race, relative to its start.
        settle: KL(q, p), by the trunk's importance weights, below which one of several candidates is trained to the
            end of the run, without rival and adversarial stage; 0 always runs all.
        anneal: share of the first trained stage in which beta rises from ``beta_start`` to 1; the
            target is beta log p + (1 - beta) log N(0, 2^2 I), the Gaussian in the start's coordinates.
        beta_start: where annealing begins.
        polish: share at the end of the adversarial stage in which the sampler rests and the adversary
            learns on, so that the reported ELBO is that of the final sampler.
        decay: cosine decay of the learning rates to zero within each stage.
        average: decay of the moving average of the sampler's weights that the final sampler takes.
        adversary_floor: least learning rate of the adversary before the polish, relative to its start.
        kl_warm_up: share of an amortised guide's run in which the weight of log q(z | x) - log p(z) rises to 1.

    Raises:
        TypeError: a share that is no number, or ``decay`` no bool.
        ValueError: a share outside [0, 1) (``trunk``: [0, 1]), ``beta_start`` outside (0, 1], or a negative ``settle``.

    Example:
        >>> import avbvi
        >>> schedule = avbvi.Schedule(trunk=0.5, anneal=0.2)  # AdversarialELBO(schedule=schedule)
        >>> schedule.beta(0.0), schedule.beta(0.2)
        (0.1, 1.0)
        >>> [round(schedule.factor(t), 2) for t in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]

    Source: annealing of variational objectives, Rezende and Mohamed (2015), Variational inference with normalizing
    flows, ICML; the cosine, Loshchilov and Hutter (2017), SGDR, ICLR; a warm-up of the KL term, Bowman et
    al. (2016), Generating sentences from a continuous space, CoNLL; averaged weights, Polyak and Juditsky (1992),
    SIAM J. Control Optim. 30(4). The division into stages is this project's.
    """

    trunk: float = 0.7
    race: float = 0.6
    race_floor: float = 0.5
    settle: float = 0.2
    anneal: float = 0.3
    beta_start: float = 0.1
    polish: float = 0.07
    decay: bool = True
    average: float = 0.999
    adversary_floor: float = 0.1
    kl_warm_up: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "trunk",
            "race",
            "race_floor",
            "settle",
            "anneal",
            "beta_start",
            "polish",
            "average",
            "adversary_floor",
            "kl_warm_up",
        ):
            number(f"Schedule({name}=...)", getattr(self, name))
        flag("Schedule(decay=...)", self.decay)
        if not 0.0 <= self.trunk <= 1.0:
            raise ValueError(f"Schedule(trunk=...) must be in [0, 1], found {self.trunk}")
        for name in ("race", "race_floor", "anneal", "polish", "average", "adversary_floor", "kl_warm_up"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"Schedule({name}=...) must be in [0, 1), found {getattr(self, name)}")
        if not self.settle >= 0.0:
            raise ValueError(f"Schedule(settle=...) must not be negative, found {self.settle}")
        if not 0.0 < self.beta_start <= 1.0:
            raise ValueError(f"Schedule(beta_start=...) must be in (0, 1], found {self.beta_start}")

    @property
    def trunk_share_of_steps(self) -> float:
        """The trunk's share of a run that is counted in steps, for its share of the work; a fraction in [0, 1]."""
        weight = ADVERSARIAL_STEP_COST * self.trunk
        return weight / (weight + 1.0 - self.trunk)

    def beta(self, stage_progress: float) -> float:
        """Inverse temperature in (0, 1] when ``stage_progress``, in [0, 1], of the first trained stage is done."""
        if stage_progress >= self.anneal:
            return 1.0
        return self.beta_start + (1.0 - self.beta_start) * stage_progress / self.anneal

    def kl_weight(self, progress: float) -> float:
        """Weight in (0, 1] of log q(z | x) - log p(z) when ``progress``, in [0, 1], of an amortised run is done."""
        return min(max(progress, LEAST_KL_WEIGHT) / self.kl_warm_up, 1.0) if self.kl_warm_up else 1.0

    def factor(self, progress: float) -> float:
        """Learning rate relative to its start, half a cosine down to zero, at ``progress`` in [0, 1] of the stage."""
        return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))) if self.decay else 1.0


class ScheduledAdam(torch.optim.Adam):
    """Adam whose learning rates, each group's own, are multiplied by ``factor()`` at every step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        *,
        factor: Callable[[], float],
    ) -> None:
        self._rates: list[float] = []
        super().__init__(params, lr=lr, betas=betas, fused=True)
        self._factor = factor

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._rates.append(float(self.param_groups[-1]["lr"]))

    def step(self, closure: Any = None) -> Any:
        for group, lr in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = lr * self._factor()
        return super().step(closure)

    def masked_step(self, factor: Tensor, skipped: Tensor) -> None:
        """A step at ``factor`` () times the rates that changes nothing where ``skipped`` (), float32, is 1."""
        for group, lr in zip(self.param_groups, self._rates, strict=True):
            # The kernel takes a tensor in float32 only.
            group["lr"] = (lr * factor).float()
        with skipping(self, skipped):
            super().step()


class Clock:
    """Progress by wall time, for runs of given length in minutes."""

    def __init__(self, seconds: float, started: float | None = None) -> None:
        self.seconds = seconds
        self.started: float = time.monotonic() if started is None else started

    def progress(self) -> float:
        """Share of the time that has passed, at most 1."""
        return min((time.monotonic() - self.started) / self.seconds, 1.0)


class OpenEnded:
    """Length of a run whose trunk stage lasts until a stopping rule ends it: warm-up, stable, decay.

    Annealing takes a fixed number of steps; then the learning rate stays at its start until the rule fires and decays
    over DECAY_SHARE of the steps done by then. The adversarial stage has its usual share of the whole. Without the
    rule firing the decay begins in time for the run to end after ``most`` steps. ``candidates`` is the number of
    trunks among which the annealing steps, as many for each, are to choose.
    """

    def __init__(self, rule: Stopping, schedule: Schedule, most: int, candidates: int = 1) -> None:
        if schedule.trunk == 0.0:
            raise ValueError("stopping ends the trunk's stage, which Schedule(trunk=0) leaves out; give steps instead")
        self.rule = rule
        #: Steps of the run, as far as known.
        self.steps: int = most
        self.decay_from: int | None = None
        #: The trunk's share of all steps.
        self.share: float = schedule.trunk_share_of_steps
        self._anneal = schedule.anneal
        #: Steps before the rule begins to look.
        self.warm: float = min(ANNEAL_STEPS * candidates, schedule.anneal * self.share * most)
        self._latest = self.share * most / (1.0 + DECAY_SHARE)

    def update(self, count: int, elbo: float) -> None:
        """Take the ELBO estimate of the step that made it ``count``."""
        if self.decay_from is not None or count <= self.warm:
            return
        if self.rule.update(elbo):
            trunk = math.ceil((1.0 + DECAY_SHARE) * count)
            self.steps = min(self.steps, round(trunk / self.share))
        if self.rule.stopped_at is not None or count >= self._latest:
            self.decay_from = count

    def trunk_progress(self, count: int) -> tuple[float, float]:
        """Progress of the trunk's stage as annealing and as decay see it, before the step number ``count``."""
        annealed = self._anneal * count / self.warm if count < self.warm else 1.0
        if self.decay_from is None:
            return annealed, 0.0
        left = self.share * self.steps - self.decay_from
        return annealed, min((count - self.decay_from) / max(left, 1.0), 1.0)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as plain data."""
        return {"rule": self.rule.state_dict(), "steps": self.steps, "decay_from": self.decay_from}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rule.load_state_dict(state["rule"])
        self.steps, self.decay_from = state["steps"], state["decay_from"]
