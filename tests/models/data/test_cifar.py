"""CIFAR-10's loader on files of our own in each of its forms, with everything that can be wrong."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.data import cifar

N = 10  # pictures in a batch, here
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def levels(batch: int) -> np.ndarray:
    """(N, 3, 32, 32) for each of the six batches."""
    return np.random.default_rng(batch).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)


def labels(batch: int) -> list[int]:
    return [(3 * batch + i) % 10 for i in range(N)]


def content(batch: int, **changes: Any) -> dict[bytes, Any]:
    """What a batch holds: the planes of red, green and blue one after another."""
    plain = {b"data": levels(batch).reshape(N, 3072), b"labels": labels(batch), b"batch_label": b"x"}
    changed = {key.encode(): value for key, value in changes.items()}
    return {key: value for key, value in (plain | changed).items() if value is not None}


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(pickle.dumps(content(i), 2))
    (folder / "batches.meta").write_bytes(b"not read")


def pack(folder: Path, file: Path, mode: Any = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        archive.add(folder, "cifar-10-batches-py")
    return file


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH", N)


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """A folder with six batches of N pictures."""
    place = tmp_path / "cifar-10-batches-py"
    write(place)
    return place


def check(split: cifar.Split) -> None:
    for part, numbers in ((split.train, range(5)), (split.test, [5])):
        assert np.array_equal(part.levels.numpy(), np.concatenate([levels(i) for i in numbers]))
        assert part.labels is not None
        assert part.labels.tolist() == [label for i in numbers for label in labels(i)]
        assert part.labels.dtype == torch.int64
        assert (part.image_shape, part.maximum) == ((3, 32, 32), 255)


def test_batches_come_back(batches: Path) -> None:
    check(cifar.load(batches))
    check(cifar.load(str(batches.parent)))  # the folder above does as well


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_batches_that_were_written_again_come_back(batches: Path, protocol: int) -> None:
    for i, name in enumerate(NAMES):
        again = {key.decode(): value for key, value in content(i).items()}
        again["data"] = np.array(again["data"], order="F")
        (batches / name).write_bytes(pickle.dumps(again, protocol))
    check(cifar.load(batches))


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz"])
def test_the_archive_is_read_in_place(batches: Path, tmp_path: Path, mode: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = pack(batches, home / "cifar-10-python.tar.gz", mode)
    check(cifar.load(file))
    check(cifar.load(home))
    assert [entry.name for entry in home.iterdir()] == [file.name]  # nothing was unpacked


def picture(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.transpose(1, 2, 0)).save(file)


def write_pictures(place: Path, *, by_class: bool) -> dict[Path, tuple[np.ndarray, int]]:
    """PNG files, and what each shows."""
    written = {}
    for i, part in enumerate(["train"] * 5 + ["test"]):
        for k, (array, label) in enumerate(zip(levels(i), labels(i), strict=True)):
            inside = Path(cifar.CLASSES[label]) if by_class else Path()
            file = place / part / inside / f"{i}{k}.png"
            picture(array, file)
            written[file] = (array, label)
    return written


@pytest.mark.parametrize("by_class", [True, False])
def test_png_files_come_back(tmp_path: Path, by_class: bool) -> None:
    written = write_pictures(tmp_path, by_class=by_class)
    split = cifar.load(tmp_path)
    for part, name in ((split.train, "train"), (split.test, "test")):
        files = sorted(file for file in written if file.is_relative_to(tmp_path / name))
        assert np.array_equal(part.levels.numpy(), np.stack([written[file][0] for file in files]))
        if by_class:
            assert part.labels is not None
            assert part.labels.tolist() == [written[file][1] for file in files]
        else:
            assert part.labels is None


def test_the_batches_are_taken_before_the_archive_and_that_before_pictures(batches: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"not read")
    (tmp_path / "train").mkdir()
    check(cifar.load(tmp_path))
    pack(batches, tmp_path / "cifar-10-python.tar.gz")
    batches.rename(tmp_path / "elsewhere")
    check(cifar.load(tmp_path))


def test_where_it_is_looked_for(batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVBVI_CIFAR10", raising=False)
    monkeypatch.delenv("AVBVI_DATA", raising=False)
    monkeypatch.setattr(cifar, "__file__", str(tmp_path / "checkout" / "models" / "data" / "cifar.py"))
    with pytest.raises(FileNotFoundError, match=r"No CIFAR-10 at .*cifar10\. Pass path=, or set AVBVI_CIFAR10"):
        cifar.load()
    beside = tmp_path / "shared" / "data" / "cifar10"
    beside.mkdir(parents=True)
    assert cifar.place() == beside
    monkeypatch.setenv("AVBVI_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    assert cifar.place() == tmp_path / "data" / "cifar10"
    monkeypatch.setenv("AVBVI_CIFAR10", str(batches))
    assert cifar.place() == batches
    check(cifar.load())
    assert cifar.place(beside) == beside
    with pytest.raises(FileNotFoundError, match=r"No batches, archive or PNG files of CIFAR-10 in .*cifar10"):
        cifar.load(beside)


def test_missing_batches_are_named(batches: Path, tmp_path: Path) -> None:
    (batches / "data_batch_3").unlink()
    (batches / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match=r"No data_batch_3, test_batch in .*cifar-10-batches-py\. Pass path="):
        cifar.load(batches)
    file = pack(batches, tmp_path / "some.tar.gz")
    with pytest.raises(ValueError, match=r"is not CIFAR-10's archive: it has no data_batch_3, test_batch\. Put"):
        cifar.load(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": levels(1).reshape(N, 3072)[:-1]}, r"data must have shape \(10, 3072\), found shape \(9, 3072\)"),
        ({"data": levels(1)}, r"data must have shape \(10, 3072\), found shape \(10, 3, 32, 32\)"),
        ({"data": [0] * N}, r"data must have shape \(10, 3072\), found list"),
        ({"data": levels(1).reshape(N, 3072) / 255.0}, r"an array of dtype 'f8', not of bytes \(u1\)"),
        ({"data": None}, r"it has no 'data', only \['batch_label', 'labels'\]"),
        # CIFAR-100's.
        ({"labels": None, "fine_labels": [1] * N}, r"no 'labels', only \['batch_label', 'data', 'fine_labels'\]"),
        ({"labels": labels(1)[1:]}, "must hold 10 labels, found 9"),
        ({"labels": np.zeros(N, np.uint8)}, r"must hold 10 labels, found ndarray"),
        ({"labels": [*labels(1)[1:], 10]}, "labels must be integers from 0 to 9"),
        ({"labels": [*labels(1)[1:], -1]}, "labels must be integers from 0 to 9"),
        ({"labels": [*labels(1)[1:], True]}, "labels must be integers from 0 to 9"),
        ({"labels": [*labels(1)[1:], 1.0]}, "labels must be integers from 0 to 9"),
    ],
)
def test_foreign_batches_are_refused_with_the_file_and_the_remedy(
    batches: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = batches / "data_batch_2"
    file.write_bytes(pickle.dumps(content(1, **changes), 2))
    for where, name in ((batches, str(file)), (pack(batches, tmp_path / "a.tar.gz"), "a.tar.gz: cifar-10-batches-py")):
        with pytest.raises(ValueError, match=message) as caught:
            cifar.load(where)
        assert name in str(caught.value)
        assert str(caught.value).endswith("Put CIFAR-10's original data_batch_2 there.")


class Malicious:
    """A pickle that runs a command when it is loaded as usual."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("key", ["data", "labels", "batch_label"])
def test_a_malicious_batch_runs_nothing(batches: Path, tmp_path: Path, key: str) -> None:
    mark = tmp_path / "mark"
    evil = pickle.dumps(content(3, **{key: Malicious(f"touch {mark}")}), 2)
    (batches / "data_batch_4").write_bytes(evil)
    for where in (batches, pack(batches, tmp_path / "a.tar.gz")):
        with pytest.raises(ValueError, match=r"data_batch_4 can't be read as a batch .*it names \w+\.system.*was run"):
            cifar.load(where)
    assert not mark.exists()
    pickle.loads(evil)  # the usual way runs it
    assert mark.exists()


def test_damaged_batches_are_refused(batches: Path) -> None:
    file = batches / "test_batch"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-100], whole[: len(whole) // 2], b"\x89PNG" + whole, b"no pickle"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"test_batch can't be read as a batch of CIFAR-10: it is damaged.* Put"):
            cifar.load(batches)
    file.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="test_batch is not a batch of CIFAR-10: it holds no dict, found list"):
        cifar.load(batches)


def test_damaged_archives_are_refused(batches: Path, tmp_path: Path) -> None:
    file = pack(batches, tmp_path / "cifar-10-python.tar.gz")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], whole[:50], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz.* Put CIFAR-10's original"):
            cifar.load(file)


def test_huge_and_linked_members_are_not_read(batches: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with tarfile.open(file, "w") as archive:
        for name in NAMES[1:]:
            archive.add(batches / name, f"cifar-10-batches-py/{name}")
        link = tarfile.TarInfo(f"cifar-10-batches-py/{NAMES[0]}")
        link.type, link.linkname = tarfile.SYMTYPE, str(batches / NAMES[0])
        archive.addfile(link)
    with pytest.raises(ValueError, match="it has no data_batch_1"):
        cifar.load(file)
    with tarfile.open(file, "w") as archive:
        huge = tarfile.TarInfo("data_batch_1")
        huge.size = 1 << 28
        archive.fileobj.write(huge.tobuf())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"data_batch_1 has 268435456 bytes, too many for a batch"):
        cifar.load(file)


def test_png_files_that_are_not_cifars_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, by_class=True)
    first = tmp_path / "train" / "airplane" / "00.png"
    whole = first.read_bytes()
    picture(np.zeros((3, 30, 32), np.uint8), first)
    with pytest.raises(ValueError, match=r"00\.png is not CIFAR-10's: its pictures have 32 x 32 pixels, found 32 x 30"):
        cifar.load(tmp_path)
    first.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"00\.png can't be read as a picture"):
        cifar.load(tmp_path)
    first.write_bytes(whole)
    (tmp_path / "test" / "truck").rename(tmp_path / "test" / "trucks")
    with pytest.raises(ValueError, match=r"train and test must both have the folders of the 10 classes, .*'trucks'\]"):
        cifar.load(tmp_path)
    (tmp_path / "test" / "trucks").rename(tmp_path / "test" / "truck")
    first.rename(tmp_path / "train" / "00.png")
    with pytest.raises(ValueError, match=r"train.00\.png lies in no class's folder"):
        cifar.load(tmp_path)
    (tmp_path / "train" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"train is not CIFAR-10's: it must hold 50 PNG files, found 49"):
        cifar.load(tmp_path)
    (tmp_path / "train").rename(tmp_path / "training")
    with pytest.raises(FileNotFoundError, match=r"No folder train in "):
        cifar.load(tmp_path)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.tar"
    with tarfile.open(file, "w") as archive:
        entry = tarfile.TarInfo("notes.txt")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    with pytest.raises(ValueError, match=r"other\.tar is not CIFAR-10's archive: it has no data_batch_1, .*test_batch"):
        cifar.load(file)
