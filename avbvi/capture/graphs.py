"""A step that is run over and over: by itself, or captured once as a CUDA graph and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .straight import StraightLine

#: Runs before the capture: they make the optimisers' moments and the libraries' handles, and the last is inspected.
WARM_UP = 3
#: In Python's words, what CUDA reports of an operation that waits inside.
SYNCHRONISING = "synchronizing CUDA operation"

Step = Callable[[], object]


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Run it on the current stream."""


class Backend(Protocol):
    """Captures steps: CUDA's graphs, or what stands for them in tests."""

    #: Where the steps compute.
    device: torch.device

    def aside(self) -> AbstractContextManager[None]:
        """Context of warm-up runs."""

    def watched(self, found: list[str]) -> AbstractContextManager[None]:
        """Context that adds to ``found`` what the device itself reports to wait for it."""

    def capture(self, step: Step) -> Graph:
        """Record what a step does without doing it."""

    def renew(self) -> None:
        """All graphs captured so far are about to be dropped."""


class CudaBackend:
    """CUDA graphs of one device, which share their memory: no two of them run at once.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream of its own, in order with the current one."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    @contextmanager
    def watched(self, found: list[str]) -> Iterator[None]:
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        found += [str(w.message).splitlines()[0] for w in caught if SYNCHRONISING in str(w.message)]

    def capture(self, step: Step) -> Graph:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        try:
            # Other threads (a loader's, say) may go on with what is not allowed in this one meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
        except BaseException:
            torch.cuda.set_stream(current)  # which a capture that fails does not restore
            raise
        return graph

    def renew(self) -> None:
        # A replay may be under way, and memory that no graph holds any more can't be shared by the next ones.
        torch.cuda.synchronize(self.device)
        self._pool = torch.cuda.graph_pool_handle()


class EagerTwin:
    """The step as it is, with the interface of a captured one.

    Args:
        step: the step.
    """

    def __init__(self, step: Step) -> None:
        self._step = step

    def run(self) -> None:
        """Run it once."""
        self._step()


class CapturedStep:
    """A step that is captured after its first runs and then replayed; every run is a step, the first ones too.

    The last run before the capture is inspected: if it does something that a graph can't hold, the step is never
    captured, and goes on by itself. What it reads must stay in the same tensors, and Python's numbers in it are
    taken for constants.

    Args:
        step: the step; it takes and returns nothing.
        backend: what captures it.
        host: tensors that stay on the host, which the step may read.

    Attributes:
        reason: why the step is not captured, in words; ``None`` while nothing speaks against it.
        replays: number of replays so far.
    """

    def __init__(self, step: Step, backend: Backend, host: Iterable[Tensor] = ()) -> None:
        self._step, self._backend, self._host = step, backend, list(host)
        self._runs = 0
        self._graph: Graph | None = None
        self.reason: str | None = None
        self.replays: int = 0

    def run(self) -> None:
        """Run the step once, or replay it."""
        self._runs += 1
        if self._graph is None and self.reason is None:
            if self._runs < WARM_UP:
                with self._backend.aside():
                    self._step()
                return
            if self._runs == WARM_UP:
                self._inspect()
                return
            self._capture()
        if self._graph is None:
            self._step()
            return
        self._graph.replay()
        self.replays += 1

    def _inspect(self) -> None:
        found: list[str] = []
        with (
            self._backend.aside(),
            self._backend.watched(found),
            StraightLine(self._host, self._backend.device) as line,
        ):
            self._step()
        found = line.found + found
        if found:
            self.reason = "; ".join(found[:3])

    def _capture(self) -> None:
        try:
            self._graph = self._backend.capture(self._step)
        except (RuntimeError, NotImplementedError) as error:
            self.reason = f"the capture failed: {_first_line(error)}"


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
