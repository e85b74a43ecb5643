"""CIFAR-10's 60,000 colour photographs from its Python batches, in a folder or in the archive, or from PNG files.

Source: Krizhevsky, Learning multiple layers of features from tiny images (2009). A batch is a pickled dict; it is read
without running anything that it names: `models.data.pickles`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from avbvi.arguments import found

from . import image_folder
from .images import Images, Split
from .pickles import PlainPickleError, read_plain
from .places import StrPath, default_place

__all__ = ["BATCH", "CLASSES", "PARTS", "load", "place"]

#: The classes, in the order of the labels; it is that of the alphabet.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
#: Pictures in a batch.
BATCH = 10_000
#: Batches of each part.
PARTS = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_NAMES = tuple(name for names in PARTS.values() for name in names)
_ARCHIVE = "cifar-10-python.tar.gz"
_INNER = "cifar-10-batches-py"
_SHAPE = (3, 32, 32)
_LARGEST = 1 << 27  # bytes; a batch has 31 million


def place(path: StrPath | None = None) -> Path:
    """The folder, or the archive, with CIFAR-10.

    Args:
        path: where to look; by default the environment variable AVBVI_CIFAR10, or AVBVI_DATA (the folder itself or
            `cifar10` in it), else ../shared/data/cifar10 beside the repository.

    Raises:
        FileNotFoundError: there is no such folder or file.
    """
    where = Path(path) if path is not None else default_place("cifar10", "AVBVI_CIFAR10", __file__)
    if not where.exists():
        raise FileNotFoundError(f"No CIFAR-10 at {where}. {_hint()}")
    return where


def load(path: StrPath | None = None) -> Split:
    """CIFAR-10's 50,000 training and 10,000 test pictures, shape (n, 3, 32, 32), red, green and blue.

    What is in the folder is taken in this order: the batches, the archive cifar-10-python.tar.gz, the PNG files in
    `train` and `test`. These may lie in folders of their classes, whose names in alphabetical order are the labels;
    otherwise there are no labels, and pictures are in the order of their names.

    Args:
        path: as for `place`; the archive itself will do.

    Raises:
        FileNotFoundError: the place, or a batch in it, is not there.
        ValueError: a file is damaged, truncated, or not CIFAR-10's.
    """
    where = place(path)
    if where.is_file():
        return _of_archive(where)
    for folder in (where, where / _INNER):
        if any((folder / name).is_file() for name in _NAMES):
            return _of_batches(folder)
    if (where / _ARCHIVE).is_file():
        return _of_archive(where / _ARCHIVE)
    if any((where / part).is_dir() for part in PARTS):
        return _of_pictures(where)
    raise FileNotFoundError(f"No batches, archive or PNG files of CIFAR-10 in {where}. {_hint()}")


def _of_batches(folder: Path) -> Split:
    absent = [name for name in _NAMES if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"No {', '.join(absent)} in {folder}. {_hint()}")
    return _split({name: _batch((folder / name).read_bytes(), str(folder / name)) for name in _NAMES})


def _of_archive(file: Path) -> Split:
    batches = {}
    try:
        with tarfile.open(file, "r:*") as archive:
            # In the archive's order: going back would decompress it again.
            for member in archive:
                name = member.name.rsplit("/", 1)[-1]
                if name not in _NAMES or not member.isfile():
                    continue
                if member.size > _LARGEST:
                    raise ValueError(f"{file}: {member.name} has {member.size} bytes, too many for a batch of CIFAR-10")
                content = archive.extractfile(member)
                assert content is not None  # a regular file
                batches[name] = _batch(content.read(), f"{file}: {member.name}")
            # The checksum stands behind the archive's end.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())  # tarfile tells each of its attempts in a line
        raise ValueError(
            f"{file} can't be unpacked ({reason}): it is truncated, damaged or no archive. {_again(_ARCHIVE)}"
        ) from error
    absent = [name for name in _NAMES if name not in batches]
    if absent:
        raise ValueError(f"{file} is not CIFAR-10's archive: it has no {', '.join(absent)}. {_again(_ARCHIVE)}")
    return _split(batches)


def _split(batches: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Split:
    def part(names: tuple[str, ...]) -> Images:
        levels, labels = (np.concatenate([batches[name][i] for name in names]) for i in (0, 1))
        return Images(torch.from_numpy(levels).reshape(-1, *_SHAPE), 255, torch.from_numpy(labels))

    return Split(part(PARTS["train"]), part(PARTS["test"]))


def _batch(content: bytes, file: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels (BATCH, 3072), uint8, and labels (BATCH,), int64, of a pickled batch; ``file`` is for errors."""
    remedy = _again(file.rsplit("/", 1)[-1])
    try:
        batch = read_plain(content)
    except PlainPickleError as error:
        raise ValueError(f"{file} can't be read as a batch of CIFAR-10: {error}. {remedy}") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{file} is not a batch of CIFAR-10: it holds no dict, found {found(batch)}. {remedy}")
    values = {}
    for key in ("data", "labels"):
        # Python 2 wrote the keys as bytes.
        value = batch.get(key.encode(), batch.get(key))
        if value is None:
            there = sorted(str(k.decode("latin1") if isinstance(k, bytes) else k) for k in batch)
            raise ValueError(f"{file} is not a batch of CIFAR-10: it has no {key!r}, only {there}. {remedy}")
        values[key] = value
    levels, labels = values["data"], values["labels"]
    shape = (BATCH, int(np.prod(_SHAPE)))
    if not isinstance(levels, np.ndarray) or levels.shape != shape:
        what = f"shape {levels.shape}" if isinstance(levels, np.ndarray) else found(levels)
        raise ValueError(f"{file} is not a batch of CIFAR-10: data must have shape {shape}, found {what}. {remedy}")
    if not isinstance(labels, list) or len(labels) != BATCH:
        what = f"{len(labels)}" if isinstance(labels, list) else found(labels)
        raise ValueError(f"{file} is not a batch of CIFAR-10: it must hold {BATCH} labels, found {what}. {remedy}")
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise ValueError(f"{file} is not a batch of CIFAR-10: labels must be integers from 0 to 9. {remedy}")
    return levels, np.array(labels, dtype=np.int64)


def _of_pictures(where: Path) -> Split:
    parts, classes = {}, {}
    for part, names in PARTS.items():
        folder = where / part
        if not folder.is_dir():
            raise FileNotFoundError(f"No folder {part} in {where}. {_hint()}")
        files = [file for file in image_folder.pictures(folder) if file.suffix.lower() == ".png"]
        count = BATCH * len(names)
        if len(files) != count:
            raise ValueError(f"{folder} is not CIFAR-10's: it must hold {count} PNG files, found {len(files)}")
        levels = torch.empty(count, *_SHAPE, dtype=torch.uint8)
        for row, file in zip(levels, files, strict=True):
            row.copy_(_picture(file))
        classes[part] = image_folder.classes(folder, files)
        parts[part] = Images(levels, 255, image_folder.labels(folder, files) if classes[part] else None)
    if classes["train"] != classes["test"] or len(classes["train"]) not in (0, len(CLASSES)):
        raise ValueError(
            f"{where}: train and test must both have the folders of the {len(CLASSES)} classes, or neither of them "
            f"any, found {list(classes['train'])} and {list(classes['test'])}"
        )
    return Split(parts["train"], parts["test"])


def _picture(file: Path) -> torch.Tensor:
    """(3, 32, 32), uint8."""
    levels = image_folder.levels_of(image_folder.read(file))
    if levels.shape != _SHAPE:
        raise ValueError(
            f"{file} is not CIFAR-10's: its pictures have 32 x 32 pixels, found {levels.shape[2]} x {levels.shape[1]}; "
            "load others by image_folder.load"
        )
    return levels


def _hint() -> str:
    return (
        f"Pass path=, or set AVBVI_CIFAR10 to {_ARCHIVE}, or to a folder that holds it, its batches "
        f"({', '.join(_NAMES)}), or folders train and test of PNG files."
    )


def _again(name: str) -> str:
    return f"Put CIFAR-10's original {name} there."
