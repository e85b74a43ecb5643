"""How a fit came about, and what that says about it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .diagnostics import Verdict

__all__ = ["Run"]

if TYPE_CHECKING:
    from .recovery import Recovery

#: More rollbacks than so many are no accident: the verdict is at least suspect.
MANY_ROLLBACKS = 5


@dataclass
class Run:
    """How a fit came about: ``posterior.run``.

    Args:
        seed: what made the run reproducible; ``None`` where no seed was given.
        steps: number of steps done.
        seconds: length of the run, parts before an interruption included.
        skipped_steps: number of steps left out because a gradient was not finite.
        stopped_at: the step at which a stopping rule found the trunk converged; ``None`` where it did not, or there
            was no rule.
        rollbacks: how often the run broke down and went on from an earlier state with half the learning rates.
        interrupted: whether Ctrl-C ended the run.
        execution: in words, whether the model was recorded and steps compiled or captured, and if not, why.
        history: lists of equal length: ``step``, ``elbo`` (nats; noisy estimate at that step) and ``stage`` (0 trunk,
            1 adversarial).
    """

    seed: int | None = None
    steps: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    stopped_at: int | None = None
    rollbacks: int = 0
    interrupted: bool = False
    execution: str = "step by step"
    history: dict[str, list[float]] = field(default_factory=lambda: {"step": [], "elbo": [], "stage": []})


def amended(verdict: Verdict, run: Run, recovery: Recovery, share: float) -> Verdict:
    """The verdict with what the run itself tells: rollbacks, a start that was kept, and an interruption.

    Args:
        verdict: the judgement on the guide.
        run: the run, at its end.
        recovery: what watched it.
        share: how much of the run was done, in [0, 1].
    """
    status, reasons = verdict.status, list(verdict.reasons)
    if run.rollbacks:
        if status == "ok" and run.rollbacks > MANY_ROLLBACKS:
            status = "suspect"
        reasons.append(
            f"the run broke down {run.rollbacks} times and went on from an earlier state with halved learning "
            f"rates; the last time at {recovery.reasons[-1]}"
        )
    if recovery.kept_start:
        status = "suspect" if status == "ok" else status
        reasons.append("training made the trunk worse than it was at the start, which was kept; try a smaller lr")
    if run.interrupted:
        status = "suspect" if status == "ok" else status
        reasons.append(f"interrupted after {run.steps} steps, {share:.0%} of the run")
    figures = {**verdict.figures, "rollbacks": float(run.rollbacks)}
    return replace(verdict, status=status, reasons=reasons, figures=figures)
