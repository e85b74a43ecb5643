"""fit: train a guide from start to verdict, with progress, recovery and checkpoints."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from tqdm.auto import tqdm

from .devices import moved
from .diagnostics import judge
from .elbo import AdversarialELBO
from .errors import CheckpointError
from .guides import AVBGuide
from .posterior import (
    VERSION,
    Posterior,
    Run,
    guide_elbo,
    part_configurations,
    plain_comparison,
    read_comparison,
    read_file,
    site_table,
    write_atomically,
)
from .rng import rng_state, rng_untouched, seeded, set_rng_state
from .schedules import Clock, OpenEnded, ScheduledAdam
from .starts import LaplaceModes
from .stopping import Stopping
from .targets import Model

FORMAT = "avbvi-checkpoint"
DEFAULT_STEPS = 5000
#: Maximum of runs that a stopping rule ends.
MOST_STEPS = 20 * DEFAULT_STEPS
RECORD_EVERY = 10
CHECKPOINT_SECONDS = 30.0
#: Transitions that the draws of a fit are moved by where the guide left room for them.
HMC_STEPS = 20


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
        ValueError: both ``steps`` and ``minutes``, a non-positive one, a ``guide`` that was trained before, or
            ``stopping`` with ``minutes`` or without a trunk to train.
        ModelError: the model can't be fitted (see :class:`~avbvi.AVBGuide`).
        NonFiniteError: losses or gradients stayed NaN or infinite.
        CheckpointError: ``checkpoint`` is damaged or belongs to another run.
    """
    if steps is not None and minutes is not None:
        raise ValueError("give either steps or minutes, not both")
    if stopping is not None and minutes is not None:
        raise ValueError("stopping decides on a number of steps; give it without minutes, or minutes without it")
    for name, value in (("steps", steps), ("minutes", minutes), ("lr", lr)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, found {value}")
    if len(args) == 1 and isinstance(args[0], torch.utils.data.DataLoader):
        raise TypeError("a DataLoader as the model's argument needs an amortised guide, not supported by this version")
    if elbo is not None and elbo.steps is not None:
        raise ValueError("elbo already has steps; give them to fit(steps=...) instead")
    if guide is not None and int(guide.step_count):
        raise ValueError(f"guide was trained before ({int(guide.step_count)} steps); fit needs an untrained one")
    if steps is None and minutes is None:
        steps = DEFAULT_STEPS if stopping is None else MOST_STEPS
    kwargs = dict(model_kwargs or {})
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
        self.optimiser: ScheduledAdam | None = None
        self.lr = lr
        self.names: list[str] = []
        self.run = Run()
        self.open_ended: OpenEnded | None = None
        self.elapsed_before = 0.0
        self._smoothed = float("nan")

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
        self.elbo.steps, self.elbo.open_ended = steps, self.open_ended
        if minutes is not None:
            self.elbo.clock = Clock(60.0 * minutes)
        try:
            self._prepare(steps, minutes, checkpoint)
            with (
                pyro.validation_enabled(False),
                tqdm(total=1.0, disable=not progress, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar,
            ):
                self._loop(started, bar, checkpoint)
                if self.elbo.clock is not None:
                    bar.set_postfix_str("comparing the stages")
                    self.elbo.finish(self.guide)
        finally:
            self.elbo.steps, self.elbo.clock, self.elbo.open_ended = None, None, None
        self.run.seconds = self.elapsed_before + time.monotonic() - started
        self.run.steps = int(self.guide.step_count)
        self.run.skipped_steps = int(self.guide.skipped_steps)
        if self.open_ended is not None and self.open_ended.rule.stopped_at is not None:
            self.run.stopped_at = self.open_ended.decay_from
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
        if checkpoint is not None and Path(checkpoint).exists():
            self.guide.setup(*self.args, **self.kwargs)
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
            self.elbo.loss(self.model, self.guide, *self.args, **self.kwargs)

    def _loop(self, started: float, bar: Any, checkpoint: str | PathLike[str] | None) -> None:
        saved = time.monotonic()
        while self.elbo.progress(self.guide) < 1.0:
            loss = self.step()
            count = int(self.guide.step_count)
            if self.open_ended is not None:
                self.open_ended.update(count, -loss)
                self.elbo.steps = self.open_ended.steps
            self._smoothed = -loss if self._smoothed != self._smoothed else 0.98 * self._smoothed - 0.02 * loss
            if count % RECORD_EVERY == 0:
                self._record(count, loss)
                stage = "adversarial" if int(self.guide.adversarial_steps) else "trunk"
                bar.set_postfix_str(f"ELBO {self._smoothed:.3f}, {stage} stage", refresh=False)
                bar.update(self.elbo.progress(self.guide) - bar.n)
            if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save(checkpoint, self.elapsed_before + time.monotonic() - started)
                saved = time.monotonic()
        bar.update(1.0 - bar.n)
        if checkpoint is not None:
            self._save(checkpoint, self.elapsed_before + time.monotonic() - started)

    def step(self) -> float:
        """One step, the same as ``SVI.step`` with ``elbo.optimizer(lr)``; returns the loss."""
        with poutine.trace(param_only=True) as capture:
            loss = self.elbo.loss_and_grads(self.model, self.guide, *self.args, **self.kwargs)
        named = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
        self._optimise(named)
        return loss

    def _optimise(self, named: dict[str, Tensor]) -> None:
        new = [name for name in named if name not in self.names]
        if self.optimiser is None:
            self.optimiser = ScheduledAdam([{"params": []}], lr=self.lr, factor=self.elbo.lr_factor)
        for name in new:
            self.optimiser.param_groups[0]["params"].append(named[name])
            self.names.append(name)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def _record(self, count: int, loss: float) -> None:
        self.run.history["step"].append(float(count))
        self.run.history["elbo"].append(-loss)
        # Not guide.stage: after the last step that already tells which stage was kept.
        self.run.history["stage"].append(float(int(self.guide.adversarial_steps) > 0))

    def _judged(self) -> Posterior:
        target = self.guide.target(*self.args, **self.kwargs)
        assert target is not None
        comparison = self.guide.comparison
        verdict = judge(
            self.guide,
            target,
            guide_elbo(self.guide, target, 20_000),
            skipped=self.run.skipped_steps,
            steps=self.run.steps,
            comparison=comparison,
        )
        # Close to the posterior nothing is left to mend; a model that runs draw by draw would take too long.
        hmc_steps = HMC_STEPS if target.vectorize and not bool(self.guide.trunk_suffices) else 0
        return Posterior(
            self.model,
            self.guide,
            self.args,
            self.kwargs,
            verdict=verdict,
            run=self.run,
            comparison=comparison,
            hmc_steps=hmc_steps,
        )

    # -- checkpoints ------------------------------------------------------------------------------------

    def _save(self, path: str | PathLike[str], elapsed: float) -> None:
        own = {id(p) for p in self.guide.parameters()}
        write_atomically(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "parts": part_configurations(self.guide),
                "sites": site_table(self.guide),
                "guide": self.guide.state_dict(),
                "model": {
                    name: p.detach()
                    for name, p in pyro.get_param_store().named_parameters()
                    if name in self.names and id(p) not in own
                },
                "optimiser": self.optimiser.state_dict() if self.optimiser else None,
                "names": [self._portable(name) for name in self.names],
                "adversary_optimiser": list(self.elbo.state_dict().values()),
                "rng": rng_state(),
                "elapsed": elapsed,
                "open_ended": None if self.open_ended is None else self.open_ended.state_dict(),
                "smoothed": self._smoothed,
                "history": self.run.history,
                "comparison": plain_comparison(self.guide.comparison),
                "modes": None if self.guide.modes is None else self.guide.modes._asdict(),
            },
        )

    def _portable(self, name: str) -> str:
        """A parameter's name in Pyro's store without the guide's own, which differs from process to process."""
        prefix = f"{self.guide._pyro_name}."
        return name.replace(prefix, "guide:", 1) if name.startswith(prefix) else name

    def _resume(self, path: str | PathLike[str]) -> None:
        content = read_file(path, FORMAT)
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
        self.guide.load_state_dict(content["guide"])
        # One step on throw-away state registers the parameters with Pyro, then all of it is restored.
        self._register(content["names"], content["model"])
        if content["optimiser"] is not None:
            assert self.optimiser is not None
            self.optimiser.load_state_dict(content["optimiser"])
        for state in content["adversary_optimiser"]:
            self.elbo.load_state_dict({self.guide._pyro_name: state})
        if self.open_ended is not None:
            self.open_ended.load_state_dict(content["open_ended"])
            self.elbo.steps = self.open_ended.steps
        self.run.history = content["history"]
        self.guide.comparison = read_comparison(content["comparison"])
        self.guide.modes = None if content["modes"] is None else LaplaceModes(**content["modes"])
        self.elapsed_before = content["elapsed"]
        self._smoothed = content["smoothed"]
        set_rng_state(content["rng"])

    def _register(self, portable: list[str], values: dict[str, Tensor]) -> None:
        prefix = f"{self.guide._pyro_name}."
        own = {f"guide:{_store_name(name)}": p for name, p in self.guide.named_parameters()}
        with torch.no_grad(), poutine.trace(param_only=True) as capture, poutine.block(hide_types=["sample"]):
            self.elbo.loss(self.model, self.guide, *self.args, **self.kwargs)
        seen = {self._portable(n): s["value"].unconstrained() for n, s in capture.trace.nodes.items()}
        for name in portable:
            parameter = own.get(name, seen.get(name))
            if parameter is None:
                raise CheckpointError(f"the checkpoint has a parameter {name!r} that this model and guide lack")
            if name in values:
                with torch.no_grad():
                    parameter.copy_(values[name])
            self._optimise_later(name.replace("guide:", prefix, 1), parameter)

    def _optimise_later(self, name: str, parameter: Tensor) -> None:
        if self.optimiser is None:
            self.optimiser = ScheduledAdam([{"params": []}], lr=self.lr, factor=self.elbo.lr_factor)
        self.optimiser.param_groups[0]["params"].append(parameter)
        self.names.append(name)


def _store_name(name: str) -> str:
    """A guide parameter's name as Pyro's store has it: module$$$rest."""
    module, _, rest = name.partition(".")
    return f"{module}$$${rest}" if rest else name
