"""Buffers that direct the host and therefore stay on it, wherever a module is moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class HostBuffers:
    """Mixin, named before the module's own base, for counters, flags and choices by which the host decides.

    They are buffers, so that state_dicts, copies and checkpoints have them, but they keep device and dtype in ``to()``:
    reading one never waits for an accelerator.
    """

    #: Names of such buffers.
    ON_HOST: ClassVar[tuple[str, ...]] = ()

    def register_on_host(self: Any, **values: float) -> None:
        """Register buffers () of these values, whatever the default device is; floats are float64."""
        for name, value in values.items():
            dtype = torch.float64 if isinstance(value, float) else None
            self.register_buffer(name, torch.tensor(value, dtype=dtype, device="cpu"))

    def _apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: self._buffers[name] for name in self.ON_HOST if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[misc]
        self._buffers.update(kept)
        return self


def on_host(module: nn.Module) -> list[Tensor]:
    """All such buffers of a module and the modules in it."""
    holders: list[Any] = [m for m in module.modules() if isinstance(m, HostBuffers)]
    return [m._buffers[name] for m in holders for name in m.ON_HOST if name in m._buffers]
