"""Data of a density that follow the points at which it is evaluated."""

from __future__ import annotations

from torch import Tensor, device, dtype

__all__ = ["Constant"]


class Constant:
    """A tensor with one copy per device and dtype, made when it is first asked for.

    A log-density that is captured in a CUDA graph must not copy from the host; after its first,
    eager evaluation `like` copies nothing.

    Args:
        value: the tensor, in the precision in which it is known.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self._copies: dict[tuple[device, dtype], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """The value on the device and in the dtype of `other`."""
        key = (other.device, other.dtype)
        if key not in self._copies:
            self._copies[key] = self.value.to(device=other.device, dtype=other.dtype)
        return self._copies[key]
