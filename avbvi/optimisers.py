"""The outer optimiser for Pyro's SVI: Adam with a schedule, at one rate for the guide and another for the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
from pyro.optim import PyroOptim
from pyro.params.param_store import normalize_param_name
from torch import nn

from .schedules import ScheduledAdam


def scheduled_adam(
    factor: Callable[[], float], lr: float, model_lr: float, guide: Callable[[], nn.Module | None]
) -> PyroOptim:
    """Adam (betas 0.5, 0.999) whose rates are multiplied by ``factor()`` at every step.

    Args:
        factor: gives the schedule's factor of the step.
        lr: rate of the guide's parameters.
        model_lr: rate of all others, the model's.
        guide: gives the guide that is being trained, when the first gradients are there.
    """
    if lr == model_lr:
        return PyroOptim(partial(ScheduledAdam, factor=factor), {"lr": lr})

    def rate(name: str) -> dict[str, float]:
        unwrapped = guide()
        own = set() if unwrapped is None else {id(p) for p in unwrapped.parameters()}
        stored = {normalize_param_name(key): p for key, p in pyro.get_param_store().named_parameters()}
        return {"lr": lr if id(stored.get(name)) in own else model_lr}

    return PyroOptim(partial(ScheduledAdam, factor=factor), rate)
