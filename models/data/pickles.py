"""Plain values from a pickle that may come from anywhere: nothing that it names is imported, let alone called.

A pickle is a program. Of what it may name we know NumPy's way of writing an array of bytes and Python's of writing
bytes, and both are replaced by functions of this module; everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["PlainPickleError", "read_plain"]


class PlainPickleError(ValueError):
    """The pickle is damaged, or names something that plain data do not need."""


def read_plain(content: bytes) -> Any:
    """The dict, list, tuple, number, text, bytes or array of bytes in a pickle; Python 2's strings become bytes.

    Arrays become NumPy arrays of dtype uint8, wherever they are in dicts, lists and tuples.

    Args:
        content: the pickle.

    Raises:
        PlainPickleError: it is damaged, truncated, or names anything else.
    """
    try:
        return _finished(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except PlainPickleError:
        raise
    except (MemoryError, RecursionError) as error:
        raise PlainPickleError(f"it is damaged ({type(error).__name__})") from error
    except Exception as error:  # damaged pickles raise any kind
        raise PlainPickleError(f"it is damaged, truncated or no pickle ({type(error).__name__}: {error})") from error


class _Array:
    """Stands for an array while its parts arrive."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """Stands for an array's dtype, which must be uint8; the state holds its byte order, which bytes have not."""

    def __init__(self, name: Any, *flags: Any) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if text not in ("u1", "|u1", "uint8", "B"):
            raise PlainPickleError(f"it holds an array of dtype {text!r}, not of bytes (u1)")

    def __setstate__(self, state: Any) -> None:
        """Nothing of it matters."""


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise PlainPickleError("it holds an array in an unknown form")
    sides = tuple(shape)
    if not all(type(side) is int and side >= 0 for side in sides) or math.prod(sides) != len(content):
        raise PlainPickleError(f"it holds an array of shape {sides} in {len(content)} bytes")
    flat = np.frombuffer(content, np.uint8)
    # A copy: the buffer can't be written to.
    return np.array(flat.reshape(sides, order="F" if order == "F" else "C"), order="C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _latin1(text: Any, encoding: Any) -> bytes:
    """Python 3 writes bytes so for Python 2's sake."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise PlainPickleError("it names codecs.encode with something else than latin1")
    return text.encode("latin1")


def _empty() -> bytes:
    """Python 3 writes empty bytes so for Python 2's sake."""
    return b""


def _ndarray(*_: Any) -> Any:
    raise PlainPickleError("it makes an array in an unknown form")


class _Callable:
    """A function that a pickle may call and can't change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise PlainPickleError("it changes what it names")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        package = module.split(".")[0]
        if package == "numpy" and name in _NUMPY:
            return _Callable(_NUMPY[name])
        if (module, name) == ("_codecs", "encode"):
            return _Callable(_latin1)
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _Callable(_empty)
        raise PlainPickleError(f"it names {module}.{name}, which no plain data need: nothing of it was run")

    def persistent_load(self, pid: Any) -> Any:
        raise PlainPickleError("it refers to objects outside itself")


_NUMPY: dict[str, Callable[..., Any]] = {
    "_reconstruct": _reconstruct,
    "_frombuffer": _array,
    "ndarray": _ndarray,
    "dtype": _Dtype,
}


def _finished(value: Any) -> Any:
    """The value with arrays in the place of what stood for them."""
    if isinstance(value, _Array):
        if value.value is None:
            raise PlainPickleError("it holds an array without content")
        return value.value
    if isinstance(value, dict):
        return {_finished(k): _finished(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str | bytes | bytearray | np.ndarray):
        return value
    raise PlainPickleError(f"it holds an object of type {type(value).__name__.lstrip('_')}")
