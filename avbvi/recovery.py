"""Signs that a fit has broken down, the way back to the last good state, and the best trunk of a run."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .adversarial import adversary_logits
from .diagnostics import trunk_weights
from .errors import FitFailed
from .gradients import explain_non_finite
from .guides import AVBGuide
from .rng import seeded
from .training_state import TrainingState
from .trunks import IdentityTrunk

#: Steps between looks at the fit's health; each good look takes a snapshot.
CHECK_EVERY = 50
MOST_ROLLBACKS = 10
#: More than so many are no accident: the verdict is at least suspect.
MANY_ROLLBACKS = 2
DRAWS = 256
#: An ELBO this many times its own scale below the last one is no noise.
FALL = 100.0
#: A standard deviation may change by this factor from one look to the next, in base coordinates that a trunk has
#: scaled also from the standard normal.
SPREAD = 1e3
#: Nats that log q - log r can't reach, and the adversary's loss in units of that at chance.
LARGEST_LOG_RATIO, LARGEST_LOSS = 1e5, 100.0


@dataclass(frozen=True)
class Level:
    """Where the ELBO stood at a look: median and interquartile range of the steps' estimates, beta, stage."""

    median: float
    width: float
    beta: float
    adversarial: bool


class BestState:
    """The best of the states of a module that were offered, by a value that may be noisy.

    A trunk's exact ELBO is the value here. Because the best of many noisy values is too good, it only names a
    candidate; :meth:`restore` judges it against the last state.
    """

    def __init__(self) -> None:
        self.value = -math.inf
        self._state: dict[str, Tensor] | None = None

    def offer(self, module: nn.Module, value: float) -> None:
        """Remember the module's state if its value is the highest so far."""
        if value > self.value:
            self.value = value
            self._state = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def restore(self, guide: AVBGuide, n: int = 4000) -> bool:
        """Give the guide's trunk the best state if its exact ELBO is the higher one; whether it was.

        Both are evaluated with the same n draws, and the difference has to be more than two standard errors: else
        the last state stays.
        """
        target = guide.target()
        trunk = guide.part("trunk")
        if self._state is None or target is None:
            return False
        last = {name: t.detach().clone() for name, t in trunk.state_dict().items()}

        def terms() -> Tensor:
            with seeded(0):
                return trunk_weights(guide, target, n)[1].double()

        of_last = terms()
        trunk.load_state_dict(self._state)
        difference = terms() - of_last
        if bool(torch.isfinite(of_last).all()):
            better = float(difference.mean()) > 2.0 * float(difference.std()) / math.sqrt(n)
        else:
            better = bool(torch.isfinite(difference + of_last).all())
        if not better:
            trunk.load_state_dict(last)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Value and state as plain data, for checkpoints."""
        return {"value": self.value, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.value, self._state = state["value"], state["state"]


class Recovery:
    """Watches a run and takes it back to its last good state, with half the learning rates, when it breaks down.

    Every ``CHECK_EVERY`` steps it looks for: steps skipped more often than not; parameters or draws that are not
    finite; draws whose standard deviations shrank or grew by orders of magnitude in base coordinates; an adversary
    whose values or loss are beyond reason; an ELBO that fell by orders of magnitude. It draws with a random state of
    its own, so that a healthy run is the same with and without it.

    Two snapshots are kept: when the later one does not lead out of the trouble, the earlier one is tried.

    Args:
        state: what the run's steps change.
    """

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.guide: AVBGuide = state.guide
        self.rollbacks = 0
        #: What was found, for each rollback.
        self.reasons: list[str] = []
        #: The trunk with the highest ELBO at a look, at beta = 1.
        self.best = BestState()
        self._losses: list[float] = []
        self._skipped_steps = 0
        self._skipped_before = 0
        self._snapshots: list[dict[str, Any]] = []

    def begin(self, loss: float) -> None:
        """Take the first snapshot, of an untrained guide whose -ELBO is ``loss``."""
        level = Level(-loss, abs(loss), 0.0, False) if math.isfinite(loss) else None
        self._skipped_before = int(self.guide.skipped_steps)
        self._keep(level)

    def observe(self, loss: float) -> None:
        """Note one step's loss; look at the fit's health when it is time.

        Raises:
            FitFailed: the fit broke down once more after ``MOST_ROLLBACKS`` rollbacks; the last good state is restored.
        """
        skipped = int(self.guide.skipped_steps)
        self._skipped_steps += skipped > self._skipped_before
        self._skipped_before = skipped
        self._losses.append(float(loss))
        if len(self._losses) >= CHECK_EVERY:
            self.look()

    def look(self) -> None:
        """Look at the fit's health now: a snapshot if it is good, a rollback if not.

        Raises:
            FitFailed: as :meth:`observe`.
        """
        level = self._level()
        symptom = self._symptom(level)
        if symptom is not None:
            self.roll_back(symptom)
            return
        last = self._last_level()
        trunk = self.guide.part("trunk")
        # The window before has to have ended at beta = 1: this one's values are then all of the same target.
        exact = last is not None and level is not None and last.beta == level.beta == 1.0 and not level.adversarial
        if exact and trunk.is_trainable:
            assert level is not None
            self.best.offer(trunk, level.median)
        self._keep(level or last)

    def roll_back(self, symptom: str) -> None:
        """Restore the last good state and halve the learning rates.

        Raises:
            FitFailed: as :meth:`observe`.
        """
        at = int(self.guide.step_count)
        caution = self.state.elbo.caution
        self.restore_last()
        if self.rollbacks >= MOST_ROLLBACKS:
            raise FitFailed(
                f"the fit broke down {self.rollbacks + 1} times although its learning rates were halved each time, the "
                f"last time at step {at}: {symptom}. The posterior of the last good state is in this error's "
                "`posterior`. Check the model where its densities grow without bound, give a better-scaled "
                "parametrisation, or lower lr"
            )
        self.rollbacks += 1
        self.reasons.append(f"step {at}: {symptom}")
        self.state.elbo.caution = 0.5 * caution
        self.state.elbo.forgive()

    def restore_last(self) -> None:
        """Restore the last good state; if it is asked for again before the next look, the one before."""
        self.state.restore(self._snapshots[-1]["state"], counts=False)
        self.guide.comparison = None
        if len(self._snapshots) > 1:
            self._snapshots.pop()
        self._clear()

    # -- looking ----------------------------------------------------------------------------------------

    def _level(self) -> Level | None:
        values = sorted(-x for x in self._losses if math.isfinite(x))
        if not values:
            return None
        n = len(values)
        width = values[(3 * n) // 4] - values[n // 4]
        return Level(statistics.median(values), width, self.state.elbo.beta, self.guide.is_adversarial)

    def _last_level(self) -> Level | None:
        level = self._snapshots[-1]["level"] if self._snapshots else None
        return None if level is None else Level(**level)

    def _symptom(self, level: Level | None) -> str | None:
        if 2 * self._skipped_steps > len(self._losses):
            return explain_non_finite(f"{self._skipped_steps} of {len(self._losses)} steps had to be skipped")
        last = self._last_level()
        if level is not None and last is not None:
            same = level.adversarial == last.adversarial and level.beta == last.beta == 1.0
            # While the target is annealed, and from one stage to the next, the ELBO itself changes its scale.
            scale = last.width if same else abs(last.median)
            if last.median - level.median > FALL * (self.guide.part("trunk").base_dim + scale):
                return f"the ELBO fell from {last.median:.4g} to {level.median:.4g}"
        return broken_state(self.guide, self._snapshots[-1]["spread"] if self._snapshots else None)

    def _keep(self, level: Level | None) -> None:
        snapshot = {
            "state": self.state.capture(),
            "level": None if level is None else asdict(level),
            "spread": base_spread(self.guide),
        }
        self._snapshots = [*self._snapshots[-1:], snapshot]
        self._clear()

    def _clear(self) -> None:
        self._losses, self._skipped_steps = [], 0
        self._skipped_before = int(self.guide.skipped_steps)

    # -- as plain data ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Snapshots and counts as plain data, for checkpoints."""
        return {
            "rollbacks": self.rollbacks,
            "reasons": list(self.reasons),
            "losses": list(self._losses),
            "skipped_steps": self._skipped_steps,
            "skipped_before": self._skipped_before,
            "snapshots": list(self._snapshots),
            "best": self.best.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rollbacks, self.reasons = state["rollbacks"], list(state["reasons"])
        self._losses, self._snapshots = list(state["losses"]), list(state["snapshots"])
        self._skipped_steps, self._skipped_before = state["skipped_steps"], state["skipped_before"]
        self.best.load_state_dict(state["best"])


@torch.no_grad()
def base_spread(guide: AVBGuide) -> Tensor:
    """Standard deviations (base_dim,) of the guide's draws in base coordinates, always by the same noise."""
    with seeded(0):
        return guide.draw_base(DRAWS).std(0)


@torch.no_grad()
def broken_state(guide: AVBGuide, last_spread: Tensor | None = None) -> str | None:
    """What is wrong with a guide's state, in words; ``None`` if nothing is.

    Args:
        guide: the guide; its random state is its own, so that nothing changes.
        last_spread: what :func:`base_spread` gave when the guide was last known to be good.
    """
    tensors = [t for t in (*guide.parameters(), *guide.buffers()) if t.is_floating_point()]
    if not math.isfinite(float(get_total_norm([t.detach() for t in tensors]))):
        return "a parameter or running moment is NaN or infinite"
    with seeded(0):
        draw = guide.draw(DRAWS)
    if not bool(torch.isfinite(draw.z).all()):
        return "draws are not finite"
    if not guide.is_adversarial:
        return None
    spread = draw.base.std(0)
    references = [] if last_spread is None else [last_spread]
    if not isinstance(guide.part("trunk"), IdentityTrunk):
        references.append(torch.ones_like(spread))
    for reference in references:
        ratio = spread / reference
        for extreme, what in ((float(ratio.min()), "collapsed"), (float(ratio.max()), "exploded")):
            if not 1.0 / SPREAD <= extreme <= SPREAD:
                return f"the sampler {what}: a standard deviation in base coordinates changed by a factor {extreme:.3g}"
    return _broken_adversary(guide)


def _broken_adversary(guide: AVBGuide) -> str | None:
    adversary = guide.part("adversary")
    with seeded(0):
        t = adversary_logits(guide, DRAWS)
    log_ratio = adversary.objective.log_ratio(t)
    largest = float(log_ratio.abs().max())
    if not largest <= LARGEST_LOG_RATIO:
        return f"the adversary exploded: |T| reaches {largest:.3g}"
    loss, chance = (float(adversary.objective.loss(x[:DRAWS], x[DRAWS:])) for x in (t, torch.zeros_like(t)))
    if not loss <= LARGEST_LOSS * abs(chance):
        return f"the adversary exploded: its loss is {loss:.3g}, at chance it would be {chance:.3g}"
    return None
