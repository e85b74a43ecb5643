"""Files of fits and runs: written whole or not at all, refused with a reason when they can't be right."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .arguments import instance
from .errors import CheckpointError

#: Temporary files that a killed process left behind are removed when nobody has touched them for so many seconds.
STALE_SECONDS = 3600.0

StrPath = str | os.PathLike[str]


def check_path(path: StrPath, name: str = "path") -> Path:
    """The path of a file that is to be written, checked before any work is done; ``name`` is the argument's.

    Raises:
        TypeError: it is no path.
        FileNotFoundError: its folder does not exist.
        CheckpointError: it is a folder.
    """
    instance(name, path, (str, os.PathLike), "a path")
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}: the folder of {str(path)!r} does not exist; create it first")
    if path.is_dir():
        raise CheckpointError(f"{name}: {str(path)!r} is a folder; give the name of a file in it")
    return path


def write_atomically(path: StrPath, content: dict[str, Any]) -> None:
    """``torch.save`` through a temporary file beside the target: a crash leaves the old file or the new one.

    File and folder are flushed to the disk, so that this holds for a power failure too.

    Raises:
        FileNotFoundError: the folder does not exist.
        CheckpointError: the path is a folder.
        OSError: the disk is full or the like; the old file is whole.
    """
    _replace(check_path(path), lambda file: torch.save(content, file))


def write_text_atomically(path: StrPath, text: str) -> None:
    """Write a text in UTF-8 as :func:`write_atomically` writes a file.

    Raises:
        FileNotFoundError, CheckpointError, OSError: as there.
    """
    _replace(check_path(path), lambda file: file.write(text.encode("utf-8")))


def _replace(path: Path, write: Callable[[Any], object]) -> None:
    _remove_stale(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            # As open() would make it: a temporary file is its owner's alone.
            mask = os.umask(0o077)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def read_file(
    path: StrPath,
    expected: str,
    version: int,
    keys: frozenset[str] = frozenset(),
    *,
    older: Collection[int] = (),
) -> dict[str, Any]:
    """Read a file that :func:`write_atomically` wrote.

    Args:
        path: the file.
        expected: its content's ``"format"``.
        version: the ``"version"`` of that format that the caller reads.
        keys: what else the content must have.
        older: versions before that one that the caller reads as well.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or of another kind or version, or a folder.
    """
    instance("path", path, (str, os.PathLike), "a path")
    path = check_path(path) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        _check_sums(path)
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for damaged files
        raise CheckpointError(
            f"{str(path)!r} can't be read; it is damaged or was not written by avbvi: {error}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != expected:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{str(path)!r} is no {expected} file (found {found!r})")
    found = content.get("version")
    if isinstance(found, bool) or not isinstance(found, int) or found not in {version, *older}:
        newer = isinstance(found, int) and found > version
        raise CheckpointError(
            f"{str(path)!r} has version {found} of the {expected} format, this avbvi reads {version}: it was written "
            + ("by a newer avbvi; update this one" if newer else "by an older avbvi; use that, or start anew")
        )
    return with_keys(content, path, keys)


def with_keys(content: dict[str, Any], path: StrPath, keys: frozenset[str]) -> dict[str, Any]:
    """The content itself.

    Raises:
        CheckpointError: it lacks one of the keys.
    """
    missing = sorted(keys - content.keys())
    if missing:
        raise CheckpointError(f"{str(path)!r} is damaged: it lacks {missing}")
    return content


def _check_sums(path: Path) -> None:
    """Raise unless all parts of a zip archive agree with their checksums, which torch does not look at."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {broken!r} is wrong")


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()


def _flush_folder(folder: Path) -> None:
    # Some systems can't open folders; there the rename alone has to do.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
