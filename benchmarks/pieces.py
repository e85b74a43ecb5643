"""Long work in pieces: what is under way when a piece's time is over saves itself and goes on in the next."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """The time that a piece of work may take; afterwards what is under way is asked to save itself, as by Ctrl-C.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, not negative."""
        return max(self._end - time.monotonic(), 0.0)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Context that is interrupted at the end of the time.

        Raises:
            KeyboardInterrupt: there is no time left to begin with.
        """
        if not self.left:
            raise KeyboardInterrupt
        if math.isinf(self.left):
            yield
            return
        here = threading.get_ident()
        timer = threading.Timer(self.left, lambda: signal.pthread_kill(here, signal.SIGINT))
        timer.daemon = True
        # A process that was started in the background ignores Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            signal.signal(signal.SIGINT, before)
