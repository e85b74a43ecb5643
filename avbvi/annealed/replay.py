"""A temperature that is done over and over: captured once as a CUDA graph and replayed, or run as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch

from ..capture.graphs import Backend, CapturedStep, CudaBackend

logger: logging.Logger = logging.getLogger(__name__)

#: Temperatures by which the host may be ahead of the device.
HOST_AHEAD = 16


class Repeated(Protocol):
    """Something that is done over and over, in place."""

    def run(self) -> None:
        """Do it once."""


class AsItIs:
    """The step itself, with the interface of a captured one.

    Args:
        step: what to do.
    """

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def run(self) -> None:
        """Do it once."""
        self._step()


class Replayed:
    """A step of a CUDA device that is captured after its first runs, all of which count, and then replayed.

    A graph has no more to do with Python, autograd or the model's own code. Where the step can't be captured (a model
    that reads numbers back, or makes tensors on the host) it goes on as it is, and the reason is logged.

    Args:
        step: what to do, in place on tensors that stay where they are.
        backend: what captures it.
    """

    def __init__(self, step: Callable[[], None], backend: Backend) -> None:
        self._captured = CapturedStep(step, backend)
        self._runs, self._told = 0, False

    @property
    def reason(self) -> str | None:
        """Why the step is not captured, in words; ``None`` while nothing speaks against it."""
        return self._captured.reason

    def run(self) -> None:
        """Do it once."""
        self._captured.run()
        self._runs += 1
        if self.reason is not None and not self._told:
            self._told = True
            logger.info("annealed chains are not captured as a CUDA graph: %s", self.reason)
        if self._runs % HOST_AHEAD == 0:
            # The host would run ahead by minutes: bar, files and Ctrl-C are about what has been done.
            self._wait()

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()


def repeated(step: Callable[[], None], device: torch.device) -> Repeated:
    """The fastest way to do a step over and over on a device."""
    return Replayed(step, CudaBackend(device)) if device.type == "cuda" else AsItIs(step)
