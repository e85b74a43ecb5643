"""A run of several processes: they start from the same state and decide alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from .. import distributed
from ..guides import AVBGuide
from ..schedules import Clock
from ..targets import Model
from .steps import copy_tensors

T = TypeVar("T")

#: Relative difference up to which two processes' first losses count as the same: machines round differently.
SAME_LOSS = 1e-3


def check_start(guide: AVBGuide, model: Model, loss: float) -> None:
    """See to it that the processes fit the same model to the same data, by the first loss.

    Raises:
        ValueError: their losses differ.
        RuntimeError: the processes' models have other parameters.
    """
    if distributed.world_size() == 1:
        return
    losses = distributed.everyones(loss)
    finite = [x for x in losses if math.isfinite(x)]
    spread = max(finite, default=0.0) - min(finite, default=0.0)
    if 0 < len(finite) < len(losses) or spread > SAME_LOSS * max(1.0, max((abs(x) for x in finite), default=0.0)):
        raise ValueError(
            f"the processes fit different models or data: -ELBO at the start is {losses}; give all the same model and "
            "arguments (different fits belong into avbvi.distributed.alone())"
        )
    # By now the evaluation has put all of the model's parameters into Pyro's store.
    copy_tensors(guide, model)


def average_buffers(buffers: Mapping[str, Tensor]) -> None:
    """Average a model's running moments, which each process has taken of its part."""
    if buffers and distributed.world_size() > 1:
        held = [b for b in buffers.values() if b.is_floating_point()]
        distributed.sum_(held, 1.0 / distributed.world_size())


def agreed_judgement(judge: Callable[[], T]) -> T:
    """The first process's judgement; all of them judge, so that none waits for longer than the others patience."""
    return distributed.agreed(judge())


class AgreedClock(Clock):
    """The first process's clock, which all of them ask at once."""

    def progress(self) -> float:
        return distributed.agreed(super().progress())


def agreed_clock(clock: Clock) -> Clock:
    """The clock itself, or of several processes the first one's."""
    return clock if distributed.world_size() == 1 else AgreedClock(clock.seconds, clock.started)
