"""Random numbers of annealed chains that depend on seed, datum, chain and temperature alone, not on their company.

Each number is the hash of what it belongs to. So any part of the data, run alone, with others or on another device,
draws what it would have drawn in a run of all of them, and a captured graph draws new numbers when its step counter,
a tensor, has moved on. A generator that advances by the size of its requests can do neither.

Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators, OOPSLA: the mixing function
(SplitMix64), with which Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, SC11, is
followed in hashing counters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

#: 2^64 over the golden ratio, and the multipliers of SplitMix64, as signed numbers.
_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Role(IntEnum):
    """What draws, each from numbers of its own."""

    START = 0
    PILOT_START = 1
    FORWARD = 2
    PILOT = 3
    BACKWARD = 4


@dataclass(frozen=True)
class Keys:
    """What a part's random numbers are keyed by.

    Attributes:
        seed: of the run.
        first: number of the part's first datum among all data.
        total: number of all data of the run, or ``None`` if the part is the last.
    """

    seed: int
    first: int = 0
    total: int | None = None


class MoveNoise(NamedTuple):
    """Standard normal momenta (n, B, dim), and uniform numbers in [0, 1) for acceptance and jitter (n, B)."""

    momentum: Tensor
    uniform: Tensor
    jitter: Tensor


class ChainNoise:
    """Random numbers of n chains of B data.

    Args:
        keys: seed and number of the first datum.
        role: what they are for.
        shape: (n, B, dim).
        like: gives dtype and device.
    """

    def __init__(self, keys: Keys, role: Role, shape: Sequence[int], like: Tensor) -> None:
        n, batch, dim = shape
        device = like.device
        self.dim: int = dim
        self.dtype: torch.dtype = like.dtype
        root = _mix(_mix(torch.full((), keys.seed, dtype=torch.int64, device=device)) + int(role))
        data = torch.arange(keys.first, keys.first + batch, device=device)
        of_datum = _mix(root + _GOLDEN * (1 + data))
        self._keys = _mix(of_datum + _GOLDEN * (1 + torch.arange(n, device=device))[:, None])[..., None]
        # Two normals come of a word; one word more has the uniform numbers.
        self._words = _GOLDEN * (1 + torch.arange((dim + 1) // 2 + 1, device=device))

    def normal(self, step: Tensor | int) -> Tensor:
        """Standard normal numbers (n, B, dim) of one step."""
        return self._normal(self._hashed(step)[..., 1:])

    def move(self, step: Tensor | int) -> MoveNoise:
        """All that one transition draws. ``step`` is a number, or a tensor of one (int64)."""
        hashed = self._hashed(step)
        # 24 bits, which single precision holds: more would round to 1.
        uniform, jitter = (
            (part >> 8).to(self.dtype) * 2.0**-24 for part in (_upper(hashed[..., 0]), _lower(hashed[..., 0]))
        )
        return MoveNoise(self._normal(hashed[..., 1:]), uniform, jitter)

    def _hashed(self, step: Tensor | int) -> Tensor:
        return _mix(self._keys + _mix(_mix(self._words[:1] * 0 + step) + self._words))

    def _normal(self, hashed: Tensor) -> Tensor:
        """Box and Muller's transform of both halves of each word."""
        radius = (-2.0 * ((_upper(hashed).to(self.dtype) + 0.5) * 2.0**-32).log()).clamp_min(0.0).sqrt()
        angle = _lower(hashed).to(self.dtype) * (2.0 * math.pi * 2.0**-32)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., : self.dim]


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of the unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _upper(x: Tensor) -> Tensor:
    return _shifted(x, 32)


def _lower(x: Tensor) -> Tensor:
    return x & 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A bijection of 64 bits in which each bit of the result depends on all."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)
