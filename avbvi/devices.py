"""Moving a model's arguments to a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def moved(value: Any, device: torch.device | str) -> Any:
    """The value with all tensors and modules in it, also inside lists, tuples and dicts, moved to the device."""
    return changed(value, lambda part: part.to(device), (Tensor, nn.Module))


def changed(value: Any, change: Callable[[Any], Any], kinds: tuple[type, ...] = (Tensor,)) -> Any:
    """The value with all that is of these kinds changed, also inside lists, tuples (named ones too) and dicts."""
    if isinstance(value, kinds):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one takes its fields one by one
        return type(value)(*(changed(v, change, kinds) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(changed(v, change, kinds) for v in value)
    if isinstance(value, dict):
        return {k: changed(v, change, kinds) for k, v in value.items()}
    return value
