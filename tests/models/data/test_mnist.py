"""MNIST's loader on IDX files of our own, with everything that can be wrong, and on the real ones where they are."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data import mnist

TRAIN, TEST = 5, 3


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    """The bytes of an IDX file, written as its format says."""
    head = struct.pack(">I", 0x0800 + array.ndim if magic is None else magic)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def pictures(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8)[::-1] + 4


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with few pictures, half of its files compressed."""
    monkeypatch.setattr(mnist, "COUNTS", {"train": TRAIN, "t10k": TEST})
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(pictures(TRAIN, 0)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels(TRAIN))))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures(TEST, 1))))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(labels(TEST)))
    return tmp_path


@pytest.fixture(scope="module")
def real() -> mnist.Split:
    try:
        mnist.folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return mnist.load()


def test_files_of_our_own_come_back(own: Path) -> None:
    train, test = mnist.load(own)
    assert torch.equal(train.levels, torch.from_numpy(pictures(TRAIN, 0)).unsqueeze(1))
    assert torch.equal(test.levels, torch.from_numpy(pictures(TEST, 1)).unsqueeze(1))
    assert train.labels is not None
    assert train.labels.tolist() == [8, 7, 6, 5, 4]
    assert test.labels is not None
    assert test.labels.tolist() == [6, 5, 4]
    assert train.image_shape == (1, 28, 28)
    assert train.maximum == 255


def test_names_with_a_point_are_read_too(own: Path) -> None:
    (own / "train-images-idx3-ubyte").rename(own / "train-images.idx3-ubyte")
    (own / "t10k-images-idx3-ubyte.gz").rename(own / "t10k-images.idx3-ubyte.gz")
    assert len(mnist.load(own).train) == TRAIN


def test_where_the_folder_is_looked_for(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVBVI_MNIST", raising=False)
    monkeypatch.delenv("AVBVI_DATA", raising=False)
    monkeypatch.setattr(mnist, "__file__", str(tmp_path / "checkout" / "models" / "data" / "mnist.py"))
    beside = tmp_path / "shared" / "data" / "mnist"
    with pytest.raises(FileNotFoundError, match=r"No folder with MNIST at .*mnist. Pass path=, or set AVBVI_MNIST"):
        mnist.folder()
    beside.mkdir(parents=True)
    assert mnist.folder() == beside
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("AVBVI_DATA", str(data))
    assert mnist.folder() == data
    (data / "mnist").mkdir()
    assert mnist.folder() == data / "mnist"
    monkeypatch.setenv("AVBVI_MNIST", str(own))
    assert mnist.folder() == own
    assert len(mnist.load().test) == TEST
    assert mnist.folder(beside) == beside
    with pytest.raises(FileNotFoundError, match="absent"):
        mnist.folder(tmp_path / "absent")


def test_a_missing_file_is_named_with_its_folder(own: Path) -> None:
    (own / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        mnist.load(own)
    message = str(caught.value)
    assert f"No t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz in {own}" in message
    assert "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte" in message


def altered(content: bytes, kind: str) -> bytes:
    return {
        "cut": content[:-1],
        "cut head": content[:9],
        "empty": b"",
        "longer": content + b"\0",
        "labels": idx(labels(TRAIN)),
        "foreign": b"\x89PNG" + content[4:],
        "integers": struct.pack(">I", 0x0C03) + content[4:],
        "few": idx(pictures(TRAIN - 1, 0)),
        "narrow": idx(pictures(TRAIN, 0)[:, :, :27]),
    }[kind]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", r"is truncated: shape \(5, 28, 28\) takes 3920 bytes, found 3919 after the head"),
        ("cut head", "is truncated: it ends within its head, after 9 bytes"),
        ("empty", "is truncated: 0 bytes are no head of an IDX file"),
        ("longer", "is longer than its head says: .* found 3921"),
        ("labels", r"its magic number is 2049 \(0x00000801\), not 2051 \(bytes in 3 dimensions\)"),
        ("foreign", r"its magic number is 2303741511 \(0x89504e47\), not 2051"),
        ("integers", "its magic number is 3075"),
        ("few", r"must hold 5 pictures of 28 x 28 pixels, found shape \(4, 28, 28\)"),
        ("narrow", r"must hold 5 pictures of 28 x 28 pixels, found shape \(5, 28, 27\)"),
    ],
)
def test_bad_pictures_are_refused_with_the_file_and_the_remedy(
    own: Path, kind: str, message: str, compressed: bool
) -> None:
    file = own / "train-images-idx3-ubyte"
    content = altered(file.read_bytes(), kind)
    if compressed:
        file.unlink()
        file = file.with_name(f"{file.name}.gz")
        content = gzip.compress(content)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mnist.load(own)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).endswith(f"Put MNIST's original {file.name} there.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(labels(TEST + 1)), "must hold 3 labels, found 4"),
        (idx(labels(TEST) + 4), "labels must be 0 to 9, found 10"),
        (idx(pictures(TEST, 0)), r"magic number is 2051 .* not 2049 \(bytes in 1 dimension\)"),
    ],
)
def test_bad_labels_are_refused(own: Path, content: bytes, message: str) -> None:
    (own / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mnist.load(own)
    assert "t10k-labels-idx1-ubyte" in str(caught.value)


def test_damaged_archives_are_refused(own: Path) -> None:
    file = own / "t10k-images-idx3-ubyte.gz"
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for damaged in (content[:-20], idx(pictures(TEST, 1)), bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"can't be decompressed .*truncated or no gzip") as caught:
            mnist.load(own)
        assert str(file) in str(caught.value)


def test_the_real_files(real: mnist.Split) -> None:
    # Known of the originals: order of the first labels, mean and standard deviation of the training pixels, and
    # the number of pictures in each class.
    train, test = real
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = train.levels.double() / 255.0
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert float(pixels.std()) == pytest.approx(0.3081, abs=5e-5)
