"""Tensors of Python's numbers, made once: a captured step can't copy them to the device anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Tensors that are kept.
MOST = 1024
MAKERS = frozenset({torch.tensor, torch.as_tensor, torch.scalar_tensor})


class Constants(TorchFunctionMode):
    """Context in which ``torch.tensor`` of the same plain numbers is made once and cloned from then on.

    Models are full of such constants, ``dist.Normal(0.0, 1.0)`` among them. On a GPU each would be a copy that blocks;
    a clone is a kernel like any other. Keep the object from step to step, under one default device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in MAKERS or len(args) != 1 or kwargs.get("requires_grad"):
            return func(*args, **kwargs)
        plain = _plain(args[0])
        if plain is None:
            return func(*args, **kwargs)
        # A run has one default device, and asking for it may make a tensor of Python's numbers itself.
        key = (func, plain, torch.get_default_dtype(), tuple(sorted(kwargs.items(), key=str)))
        if key not in self._known:
            made = func(*args, **kwargs)
            if len(self._known) >= MOST:  # no constants, then, but numbers that are others at every step
                return made
            self._known[key] = made
        return self._known[key].clone()


def _plain(value: Any) -> Any:
    """Numbers, also in lists and tuples, as something to look up; ``None`` if it is anything else."""
    if isinstance(value, bool | int | float):
        # 1, 1.0 and True are equal, and 0.0 and -0.0 too.
        return (type(value), repr(value))
    if isinstance(value, list | tuple):
        entries = tuple(_plain(entry) for entry in value)
        return None if None in entries else ("list", entries)
    return None
