"""Small two-dimensional targets, unnormalised, with known log-evidence.

Each function maps points of shape (*batch, 2) to an unnormalised log density of shape (*batch,)
and follows the points' device and dtype. `LOG_EVIDENCE` gives the log of each one's integral
over the plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LOG_EVIDENCE", "banana", "quadrature_log_evidence", "ring", "two_moons"]

_RING_RADIUS = 2.0
_RING_WIDTH = 0.3
_BANANA_SCALE = 2.0
_BANANA_BEND = 0.5


def ring(z: Tensor) -> Tensor:
    """A ring of radius 2 and width 0.3 about the origin: connected, with a hole.

    Args:
        z: points, shape (*batch, 2).

    Returns:
        -(|z| - 2)^2 / (2 * 0.3^2), shape (*batch,).
    """
    _check(z)
    radius: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return -0.5 * ((radius - _RING_RADIUS) / _RING_WIDTH).square()


def banana(z: Tensor) -> Tensor:
    """A normal distribution bent along a parabola (Haario, Saksman and Tamminen 1999).

    z_1 ~ N(0, 2) and z_2 - 0.5 (z_1^2 - 4) ~ N(0, 1): mean 0, sds 2 and 3 (variances 4 and 9).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        The log density without its constant, shape (*batch,).
    """
    _check(z)
    first, second = z[..., 0], z[..., 1]
    straight = second - _BANANA_BEND * (first.square() - _BANANA_SCALE**2)
    return -0.5 * ((first / _BANANA_SCALE).square() + straight.square())


def two_moons(z: Tensor) -> Tensor:
    """Two facing crescents, left and right (potential U_1 of Rezende and Mohamed 2015).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        -((|z| - 2) / 0.4)^2 / 2 + log(exp(-((z_1 - 2) / 0.6)^2 / 2)
        + exp(-((z_1 + 2) / 0.6)^2 / 2)), shape (*batch,).
    """
    _check(z)
    radius: Tensor = torch.linalg.vector_norm(z, dim=-1)
    right = -0.5 * ((z[..., 0] - 2.0) / 0.6).square()
    left = -0.5 * ((z[..., 0] + 2.0) / 0.6).square()
    return -0.5 * ((radius - 2.0) / 0.4).square() + torch.logaddexp(left, right)


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


def _check(z: Tensor) -> None:
    if z.shape[-1:] != (2,):
        raise ValueError(f"z must have shape (*batch, 2), got {tuple(z.shape)}.")


def _ring_evidence(radius: float, width: float) -> float:
    # 2 pi times the integral of r exp(-(r - radius)^2 / (2 width^2)) over r > 0
    inside = 0.5 * math.erfc(-radius / (width * math.sqrt(2.0)))
    tail = width**2 * math.exp(-0.5 * (radius / width) ** 2)
    return 2.0 * math.pi * (tail + radius * width * math.sqrt(2.0 * math.pi) * inside)


LOG_EVIDENCE: dict[str, float] = {
    "ring": math.log(_ring_evidence(_RING_RADIUS, _RING_WIDTH)),
    "banana": math.log(2.0 * math.pi * _BANANA_SCALE),
    "two_moons": 1.87750162611,  # by quadrature on (-8, 8)^2
}
