"""Two samples as checked matrices: what every judge starts from."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arguments import found

Draws: TypeAlias = Tensor | NDArray[Any]


def paired_draws(x: Draws, y: Draws) -> tuple[Tensor, Tensor]:
    """Both samples as detached float64 matrices on x's device, checked."""
    q, p = matrix(x, "x"), matrix(y, "y")
    if q.shape[1] != p.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got {q.shape[1]} and {p.shape[1]}.")
    return q, p.to(q.device)


def matrix(draws: Draws, name: str) -> Tensor:
    if isinstance(draws, Tensor):
        tensor = draws.detach()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"{name} must hold real numbers, got dtype {tensor.dtype}.")
    else:
        try:
            array = np.asarray(draws)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} must be a tensor or array of real numbers, got {found(draws)} ({error})."
            ) from error
        if array.dtype.kind not in "fiu":
            raise TypeError(
                f"{name} must be a tensor or array of real numbers, got {type(draws).__name__} of dtype {array.dtype}."
            )
        # A copy, since read-only arrays and negative strides do not convert.
        tensor = torch.from_numpy(np.array(array, dtype=np.float64))
    if tensor.ndim != 2:
        raise ValueError(
            f"{name} must have shape (draws, dimension), got {tuple(tensor.shape)}. "
            "Flatten the event dimensions; a single coordinate needs shape (draws, 1)."
        )
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty: shape {tuple(tensor.shape)}.")
    if tensor.device.type != "cuda":
        tensor = tensor.cpu()  # other accelerators have no float64
    tensor = tensor.to(torch.float64)
    # The sum is finite as good as always, and quick to look at.
    bad = 0 if bool(tensor.sum().isfinite()) else int((~tensor.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{name} holds NaN or infinite values in {bad} of {tensor.shape[0]} draws.")
    return tensor
