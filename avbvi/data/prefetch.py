"""Batches copied to a GPU while the step before is under way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..devices import changed, moved
from .batches import Arguments, Batches, FixedArguments, LoaderBatches, is_loader
from .tensor_loader import TensorLoader


def batches_of(args: Arguments, device: torch.device | None = None) -> Batches:
    """The source of a model's arguments: these at every step, or the batches of the one DataLoader among them.

    Args:
        args: the arguments.
        device: where a loader's batches are moved; ``None`` leaves them.

    Raises:
        TypeError, ValueError: as for :class:`~avbvi.data.batches.LoaderBatches`.
    """
    if not is_loader(args):
        return FixedArguments(args)
    there = isinstance(args[0], TensorLoader)
    if device is None or device.type != "cuda" or there:
        return LoaderBatches(args[0], device)
    return PrefetchedBatches(LoaderBatches(args[0]), device)


class _Ahead(NamedTuple):
    """A batch on its way: its arguments on the device, when they will be there, and where the source then stands."""

    arguments: Arguments
    arrival: torch.cuda.Event | None
    epoch: int
    state: dict[str, Any]


class PrefetchedBatches:
    """The batches of a loader, each fetched and sent to a device when the one before is handed out.

    On a GPU the host fetches the next batch while the steps that it has queued are computed. The batch goes through
    pinned memory on a stream of its own, and the step's stream waits for it: the host never does. Loaders with worker
    processes prepare further batches in them. Without a GPU there is nothing to overlap, and the order of what happens
    is the same.

    State and epoch are those of the batch handed out last: a checkpoint does not see the batch on its way. A loader
    that keeps its own state (``is_stateful``), which can't be told apart from the state one batch further, is not read
    ahead; its batches are sent without blocking all the same. What reading ahead raises is raised one step later, when
    the batch is asked for.

    Args:
        batches: of a loader, not moved.
        device: where they go.
    """

    def __init__(self, batches: LoaderBatches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self.reference: Arguments = moved(batches.reference, device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: _Ahead | Exception | None = None
        self.epoch: int = batches.epoch
        self._state = None if batches.is_stateful else batches.state_dict()

    def next(self) -> Arguments:
        """The arguments of the next step, there for what is queued on the current stream from now on.

        Raises:
            TypeError, ValueError: as for :class:`~avbvi.data.batches.LoaderBatches`.
        """
        if self._state is None:
            arguments = self._sent(self._batches.next())
            self.epoch = self._batches.epoch
            return arguments
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            ahead = self._fetch()
        if isinstance(ahead, Exception):
            raise ahead
        self.epoch, self._state = ahead.epoch, ahead.state
        if ahead.arrival is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(ahead.arrival)
            # The memory is the other stream's: it must not be given away before this one is done with it.
            changed(ahead.arguments, lambda tensor: tensor.record_stream(here))
        try:
            self._ahead = self._fetch()
        except Exception as error:
            self._ahead = error
        return ahead.arguments

    def _fetch(self) -> _Ahead:
        batch = self._batches.next()
        if self._stream is None:
            arguments, arrival = self._sent(batch), None
        else:
            with torch.cuda.stream(self._stream):
                arguments = self._sent(batch)
                arrival = torch.cuda.Event()
                arrival.record(self._stream)
        return _Ahead(arguments, arrival, self._batches.epoch, self._batches.state_dict())

    def _sent(self, batch: Arguments) -> Arguments:
        """A copy on the device, which may still be on its way there."""
        result: Arguments = changed(batch, self._send)
        return result

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def settings(self) -> dict[str, Any]:
        return self._batches.settings()

    def state_dict(self) -> dict[str, Any]:
        """As for :class:`~avbvi.data.batches.LoaderBatches`."""
        return self._batches.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """As for :class:`~avbvi.data.batches.LoaderBatches`."""
        self._batches.load_state_dict(state)
        self._ahead, self.epoch = None, self._batches.epoch
        if self._state is not None:
            self._state = self._batches.state_dict()
