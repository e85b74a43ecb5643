"""fit: check the arguments, train a guide from start to verdict."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch.utils.data import DataLoader

from . import distributed
from .amortised.runs import AmortisedRun
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
from .data.batches import is_loader, length_of
from .data.tensor_loader import TensorLoader
from .devices import moved
from .elbo import AdversarialELBO
from .guides import AVBGuide
from .model_state import modules_of
from .posterior import Posterior
from .precision import Precision
from .remedies import spelled
from .rng import seeded
from .schedules import OpenEnded
from .stopping import Stopping
from .targets import Model
from .training import Trainer

DEFAULT_STEPS = 5000
#: Least number of passes over a DataLoader, where no length is given.
DEFAULT_EPOCHS = 20
#: Maximum of runs that a stopping rule ends.
MOST_STEPS = 20 * DEFAULT_STEPS


@spelled
@distributed.together_unless_alone()
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
    model_lr: float | None = None,
    epochs: int | None = None,
    stopping: Stopping | None = None,
    capture: bool | None = None,
    compile: bool = False,
    precision: Precision | None = None,
) -> Posterior:
    """Fit a model's posterior and judge the result.

    With an amortised guide it is an :class:`~avbvi.AmortisedPosterior`, of the model's latents given any of its data,
    and the model's own parameters (a decoder) are learned beside it; both are in evaluation mode afterwards. The data
    are then the model's arguments, all of them in each step, or one DataLoader, whose batches are the arguments step by
    step: tensors, or tuples of arguments.

    Several processes (torchrun) make the same call and share the work: see :mod:`avbvi.distributed`.

    A run that breaks down goes back to its last good state with half the learning rates. Ctrl-C ends it after the step
    under way: the posterior so far is returned, its verdict says so, and ``checkpoint`` can be taken up again. A second
    Ctrl-C raises.

    Args:
        model: a Pyro model or a :class:`~avbvi.LogDensity`.
        args: the model's positional arguments; with an amortised guide they may be one DataLoader.
        model_kwargs: the model's keyword arguments.
        guide: an untrained :class:`~avbvi.AVBGuide`; the default one if ``None``.
        seed: makes the run reproducible, on a copy of the random state: the caller's is left alone.
        steps: number of steps; with it a run is reproducible and resumes bit-equal. Without ``epochs`` and ``minutes``
            it is 5000, and with a DataLoader of known length at least 20 passes over it.
        minutes: length of the run by the clock, instead of ``steps``.
        device: where to train, a ``torch.device`` or its name; tensors among the arguments are moved there, and the
            modules that the model works with.
        progress: show a progress bar with the current ELBO estimate.
        checkpoint: file to which the run is saved every 30 seconds and from which it resumes if it exists.
        elbo: the loss, for other than default settings; its ``steps`` are set by this function.
        lr: learning rate of the outer Adam.
        model_lr: that of the model's own parameters; ``lr`` by default.
        epochs: length of the run in passes over the DataLoader, instead of ``steps``.
        stopping: fit the trunk until this rule (a copy of it) finds its ELBO converged, then let the learning rate
            decay and begin the adversarial stage; ``steps`` is then the maximum, 100,000 by default. The posterior's
            ``run.stopped_at`` tells whether the rule fired.
        capture: whether steps read nothing back and are captured as CUDA graphs, with a look at their losses every ten
            steps; by default on CUDA only. ``run.execution`` tells how they were taken. On a CPU ``True`` runs the same
            arithmetic without graphs.
        compile: let ``torch.compile`` fuse the arithmetic of steps on a CPU, which costs about half a minute at the
            start of each stage, less when it was compiled before, and pays for runs of some minutes. Where it can't be
            done, ``run.execution`` tells why.
        precision: of the networks' matrix products, lower than that of the parameters.

    Returns:
        The posterior, with its verdict.

    Raises:
        TypeError: an argument of the wrong type, or a DataLoader without an amortised guide or beside other arguments.
        ValueError: more than one of ``steps``, ``epochs`` and ``minutes``, a non-positive one, a ``guide`` that was
            trained before, ``epochs`` without a DataLoader of known length, one that gives no batch, or ``stopping``
            with ``minutes`` or without a trunk to train.
        ModelError: the model can't be fitted (see :class:`~avbvi.AVBGuide`).
        FitFailed: the run broke down again and again; the error's ``posterior`` is that of the last good state.
        CheckpointError: ``checkpoint`` is damaged, a folder, belongs to another run, or is of another version.
        FileNotFoundError: the folder of ``checkpoint`` does not exist.

    Example:
        A normal density, unnormalised, in two dimensions; log Z is log 2 pi = 1.838.

        >>> import avbvi
        >>> def log_prob(z):  # (*batch, 2) -> (*batch,)
        ...     return -0.5 * (z - 1.0).square().sum(-1)
        >>> model = avbvi.LogDensity(log_prob, event_shape=(2,))
        >>> posterior = avbvi.fit(model, guide=avbvi.AVBGuide(model, trunk=avbvi.MixtureTrunk(2)),
        ...                       steps=20, seed=0, progress=False)
        >>> posterior.sample(100)["z"].shape
        torch.Size([100, 2])
        >>> round(float(posterior.elbo()), 2)
        1.84

    Source: AVB (Mescheder, Nowozin and Geiger 2017, Adversarial variational Bayes, ICML), Algorithms 1 and 2, in the
    base coordinates of a trunk; the search for a start, the choice of stage and the verdict name their own.
    """
    given = [name for name, value in (("steps", steps), ("epochs", epochs), ("minutes", minutes)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"give either {' or '.join(given)}, not {'both' if len(given) == 2 else 'all of them'}")
    if stopping is not None and minutes is not None:
        raise ValueError("stopping decides on a number of steps; give it without minutes, or minutes without it")
    if stopping is not None:
        instance("stopping", stopping, Stopping, "a Stopping")
    function("model", model)
    steps = None if steps is None else positive_integer("steps", steps)
    minutes = None if minutes is None else positive_number("minutes", minutes)
    epochs = None if epochs is None else positive_integer("epochs", epochs)
    lr, seed = positive_number("lr", lr), distributed.same_seed(seed_number(seed))
    model_lr = None if model_lr is None else positive_number("model_lr", model_lr)
    flag("progress", progress)
    if capture is not None:
        flag("capture", capture)
    if flag("compile", compile) and capture:
        raise ValueError(
            "compile fuses steps that are taken one by one, capture takes them otherwise; give one of them"
        )
    if precision is not None:
        instance("precision", precision, Precision, "a Precision")
    if guide is not None:
        instance("guide", guide, AVBGuide, "an AVBGuide")
    if elbo is not None:
        instance("elbo", elbo, AdversarialELBO, "an AdversarialELBO (which may wrap another ELBO)")
    if checkpoint is not None:
        check_path(checkpoint, "checkpoint")
    amortised = guide is not None and guide.is_amortised
    _check_loader(args, amortised)
    if amortised and stopping is not None:
        raise ValueError("stopping ends the training of a trunk, which an amortised guide does not have; give steps")
    if elbo is not None and elbo.steps is not None:
        raise ValueError("elbo already has steps; give them to fit(steps=...) instead")
    if guide is not None and int(guide.step_count):
        raise ValueError(f"guide was trained before ({int(guide.step_count)} steps); fit needs an untrained one")
    if epochs is not None:
        steps = epochs * _steps_per_epoch(args)
    if steps is None and minutes is None:
        steps = _default_steps(args) if stopping is None else MOST_STEPS
    kwargs = keywords("model_kwargs", model_kwargs)
    device = device_of(device) or distributed.device()
    if device is not None:
        args = _moved(args, device)
        kwargs = {k: moved(v, device) for k, v in kwargs.items()}
        for module in modules_of(model).values():
            module.to(device)
    # As a context the default device costs some milliseconds at every step.
    elsewhere = device is not None and device != torch.get_default_device()
    where: AbstractContextManager[Any] = torch.device(device) if elsewhere else nullcontext()  # type: ignore[arg-type]
    with seeded(seed), where:
        kind = AmortisedRun if amortised else Trainer
        guide, elbo = guide or AVBGuide(model), elbo or AdversarialELBO()
        trainer = kind(model, args, kwargs, guide, elbo, lr, model_lr=model_lr, device=device)
        trainer.run.seed, trainer.capture, trainer.compiles = seed, capture, compile
        trainer.precision = precision or Precision()
        if stopping is not None:
            assert steps is not None
            trainer.open_ended = OpenEnded(
                Stopping(**stopping.settings()),
                trainer.elbo.schedule,
                steps,
                len(trainer.guide.part("trunk").candidates),
            )
        return trainer.train(steps, minutes, progress=progress, checkpoint=checkpoint)


def _check_loader(args: tuple[Any, ...], amortised: bool) -> None:
    if is_loader(args) and not amortised:
        raise TypeError(
            "a DataLoader as the model's argument needs an amortised guide, which has a posterior for each datum: "
            "guide=AVBGuide(model, sampler=...) with a sampler that takes a context"
        )
    if not is_loader(args) and any(isinstance(a, DataLoader) for a in args):
        raise TypeError(
            f"args: a DataLoader must be the model's only positional argument, found {len(args)}; let its batches be "
            "tuples of arguments, and give constant ones as model_kwargs"
        )


def _moved(args: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    """The arguments on the device; a loader's batches go there one by one, unless it is made of tensors."""
    if not is_loader(args):
        return tuple(moved(a, device) for a in args)
    return (args[0].to(device),) if isinstance(args[0], TensorLoader) else args


def _steps_per_epoch(args: tuple[Any, ...]) -> int:
    if not is_loader(args):
        raise ValueError("epochs counts passes over a DataLoader, and there is none among the arguments; give steps")
    length = length_of(args[0])
    if length is None:
        raise ValueError("epochs needs a DataLoader of known length, and this one's data set has none; give steps")
    return max(length, 1)


def _default_steps(args: tuple[Any, ...]) -> int:
    length = length_of(args[0]) if is_loader(args) else None
    return DEFAULT_STEPS if length is None else max(DEFAULT_STEPS, DEFAULT_EPOCHS * length)
