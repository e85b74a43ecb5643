"""Two processes of one Gloo group that wait for work, so that tests pay for their start once."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZE = 2
#: Seconds that a process waits for another, and that a test waits for them.
PATIENCE = 60.0


class Raised(Exception):
    """What a process raised: its type's name, its message and where."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}\n{trace}")
        self.kind, self.message = kind, message
        # As exceptions are pickled: by their arguments.
        self.args = (kind, message, trace)


class Processes:
    """The processes; work is a function of a module that they can import, and what can be pickled.

    Args:
        folder: where they meet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._starts = folder, 0
        self._pipes: list[Any] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        self._starts += 1
        meeting = str(self._folder / f"meeting_{self._starts}")
        context = multiprocessing.get_context("spawn")
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(rank, meeting, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._answers(2.0 * PATIENCE)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(*args)`` in all processes at once; what they return, or :class:`Raised` in its place."""
        return self.each(function, *([args] * SIZE))

    def each(self, function: Callable[..., Any], *args: tuple[Any, ...]) -> list[Any]:
        """The same with arguments of its own for each process."""
        if not self._pipes:
            self._start()
        for pipe, own in zip(self._pipes, args, strict=True):
            pipe.send((function, own))
        return self._answers(PATIENCE)

    def _answers(self, seconds: float) -> list[Any]:
        end = time.monotonic() + seconds
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(max(end - time.monotonic(), 0.0)):
                self.close()
                raise TimeoutError(f"the processes did not answer within {seconds} seconds")
            answers.append(pipe.recv())
        return answers

    def close(self) -> None:
        """End the processes; the next work starts others."""
        for process in self._processes:
            process.kill()
            process.join(10.0)
        self._pipes, self._processes = [], []


def _work(rank: int, meeting: str, pipe: Any) -> None:
    from datetime import timedelta

    import pyro
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=SIZE, timeout=timedelta(seconds=PATIENCE)
    )
    pipe.send("ready")
    while True:
        function, args = pipe.recv()
        pyro.clear_param_store()
        # Differently, as in processes of users who do not seed.
        pyro.set_rng_seed(1000 + rank)
        try:
            answer = function(*args)
        except Exception as error:
            answer = Raised(type(error).__name__, str(error), traceback.format_exc())
        finally:
            torch.set_default_dtype(torch.float32)
        pipe.send(answer)
