"""Where a log-density does not fall off: directions along which a posterior seems to be improper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .modes import LogDensityFunction

#: How far out the density is looked at, in sds of the start along the direction, farthest first.
_REACHES = (1e7, 1e4, 1e2)
#: Share of the draws from which a direction has to be open.
_MAJORITY = 0.5
#: A coordinate is named if its part of a direction is at least this share of the largest.
_NAMED = 0.3


@torch.no_grad()
def open_directions(log_prob: LogDensityFunction, draws: Tensor, directions: Tensor, reach: Tensor) -> Tensor:
    """Which of the directions (k, dim) the density does not fall off along, from most of the draws (n, dim): bool (k,).

    From a draw z, at the farthest of 1e7, 1e4 and 100 units of ``reach`` (k,) where the density is a number, it has
    to have fallen by more than the logarithm of that many units: anything slower than 1/t has no finite integral. A
    normal falls by 5e13 nats there, a Cauchy by 32.
    """
    n, k, dim = len(draws), len(directions), draws.shape[1]
    if n == 0 or k == 0:
        return torch.zeros(k, dtype=torch.bool, device=draws.device)
    here = log_prob(draws).double()
    unknown = torch.ones(n, k, dtype=torch.bool, device=draws.device)
    is_open = torch.zeros_like(unknown)
    for far in _REACHES:
        there = draws[:, None] + far * reach[:, None] * directions
        value = log_prob(there.to(draws).reshape(n * k, dim)).double().reshape(n, k)
        known = unknown & ~torch.isnan(value)
        is_open |= known & (value > here[:, None] - math.log(far))
        unknown &= ~known
    return is_open.double().mean(0) > _MAJORITY


def named_coordinates(directions: Tensor, scale: Tensor, names: Sequence[str], most: int = 5) -> str:
    """The coordinates that the directions (k, dim), in units of ``scale`` (dim,), have the largest parts of."""
    part = (directions.double() / scale.double()).abs()
    part = (part / part.amax(-1, keepdim=True).clamp_min(1e-300)).nan_to_num(0.0).amax(0)
    order = [i for i in part.argsort(descending=True, stable=True).tolist() if float(part[i]) > _NAMED]
    listed = ", ".join(names[i] for i in sorted(order[:most]))
    return listed + (f" and {len(order) - most} more" if len(order) > most else "")


def axes(dim: int, like: Tensor) -> Tensor:
    """The coordinate directions, up and down: (2 dim, dim)."""
    eye = torch.eye(dim).to(like)
    return torch.cat([eye, -eye])
