"""How a run takes its steps: one by one, each read back, or some at a time with one look at the device after them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .. import distributed
from ..data.batches import FixedArguments
from ..data.static_batches import StaticBatch
from ..host_buffers import on_host
from ..recording.steps import CompiledStep, why_not_compiled
from .arithmetic import RESULTS, StepArithmetic, why_not_straight
from .constants import Constants
from .graphs import Backend, CapturedStep, CudaBackend, EagerTwin

if TYPE_CHECKING:
    from ..control import StepPlan
    from ..training import Trainer

_log = logging.getLogger(__name__)

#: Shapes of minibatches for which steps are captured; of further ones they are run as they are.
MOST_SHAPES = 8
#: Numbers of a plan, and the row in which a step leaves its results.
NUMBERS = 6

EXCHANGE = "the processes exchange gradients within each step"


class Execution(Protocol):
    """How a run takes its steps."""

    def advance(self) -> Iterator[tuple[int, float]]:
        """Take one step or some; gives for each its number and its loss, in the run's unit."""

    def describe(self) -> str:
        """How the steps were taken, in words."""

    def close(self) -> None:
        """The run is over."""


class StepByStep:
    """Each step is :meth:`~avbvi.training.Trainer.step`, and its loss is known before the next begins.

    Args:
        trainer: the run.
        why: why steps are taken so and no other way, in words.
        compiled: runs the steps' arithmetic from compiled graphs.
    """

    def __init__(self, trainer: Trainer, why: str | None = None, compiled: CompiledStep | None = None) -> None:
        self._trainer, self._why, self._compiled = trainer, why, compiled
        trainer.elbo.compiled = compiled

    def advance(self) -> Iterator[tuple[int, float]]:
        loss = self._trainer.step() / self._trainer.unit()
        yield int(self._trainer.guide.step_count), loss

    def describe(self) -> str:
        how = "step by step" if self._compiled is None else f"step by step, {self._compiled.describe()}"
        return how if self._why is None else f"{how}: {self._why}"

    def close(self) -> None:
        self._trainer.elbo.compiled = None


class Straight:
    """Steps that read nothing back, some at a time, captured as CUDA graphs where there is a backend for that.

    The host decides about steps ahead of their arithmetic (:meth:`~avbvi.AdversarialELBO.plan`); their results are
    kept on the device, and read together every ``every`` steps. So what watches losses (a stopping rule, the
    recovery) sees them up to ``every - 1`` steps later than in :class:`StepByStep`.

    Args:
        trainer: the run.
        every: steps between looks at the device.
        backend: captures steps; ``None`` runs them as they are.
        why: why there is no backend, in words.
    """

    def __init__(self, trainer: Trainer, every: int, backend: Backend | None, why: str | None = None) -> None:
        self._trainer, self._every, self._backend = trainer, every, backend
        self._reasons: list[str] = [] if why is None else [why]
        self._arithmetic = StepArithmetic(trainer.model, trainer.guide, trainer.elbo, trainer.state, trainer.kwargs)
        self._constants = Constants()
        self._batches: list[StaticBatch] = []
        self._steps: dict[Any, CapturedStep | EagerTwin] = {}
        self._stage: Any = None
        like = trainer.guide.anchor
        # Every step of a chunk has its own row: a row is written again only after the chunk has been read.
        self._host = torch.zeros(every, NUMBERS, dtype=torch.float64, device="cpu", pin_memory=like.is_cuda)
        self._numbers = torch.zeros(NUMBERS, dtype=torch.float64, device=like.device)
        self._results = torch.zeros(every, RESULTS, dtype=torch.float64, device=like.device)
        self._taken = self._replayed = 0

    # -- taking steps ---------------------------------------------------------------------------------------

    def advance(self) -> Iterator[tuple[int, float]]:
        trainer, guide = self._trainer, self._trainer.guide
        counts: list[int] = []
        units: list[float] = []
        failed: set[int] = set()
        while not counts or (len(counts) < self._every and counts[-1] % self._every):
            if trainer.elbo.progress(guide) >= 1.0:
                break
            row = len(counts)
            if not self.take(row):
                failed.add(row)
            counts.append(int(guide.step_count))
            units.append(trainer.unit())
        for row, (loss, skipped, adversary) in enumerate(self._results[: len(counts)].tolist()):
            if row in failed:
                trainer.elbo.skip(guide)
                yield counts[row], math.nan
                continue
            guide.skipped_steps += round(adversary)
            if skipped:
                trainer.elbo._guard.count([guide])
            else:
                trainer.elbo.forgive()
            yield counts[row], loss / units[row]

    def take(self, row: int) -> bool:
        """Take one step, whose results go to this row; whether it could be done."""
        trainer = self._trainer
        plan = trainer.elbo.plan(trainer.guide)
        trainer.elbo.beta = float(plan.beta)
        trainer.current = trainer.batches.next()
        step = self._step(plan, trainer.current)
        self._host[row] = torch.tensor([*plan.numbers(), row], dtype=torch.float64, device="cpu")
        self._numbers.copy_(self._host[row], non_blocking=True)
        self._taken += 1
        try:
            with self._constants:
                step.run()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a matrix of the model is singular at some draw
            return False
        return True

    def _step(self, plan: StepPlan, args: tuple[Any, ...]) -> CapturedStep | EagerTwin:
        """The step for a plan and a minibatch like these, whose numbers and data are now in the tensors it reads."""
        guide = self._trainer.guide
        stage = (
            int(guide.stage),
            bool(guide.polishing),
            tuple(int(getattr(m, "active", -1)) for m in guide.part("trunk").modules()),
            self._trainer.state.restorations,
        )
        if stage != self._stage:
            self._drop()
            self._stage = stage
        number, batch = self._batch(args)
        key = (plan.shape(), number)
        moves = not bool(guide.polishing)
        if number is None:
            return EagerTwin(self._function(plan, batch.arguments, moves=moves))
        if key not in self._steps:
            step = self._function(plan, batch.arguments, moves=moves)
            backend = None if plan.begins else self._backend
            self._steps[key] = EagerTwin(step) if backend is None else CapturedStep(step, backend, on_host(guide))
        return self._steps[key]

    def _function(self, plan: StepPlan, args: tuple[Any, ...], *, moves: bool) -> Any:
        def step() -> None:
            filled = plan.filled(self._numbers[:-1])
            result: Tensor = self._arithmetic(filled, args, moves=moves)
            self._results.index_copy_(0, self._numbers[-1:].long(), result[None])

        return step

    def _batch(self, args: tuple[Any, ...]) -> tuple[int | None, StaticBatch]:
        """The buffers that now hold these arguments, and their number; ``None`` if they are not kept for others."""
        for number, batch in enumerate(self._batches):
            if batch.fill(args):
                return number, batch
        varies = not isinstance(self._trainer.batches, FixedArguments)
        new = StaticBatch(args, self._trainer.guide.anchor.device, copy=varies)
        if len(self._batches) >= MOST_SHAPES:
            return None, new
        self._batches.append(new)
        return len(self._batches) - 1, self._batches[-1]

    # -- what became of them ----------------------------------------------------------------------------------

    def _drop(self) -> None:
        """Forget what was captured of tensors that are no longer in use, and keep what is to be said of it."""
        if self._steps and self._backend is not None:
            self._backend.renew()
        for step in self._steps.values():
            if isinstance(step, CapturedStep):
                self._replayed += step.replays
                if step.reason is not None and step.reason not in self._reasons:
                    self._reasons.append(step.reason)
                    _log.info("a step was not captured as a CUDA graph: %s", step.reason)
        self._steps.clear()

    def describe(self) -> str:
        self._drop()
        told = f"{self._replayed} of {self._taken} steps replayed" if self._replayed else "uncaptured"
        return "; ".join([told, *self._reasons]) if self._replayed else ": ".join([told, "; ".join(self._reasons)])

    def close(self) -> None:
        """Let the adversary's steps be read back again, as SVI does."""
        self._drop()
        self._trainer.elbo._trainers.unmask(self._trainer.guide)


def execution_of(trainer: Trainer, capture: bool | None, compiles: bool, every: int) -> Execution:
    """How a run is to take its steps.

    Args:
        trainer: the run, its guide set up.
        capture: whether steps read nothing back and are captured on CUDA; ``None`` does so on CUDA only.
        compiles: whether the arithmetic of steps that are not is compiled.
        every: steps between looks at the device.
    """
    on_cuda = bool(trainer.guide.anchor.is_cuda)
    if distributed.world_size() > 1:
        _log.info("steps are taken one by one: %s", EXCHANGE)
        return StepByStep(trainer, EXCHANGE)
    if capture is False or (capture is None and not on_cuda):
        if not compiles:
            return StepByStep(trainer)
        why = why_not_compiled(trainer.elbo, trainer.guide)
        if why is not None:
            _log.info("steps are not compiled: %s", why)
        return StepByStep(trainer, why, None if why is not None else CompiledStep(trainer.guide))
    why = why_not_straight(trainer.elbo) or _why_not_static(trainer.args)
    if why is not None:
        _log.info("steps are taken one by one: %s", why)
        return StepByStep(trainer, why)
    if not on_cuda:
        return Straight(trainer, every, None, "there is no CUDA graph without a CUDA device")
    return Straight(trainer, every, CudaBackend(trainer.guide.anchor.device))


def _why_not_static(args: tuple[Any, ...]) -> str | None:
    """Why arguments like these can't lie in static buffers; ``None`` if they can."""
    try:
        StaticBatch(args, copy=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
