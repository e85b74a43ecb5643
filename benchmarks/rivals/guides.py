"""Pyro's automatic guides by SVI."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuide

import avbvi
from avbvi.predictive import deterministic
from avbvi.reference import unconstrained_target
from benchmarks.fitting import Fitted, Recorder
from benchmarks.problems import Draws, Problem

#: Files of avbvi that these fits use.
SOURCES = ("avbvi/schedules.py", "avbvi/targets.py")


def autoguide(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    make: Callable[..., AutoGuide],
    lr: float,
) -> Fitted:
    """One of Pyro's guides by SVI: 64 vectorised particles, Adam, cosine decay of the rate over the time given."""
    recorder = Recorder(problem, snapshots)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(problem.model)
    clock = avbvi.schedules.Clock(60.0 * minutes)
    schedule = avbvi.Schedule()
    optimiser = pyro.optim.PyroOptim(
        partial(avbvi.schedules.ScheduledAdam, factor=lambda: schedule.factor(clock.progress()), betas=(0.9, 0.999)),
        {"lr": lr},
    )
    svi = SVI(problem.model, guide, optimiser, loss=Trace_ELBO(num_particles=64, vectorize_particles=True))

    def sample(n: int) -> Draws:
        return _sample(problem, guide, n)

    steps = 0
    with pyro.validation_enabled(False):
        while clock.progress() < 1.0:
            svi.step(*problem.args)
            steps += 1
            clock.started += recorder.look(steps, sample)
    seconds = recorder.seconds()
    judge = Trace_ELBO(num_particles=2500, vectorize_particles=True)
    with torch.no_grad():
        terms = torch.tensor([-judge.loss(problem.model, guide, *problem.args) for _ in range(20)])
    elbo = avbvi.Estimate(float(terms.mean()), float(terms.std() / math.sqrt(20)))
    return Fitted(sample, seconds, elbo, True, {"steps": steps}, recorder.last(seconds, steps, sample))


@torch.no_grad()
def _sample(problem: Problem, guide: AutoGuide, n: int) -> Draws:
    target = unconstrained_target(problem.model, problem.args)
    draws = Predictive(guide, num_samples=n, parallel=True)(*problem.args)
    # The plate over draws leaves dimensions of size 1 where the model's plates would be.
    values = {site.name: draws[site.name].reshape(n, *site.shape) for site in target.layout.sites}
    return values | deterministic(target, values)
