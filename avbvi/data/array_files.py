"""Data in files that need not fit in memory: rows of arrays, read as batches ask for them."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..arguments import flag, found, instance, integer
from .block_shuffle import BlockShuffleSampler

Source = str | PathLike[str] | np.memmap


@dataclass(frozen=True)
class _Rows:
    """Where an array lies: rows of a file from an offset on, next to each other."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


class _Reader:
    """An open file, of which rows are read at any place; forked processes can share it.

    Rows are read and not mapped: pages of a mapped file count as the process's memory until they are given back, which
    takes longer than the reading, and a file that is cut off or a disk that fails kills the process instead of raising.
    """

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._file = os.open(rows.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.close = weakref.finalize(self, os.close, self._file)

    def take(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
        """A new array with the rows at non-negative indices; neighbours in the file are read together."""
        rows = self._rows
        result = np.empty((len(indices), *rows.shape[1:]), rows.dtype)
        if not result.nbytes:
            return result
        room = result.reshape(-1).view(np.uint8).data
        ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
        begin, size = 0, rows.row_bytes
        for end, first in zip(ends, indices[[0, *ends[:-1]]].tolist(), strict=True):
            self._read(room[begin * size : end * size], rows.offset + first * size)
            begin = end
        return result

    def _read(self, room: memoryview, place: int) -> None:
        while room:
            count = _read_at(self._file, room, place)
            if not count:
                raise OSError(
                    f"{str(self._rows.path)!r} is cut off: it ends before the rows asked for, which it had when the "
                    "data set was made"
                )
            room, place = room[count:], place + count


def _read_at(file: int, room: memoryview, place: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file, [room], place)
    os.lseek(file, place, os.SEEK_SET)  # Windows, where no forked process shares the place
    content = os.read(file, len(room))
    room[: len(content)] = content
    return len(content)


class ArrayFileDataset(Dataset[Any]):
    """Rows of arrays in files, side by side: for data that do not fit in memory.

    A batch is read from the files when it is asked for and converted then; nothing stays in the process's memory. The
    system keeps what fits in its file cache. Worker processes open the files themselves: pickled are only their places.

    A datum is a tensor, or a tuple of one for each file. It works as any map-style data set;
    ``DataLoader(data, batch_size=512, shuffle=True)`` reads a batch at a time, then separates and stacks its rows.
    :meth:`loader` gives a DataLoader that leaves the batch whole and shuffles in little memory.

    Args:
        files: paths of .npy files, or memory-mapped arrays (``numpy.memmap``, ``numpy.load(..., mmap_mode="r")``),
            whose files are read then; shapes (N, \\*shape of a datum) with the same N.
        dtype: of the tensors; that of each file by default.

    Raises:
        TypeError: no file, or an argument of another kind: an array in memory, part of a mapped array.
        FileNotFoundError: a file is not there.
        ValueError: a file is no .npy file or is cut off, its array has no rows or its rows are not next to each other
            (Fortran order), it holds objects or another type that torch does not have, or the numbers of rows differ.

    Example:
        >>> import numpy, torch, avbvi
        >>> numpy.save("x.npy", numpy.arange(12.0).reshape(6, 2))
        >>> data = avbvi.ArrayFileDataset("x.npy", dtype=torch.float32)
        >>> len(data), data[1]
        (6, tensor([2., 3.]))
        >>> [x.shape for (x,) in data.loader(4)]  # fit(model, data.loader(512), guide=...)
        [torch.Size([4, 2]), torch.Size([2, 2])]
    """

    #: The same index gives the same datum and draws no random number: a resumed run need not read again what it used.
    is_deterministic = True

    def __init__(self, *files: Source, dtype: torch.dtype | None = None) -> None:
        if not files:
            raise TypeError("files: give the path of at least one .npy file")
        instance("dtype", dtype, (torch.dtype, type(None)), "a torch.dtype or None")
        self.dtype = dtype
        self._sources = [_located(file) for file in files]
        if len({rows.shape[0] for rows in self._sources}) > 1:
            sizes = ", ".join(f"{rows.shape[0]} in {str(rows.path)!r}" for rows in self._sources)
            raise ValueError(f"files must have equally many rows, found {sizes}")
        self._readers = [_Reader(rows) for rows in self._sources]

    def __getstate__(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "_sources": self._sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers = [_Reader(rows) for rows in self._sources]

    def __len__(self) -> int:
        return self._sources[0].shape[0]

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, ...]:
        """One datum.

        Raises:
            IndexError: there is no such datum.
            TypeError: the index is no integer; many data are :meth:`batch`.
        """
        result: Tensor | tuple[Tensor, ...] = self.__getitems__([integer("index", index)])[0]
        return result

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many data; DataLoader calls this for a batch, and its ``collate_fn`` makes one of them."""
        columns = self.batch(indices)
        return list(zip(*columns, strict=True)) if len(columns) > 1 else list(columns[0])

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """The data at indices (B,) as one tensor (B, \\*shape of a datum) for each file.

        Raises:
            IndexError: there is no such datum.
            OSError: a file has become shorter, or can't be read.
        """
        rows = np.asarray(indices, dtype=np.int64)
        wrong = rows[(rows < -len(self)) | (rows >= len(self))]
        if len(wrong):
            raise IndexError(f"there is no datum {wrong[0]} among {len(self)}")
        rows = np.where(rows < 0, rows + len(self), rows)
        return tuple(self._converted(reader.take(rows)) for reader in self._readers)

    def _converted(self, array: np.ndarray[Any, Any]) -> Tensor:
        tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> DataLoader[Any]:
        """A DataLoader whose batches are tuples with one tensor for each file, read as a whole.

        Args:
            batch_size: data in a batch; the last one may have fewer.
            shuffle: whether each pass has an order of its own, by a :class:`~avbvi.BlockShuffleSampler`.
            drop_last: whether an incomplete last batch is left out.
            generator: what the orders are drawn from; torch's global one by default.
            num_workers: processes that read, as in ``torch.utils.data.DataLoader``.
            pin_memory: whether batches lie in page-locked memory, as there.

        Raises:
            TypeError: an argument is of another kind.
            ValueError: ``batch_size`` is not positive, or ``drop_last`` leaves no batch.
        """
        size = integer("batch_size", batch_size, 1)
        if flag("drop_last", drop_last) and size > len(self):
            raise ValueError(f"batch_size={size} with drop_last=True leaves no batch of {len(self)} data")
        return DataLoader(
            _Whole(self),
            batch_size=size,
            sampler=BlockShuffleSampler(self, generator=generator) if flag("shuffle", shuffle) else None,
            drop_last=drop_last,
            generator=generator,
            num_workers=num_workers,
            pin_memory=pin_memory,
            collate_fn=_itself,
        )


class _Whole(Dataset[Any]):
    """A data set in files whose batches stay whole."""

    is_deterministic = True

    def __init__(self, data: ArrayFileDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.data.batch(indices)


def _itself(batch: Any) -> Any:
    """What ``__getitems__`` gave is a batch already."""
    return batch


def _located(file: Any) -> _Rows:
    """Where the rows of an array lie, after all checks."""
    if isinstance(file, np.memmap):
        # A part of a mapped array keeps the whole one's offset, and an array in memory has no file.
        if not isinstance(file.base, mmap.mmap) or file.filename is None:
            raise TypeError(
                "files: an array must be a numpy.memmap of its file as a whole, found a part or a copy of one; map the "
                "part itself (numpy.memmap with offset and shape), or take rows by a sampler"
            )
        if file.mode == "c":
            raise TypeError('files: changes of an array mapped with mode "c" are not in its file; map it with mode "r"')
        array, path = file, Path(os.fspath(file.filename))
    elif isinstance(file, str | PathLike):
        path = Path(os.fspath(file))
        array = _read(path)
    else:
        raise TypeError(
            f"files must be paths of .npy files or numpy.memmap arrays, found {found(file)}; for arrays in memory "
            "take torch.utils.data.TensorDataset or avbvi.TensorLoader"
        )
    name = repr(str(path))
    if array.ndim < 1 or not len(array):
        raise ValueError(f"{name} must hold an array of shape (N, *shape of a datum), found shape {array.shape}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"the rows in {name} are not next to each other (shape {array.shape} in Fortran order); save "
            "numpy.ascontiguousarray of it"
        )
    try:
        torch.from_numpy(np.empty(0, array.dtype.newbyteorder("=")))
    except TypeError:
        raise ValueError(f"{name} must hold numbers, found dtype {array.dtype}, which torch does not have") from None
    rows = _Rows(path.resolve(), array.dtype, array.shape, array.offset)
    needed, there = rows.offset + rows.shape[0] * rows.row_bytes, path.stat().st_size
    if there < needed:
        raise ValueError(f"{name} is cut off: it has {there} bytes, and its array takes {needed}")
    return rows


def _read(path: Path) -> np.memmap:
    """The map of a .npy file."""
    if not path.is_file():
        what = " (it is a folder)" if path.is_dir() else ""
        relative = "" if path.is_absolute() else " from the current folder, or a whole path"
        raise FileNotFoundError(f"there is no file {str(path)!r}{what}; give the path of a .npy file{relative}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} can't be mapped as a .npy file, cut off or of another kind: {error}; numpy.save writes one "
            "(with numbers, not objects)"
        ) from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{str(path)!r} must be a .npy file with one array, found {type(array).__name__}")
    return array
