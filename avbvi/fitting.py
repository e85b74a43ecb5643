"""fit: check the arguments, train a guide from start to verdict."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

import torch

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
from .checkpoints import check_path
from .devices import moved
from .elbo import AdversarialELBO
from .guides import AVBGuide
from .posterior import Posterior
from .rng import seeded
from .schedules import OpenEnded
from .stopping import Stopping
from .targets import Model
from .training import Trainer

DEFAULT_STEPS = 5000
#: Maximum of runs that a stopping rule ends.
MOST_STEPS = 20 * DEFAULT_STEPS


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
