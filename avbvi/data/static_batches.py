"""A batch in buffers that stay where they are: what a captured step reads, filled before each replay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import flag, found, instance
from ..devices import changed

Arguments = tuple[Any, ...]


class StaticBatch:
    """A model's arguments in tensors whose memory never changes; :meth:`fill` puts other values there.

    A CUDA graph reads the addresses that its capture saw, and takes in all else as constants. So a batch fits only if
    its tensors have the shapes and dtypes of the example's and everything else is equal to it: a smaller last
    batch does not, and the caller takes the step that is not captured.

    Copies do not block: from pinned memory to a GPU they run while the host goes on. They are queued on the current
    stream, behind a replay under way there, which still reads the values before.

    Args:
        example: arguments as the step will get them; tensors may lie in tuples, lists and dicts.
        device: where the buffers lie; ``None`` leaves each on its tensor's device.
        copy: whether the buffers are new. Arguments that are the same objects at every step can be their own buffers,
            which costs neither memory nor time; ``device`` is not looked at then.

    Raises:
        TypeError: ``example`` is no tuple, or a tensor in it is sparse or otherwise without strides.
        ValueError: a tensor in it requires a gradient, which a copy cuts off.
    """

    def __init__(self, example: Arguments, device: torch.device | None = None, *, copy: bool = True) -> None:
        instance("example", example, tuple, "a tuple of the model's arguments")
        self._device, self._copy = device, flag("copy", copy)
        #: The arguments made of the buffers, the same objects throughout.
        self.arguments: Arguments = changed(example, self._buffer)
        self._signature = _signature(self.arguments)
        self._buffers = _tensors(self.arguments)

    def _buffer(self, value: Tensor) -> Tensor:
        if value.layout is not torch.strided:
            raise TypeError(f"example: a static buffer needs a dense tensor, found {found(value)}, {value.layout}")
        if value.requires_grad:
            raise ValueError(
                f"example: {found(value)} requires a gradient, which a static buffer cuts off; give it detached"
            )
        if not self._copy:
            return value
        buffer = torch.empty_like(value, device=self._device, memory_format=torch.contiguous_format)
        return buffer.copy_(value)

    def fits(self, args: Arguments) -> bool:
        """Whether these arguments differ from the example in the values of tensors alone."""
        return _signature(args) == self._signature

    def fill(self, args: Arguments) -> bool:
        """Copy the values of these arguments to the buffers if they fit; tells whether they did, changes nothing else.

        Args:
            args: arguments like the example, on any device.
        """
        if not self.fits(args):
            return False
        for buffer, value in zip(self._buffers, _tensors(args), strict=True):
            if buffer is not value:
                buffer.copy_(value, non_blocking=True)
        return True


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for entry in value for tensor in _tensors(entry)]


def _signature(value: Any) -> Any:
    """All that a captured step takes as given: shapes and dtypes of tensors, values of the rest, their places."""
    if isinstance(value, Tensor):
        return ("tensor", value.shape, value.dtype, value.layout)
    if isinstance(value, dict):
        return ("dict", tuple((key, _signature(v)) for key, v in value.items()))
    if isinstance(value, list | tuple):
        return (type(value), tuple(_signature(v) for v in value))
    if value is None or isinstance(value, bool | int | float | str | torch.Size | torch.dtype | torch.device):
        return (type(value), value)
    return ("object", id(value))
