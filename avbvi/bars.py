"""Progress bars, in terminals and notebooks, that log lines do not run into."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


@contextmanager
def progress_bar(shown: bool, **options: Any) -> Iterator[Any]:
    """A bar for the block; lines that the root logger or avbvi's write to the terminal meanwhile appear above it.

    The environment variable ``TQDM_DISABLE=1`` hides all bars, whatever the caller asks for.

    Args:
        shown: whether there is a bar at all.
        options: tqdm's own.
    """
    # An explicit disable would take precedence over the environment variable.
    bar = tqdm(**options) if shown else tqdm(**options, disable=True)
    with bar:
        if bar.disable:
            yield bar
            return
        handlers = _console_handlers()
        streams = [handler.setStream(_Above(handler.stream)) for handler in handlers]
        try:
            yield bar
        finally:
            for handler, stream in zip(handlers, streams, strict=True):
                if isinstance(handler.stream, _Above):
                    handler.setStream(stream)


def _console_handlers() -> list[Any]:
    """Handlers of the root logger and of avbvi's that write to the terminal."""
    found = [*logging.getLogger().handlers, *logging.getLogger("avbvi").handlers]
    return [h for h in found if isinstance(h, logging.StreamHandler) and h.stream in (sys.stdout, sys.stderr)]


class _Above:
    """A stream whose lines appear above the bars."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        tqdm.write(text, file=self._stream, end="")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
