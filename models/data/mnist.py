"""MNIST's 70,000 handwritten digits from the four IDX files, plain or gzip, in a folder on disk.

Source: LeCun, Cortes and Burges. IDX: two zero bytes, the type of the entries (8 for bytes), the number of
dimensions, each dimension as a big-endian 32-bit integer, then the entries.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .images import Images, Split
from .places import StrPath, default_place

__all__ = ["COUNTS", "folder", "load", "read_idx"]

#: Pictures in each part, by the prefix of its files.
COUNTS = {"train": 60_000, "t10k": 10_000}
_SIDE = 28
_CLASSES = 10
_BYTES = 8  # the type code of uint8


def folder(path: StrPath | None = None) -> Path:
    """The folder with MNIST's files.

    Args:
        path: where to look; by default the environment variable AVBVI_MNIST, or AVBVI_DATA (the folder itself or
            `mnist` in it), else ../shared/data/mnist beside the repository.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    place = Path(path) if path is not None else default_place("mnist", "AVBVI_MNIST", __file__)
    if not place.is_dir():
        raise FileNotFoundError(f"No folder with MNIST at {place}. {_hint()}")
    return place


def load(path: StrPath | None = None) -> Split:
    """MNIST's 60,000 training and 10,000 test pictures with their labels, in the original order.

    Args:
        path: as for `folder`.

    Raises:
        FileNotFoundError: the folder or one of the files is not there.
        ValueError: a file is damaged, truncated, or not MNIST's.
    """
    place = folder(path)
    return Split(_part(place, "train"), _part(place, "t10k"))


def read_idx(path: StrPath, dims: int) -> Tensor:
    """The array of bytes in an IDX file, uint8; a name that ends with .gz is decompressed.

    Args:
        path: the file.
        dims: dimensions that the array must have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be decompressed, has another magic number, or more or fewer bytes than its head says.
    """
    file = Path(path)
    content = _content(file)
    head = 4 + 4 * dims
    if len(content) < 4:
        raise ValueError(f"{file} is truncated: {len(content)} bytes are no head of an IDX file. {_again(file)}")
    magic = (_BYTES << 8) | dims
    (found,) = struct.unpack(">I", content[:4])
    if found != magic:
        raise ValueError(
            f"{file} is not the IDX file that belongs there: its magic number is {found} (0x{found:08x}), not {magic} "
            f"(bytes in {dims} dimension{'s' if dims > 1 else ''}). {_again(file)}"
        )
    if len(content) < head:
        raise ValueError(f"{file} is truncated: it ends within its head, after {len(content)} bytes. {_again(file)}")
    shape = struct.unpack(f">{dims}I", content[4:head])
    expected, there = math.prod(shape), len(content) - head
    if there != expected:
        wrong = "truncated" if there < expected else "longer than its head says"
        raise ValueError(
            f"{file} is {wrong}: shape {shape} takes {expected} bytes, found {there} after the head. {_again(file)}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy())


def _part(place: Path, prefix: str) -> Images:
    images_file, labels_file = _file(place, prefix, "images", 3), _file(place, prefix, "labels", 1)
    levels, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    count = COUNTS[prefix]
    if levels.shape != (count, _SIDE, _SIDE):
        raise ValueError(
            f"{images_file} is not MNIST's: it must hold {count} pictures of {_SIDE} x {_SIDE} pixels, "
            f"found shape {tuple(levels.shape)}. {_again(images_file)}"
        )
    if labels.shape != (count,):
        raise ValueError(
            f"{labels_file} is not MNIST's: it must hold {count} labels, found {len(labels)}. {_again(labels_file)}"
        )
    if int(labels.max()) >= _CLASSES:
        raise ValueError(
            f"{labels_file} is not MNIST's: labels must be 0 to 9, found {int(labels.max())}. {_again(labels_file)}"
        )
    return Images(levels.unsqueeze(1), 255, labels.long())


def _file(place: Path, prefix: str, content: str, dims: int) -> Path:
    """The plain file or, where there is none, the compressed one; both ways of writing its name are in use."""
    names = [f"{prefix}-{content}{mark}idx{dims}-ubyte{end}" for end in ("", ".gz") for mark in ("-", ".")]
    for name in names:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"No {names[0]} or {names[2]} in {place}. {_hint()}")


def _content(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{file} can't be decompressed ({error}): it is truncated or no gzip. {_again(file)}"
        ) from error


def _hint() -> str:
    files = [f"{prefix}-{name}-ubyte" for prefix in COUNTS for name in ("images-idx3", "labels-idx1")]
    return f"Pass path=, or set AVBVI_MNIST to a folder that holds {', '.join(files)}, plain or with .gz."


def _again(file: Path) -> str:
    return f"Put MNIST's original {file.name} there."
