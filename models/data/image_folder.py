"""A folder of pictures, such as celebA: the centre of each, shrunk to one size, kept in one tensor file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from avbvi.arguments import flag, instance, positive_integer
from avbvi.checkpoints import check_path, read_file, write_atomically
from avbvi.errors import CheckpointError

from .images import Images

__all__ = ["SUFFIXES", "load"]

#: Names that end so, in any case, are taken for pictures.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FORMAT = "image folder"
_VERSION = 1

StrPath = str | os.PathLike[str]


def load(
    folder: StrPath, size: int = 64, *, crop: int | None = None, colour: bool = True, cache: StrPath | None = None
) -> Images:
    """All pictures in a folder and the folders in it, sorted by path, as squares of one size.

    Args:
        folder: where they are.
        size: side of the result.
        crop: side of the square that is cut from the centre before it is resized; by default the largest
            that the picture has. 108 is usual for celebA's aligned faces.
        colour: three channels, red, green and blue; False for one of grey.
        cache: a file that keeps the result. It is used as long as names, sizes and times of change of the
            pictures, and the arguments above, are the same, and made anew otherwise.

    Raises:
        FileNotFoundError: there is no such folder, or not that of the cache.
        ValueError: it holds no picture, or one that can't be read or is smaller than `crop`.
        CheckpointError: the cache is damaged or some other file, which is left as it is.
    """
    instance("folder", folder, (str, os.PathLike), "a path")
    size = positive_integer("size", size)
    crop = None if crop is None else positive_integer("crop", crop)
    colour = flag("colour", colour)
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"folder: no folder at {place}; give one that holds pictures")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"folder: no picture in {place}; their names must end with one of {sorted(SUFFIXES)}")
    if cache is None:
        return Images(_stacked(files, size, crop, colour))
    target = check_path(cache, "cache")
    fingerprint = _fingerprint(place, files, (size, crop, colour))
    levels = _cached(target, fingerprint)
    if levels is None:
        levels = _stacked(files, size, crop, colour)
        content = {"format": _FORMAT, "version": _VERSION, "fingerprint": fingerprint, "levels": levels}
        write_atomically(target, content)
    return Images(levels)


def _cached(cache: Path, fingerprint: str) -> Tensor | None:
    """The levels in the cache; None if there is none or the pictures have changed."""
    if not cache.exists():
        return None
    try:
        content = read_file(cache, _FORMAT, _VERSION, frozenset({"fingerprint", "levels"}))
    except CheckpointError as error:
        raise CheckpointError(f"cache: {error}; delete the file to have it made anew, or name another") from error
    levels: Tensor = content["levels"]
    return levels if content["fingerprint"] == fingerprint else None


def _fingerprint(place: Path, files: Sequence[Path], settings: tuple[int, int | None, bool]) -> str:
    """Changes with the settings and with name, size and time of change of any picture."""
    digest = hashlib.sha256(repr(settings).encode())
    for file in files:
        status = file.stat()
        digest.update(repr((file.relative_to(place).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _stacked(files: Sequence[Path], size: int, crop: int | None, colour: bool) -> Tensor:
    """(n, channels, size, size), uint8."""
    result = torch.empty(len(files), 3 if colour else 1, size, size, dtype=torch.uint8)
    for row, file in zip(result, files, strict=True):
        row.copy_(_square(file, size, crop, colour))
    return result


def _square(file: Path, size: int, crop: int | None, colour: bool) -> Tensor:
    try:
        with Image.open(file) as opened:
            # The camera's orientation is applied: cropping would otherwise cut along the wrong axis.
            picture = ImageOps.exif_transpose(opened).convert("RGB" if colour else "L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} can't be read as a picture ({error}); remove it or copy it again") from error
    width, height = picture.size
    side = min(width, height) if crop is None else crop
    if side > min(width, height):
        raise ValueError(f"crop={crop} is larger than {file}, which has {width} x {height} pixels")
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    # Cut first: with resize(box=...) the filter, which widens with the shrinking, would reach outside the square.
    square = np.asarray(picture.crop(box).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(square.copy()).reshape(size, size, -1).permute(2, 0, 1)
