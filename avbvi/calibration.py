"""Simulation-based calibration: are posteriors right on average over the prior?"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .bars import progress_bar
from .checkpoints import read_file, write_atomically
from .elbo import AdversarialELBO
from .errors import CheckpointError, ModelError
from .fitting import fit as default_fit
from .posterior import Posterior
from .ranks import Calibration
from .simulations import Experiment, Fit, Simulation, Statistic
from .targets import Model

FORMAT = "avbvi-calibration"
VERSION = 1
#: What a file of a study has beside format and version.
KEYS = frozenset({"seed", "study", "simulations"})
DEFAULT_MINUTES = 1.0 / 6.0


def sbc(
    model: Model,
    *args: Any,
    model_kwargs: dict[str, Any] | None = None,
    observed: Sequence[str] | None = None,
    simulations: int = 100,
    draws: int = 999,
    fit: Fit | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    seed: int | None = None,
    vectorize: bool = True,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
) -> Calibration:
    """Test posteriors over the prior: simulate latents and data from the model, fit the data, rank the latents.

    If the fits are exact, the rank of the true value of any statistic among the posterior's draws is uniform.
    The statistics are each unconstrained coordinate of the latents, which sees shifts and wrong widths of the
    marginals; and of all latents together

    - ``log_joint``, log p(x, z), which sees wrong correlations too;
    - ``log_likelihood``, log p(x | z), which sees that data are not used (where no discrete latent is summed out);
    - ``log_q``, if the fit's result has ``log_prob``: the coverage of its regions of highest density;
    - ``distance``, Mahalanobis distance to the mean, and ``tarp_distance``, that to an independent draw of the
      prior, both by mean and covariance of other posterior draws.

    A fit is given the model with the simulated data in place of its observations (``poutine.condition``), whatever
    the arguments are; what else a model does with its arguments stays as it is. What this shows is an average over
    the prior: a fit may be right for most data and still wrong for the data at hand.

    Args:
        model: a Pyro model whose priors are proper.
        args: its arguments, with data of the right shape.
        model_kwargs: its keyword arguments.
        observed: names of all sites that are data; by default those that are observed with these arguments.
        simulations: number of rounds; with 100 a coverage of 95 % is known to within 4 %.
        draws: posterior draws that the truth is ranked among, at least 10; one less than a round number suits levels.
        fit: called as ``fit(model, *args, seed=...)``, returns an object with ``sample(n)`` giving n independent draws
            {site: (n, *shape)}, such as ``functools.partial(avbvi.fit, steps=2000, progress=False)``. By default
            :func:`avbvi.fit` for 10 seconds. One that raises an ``ArithmeticError``, ``RuntimeError`` or ``ValueError``
            has failed and is counted.
        statistics: further ones, name -> function of draws {latent site: (n, *shape)} and data {site: value} to (n,).
        seed: makes rounds reproducible (as far as the fit is: for a number of steps, not of minutes); the caller's
            random state is left alone.
        vectorize: evaluate the model at all draws at once; ``False`` for models that do not broadcast (of which a
            ``fit`` that is given has to be told too).
        progress: show a progress bar.
        checkpoint: file to which each round is saved, and from which the study goes on if it exists; with more
            ``simulations`` than it holds it is extended.

    Returns:
        Ranks, p-values, coverage and what they mean.

    Raises:
        ValueError: a number is too small, ``observed`` does not fit the model, names collide, or a fit's draws lack
            a latent or have a wrong shape.
        ModelError: the model has no generative form (improper prior, factor, weights, learned parameters), or not a
            single fit succeeded.
        CheckpointError: ``checkpoint`` is damaged or belongs to another study.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
    simulation-based calibration, arXiv:1804.06788; for the joint statistics Modrák et al. (2023), Simulation-based
    calibration checking for Bayesian computation: the choice of test quantities shapes sensitivity, Bayesian Analysis.
    """
    _check_arguments(simulations, draws, fit, statistics, seed)
    saved = None
    if checkpoint is not None and Path(checkpoint).exists():
        saved = read_file(checkpoint, FORMAT, VERSION, KEYS)
        seed = saved["seed"] if seed is None else seed
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    experiment = Experiment.prepare(
        model,
        args,
        dict(model_kwargs or {}),
        observed=observed,
        fit=fit or partial(_ten_seconds, vectorize),
        draws=draws,
        seed=seed,
        statistics=dict(statistics or {}),
        vectorize=vectorize,
    )
    done = [] if saved is None else _resumed(experiment, saved, checkpoint)
    initial = min(len(done), simulations)
    with progress_bar(progress, total=simulations, initial=initial, unit="simulation") as bar:
        for index in range(len(done), simulations):
            done.append(simulated(experiment, index))
            if checkpoint is not None:
                write_atomically(checkpoint, _content(experiment, done))
            failed = sum(s.failure is not None for s in done)
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            bar.update()
    result = Calibration(tuple(done[:simulations]), draws, experiment.sites, seed)
    if not result.completed:
        raise ModelError(f"none of {simulations} simulations has ranks; the first: {result.failures[0]}")
    return result


def _ten_seconds(vectorize: bool, model: Model, *args: Any, seed: int) -> Posterior:
    elbo = None if vectorize else AdversarialELBO(vectorize_particles=False)
    return default_fit(model, *args, elbo=elbo, minutes=DEFAULT_MINUTES, seed=seed, progress=False)


def simulated(experiment: Experiment, index: int) -> Simulation:
    """One round of a study, for running rounds in several processes; :class:`Calibration` takes them together.

    Raises:
        KeyboardInterrupt: Ctrl-C, even if the fit made a result of what it had by then: that would be a worse one.
    """
    with _noting_interrupts() as interrupted:
        simulation = experiment.run(index)
    if interrupted():
        raise KeyboardInterrupt
    return simulation


@contextmanager
def _noting_interrupts() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C do what it does, and note that it came."""
    came: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers; one that was set outside of Python can't be put back.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(True)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


def _check_arguments(simulations: Any, draws: Any, fit: Any, statistics: Any, seed: Any) -> None:
    for name, value, least in (("simulations", simulations, 1), ("draws", draws, 10), ("seed", seed, 0)):
        if name == "seed" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, found {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, found {value}")
    if fit is not None and not callable(fit):
        raise TypeError(f"fit must be a function (model, *args, seed) -> posterior, found {type(fit).__name__}")
    if statistics is not None and not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must map names to functions, found {type(statistics).__name__}")
    wrong = [name for name, value in (statistics or {}).items() if not callable(value)]
    if wrong:
        raise TypeError(f"statistics[{wrong[0]!r}] must be a function (draws, data) -> (n,)")


# -- checkpoints ------------------------------------------------------------------------------------------


def _content(experiment: Experiment, done: Sequence[Simulation]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "seed": experiment.seed,
        "study": _study(experiment),
        "simulations": [vars(s) for s in done],
    }


def _study(experiment: Experiment) -> dict[str, Any]:
    """What has to agree for rounds to belong together; the fit can't be compared."""
    return {
        "draws": experiment.draws,
        "observed": list(experiment.observed),
        "sites": {name: list(shape) for name, shape in experiment.sites.items()},
        "statistics": list(experiment.statistics),
    }


def _resumed(experiment: Experiment, saved: dict[str, Any], path: Any) -> list[Simulation]:
    mine = {"seed": experiment.seed, **_study(experiment)}
    theirs = {"seed": saved["seed"], **saved["study"]}
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise CheckpointError(
                f"checkpoint={str(path)!r} belongs to another study: its {name} is {theirs.get(name)}, this one's "
                f"{value}; repeat that study's arguments or choose another file"
            )
    done = [Simulation(**plain) for plain in saved["simulations"]]
    for simulation in done[:1]:
        truth, _ = experiment.joint_draw(simulation.index)
        if any(not torch.equal(truth[name].cpu(), value) for name, value in simulation.truth.items()):
            raise CheckpointError(
                f"checkpoint={str(path)!r} belongs to another model: with its seed this one draws other latents"
            )
    return done
