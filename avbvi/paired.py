"""Differences between paired samples, with standard errors over the pairs."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class PairedChanges(NamedTuple):
    """What changed from one sample to its partner, by coordinate (dim,).

    ``shift`` is that of the mean in sds of the second sample, ``ratio`` the sd of the second over that of the first,
    ``correlation`` that of the pairs; the standard errors know that the samples are paired.
    """

    shift: Tensor
    shift_stderr: Tensor
    ratio: Tensor
    ratio_stderr: Tensor
    correlation: Tensor


def paired_changes(before: Tensor, after: Tensor) -> PairedChanges:
    """Changes of mean and sd from ``before`` to ``after``, both (n, dim) and paired by row."""
    n = len(before)
    x, y = before - before.mean(0), after - after.mean(0)
    sd_x, sd_y = x.square().mean(0).sqrt(), y.square().mean(0).sqrt()
    ratio = sd_y / sd_x
    # By the delta method: log sd changes by half of the relative change of each squared deviation.
    influence = 0.5 * (y.square() / sd_y.square() - x.square() / sd_x.square())
    return PairedChanges(
        shift=(after.mean(0) - before.mean(0)) / sd_y,
        shift_stderr=(y - x).std(0) / sd_y / math.sqrt(n),
        ratio=ratio,
        ratio_stderr=ratio * influence.std(0) / math.sqrt(n),
        correlation=(x * y).mean(0) / (sd_x * sd_y),
    )
