"""Checks of arguments where users hand them in: a refusal names the argument, what was found and what to give."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: NumPy's generator, which Pyro seeds along with torch's, takes no larger seed.
LARGEST_SEED = 2**32 - 1
LARGEST_INTEGER = 2**63 - 1


def found(value: Any) -> str:
    """What an error says was found: the type, and the value where it is short."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of dtype {value.dtype} and shape {tuple(value.shape)}"
    if isinstance(value, str | bytes | bool | numbers.Number | np.generic):
        text = repr(value)
        return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
    return type(value).__name__


def integer(name: str, value: Any, least: int | None = None) -> int:
    """The value as an ``int``: an integer of Python, NumPy or torch (0-d), but no bool.

    Raises:
        TypeError: it is something else (2.0 and "2" too).
        ValueError: it is less than ``least``.
    """
    result = _index(name, value, least)
    if least is not None and result < least:
        raise ValueError(f"{name} must be at least {least}, found {value}")
    return result


def positive_integer(name: str, value: Any) -> int:
    """:func:`integer` of at least 1."""
    if _is_real(value) and not value > 0:
        raise ValueError(f"{name} must be positive, found {value}")
    return _index(name, value, None)


def number(name: str, value: Any) -> float:
    """The value as a ``float``, NaN and infinities included: a real number of Python, NumPy or torch, but no bool.

    Raises:
        TypeError: it is something else.
    """
    if not _is_real(value):
        raise TypeError(f"{name} must be a number, found {found(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large for a floating-point number, found {found(value)}") from None


def positive_number(name: str, value: Any) -> float:
    """:func:`number` that is positive and finite."""
    result = number(name, value)
    if not result > 0.0:
        raise ValueError(f"{name} must be positive, found {value}")
    if not math.isfinite(result):
        raise ValueError(f"{name} must be finite, found {value}")
    return result


def share(name: str, value: Any) -> float:
    """:func:`number` in [0, 1), such as a rate of dropout."""
    result = number(name, value)
    if not 0.0 <= result < 1.0:
        raise ValueError(f"{name} must be in [0, 1), found {value}")
    return result


def flag(name: str, value: Any) -> bool:
    """The value as a ``bool``; anything else, "no" and 0 too, is a TypeError."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, found {found(value)}")
    return bool(value)


def instance(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise a TypeError unless the value is a ``kind``, described as ``what``."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, found {found(value)}")


def function(name: str, value: Any) -> None:
    """Raise a TypeError unless the value can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, found {found(value)}")


def keywords(name: str, value: Any) -> dict[str, Any]:
    """The value as a new ``dict`` with strings as keys; an empty one of ``None``."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a dict of argument names and values, found {found(value)}")
    return dict(value)


def integers(name: str, value: Any, what: str) -> tuple[int, ...]:
    """The value, a tuple or list of positive integers (``what``, in words), as a tuple.

    Raises:
        TypeError: it is no sequence, or holds something else.
        ValueError: one of them is not positive.
    """
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple of {what}, such as (3,), found {found(value)}")
    return tuple(integer(f"{name}[{i}]", entry, 1) for i, entry in enumerate(value))


def seed_number(value: Any) -> int | None:
    """A seed of all generators, or ``None``."""
    if value is None:
        return None
    result = integer("seed", value, 0)
    if result > LARGEST_SEED:
        raise ValueError(f"seed must be at most {LARGEST_SEED}, found {value}")
    return result


def device_of(value: Any) -> torch.device | None:
    """A device that this machine has, or ``None``.

    Raises:
        TypeError: it is neither a string nor a device.
        ValueError: it names no device, or one that is not there.
    """
    if value is None:
        return None
    instance("device", value, (str, torch.device), "a torch.device or its name")
    try:
        device = torch.device(value)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(value)!r} can't be used here: {reason}") from error
    return device


def real_tensor(name: str, value: Any) -> Tensor:
    """The value as a tensor of numbers; arrays, lists and numbers are converted.

    Raises:
        TypeError: it holds no real numbers.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor, array or list of real numbers, found {found(value)} ({error})"
        ) from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, found dtype {tensor.dtype}")
    return tensor


def levels(name: str, value: Any) -> Tensor:
    """The value, a list of levels of quantiles, as a tensor (n,).

    Raises:
        TypeError: it holds no real numbers.
        ValueError: it is no list, is empty, or one of them is not in [0, 1].
    """
    q = real_tensor(name, value)
    if q.dim() != 1 or not len(q) or not bool(((q >= 0.0) & (q <= 1.0)).all()):
        raise ValueError(f"{name} must be a list of numbers in [0, 1], found {value!r}")
    return q


def memory() -> float:
    """The machine's memory in bytes; infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def fits_in_memory(name: str, n: int, width: int) -> None:
    """Raise a MemoryError if n draws of ``width`` float32 numbers exceed the machine's memory."""
    needed, there = 4.0 * n * width, memory()
    if needed > there:
        raise MemoryError(
            f"{name}={n} draws of {width} coordinates take {needed / 2**30:.3g} GiB, more than this machine's "
            f"{there / 2**30:.3g}; draw fewer at a time"
        )


def _is_real(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, numbers.Real | np.floating | np.integer)


def _index(name: str, value: Any, least: int | None) -> int:
    index: Callable[[], int] | None = getattr(value, "__index__", None)
    whole = not isinstance(value, Tensor) or not value.is_floating_point()
    if _is_real(value) and whole and index is not None:
        result = int(index())
        if abs(result) > LARGEST_INTEGER:
            raise ValueError(f"{name} is too large, found {found(value)}")
        return result
    if least is not None and _is_real(value) and not value >= least:
        raise ValueError(f"{name} must be at least {least}, found {value}")
    raise TypeError(f"{name} must be an integer, found {found(value)}")
