"""fit: train a guide from start to verdict, with progress, recovery and checkpoints."""

from __future__ import annotations

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
from tqdm.auto import tqdm

from .arguments import (
    device_of,
    flag,
    function,
    instance,
    keywords,
    positive_integer,
    positive_number,
    seed_number,
)
from .checkpoints import check_path, read_file, write_atomically
from .devices import moved
from .diagnostics import K_HAT_LIMIT, Iterates, Verdict, judge
from .elbo import AdversarialELBO
from .errors import CheckpointError, FitFailed, NonFiniteError
from .guides import TRUNK, AVBGuide
from .integrity import damage
from .interrupts import Interrupt
from .posterior import Posterior, Run, guide_elbo, part_configurations, plain_comparison, read_comparison, site_table
from .recovery import MANY_ROLLBACKS, Recovery
from .rng import rng_state, rng_untouched, seeded, set_rng_state
from .schedules import Clock, OpenEnded
from .starts import LaplaceModes
from .stopping import Stopping
from .targets import Model
from .training_state import TrainingState, named_parameters

FORMAT = "avbvi-checkpoint"
VERSION = 2
#: What a checkpoint has beside format and version.
KEYS = frozenset(
    {
        "fingerprint",
        "parts",
        "sites",
        "state",
        "recovery",
        "rng",
        "elapsed",
        "smoothed",
        "history",
        "open_ended",
        "iterates",
        "comparison",
        "modes",
        "start_notes",
        "start_suspect",
    }
)
DEFAULT_STEPS = 5000
#: Maximum of runs that a stopping rule ends.
MOST_STEPS = 20 * DEFAULT_STEPS
RECORD_EVERY = 10
CHECKPOINT_SECONDS = 30.0
#: Transitions that the draws of a fit are moved by where the guide left room for them.
HMC_STEPS = 10
NEGLIGIBLE_KL = 0.01


def fit(
    model: Model,
    *args: Any,
    model_kwargs: dict[str, Any] | None = None,
    guide: AVBGuide | None = None,
    seed: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    elbo: AdversarialELBO | None = None,
    lr: float = 2e-3,
    stopping: Stopping | None = None,
) -> Posterior:
    """Fit a model's posterior and judge the result.

    A run that breaks down goes back to its last good state with half the learning rates. Ctrl-C ends it after the step
    under way: the posterior so far is returned, its verdict says so, and ``checkpoint`` can be taken up again. A second
    Ctrl-C raises.

    Args:
        model: a Pyro model or a :class:`~avbvi.LogDensity`.
        args, model_kwargs: the model's arguments.
        guide: an untrained :class:`~avbvi.AVBGuide`; the default one if ``None``.
        seed: makes the run reproducible, on a copy of the random state: the caller's is left alone.
        steps: number of steps; with it a run is reproducible and resumes bit-equal.
        minutes: length of the run by the clock, instead of ``steps``.
        device: where to train; tensors among the arguments are moved there.
        progress: show a progress bar with the current ELBO estimate.
        checkpoint: file to which the run is saved every 30 seconds and from which it resumes if it exists.
        elbo: the loss, for other than default settings; its ``steps`` are set by this function.
        lr: learning rate of the outer Adam.
        stopping: fit the trunk until this rule (a copy of it) finds its ELBO converged, then let the learning rate
            decay and begin the adversarial stage; ``steps`` is then the maximum, 100,000 by default. The posterior's
            ``run.stopped_at`` tells whether the rule fired.

    Returns:
        The posterior, with its verdict.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: both ``steps`` and ``minutes``, a non-positive one, a ``guide`` that was trained before, or
            ``stopping`` with ``minutes`` or without a trunk to train.
        ModelError: the model can't be fitted (see :class:`~avbvi.AVBGuide`).
        FitFailed: the run broke down again and again; the error's ``posterior`` is that of the last good state.
        CheckpointError: ``checkpoint`` is damaged, a folder, belongs to another run, or is of another version.
        FileNotFoundError: the folder of ``checkpoint`` does not exist.
    """
    if steps is not None and minutes is not None:
        raise ValueError("give either steps or minutes, not both")
    if stopping is not None and minutes is not None:
        raise ValueError("stopping decides on a number of steps; give it without minutes, or minutes without it")
    if stopping is not None:
        instance("stopping", stopping, Stopping, "a Stopping")
    function("model", model)
    steps = None if steps is None else positive_integer("steps", steps)
    minutes = None if minutes is None else positive_number("minutes", minutes)
    lr, seed = positive_number("lr", lr), seed_number(seed)
    flag("progress", progress)
    if guide is not None:
        instance("guide", guide, AVBGuide, "an AVBGuide")
    if elbo is not None:
        instance("elbo", elbo, AdversarialELBO, "an AdversarialELBO (which may wrap another ELBO)")
    if checkpoint is not None:
        check_path(checkpoint, "checkpoint")
    if len(args) == 1 and isinstance(args[0], torch.utils.data.DataLoader):
        raise TypeError("a DataLoader as the model's argument needs an amortised guide, not supported by this version")
    if elbo is not None and elbo.steps is not None:
        raise ValueError("elbo already has steps; give them to fit(steps=...) instead")
    if guide is not None and int(guide.step_count):
        raise ValueError(f"guide was trained before ({int(guide.step_count)} steps); fit needs an untrained one")
    if steps is None and minutes is None:
        steps = DEFAULT_STEPS if stopping is None else MOST_STEPS
    kwargs = keywords("model_kwargs", model_kwargs)
    device = device_of(device)
    if device is not None:
        args = tuple(moved(a, device) for a in args)
        kwargs = {k: moved(v, device) for k, v in kwargs.items()}
    where: AbstractContextManager[Any] = nullcontext() if device is None else torch.device(device)
    with seeded(seed), where:
        trainer = Trainer(model, args, kwargs, guide or AVBGuide(model), elbo or AdversarialELBO(), lr)
        trainer.run.seed = seed
        if stopping is not None:
            assert steps is not None
            trainer.open_ended = OpenEnded(
                Stopping(**stopping.settings()),
                trainer.elbo.schedule,
                steps,
                len(trainer.guide.part("trunk").candidates),
            )
        return trainer.train(steps, minutes, progress=progress, checkpoint=checkpoint)


class Trainer:
    """One run of :func:`fit`: the loop, its record and its checkpoints."""

    def __init__(
        self,
        model: Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        guide: AVBGuide,
        elbo: AdversarialELBO,
        lr: float,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.guide, self.elbo = guide, elbo
        self.lr = lr
        self.state = TrainingState(guide, elbo, lr)
        self.recovery = Recovery(self.state)
        self.run = Run()
        self.open_ended: OpenEnded | None = None
        self.iterates = Iterates()
        self.elapsed_before = 0.0
        self._smoothed = float("nan")
        self._share = 1.0

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
        self.elbo.begin_run()
        self.elbo.steps, self.elbo.open_ended = steps, self.open_ended
        self.elbo.before_adversarial = self.recovery.restore_best
        if minutes is not None:
            self.elbo.clock = Clock(60.0 * minutes)
        try:
            self._prepare(steps, minutes, checkpoint)
            with (
                pyro.validation_enabled(False),
                tqdm(total=1.0, disable=not progress, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar,
            ):
                self._loop(started, bar, checkpoint)
                bar.set_postfix_str("comparing the stages")
                self._finish()
        except FitFailed as error:
            error.posterior = self._failed(str(error), started)
            raise
        finally:
            self.elbo.steps, self.elbo.clock, self.elbo.open_ended = None, None, None
            self.elbo.begin_run()
        self._close(started)
        return self._judged()

    def _prepare(self, steps: int | None, minutes: float | None, checkpoint: str | PathLike[str] | None) -> None:
        self.fingerprint = {
            "steps": steps,
            "minutes": minutes,
            "seed": self.run.seed,
            "lr": self.lr,
            "elbo": self.elbo.settings(),
        }
        if self.open_ended is not None:
            self.fingerprint["stopping"] = self.open_ended.rule.settings()
        resumes = checkpoint is not None and Path(checkpoint).exists()
        if checkpoint is not None and resumes:
            self.guide.setup(*self.args, **self.kwargs)
            with damage(checkpoint):
                self._resume(checkpoint)
            if self.elbo.clock is not None:
                self.elbo.clock.started -= self.elapsed_before
        else:
            # Set-up and start draw from the generators, as in SVI's first step; the evaluation below does not.
            with pyro.validation_enabled(True):
                self.elbo._ready(self.model, self.guide, self.args, self.kwargs)
        if self.open_ended is not None and not self.guide.part("trunk").is_trainable:
            raise ValueError("stopping ends the training of a trunk, and this guide's has nothing to train; give steps")
        # One evaluation with Pyro's validation on: misshapen sites and arguments fail here, with their names.
        with torch.no_grad(), pyro.validation_enabled(True), rng_untouched():
            loss = self.elbo.loss(self.model, self.guide, *self.args, **self.kwargs)
        if not resumes:
            self.recovery.begin(loss)

    def _loop(self, started: float, bar: Any, checkpoint: str | PathLike[str] | None) -> None:
        saved = time.monotonic()
        with Interrupt() as interrupt:
            while self.elbo.progress(self.guide) < 1.0 and not interrupt.asked:
                try:
                    self._advance(bar)
                except KeyboardInterrupt:  # the second one, or raised by somebody's own handler
                    if interrupt.asked:
                        raise
                    interrupt.asked = True
                    self.recovery.restore_last()
                if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save(checkpoint, self.elapsed_before + time.monotonic() - started)
                    saved = time.monotonic()
            self._share = self.elbo.progress(self.guide)
            self.run.interrupted = self._share < 1.0
            self.recovery.look()
            if not int(self.guide.adversarial_steps):
                self.recovery.restore_best(self.guide)
            bar.update(self._share - bar.n)
            if checkpoint is not None:
                self._save(checkpoint, self.elapsed_before + time.monotonic() - started)

    def _advance(self, bar: Any) -> None:
        """One step, noted and watched."""
        try:
            loss = self.step()
        except FitFailed:
            raise
        except NonFiniteError as error:
            self.recovery.roll_back(str(error))
            return
        count = int(self.guide.step_count)
        if self.open_ended is not None:
            self.open_ended.update(count, -loss)
            self.elbo.steps = self.open_ended.steps
        if math.isfinite(loss):
            self._smoothed = -loss if self._smoothed != self._smoothed else 0.98 * self._smoothed - 0.02 * loss
        if count % RECORD_EVERY == 0:
            self._record(count, loss)
            stage = "adversarial" if int(self.guide.adversarial_steps) else "trunk"
            bar.set_postfix_str(f"ELBO {self._smoothed:.3f}, {stage} stage", refresh=False)
            bar.update(self.elbo.progress(self.guide) - bar.n)
        self.recovery.observe(loss)

    def step(self) -> float:
        """One step, the same as ``SVI.step`` with ``elbo.optimizer(lr)``; returns the loss."""
        try:
            with poutine.trace(param_only=True) as capture:
                loss = self.elbo.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # a matrix of the model is singular at some draw
            self.elbo.skip(self.guide)
            return math.nan
        self.state.optimise(named_parameters(capture.trace))
        return loss

    def _record(self, count: int, loss: float) -> None:
        self.run.history["step"].append(float(count))
        self.run.history["elbo"].append(-loss)
        self.iterates.update(self.guide, self.elbo.progress(self.guide))
        # Not guide.stage: after the last step that already tells which stage was kept.
        self.run.history["stage"].append(float(int(self.guide.adversarial_steps) > 0))

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
        self.run.seconds = self.elapsed_before + time.monotonic() - started
        self.run.steps = int(self.guide.step_count)
        self.run.skipped_steps = int(self.guide.skipped_steps)
        self.run.rollbacks = self.recovery.rollbacks
        if self.open_ended is not None and self.open_ended.rule.stopped_at is not None:
            self.run.stopped_at = self.open_ended.decay_from

    def _judged(self) -> Posterior:
        target = self.guide.target(*self.args, **self.kwargs)
        assert target is not None
        comparison = self.guide.comparison
        try:
            verdict = judge(
                self.guide,
                target,
                guide_elbo(self.guide, target, 20_000),
                skipped=self.run.skipped_steps,
                steps=self.run.steps,
                comparison=comparison,
                iterates=self.iterates.last_half(int(self.guide.stage)),
            )
        except KeyboardInterrupt:
            if self.run.interrupted:
                raise
            self.run.interrupted = True
            verdict = Verdict("suspect", ["the fit was not judged"])
        return self._posterior(self._amended(verdict))

    def _amended(self, verdict: Verdict) -> Verdict:
        """The verdict with what the run itself tells: rollbacks and an interruption."""
        status, reasons = verdict.status, list(verdict.reasons)
        if self.run.rollbacks:
            if status == "ok" and self.run.rollbacks > MANY_ROLLBACKS:
                status = "suspect"
            reasons.append(
                f"the run broke down {self.run.rollbacks} times and went on from an earlier state with halved learning "
                f"rates; the last time at {self.recovery.reasons[-1]}"
            )
        if self.recovery.kept_start:
            status = "suspect" if status == "ok" else status
            reasons.append("training made the trunk worse than it was at the start, which was kept; try a smaller lr")
        if self.run.interrupted:
            status = "suspect" if status == "ok" else status
            reasons.append(f"interrupted after {self.run.steps} steps, {self._share:.0%} of the run")
        figures = {**verdict.figures, "rollbacks": float(self.run.rollbacks)}
        return replace(verdict, status=status, reasons=reasons, figures=figures)

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
        )

    # -- checkpoints ------------------------------------------------------------------------------------

    def _save(self, path: str | PathLike[str], elapsed: float) -> None:
        write_atomically(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "parts": part_configurations(self.guide),
                "sites": site_table(self.guide),
                "state": self.state.capture(),
                "recovery": self.recovery.state_dict(),
                "rng": rng_state(),
                "elapsed": elapsed,
                "open_ended": None if self.open_ended is None else self.open_ended.state_dict(),
                "smoothed": self._smoothed,
                "history": self.run.history,
                "iterates": self.iterates.state_dict(),
                "comparison": plain_comparison(self.guide.comparison),
                "modes": None if self.guide.modes is None else self.guide.modes._asdict(),
                "start_notes": self.guide.start_notes,
                "start_suspect": self.guide.start_suspect,
            },
        )

    def _resume(self, path: str | PathLike[str]) -> None:
        content = read_file(path, FORMAT, VERSION, KEYS)
        for key, mine in (
            ("fingerprint", self.fingerprint),
            ("parts", part_configurations(self.guide)),
            ("sites", site_table(self.guide)),
        ):
            if content[key] != mine:
                raise CheckpointError(
                    f"checkpoint={str(path)!r} belongs to another run: its {key} is {content[key]}, this run's is "
                    f"{mine}; repeat that run's arguments or choose another file"
                )
        self.guide.load_state_dict(content["state"]["guide"])
        # One evaluation on throw-away state registers the parameters with Pyro, then all of it is restored.
        with torch.no_grad(), poutine.trace(param_only=True) as capture, poutine.block(hide_types=["sample"]):
            self.elbo.loss(self.model, self.guide, *self.args, **self.kwargs)
        self.state.resume(content["state"], named_parameters(capture.trace))
        self.recovery.load_state_dict(content["recovery"])
        if self.open_ended is not None:
            self.open_ended.load_state_dict(content["open_ended"])
            self.elbo.steps = self.open_ended.steps
        self.run.history = content["history"]
        self.iterates.load_state_dict(content["iterates"])
        self.guide.comparison = read_comparison(content["comparison"])
        self.guide.modes = None if content["modes"] is None else LaplaceModes(**content["modes"])
        self.guide.start_notes, self.guide.start_suspect = content["start_notes"], content["start_suspect"]
        self.elapsed_before = content["elapsed"]
        self._smoothed = content["smoothed"]
        set_rng_state(content["rng"])
