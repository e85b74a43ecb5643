"""States of modules: copies that later steps do not write into, and whether one fits a module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .arguments import found
from .errors import CheckpointError


def copied_state(module: nn.Module) -> dict[str, Any]:
    """A copy of a module's ``state_dict()``, as a plain dict."""
    return {
        name: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v)
        for name, v in module.state_dict().items()
    }


def check_state(name: str, module: nn.Module, state: Any) -> None:
    """Raise unless a state has the names and shapes of the module's own; ``name`` is what the error calls it.

    Raises:
        CheckpointError: it has not.
    """
    own = module.state_dict()
    if not isinstance(state, Mapping):
        raise CheckpointError(f"state is damaged: of {name} it has {found(state)}, expected a dict")
    misfit = f"the state does not fit {name} ({type(module).__name__})"
    differ = sorted(set(own) ^ set(state), key=str)
    if differ:
        where = "the module" if differ[0] in own else "the state"
        raise CheckpointError(f"{misfit}: only {where} has {differ[0]!r}; make the module as it was when it was saved")
    for key, value in own.items():
        expected = tuple(value.shape) if isinstance(value, Tensor) else None
        there = tuple(state[key].shape) if isinstance(state[key], Tensor) else None
        if expected != there:
            raise CheckpointError(f"{misfit}: {key!r} has shape {there}, expected {expected}")
