"""A stand-in for CUDA graphs on a CPU: operations recorded with their memory, and run again in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Records operations. A replay runs no Python of the step: numbers and addresses are those of the recording."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._fresh = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # All tensors are kept, so that no memory is used twice.
        self._operations.append((func, args, kwargs, [t for t in tree_leaves(result) if isinstance(t, Tensor)]))
        return result

    def replay(self) -> None:
        """Run the operations anew; for the first time that was done by recording them."""
        if self._fresh:
            self._fresh = False
            return
        with torch.no_grad():
            for func, args, kwargs, results in self._operations:
                again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for place, value in zip(results, again, strict=True):
                    if place.data_ptr() != value.data_ptr():
                        place.data.copy_(value)


class TapeBackend:
    """Captures steps on tapes."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.captures = self.renewals = 0

    def renew(self) -> None:
        self.renewals += 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    @contextmanager
    def watched(self, found: list[str]) -> Iterator[None]:
        yield

    def capture(self, step: Callable[[], object]) -> Tape:
        self.captures += 1
        with Tape() as tape:
            step()
        return tape
