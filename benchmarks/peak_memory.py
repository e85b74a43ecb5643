"""The most memory that a piece of work has in use at a time, beyond what was in use at its beginning.

On the CPU it is that of this process as the system counts it (resident pages, those of libraries that are loaded
meanwhile too), on Linux alone: the system's high-water mark is set back at the beginning (`/proc/self/clear_refs`).
Memory that was freed before is given back first, so that work which reuses it does not seem to need none. On a GPU it
is what PyTorch's allocator has handed out. Other processes that the work starts are not counted.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Context whose peak is measured; ``bytes`` has it afterwards, ``None`` where the system does not tell.

    Contexts may lie in each other.

    Args:
        device: whose memory.
    """

    _active: list[PeakMemory] = []

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self.bytes: int | None = None
        self._begin = self._seen = 0

    def __enter__(self) -> PeakMemory:
        self._note(self._active)
        gc.collect()
        _give_back()
        self._active.append(self)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._begin = self._seen = torch.cuda.memory_allocated(self._device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")
            self._begin = self._seen = resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._note(self._active)
        self._active.remove(self)
        if self._device.type == "cuda" or _CLEAR.exists():
            self.bytes = self._seen - self._begin

    @staticmethod
    def _note(contexts: list[PeakMemory]) -> None:
        """Let contexts see the peak since it was last set back, which is about to happen."""
        for context in contexts:
            if context._device.type == "cuda":
                context._seen = max(context._seen, torch.cuda.max_memory_allocated(context._device))
            elif _CLEAR.exists():
                context._seen = max(context._seen, resident("VmHWM"))


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most, ``RssAnon`` without mapped files (Linux)."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise KeyError(key)


def _give_back() -> None:
    """Return freed memory to the system, where the C library is one that can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return
