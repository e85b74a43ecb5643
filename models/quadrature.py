"""Integrals over the plane by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["quadrature_log_evidence"]


def quadrature_log_evidence(
    log_prob: Callable[[Tensor], Tensor],
    lo: float | tuple[float, float],
    hi: float | tuple[float, float],
    n: int,
) -> float:
    """Log of the integral of exp(log_prob) over a rectangle, by the trapezoidal rule.

    Args:
        log_prob: maps (*batch, 2) to (*batch,); it receives float64.
        lo: lower corner; one number stands for both coordinates.
        hi: upper corner, likewise.
        n: grid points per axis, at least 2. Where the density has died out at the edges the
            error falls faster than any power of n, once the spacing is below its scales.

    Returns:
        The log-evidence in nats.

    Raises:
        ValueError: n < 2, lo not below hi, or log_prob returned a wrong shape or NaN.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}.")
    low = (lo, lo) if isinstance(lo, (int, float)) else lo
    high = (hi, hi) if isinstance(hi, (int, float)) else hi
    if not (low[0] < high[0] and low[1] < high[1]):
        raise ValueError(f"lo must lie below hi in both coordinates, got {lo} and {hi}.")
    axes = [torch.linspace(low[i], high[i], n, dtype=torch.float64) for i in range(2)]
    ends = torch.zeros(n, dtype=torch.float64)
    ends[0] = ends[-1] = math.log(0.5)
    rows = []
    for first in axes[0]:  # a row at a time bounds the memory
        points = torch.stack([first.expand(n), axes[1]], -1)
        value = log_prob(points)
        if value.shape != (n,):
            raise ValueError(
                f"log_prob must map (*batch, 2) to (*batch,); it mapped {tuple(points.shape)} to {tuple(value.shape)}."
            )
        if bool(value.isnan().any()):
            raise ValueError(f"log_prob returned NaN on the line z_1 = {float(first):.6g}.")
        rows.append(torch.logsumexp(value + ends, 0))
    spacing = [(high[i] - low[i]) / (n - 1) for i in range(2)]
    total = torch.logsumexp(torch.stack(rows) + ends, 0)
    return float(total) + math.log(spacing[0] * spacing[1])
