"""What the fuzz tests share: values of wrong kinds, and what counts as a clear refusal."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import avbvi

ROOT = Path(avbvi.__file__).parent
#: The kinds of error that the documentation promises, with their subclasses.
KINDS = (ValueError, TypeError, avbvi.NonFiniteError, FileNotFoundError, IsADirectoryError, MemoryError)
#: What Python, NumPy and torch say when an argument goes astray inside of them.
CRYPTIC = (
    "not supported between",
    "object is not",
    "unsupported operand",
    "has no attribute",
    "unexpected type",
    "not subscriptable",
    "cannot unpack",
    "Boolean value of Tensor",
    "invalid combination of arguments",
)

#: Bad inputs refused, by family; shown at the end of a run by conftest.
tally: Counter[str] = Counter()


def assert_clear(error: BaseException, *words: str) -> None:
    """The error is of a promised kind, raised on purpose by avbvi, and its message has all the words."""
    text = str(error)
    assert isinstance(error, KINDS), f"{type(error).__name__}: {text}"
    # A message that quotes another error, its cause, may have its words.
    assert error.__cause__ is not None or not any(phrase in text for phrase in CRYPTIC), text
    assert ROOT in _origin(error).parents, f"raised in {_origin(error)}: {text}"
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"


def _origin(error: BaseException) -> Path:
    trace: TracebackType | None = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename)


@contextmanager
def refused(family: str, *words: str) -> Iterator[None]:
    """The block must raise a clear error with these words; counted under the family."""
    try:
        with warnings.catch_warnings():
            # Pyro and NumPy may warn of what is about to be refused.
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        assert_clear(error, *words)
        tally[family] += 1
        return
    raise AssertionError(f"{family}: accepted silently, where an error naming {words} was expected")


def check(family: str, call: Callable[[], Any], *words: str) -> None:
    """:func:`refused` for a function."""
    with refused(family, *words):
        call()


class Thing:
    """An object of no use to anyone."""

    def __repr__(self) -> str:
        return "Thing()"


#: Of no use as a number, a flag, a shape, a module or a function.
USELESS: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(allow_nan=False),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sets(st.integers(), max_size=2),
    st.builds(Thing),
    st.sampled_from(
        [torch.ones(2), torch.tensor(True), torch.zeros(0), np.ones(3), np.array("a"), np.datetime64("NaT")]
    ),
)
#: Nor as a number.
NO_NUMBER = USELESS | st.booleans() | st.lists(st.integers(1, 5), max_size=2) | st.builds(np.bool_, st.booleans())
NO_INTEGER = NO_NUMBER | st.floats() | st.sampled_from([2.0, 1e4, math.nan, torch.tensor(2.0), np.float64(3.0)])
NO_FLAG = USELESS | st.none() | st.integers(-1, 2) | st.floats() | st.lists(st.booleans(), max_size=2)
#: Neither a tuple nor a list of integers.
NO_WIDTHS = (
    USELESS
    | st.none()
    | st.integers(-1, 64)
    | st.lists(st.floats() | st.text(max_size=2) | st.booleans() | st.integers(-5, 0), min_size=1, max_size=3)
)
NO_OBJECT = NO_NUMBER | st.integers() | st.floats()
NOT_POSITIVE = st.integers(max_value=0) | st.floats(max_value=0.0) | st.just(math.nan) | st.just(-math.inf)
NEGATIVE = st.integers(max_value=-1)
HUGE = st.sampled_from([10**19, 10**400])
NO_PATH = st.integers() | st.floats() | st.builds(Thing) | st.lists(st.text(max_size=2), max_size=1) | st.booleans()


def no_integer_from(least: int) -> st.SearchStrategy[Any]:
    """What is no integer of at least ``least``."""
    return NO_INTEGER | st.integers(max_value=least - 1) | HUGE


def no_number_in(low: float, high: float, *, low_included: bool = False, high_included: bool = False) -> Any:
    """What is no number between two limits."""
    below = st.floats(max_value=low, exclude_max=low_included and low > -math.inf)
    above = st.floats(min_value=high, exclude_min=high_included and high < math.inf)
    return NO_NUMBER | below | above | st.just(math.nan)
