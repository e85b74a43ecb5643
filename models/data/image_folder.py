"""A folder of pictures, such as celebA or ImageNet: the centre of each, shrunk to one size, kept in one tensor file."""

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
from .places import StrPath

__all__ = ["SUFFIXES", "classes", "labels", "levels_of", "load", "pictures", "read"]

#: Names that end so, in any case, are taken for pictures.
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_FORMAT = "image folder"
_VERSION = 1
#: Changed when pictures are read in another way, so that older caches are made anew.
_READING = 2
_WHITE = (255, 255, 255, 255)


def load(
    folder: StrPath,
    size: int = 64,
    *,
    crop: int | None = None,
    colour: bool = True,
    labelled: bool = False,
    cache: StrPath | None = None,
) -> Images:
    """All pictures in a folder and the folders in it, sorted by path, as squares of one size.

    Grey pictures, palettes and CMYK are converted; 16-bit greys are scaled to 8 bits; transparent pictures lie on
    white; smaller ones are enlarged. `models.data.images.held_out` sets some aside to judge by.

    Args:
        folder: where they are.
        size: side of the result.
        crop: side of the square that is cut from the centre before it is resized; by default the largest
            that the picture has. 108 is usual for celebA's aligned faces.
        colour: three channels, red, green and blue; False for one of grey.
        labelled: the folders in `folder`, one for each class, are the labels: their numbers in the order of `classes`.
        cache: a file that keeps the result. It is used as long as names, sizes and times of change of the
            pictures, and the arguments above, are the same, and made anew otherwise.

    Raises:
        FileNotFoundError: there is no such folder, or not that of the cache.
        ValueError: it holds no picture, or one that can't be read, is smaller than `crop`, or lies in no class's
            folder though `labelled` is set.
        CheckpointError: the cache is damaged or some other file, which is left as it is.
    """
    instance("folder", folder, (str, os.PathLike), "a path")
    size = positive_integer("size", size)
    crop = None if crop is None else positive_integer("crop", crop)
    colour = flag("colour", colour)
    place = Path(folder)
    files = pictures(place)
    numbers = labels(place, files) if flag("labelled", labelled) else None
    if cache is None:
        return Images(_stacked(files, size, crop, colour), labels=numbers)
    target = check_path(cache, "cache")
    fingerprint = _fingerprint(place, files, (_READING, size, crop, colour))
    levels = _cached(target, fingerprint)
    if levels is None:
        levels = _stacked(files, size, crop, colour)
        content = {"format": _FORMAT, "version": _VERSION, "fingerprint": fingerprint, "levels": levels}
        write_atomically(target, content)
    return Images(levels, labels=numbers)


def pictures(folder: StrPath) -> list[Path]:
    """The pictures in a folder and the folders in it, sorted by path.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture.
    """
    place = Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(f"folder: no folder at {place}; give one that holds pictures")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise ValueError(f"folder: no picture in {place}; their names must end with one of {sorted(SUFFIXES)}")
    return files


def classes(folder: StrPath, files: Sequence[Path] | None = None) -> tuple[str, ...]:
    """The names of the folders in a folder that hold pictures, in alphabetical order: entry i is that of label i.

    Args:
        folder: where they are.
        files: the pictures, if they have been listed.
    """
    place = Path(folder)
    inside = [file.relative_to(place) for file in (pictures(place) if files is None else files)]
    return tuple(sorted({file.parts[0] for file in inside if len(file.parts) > 1}))


def labels(folder: StrPath, files: Sequence[Path] | None = None) -> Tensor:
    """The number of the class of each picture, shape (n,), int64; arguments as for `classes`.

    Raises:
        ValueError: a picture lies in no class's folder.
    """
    place = Path(folder)
    files = pictures(place) if files is None else files
    number = {name: i for i, name in enumerate(classes(place, files))}
    result = torch.empty(len(files), dtype=torch.int64)
    for i, file in enumerate(files):
        inside = file.relative_to(place).parts
        if len(inside) < 2:
            raise ValueError(f"{file} lies in no class's folder; put it into one, or load without labels")
        result[i] = number[inside[0]]
    return result


def read(file: StrPath, colour: bool = True) -> Image.Image:
    """A picture, upright, as red, green and blue, or grey, of 8 bits each.

    Raises:
        ValueError: it can't be read, or says nowhere what its largest level is.
    """
    try:
        with Image.open(file) as opened:
            # Older versions of Pillow give 16-bit PNG files the mode of 32 bits.
            deep = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PNG")
            # The camera's orientation is applied: cropping would otherwise cut along the wrong axis.
            return _converted(ImageOps.exif_transpose(opened), deep, "RGB" if colour else "L")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, UnidentifiedImageError) as error:
        raise ValueError(f"{file} can't be read as a picture ({error}); remove it or copy it again") from error


def _converted(picture: Image.Image, deep: bool, mode: str) -> Image.Image:
    if deep:
        # Pillow would cut everything above 255 off.
        picture = Image.fromarray(((np.asarray(picture).astype(np.int64) + 128) // 257).astype(np.uint8))
    elif picture.mode in ("F", "I"):
        raise ValueError(f"levels of mode {picture.mode!r} have no known range: save it with 8 or 16 bits")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture)
    return picture.convert(mode)


def levels_of(picture: Image.Image) -> Tensor:
    """The levels of a picture that `read` gave: shape (channels, height, width), uint8."""
    levels = torch.from_numpy(np.array(picture))
    return levels.reshape(picture.height, picture.width, -1).permute(2, 0, 1)


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


def _fingerprint(place: Path, files: Sequence[Path], settings: tuple[int, int, int | None, bool]) -> str:
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
    picture = read(file, colour)
    width, height = picture.size
    side = min(width, height) if crop is None else crop
    if side > min(width, height):
        raise ValueError(f"crop={crop} is larger than {file}, which has {width} x {height} pixels")
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    # Cut first: with resize(box=...) the filter, which widens with the shrinking, would reach outside the square.
    return levels_of(picture.crop(box).resize((size, size), Image.Resampling.BICUBIC))
