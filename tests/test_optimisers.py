"""The outer optimiser: one step for all parameters is a step of each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from avbvi.optimisers import JointOptim
from avbvi.schedules import ScheduledAdam

SHAPES = {"a": (3,), "b": (2, 2), "c": ()}


def stored(prefix: str) -> list[Tensor]:
    """Parameters in Pyro's store, equal under every prefix."""
    torch.manual_seed(0)
    return [pyro.param(f"{prefix}.{name}", torch.randn(shape)).unconstrained() for name, shape in SHAPES.items()]


def give_gradients(parameters: list[Tensor], at: int) -> None:
    torch.manual_seed(100 + at)
    for p in parameters:
        p.grad = torch.randn(p.shape)


def rate(name: str) -> dict[str, Any]:
    return {"lr": 0.1 if name.endswith("b") else 0.02}


@pytest.mark.parametrize("options", [{"lr": 0.05}, rate], ids=["one rate", "two rates"])
def test_joint_steps_are_those_of_each_parameter(options: Any) -> None:
    factors = [1.0]
    adam = partial(ScheduledAdam, factor=lambda: factors[0])
    optimisers, parameters = (JointOptim(adam, options), PyroOptim(adam, options)), (stored("x"), stored("y"))
    for i in range(6):
        factors[0] = 1.0 / (1 + i)
        for optimiser, own in zip(optimisers, parameters, strict=True):
            give_gradients(own, i)
            # The last parameter joins later; once only the first is asked for, and the others' gradients stay.
            own_part = own[:2] if i < 2 else own[:1] if i == 4 else own
            optimiser(own_part)
    for p, q in zip(*parameters, strict=True):
        torch.testing.assert_close(p, q)
    assert parameters[0][1].grad is not None


def test_state_goes_on_in_another_process(tmp_path: Path) -> None:
    adam = partial(ScheduledAdam, factor=lambda: 1.0)
    first, parameters = JointOptim(adam, {"lr": 0.05}), stored("x")
    for i in range(3):
        give_gradients(parameters, i)
        first(parameters)
    first.save(str(tmp_path / "optimiser.pt"))
    before = [p.detach().clone() for p in parameters]
    give_gradients(parameters, 3)
    first(parameters)
    expected = [p.detach().clone() for p in parameters]

    for kind in (JointOptim, PyroOptim):  # the file is Pyro's own
        second = kind(adam, {"lr": 0.05})
        second.load(str(tmp_path / "optimiser.pt"))
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
        give_gradients(parameters, 3)
        second(parameters)
        torch.testing.assert_close(parameters, expected)
