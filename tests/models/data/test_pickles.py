"""Pickles from anywhere: plain values come back, nothing else is imported, called or made."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.data.pickles import PlainPickleError, read_plain

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def python_2(array: np.ndarray) -> bytes:
    """The bytes that Python 2 and NumPy 1 wrote for {"data": array, "n": [3, 200]}, opcode by opcode."""

    def text(value: bytes) -> bytes:
        short = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        return short + value

    shape = b"".join(b"K" + bytes([side]) for side in array.shape)
    return (
        b"\x80\x02}("
        + text(b"data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01("
        + shape
        + b"tcnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(array.tobytes())
        + b"tb"
        + text(b"n")
        + b"](K\x03K\xc8eu."
    )


def test_what_python_2_wrote() -> None:
    plain = read_plain(python_2(ARRAY))
    assert set(plain) == {b"data", b"n"}
    assert plain[b"n"] == [3, 200]
    assert plain[b"data"].dtype == np.uint8
    assert np.array_equal(plain[b"data"], ARRAY)
    # Python's own unpickler reads the same from the bytes above.
    assert np.array_equal(pickle.loads(python_2(ARRAY), encoding="bytes")[b"data"], ARRAY)
    plain[b"data"][0, 0, 0] = 9  # the array can be written to


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_and_order_of_arrays(protocol: int, order: Any) -> None:
    value = {
        "array": np.array(ARRAY, order=order),
        "turned": ARRAY.T,
        "empty": np.zeros((0, 3), np.uint8),
        "all": [1, -2.5, "ä", b"\x00\xff", None, True, (2**70, [ARRAY[0, 0]])],
    }
    plain = read_plain(pickle.dumps(value, protocol))
    assert np.array_equal(plain["array"], ARRAY)
    assert np.array_equal(plain["turned"], ARRAY.T)
    assert plain["empty"].shape == (0, 3)
    assert plain["all"][:6] == value["all"][:6]
    assert plain["all"][6][0] == 2**70
    assert np.array_equal(plain["all"][6][1][0], ARRAY[0, 0])


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"data": [v]}, lambda v: {v: 1}], ids=["it", "value", "key"])
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, protocol: int, wrap: Any) -> None:
    mark = tmp_path / "mark"
    for call, name in (
        (Calls(os.system, f"touch {mark}"), rf"{os.system.__module__}\.system"),
        (Calls(eval, f"open({str(mark)!r}, 'w')"), r"(builtins|__builtin__)\.eval"),
        (Calls(open, str(mark), "w"), r"(_?io|builtins|__builtin__)\.open"),
        (Calls(getattr, np, "load"), "numpy|getattr"),
    ):
        try:
            content = pickle.dumps(wrap(call), protocol)
        except TypeError:  # modules can't be pickled
            continue
        with pytest.raises(
            PlainPickleError, match=rf"it names {name}, which no plain data need: nothing of it was run"
        ):
            read_plain(content)
    assert not mark.exists()


def test_nothing_is_imported() -> None:
    sys.modules.pop("this", None)
    for content in (b"cthis\nd\n.", b"cnumpy.this\n_reconstruct\n)R.", b"\x80\x04\x8c\x04this\x8c\x01d\x93."):
        with pytest.raises(PlainPickleError):
            read_plain(content)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "value", [OrderedDict(a=1), Counter("aab"), complex(1, 2), Path("x"), np.float64(2.0), np.random.RandomState(0)]
)
def test_objects_are_refused(value: Any) -> None:
    with pytest.raises(PlainPickleError, match=r"it names .*, which no plain data need"):
        read_plain(pickle.dumps(value, 2))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.arange(3), r"array of dtype 'i8', not of bytes \(u1\)"),
        (np.arange(3.0), "array of dtype 'f8'"),
        (np.array([{}, []], dtype=object), "array of dtype 'O8'"),
        (np.zeros(2, dtype="V4"), "array of dtype 'V4'"),
        ({1, 2}, "an object of type set|it names .*set"),
    ],
)
def test_other_arrays_are_refused(value: Any, message: str) -> None:
    for protocol in (2, 4):
        with pytest.raises(PlainPickleError, match=message):
            read_plain(pickle.dumps(value, protocol))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\nU\x02u1\x85R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Contents that are shorter than the shape says, or no bytes.
        (RECONSTRUCT + b")R(K\x01K\x04\x85" + DTYPE + b"\x89U\x03abctb.", r"shape \(4,\) in 3 bytes"),
        (RECONSTRUCT + b")R(K\x01J\xff\xff\xff\xff\x85" + DTYPE + b"\x89U\x00tb.", r"shape \(-1,\) in 0 bytes"),
        (RECONSTRUCT + b")R(K\x01K\x02\x85" + DTYPE + b"\x89](K\x01K\x02etb.", "array in an unknown form"),
        (RECONSTRUCT + b")R(K\x01K\x02\x85N\x89U\x02abtb.", "array in an unknown form"),
        (RECONSTRUCT + b")R.", "array without content"),
        (RECONSTRUCT + b".", "an object of type Callable"),
        # Changing a function that the pickle may call.
        (RECONSTRUCT + b"}U\x01aK\x01sb.", "it changes what it names"),
        (RECONSTRUCT + b"N}U\x09_functionK\x01s\x86b.", "it changes what it names"),
        (b"cnumpy\nndarray\nK\x02\x85R.", "makes an array in an unknown form"),
        (b"c_codecs\nencode\nU\x01aU\x03zip\x86R.", "codecs.encode with something else than latin1"),
        (b"c__builtin__\nbytes\nK\x7f\x85R.", "damaged, truncated or no pickle .TypeError"),
        (b"Pelsewhere\n.", "objects outside itself"),
        (b"", "damaged, truncated or no pickle"),
        (b"\x80\x02}", "damaged, truncated or no pickle"),
        (b"no pickle at all", "damaged, truncated or no pickle"),
        (b"\x80\x02]q\x00h\x00a.", "damaged .RecursionError"),
    ],
)
def test_damaged_and_malicious_pickles_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(PlainPickleError, match=message):
        read_plain(content)
    # Nothing of this changed how the next one is read.
    assert np.array_equal(read_plain(python_2(ARRAY))[b"data"], ARRAY)


def test_damage_anywhere_gives_the_one_error() -> None:
    content = pickle.dumps({"data": ARRAY, "labels": [1, 2]}, 2)
    for i in range(len(content)):
        for damaged in (content[:i], content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :]):
            try:
                read_plain(damaged)
            except PlainPickleError:
                continue
    assert isinstance(read_plain(content), dict)
