"""Moving a model's arguments to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def moved(value: Any, device: torch.device | str) -> Any:
    """The value with all tensors and modules in it, also inside lists, tuples and dicts, moved to the device."""
    if isinstance(value, (Tensor, nn.Module)):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one takes its fields one by one
        return type(value)(*(moved(v, device) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return value
