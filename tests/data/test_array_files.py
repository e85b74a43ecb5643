"""ArrayFileDataset: the rows that NumPy reads, through every way that a DataLoader takes, and unusable files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from avbvi.data.array_files import ArrayFileDataset

N = 37
RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (N, 3, 2)).astype(np.uint8)
LABELS = RNG.standard_normal(N)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return tmp_path / "images.npy"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path / "labels.npy"


@pytest.mark.parametrize(
    "indices", [[3], [5, 6, 7, 2, 36, 36, 0, 1], list(range(N)), [-1, -N, 4], np.array([], dtype=np.int64)]
)
def test_batches_are_the_rows_of_the_arrays(images: Path, labels: Path, indices: Any) -> None:
    data = ArrayFileDataset(images, labels)
    x, y = data.batch(indices)
    assert (x.dtype, y.dtype) == (torch.uint8, torch.float64)
    np.testing.assert_array_equal(x.numpy(), IMAGES[indices])
    np.testing.assert_array_equal(y.numpy(), LABELS[indices])
    x.zero_()  # a batch is a copy, which may be written to
    np.testing.assert_array_equal(data.batch(indices)[0].numpy(), IMAGES[indices])


def test_data_one_by_one(images: Path, labels: Path) -> None:
    both, alone = ArrayFileDataset(images, labels), ArrayFileDataset(images)
    assert len(both) == len(alone) == N
    for i in (0, 17, -1):
        x, y = both[i]
        np.testing.assert_array_equal(x.numpy(), IMAGES[i])
        assert float(y) == LABELS[i]
        assert torch.equal(alone[i], x)
    for beyond in (N, -N - 1):
        with pytest.raises(IndexError, match=f"no datum {beyond} among {N}"):
            both[beyond]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("whole", [True, False])
def test_through_a_loader(images: Path, labels: Path, workers: int, whole: bool) -> None:
    data = ArrayFileDataset(images, labels, dtype=torch.float32)
    options: dict[str, Any] = {"batch_size": 8, "shuffle": True, "num_workers": workers}
    loader = data.loader(**options) if whole else DataLoader(data, **options)
    passes = []
    for _ in range(2):
        batches = list(loader)
        assert [len(x) for x, _ in batches] == [8, 8, 8, 8, 5]
        x, y = (torch.cat(columns) for columns in zip(*batches, strict=True))
        assert x.dtype == y.dtype == torch.float32
        order = [int(np.flatnonzero(LABELS.astype(np.float32) == v)[0]) for v in y.numpy()]
        assert sorted(order) == list(range(N))
        np.testing.assert_array_equal(x.numpy(), IMAGES[order].astype(np.float32))
        passes.append(order)
    assert passes[0] != passes[1]


def test_workers_that_are_forked_read_the_same_file_without_disturbing_each_other(tmp_path: Path) -> None:
    rows = np.arange(4000)[:, None] * np.ones((1, 50), dtype=np.int64)
    np.save(tmp_path / "rows.npy", rows)
    data = ArrayFileDataset(tmp_path / "rows.npy")
    (found,) = zip(*data.loader(16, shuffle=False, num_workers=2), strict=True)
    np.testing.assert_array_equal(torch.cat(found).numpy(), rows)


def test_in_order_and_without_a_last_part(images: Path) -> None:
    data = ArrayFileDataset(images)
    (batches,) = zip(*data.loader(10, shuffle=False, drop_last=True), strict=True)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), IMAGES[:30])


def test_only_places_are_pickled(images: Path) -> None:
    content = pickle.dumps(ArrayFileDataset(images))
    assert len(content) < 2000
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy.batch([4, 2])[0].numpy(), IMAGES[[4, 2]])
    images.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(content)


def test_files_are_closed_with_the_data_set(images: Path) -> None:
    data = ArrayFileDataset(images)
    file = data._readers[0]._file
    os.fstat(file)
    del data
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_mapped_arrays_and_foreign_byte_order(tmp_path: Path) -> None:
    raw = tmp_path / "rows.bin"
    rows = RNG.standard_normal((N, 4)).astype(">f4")
    raw.write_bytes(b"header" + rows.tobytes())
    mapped = np.memmap(raw, ">f4", "r", offset=6, shape=(N, 4))
    (found,) = ArrayFileDataset(mapped).batch([2, 9])
    np.testing.assert_array_equal(found.numpy(), rows[[2, 9]].astype(np.float32))
    for part in (mapped[3:], np.asarray(mapped)[2:].view(np.memmap)):
        with pytest.raises(TypeError, match=r"a numpy.memmap of its file as a whole, found a part or a copy"):
            ArrayFileDataset(part)
    with pytest.raises(TypeError, match="changes of an array mapped with mode"):
        ArrayFileDataset(np.memmap(raw, ">f4", "c", offset=6, shape=(N, 4)))


def test_the_number_of_files(images: Path, labels: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"at least one .npy file"):
        ArrayFileDataset()
    np.save(tmp_path / "more.npy", np.zeros((N + 1, 2)))
    with pytest.raises(ValueError, match=rf"equally many rows, found {N} in '.*images.npy', {N + 1} in '.*more.npy'"):
        ArrayFileDataset(images, tmp_path / "more.npy")
    for wrong in (IMAGES, torch.ones(3), 3):
        with pytest.raises(TypeError, match=r"paths of .npy files or numpy.memmap arrays, found .*TensorDataset"):
            ArrayFileDataset(wrong)  # type: ignore[arg-type]


def test_files_that_hold_no_rows_of_numbers(tmp_path: Path) -> None:
    def saved(array: Any) -> Path:
        np.save(tmp_path / "a.npy", array)
        return tmp_path / "a.npy"

    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nowhere.npy'"):
        ArrayFileDataset(tmp_path / "nowhere.npy")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        ArrayFileDataset(tmp_path)
    for array, reason in (
        (np.array([{}, 1], dtype=object), "can't be mapped as a .npy file.*Python objects"),
        (np.float64(3.0), r"shape \(N, \*shape of a datum\), found shape \(\)"),
        (np.asfortranarray(np.ones((4, 3))), "not next to each other.*Fortran order"),
        (np.array(["a", "b"]), "must hold numbers, found dtype <U1"),
        (np.zeros(3, dtype=[("x", "f4")]), "must hold numbers, found dtype"),
    ):
        with pytest.raises(ValueError, match=reason):
            ArrayFileDataset(saved(array))
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"a .npy file with one array, found NpzFile"):
        ArrayFileDataset(tmp_path / "b.npz")
    (tmp_path / "c.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"can't be mapped as a .npy file"):
        ArrayFileDataset(tmp_path / "c.npy")


def test_a_file_that_is_cut_off(images: Path) -> None:
    data = ArrayFileDataset(images)
    os.truncate(images, images.stat().st_size - 6 * 5)
    np.testing.assert_array_equal(data.batch([0])[0].numpy(), IMAGES[:1])
    with pytest.raises(OSError, match="is cut off: it ends before the rows asked for"):
        data.batch([1, N - 1])
    with pytest.raises(ValueError, match=r"can't be mapped as a .npy file, cut off"):
        ArrayFileDataset(images)


def test_options(images: Path) -> None:
    data = ArrayFileDataset(images)
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        data.loader(0)
    with pytest.raises(ValueError, match=f"batch_size=38 with drop_last=True leaves no batch of {N} data"):
        data.loader(N + 1, drop_last=True)
    with pytest.raises(TypeError, match=r"dtype must be a torch.dtype or None, found str"):
        ArrayFileDataset(images, dtype="float32")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="index must be an integer, found list"):
        data[[1, 2]]  # type: ignore[index]
