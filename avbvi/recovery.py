"""Signs that a fit has broken down, the way back to the last good state, and the best trunk of a run."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from . import distributed
from .adversarial import adversary_logits
from .annealing import Annealed
from .distributions import Draw
from .errors import FitFailed
from .gradients import explain_non_finite
from .guides import AVBGuide
from .objectives import Logistic
from .rng import seeded
from .training_state import TrainingState
from .trunks import IdentityTrunk

logger: logging.Logger = logging.getLogger(__name__)

#: Entry of a trunk's state that tells which candidate is in force.
CHOICE = ("active",)
#: Steps between looks at the fit's health; each good look takes a snapshot.
CHECK_EVERY = 50
MOST_ROLLBACKS = 10
DRAWS = 256
#: A trunk is lost when its ELBO is so many nats, and one more for each dimension, below that of an earlier trunk.
TRUNK_FALL = 10.0
#: A learned ELBO has fallen when it lies this many times its own scale below the last one: within the stage in units
#: of its scatter, at the stage's beginning of its size.
FALL, FALL_AT_ENTRY = 10.0, 100.0
#: Nats by which the start has to be better than the trained trunk to be taken instead.
START_GAIN = 1.0
#: A standard deviation may change by this factor from one look to the next, in base coordinates that a trunk has
#: scaled also from the standard normal.
SPREAD = 1e3
#: Nats that log q - log r can't reach, and the adversary's loss in units of that at chance.
LARGEST_LOG_RATIO, LARGEST_LOSS = 1e5, 100.0


@dataclass(frozen=True)
class Level:
    """Where the steps' ELBO estimates stood at a look: median, interquartile range, beta, stage."""

    median: float
    width: float
    beta: float
    adversarial: bool


def trunk_elbo_terms(guide: AVBGuide, trunk_state: dict[str, Tensor], n: int) -> Tensor:
    """Terms (n,) of the exact, annealed ELBO of a trunk in another state, always by the same noise."""
    target = guide.target()
    assert target is not None
    trunk = guide.part("trunk")
    now = _copy(trunk)
    trunk.load_state_dict(trunk_state)
    try:
        with seeded(0):
            base = guide.trunk_base(torch.Size((n,)))
        z, log_det = trunk(base)
        return (guide.log_p(target, Draw(z, base, log_det)) - trunk.base_log_prob(base)).double()
    finally:
        trunk.load_state_dict(now)


class BestState:
    """The best of the states of a trunk that were offered, by an ELBO that may be noisy.

    Because the best of many noisy values is too good, it only names a candidate; :meth:`restore` judges it against
    the last state.
    """

    def __init__(self) -> None:
        self.value: float = -math.inf
        #: State of the trunk.
        self.trunk: dict[str, Tensor] | None = None

    def offer(self, guide: AVBGuide, value: float) -> None:
        """Remember the trunk's state if its value is the highest so far."""
        if value > self.value:
            self.value = value
            self.trunk = _copy(guide.part("trunk"))

    @torch.no_grad()
    def restore(self, guide: AVBGuide, least_gain: float = 0.0, n: int = 4000) -> bool:
        """Give the guide's trunk the best state if its exact ELBO is the higher one; whether it was.

        Both are evaluated with the same n draws, and the difference has to be more than two standard errors and
        ``least_gain``: else the last state stays.
        """
        if self.trunk is None:
            return False
        trunk = guide.part("trunk")
        last, best = (trunk_elbo_terms(guide, state, n) for state in (_copy(trunk), self.trunk))
        if bool(torch.isfinite(last).all()):
            gain = best - last
            better = float(gain.mean()) > max(2.0 * float(gain.std()) / math.sqrt(n), least_gain)
        else:
            better = bool(torch.isfinite(best).all())
        if distributed.agreed(better):
            trunk.load_state_dict(self.trunk)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Value and state as plain data, for checkpoints."""
        return {"value": self.value, "state": self.trunk}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.value, self.trunk = state["value"], state["state"]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


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
        self.rollbacks: int = 0
        #: What was found, for each rollback.
        self.reasons: list[str] = []
        #: The trunk at the start, and the one with the highest ELBO at a look since, at beta = 1.
        self.start: BestState = BestState()
        self.best: BestState = BestState()
        #: Whether the start was better than what training made of it, and was taken instead.
        self.kept_start: bool = False
        self._losses: list[float] = []
        self._skipped_steps = 0
        self._skipped_before = 0
        self._snapshots: list[dict[str, Any]] = []

    def begin(self, loss: float) -> None:
        """Take the first snapshot, of an untrained guide whose -ELBO is ``loss``."""
        if self.guide.part("trunk").is_trainable:
            self.start.offer(self.guide, -loss)
        self._keep(Level(-loss, abs(loss), 0.0, False) if math.isfinite(loss) else None)

    def restore_best(self, guide: AVBGuide) -> None:
        """Give the guide the best of its trunks so far; for the end of the trunk's training."""
        self.best.restore(guide)
        self.kept_start = self.start.restore(guide, START_GAIN) or self.kept_start

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
        if self._skipped_steps:
            step, skipped = int(self.guide.step_count), self._skipped_steps
            logger.info("step %d: %d of the last %d steps were skipped", step, skipped, len(self._losses))
        level = self._level()
        symptom = distributed.agreed(self._symptom(level))
        distributed.same_generators()
        if symptom is not None:
            self.roll_back(symptom)
            return
        last = self._last_level()
        # The window before has to have ended at beta = 1: this one's values are then all of the same target.
        if self._trains_trunk() and level is not None and last is not None and last.beta == level.beta == 1.0:
            self.best.offer(self.guide, level.median)
        self._keep(level or last)

    def roll_back(self, symptom: str) -> None:
        """Restore the last good state and halve the learning rates.

        Raises:
            FitFailed: as :meth:`observe`.
        """
        at = int(self.guide.step_count)
        elbo = self.state.elbo
        cautions = elbo.caution, elbo.adversary_caution
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
        logger.warning("step %d: %s; going on from an earlier state with half the learning rates", at, symptom)
        # Restoring has brought earlier ones back.
        elbo.caution, elbo.adversary_caution = self._slower(*cautions)
        elbo.forgive()

    def _slower(self, caution: float, adversary_caution: float) -> tuple[float, float]:
        """Factors of the outer rates and of the adversary's after a rollback, from those before."""
        return 0.5 * caution, 0.5 * adversary_caution

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
        fallen = self._fallen_trunk() if self._trains_trunk() else self._fallen_level(level)
        if fallen is not None:
            return fallen
        return self._broken(self._snapshots[-1]["spread"] if self._snapshots else None)

    def _spread(self) -> Tensor:
        """Standard deviations of the guide's draws (base_dim,), always by the same noise."""
        return base_spread(self.guide)

    def _broken(self, last_spread: Tensor | None) -> str | None:
        """What is wrong with the guide's state; ``last_spread`` is that of the last good look."""
        return broken_state(self.guide, last_spread)

    def _trains_trunk(self) -> bool:
        return not int(self.guide.adversarial_steps) and bool(self.guide.part("trunk").is_trainable)

    @torch.no_grad()
    def _fallen_trunk(self) -> str | None:
        """Compare the trunk with the last good one and the start, by the same draws and at the same beta."""
        now = _copy(self.guide.part("trunk"))
        prefix = "trunk."
        last = {k[len(prefix) :]: v for k, v in self._snapshots[-1]["state"]["guide"].items() if k.startswith(prefix)}
        with Annealed(None, [self.guide], self.state.elbo.beta):
            terms = trunk_elbo_terms(self.guide, now, DRAWS)
            for earlier, when in ((last, f"{CHECK_EVERY} steps before"), (self.start.trunk, "at the start")):
                if earlier is None:
                    continue
                # Of several candidates each is compared with itself: another may be better or worse by far.
                earlier = earlier | {name: now[name] for name in CHOICE if name in now}
                fall = trunk_elbo_terms(self.guide, earlier, DRAWS) - terms
                # A few draws far out may have any value; the mean of the middle nine tenths is that of most.
                fall = fall.nan_to_num(math.inf, math.inf, -math.inf).sort().values[DRAWS // 20 : -(DRAWS // 20)]
                nats = float(fall.mean())
                if nats > TRUNK_FALL + self.guide.part("trunk").base_dim:
                    return f"the ELBO is {nats:.4g} nats below that of the trunk {when}"
        return None

    def _fallen_level(self, level: Level | None) -> str | None:
        last = self._last_level()
        if level is None or last is None:
            return None
        same = level.adversarial == last.adversarial
        dim = self.guide.part("trunk").base_dim
        # From one stage to the next, and while the target is annealed, the ELBO itself changes its scale.
        steady = same and level.beta == last.beta == 1.0
        fall = FALL * (dim + last.width) if steady else FALL_AT_ENTRY * (dim + abs(last.median))
        if last.median - level.median > fall:
            return f"the ELBO fell from {last.median:.4g} to {level.median:.4g}"
        return None

    def _keep(self, level: Level | None) -> None:
        snapshot = {
            "state": self.state.capture(),
            "level": None if level is None else asdict(level),
            "spread": self._spread(),
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
            "start": self.start.state_dict(),
            "best": self.best.state_dict(),
            "kept_start": self.kept_start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.rollbacks, self.reasons = state["rollbacks"], list(state["reasons"])
        self._losses, self._snapshots = list(state["losses"]), list(state["snapshots"])
        self._skipped_steps, self._skipped_before = state["skipped_steps"], state["skipped_before"]
        self.start.load_state_dict(state["start"])
        self.best.load_state_dict(state["best"])
        self.kept_start = state["kept_start"]


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
    if not are_finite((*guide.parameters(), *guide.buffers())):
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
        changed = changed_spread(spread, reference)
        if changed is not None:
            return changed
    with seeded(0):
        t = adversary_logits(guide, DRAWS)
    return broken_adversary(guide, t[:DRAWS], t[DRAWS:])


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all floating-point numbers in the tensors are finite (and not so large that their squares are not)."""
    return math.isfinite(float(get_total_norm([t.detach() for t in tensors if t.is_floating_point()])))


def changed_spread(spread: Tensor, reference: Tensor) -> str | None:
    """What is said of standard deviations that are orders of magnitude from those they are compared with."""
    ratio = spread / reference
    smallest, largest = float(ratio.min()), float(ratio.max())
    if smallest < 1.0 / SPREAD:
        return f"the sampler collapsed: a standard deviation in base coordinates changed by a factor {smallest:.3g}"
    if largest > SPREAD:
        return f"the sampler exploded: a standard deviation in base coordinates changed by a factor {largest:.3g}"
    return None


def broken_adversary(guide: AVBGuide, t_q: Tensor, t_r: Tensor) -> str | None:
    """What is said of an adversary whose log-ratios are beyond reason; the logistic loss judges them all."""
    pair = [guide.part("adversary").objective.log_ratio(t) for t in (t_q, t_r)]
    largest = max(float(t.abs().max()) for t in pair)
    if not largest <= LARGEST_LOG_RATIO:
        return f"the adversary exploded: |T| reaches {largest:.3g}"
    loss, chance = float(Logistic().loss(*pair)), 2.0 * math.log(2.0)
    if not loss <= LARGEST_LOSS * chance:
        return f"the adversary exploded: its loss is {loss:.3g}, at chance it would be {chance:.3g}"
    return None
