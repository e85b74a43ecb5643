"""The loop of a fit: steps, their record, recovery, checkpoints, the verdict at the end."""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine

from . import distributed
from .bars import progress_bar
from .capture.running import Execution, StepByStep, execution_of
from .data.batches import Batches
from .data.prefetch import batches_of
from .diagnostics import K_HAT_LIMIT, Iterates, Verdict, judge
from .diagnostics.evidence import Evidence
from .divided.batches import divided_batches, own_part_of
from .divided.runs import agreed_clock, agreed_judgement, average_buffers, check_start
from .elbo import AdversarialELBO
from .errors import FitFailed, NonFiniteError
from .guides import TRUNK, AVBGuide
from .integrity import damage
from .interrupts import Interrupt
from .model_state import claim_parameters, model_buffers, put_to_rest
from .posterior import Posterior, guide_elbo
from .precision import Precision, networks_of
from .recording.densities import TracedDensity
from .recovery import Recovery
from .rng import rng_untouched, seeded
from .run_checkpoints import resume_run, save_run
from .runs import Run, amended
from .schedules import Clock, OpenEnded
from .targets import Model
from .training_state import TrainingState, named_parameters

logger: logging.Logger = logging.getLogger(__name__)

RECORD_EVERY = 10
CHECKPOINT_SECONDS = 30.0
#: Transitions that the draws of a fit are moved by where the guide left room for them.
HMC_STEPS = 10
NEGLIGIBLE_KL = 0.01


class Trainer:
    """One run of :func:`avbvi.fit`: the loop, its record and its checkpoints."""

    def __init__(
        self,
        model: Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        guide: AVBGuide,
        elbo: AdversarialELBO,
        lr: float,
        *,
        model_lr: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.model: Model = model
        self.kwargs: dict[str, Any] = kwargs
        self.batches: Batches = divided_batches(batches_of(args, device), args, guide.is_amortised)
        #: The arguments that stand for all others, and those of the last step.
        self.args: tuple[Any, ...] = self.batches.reference
        self.current: tuple[Any, ...] = self.args
        self.guide: AVBGuide = guide
        self.elbo: AdversarialELBO = elbo
        self.lr: float = lr
        self.model_lr: float | None = model_lr
        self.state: TrainingState = TrainingState(guide, elbo, lr, model_lr, model_buffers(model, guide))
        self.recovery: Recovery = self._watch()
        self.run: Run = Run()
        self.open_ended: OpenEnded | None = None
        self.iterates: Iterates = Iterates()
        self.evidence: Evidence = Evidence()
        self.elapsed_before: float = 0.0
        #: Moving average of the ELBO, for the progress bar.
        self.smoothed: float = float("nan")
        self._share = 1.0
        #: Whether steps read nothing back and are captured (:func:`~avbvi.capture.running.execution_of`).
        self.capture: bool | None = None
        #: Whether the arithmetic of steps that are taken one by one is compiled.
        self.compiles = False
        self.execution: Execution = StepByStep(self)
        self._traced: TracedDensity | None = None
        self.precision: Precision = Precision()

    def train(
        self,
        steps: int | None,
        minutes: float | None,
        *,
        progress: bool,
        checkpoint: str | PathLike[str] | None,
    ) -> Posterior:
        """Train to the end and judge."""
        started = time.monotonic()
        progress = progress and distributed.is_first()
        self.elbo.begin_run()
        self.elbo.steps, self.elbo.open_ended = steps, self.open_ended
        self.elbo.before_adversarial = self._leave_trunk
        if minutes is not None:
            self.elbo.clock = agreed_clock(Clock(60.0 * minutes))
        try:
            self._prepare(steps, minutes, checkpoint)
            with (
                pyro.validation_enabled(False),
                self._target_traced() as self._traced,
                progress_bar(progress, total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar,
            ):
                self.execution = execution_of(self, self.capture, self.compiles, RECORD_EVERY)
                with self.precision.applied(networks_of(self.guide, self.model), self.guide.anchor):
                    self._loop(started, bar, checkpoint)
                bar.set_postfix_str("comparing the stages")
                self._finish()
        except FitFailed as error:
            error.posterior = self._failed(str(error), started)
            raise
        finally:
            self.execution.close()
            self.elbo.steps, self.elbo.clock, self.elbo.open_ended = None, None, None
            self.elbo.begin_run()
        self._close(started)
        return self._judged()

    def _leave_trunk(self, guide: AVBGuide) -> None:
        """What comes before the adversarial stage."""
        self.recovery.restore_best(guide)
        logger.info("step %d: the adversarial stage begins", int(guide.step_count))

    def _prepare(self, steps: int | None, minutes: float | None, checkpoint: str | PathLike[str] | None) -> None:
        self.fingerprint: dict[str, Any] = {
            "steps": steps,
            "minutes": minutes,
            "seed": self.run.seed,
            "lr": self.lr,
            "model_lr": self.model_lr,
            "elbo": self.elbo.settings(),
            "batches": self.batches.settings(),
        }
        if self.precision != Precision():
            self.fingerprint["precision"] = self.precision.settings()
        if self.open_ended is not None:
            self.fingerprint["stopping"] = self.open_ended.rule.settings()
        claim_parameters(self.model, self.args, self.kwargs)
        resumes = checkpoint is not None and distributed.from_first(Path(checkpoint).exists)
        if checkpoint is not None and resumes:
            self.guide.setup(*self.args, **self.kwargs)
            with damage(checkpoint):
                resume_run(checkpoint, self)
            if self.elbo.clock is not None:
                self.elbo.clock.started -= self.elapsed_before
        else:
            # Set-up and start draw from the generators, as in SVI's first step; the evaluation below does not.
            with pyro.validation_enabled(True):
                self.elbo._ready(self.model, self.guide, self.args, self.kwargs)
        if self.open_ended is not None and not self.guide.part("trunk").is_trainable:
            raise ValueError("stopping ends the training of a trunk, and this guide's has nothing to train; give steps")
        # One evaluation with Pyro's validation on: misshapen sites and arguments fail here, with their names.
        kept = self.state.buffers_kept()
        with torch.no_grad(), pyro.validation_enabled(True), rng_untouched(), kept:
            loss = self.elbo.loss(self.model, self.guide, *self.args, **self.kwargs)
        check_start(self.guide, self.model, loss)
        if not resumes:
            self.recovery.begin(loss / self.unit())

    def _loop(self, started: float, bar: Any, checkpoint: str | PathLike[str] | None) -> None:
        saved = time.monotonic()
        with Interrupt() as interrupt:
            while self.elbo.progress(self.guide) < 1.0 and not self._asked(interrupt):
                try:
                    self._advance(bar)
                except KeyboardInterrupt:  # the second one, or raised by somebody's own handler
                    if interrupt.asked or distributed.world_size() > 1:
                        raise
                    interrupt.asked = True
                    self.recovery.restore_last()
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if checkpoint is not None and distributed.is_first() and due:
                    save_run(checkpoint, self, self.elapsed_before + time.monotonic() - started)
                    saved = time.monotonic()
            self._share = self.elbo.progress(self.guide)
            self.run.interrupted = self._share < 1.0
            if self.run.interrupted:
                logger.warning("interrupted at step %d, %.0f %% of the run", self.guide.step_count, 100.0 * self._share)
            self.recovery.look()
            if not int(self.guide.adversarial_steps):
                self.recovery.restore_best(self.guide)
            bar.update(self._share - bar.n)
            if checkpoint is not None and distributed.is_first():
                save_run(checkpoint, self, self.elapsed_before + time.monotonic() - started)

    def _asked(self, interrupt: Interrupt) -> bool:
        """Whether Ctrl-C was pressed; processes ask each other every few steps."""
        if distributed.world_size() > 1:
            if int(self.guide.step_count) % RECORD_EVERY:
                return False
            interrupt.asked = distributed.any_of(interrupt.asked)
        return interrupt.asked

    def _advance(self, bar: Any) -> None:
        """One step or some, noted and watched."""
        rollbacks = self.recovery.rollbacks
        try:
            for count, loss in self.execution.advance():
                self._note(count, loss, bar)
                if self.recovery.rollbacks > rollbacks:
                    break  # what came after was of the state that was left
        except FitFailed:
            raise
        except NonFiniteError as error:
            self.recovery.roll_back(str(error))

    def _note(self, count: int, loss: float, bar: Any) -> None:
        """Note the loss of step number ``count``, and look at the fit's health when it is time."""
        if self.open_ended is not None:
            self.open_ended.update(count, -loss)
            self.elbo.steps = self.open_ended.steps
        if math.isfinite(loss):
            self.smoothed = -loss if self.smoothed != self.smoothed else 0.98 * self.smoothed - 0.02 * loss
        if count % RECORD_EVERY == 0:
            self._record(count, loss)
            bar.set_postfix_str(f"ELBO {self.smoothed:.3f}, {self._whereabouts()}", refresh=False)
            bar.update(self.elbo.progress(self.guide) - bar.n)
        self.recovery.observe(loss)

    def step(self) -> float:
        """One step, the same as ``SVI.step`` with ``elbo.optimizer(lr, model_lr)``; returns the loss."""
        self.current = self.batches.next()
        try:
            with own_part_of(self.batches), poutine.trace(param_only=True) as capture:
                loss = self.elbo.loss_and_grads(self.model, self.guide, *self.current, **self.kwargs)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a matrix of the model is singular at some draw
            self.elbo.skip(self.guide)
            return math.nan
        self.state.optimise(named_parameters(capture.trace))
        average_buffers(self.state.buffers)
        return loss

    def _record(self, count: int, loss: float) -> None:
        self.run.history["step"].append(float(count))
        self.run.history["elbo"].append(-loss)
        self._look()
        looks = count // RECORD_EVERY
        if looks & (looks - 1) == 0:
            self._review_target()
        # Not guide.stage: after the last step that already tells which stage was kept.
        self.run.history["stage"].append(float(int(self.guide.adversarial_steps) > 0))

    # -- what an amortised fit does in its own way --------------------------------------------------------

    def _watch(self) -> Recovery:
        """What watches the run."""
        return Recovery(self.state)

    def unit(self) -> float:
        """By what the last step's loss is divided in the record and on the bar."""
        return 1.0

    def _whereabouts(self) -> str:
        """Where the run is, in words for the bar."""
        return f"{'adversarial' if int(self.guide.adversarial_steps) else 'trunk'} stage"

    def _target_traced(self) -> AbstractContextManager[TracedDensity | None]:
        """Context in which the model is not run at every step, where its log-density can be recorded."""
        target = self.guide.target()
        return nullcontext() if target is None else target.traced_once()

    def _review_target(self) -> None:
        """Hold recordings of the log-density against the model as it is now."""
        target = self.guide.target()
        if target is not None and target.traced is not None:
            with seeded(0):
                target.traced.review(self.guide.draw(self.elbo.num_particles).z)

    def _look(self) -> None:
        """Note how the draws move along the run."""
        self.iterates.update(self.guide, self.elbo.progress(self.guide))

    # -- the end ------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Choose the stage, where the run's last step has not done so."""
        if self.guide.comparison is not None:
            return
        try:
            self.elbo.finish(self.guide)
        except KeyboardInterrupt:
            if self.run.interrupted:
                raise
            self.run.interrupted = True
            if self.guide.part("trunk").is_trainable:
                self.guide.stage.fill_(TRUNK)  # its density is exact

    def _close(self, started: float) -> None:
        put_to_rest(self.model, self.guide)
        self.run.seconds = self.elapsed_before + time.monotonic() - started
        self.run.execution = self.execution.describe()
        if self._traced is not None and self._traced.reason is not None:
            self.run.execution += f"; the model is run at every step, since {self._traced.reason}"
        self.run.steps = int(self.guide.step_count)
        self.run.skipped_steps = int(self.guide.skipped_steps)
        self.run.rollbacks = self.recovery.rollbacks
        if self.open_ended is not None and self.open_ended.rule.stopped_at is not None:
            self.run.stopped_at = self.open_ended.decay_from
            logger.info("the trunk was found converged at step %s", self.run.stopped_at)

    def _judged(self) -> Posterior:
        try:
            verdict = agreed_judgement(self._verdict)
        except KeyboardInterrupt:
            if self.run.interrupted:
                raise
            self.run.interrupted = True
            verdict = Verdict("suspect", ["the fit was not judged"])
        verdict = amended(verdict, self.run, self.recovery, self._share)
        level = logging.INFO if verdict.status == "ok" else logging.WARNING
        logger.log(level, "verdict after %d steps: %s: %s", self.run.steps, verdict.status, "; ".join(verdict.reasons))
        return self._posterior(verdict)

    def _verdict(self) -> Verdict:
        """The judgement on the guide in its final state."""
        target = self.guide.target(*self.args, **self.kwargs)
        assert target is not None
        return judge(
            self.guide,
            target,
            guide_elbo(self.guide, target, 20_000),
            skipped=self.run.skipped_steps,
            steps=self.run.steps,
            comparison=self.guide.comparison,
            iterates=self.iterates.last_half(int(self.guide.stage)),
            evidence=self.evidence,
        )

    def _failed(self, reason: str, started: float) -> Posterior:
        """The last good state as a posterior whose verdict is "failed"."""
        self._close(started)
        try:
            judged = self._judged().verdict
        except (ArithmeticError, RuntimeError, ValueError) as error:
            judged = Verdict("failed", [f"the fit can't be judged: {error}"])
        return self._posterior(replace(judged, status="failed", reasons=[reason, *judged.reasons]))

    def _posterior(self, verdict: Verdict) -> Posterior:
        # Where the weights see next to nothing, nothing is left to mend; a model that runs draw by draw is too slow.
        kl, k_hat = (verdict.figures.get(name, math.inf) for name in ("kl_by_weights", "k_hat"))
        close = not self.guide.is_adversarial and kl < NEGLIGIBLE_KL and k_hat < K_HAT_LIMIT
        hmc_steps = 0 if close or not self.elbo.vectorize_particles else HMC_STEPS
        return Posterior(
            self.model,
            self.guide,
            self.args,
            self.kwargs,
            verdict=verdict,
            run=self.run,
            comparison=self.guide.comparison,
            hmc_steps=hmc_steps,
            evidence=self.evidence,
        )
