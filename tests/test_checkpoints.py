"""Files: written whole or not at all; damaged, foreign and newer ones refused with the reason."""

import os
import pickle
import random
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from avbvi import CheckpointError
from avbvi.checkpoints import check_path, read_file, write_atomically

CONTENT = {
    "format": "kind",
    "version": 2,
    "tensor": torch.linspace(0.0, 1.0, 500),
    "plain": {"a": [1.0, 2.0], "b": None, "c": "text"},
}
KEYS = frozenset({"tensor", "plain"})


def read(path: Path) -> dict[str, Any]:
    return read_file(path, "kind", 2, KEYS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.pt"
    write_atomically(path, CONTENT)
    return path


def same(content: dict[str, Any]) -> bool:
    return torch.equal(content["tensor"], CONTENT["tensor"]) and content["plain"] == CONTENT["plain"]


def test_what_was_written_is_read(file: Path) -> None:
    assert same(read(file))
    assert same(torch.load(file, weights_only=True))
    assert [p.name for p in file.parent.iterdir()] == ["run.pt"]


def test_truncated_at_any_byte(file: Path) -> None:
    content = file.read_bytes()
    for length in {*range(0, len(content), 97), 1, 3, len(content) - 1}:
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="can't be read; it is damaged"):
            read(file)


def test_a_flipped_bit_is_found_or_without_effect(file: Path) -> None:
    """torch itself looks at no checksum: a flipped bit in a tensor gives another tensor."""
    content = file.read_bytes()
    generator, refused, unnoticed_by_torch = random.Random(0), 0, 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            found = read(file)
        except CheckpointError:
            refused += 1
            try:
                unnoticed_by_torch += not same(torch.load(file, weights_only=True))
            except Exception:
                continue
        else:
            assert same(found)
    assert refused > 150
    assert unnoticed_by_torch > 20  # else the check of the sums would be for nothing


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for foreign in (b"", b"some text\n", pickle.dumps({"format": "kind", "version": 2}), bytes(5000)):
        path.write_bytes(foreign)
        with pytest.raises(CheckpointError, match="was not written by avbvi"):
            read(path)
    for content, found in (({"weights": torch.ones(2)}, "None"), ([1, 2], "'list'"), ({"format": "other"}, "'other'")):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=f"is no kind file .found {found}"):
            read(path)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "kind", "version": 2, "tensor": Harmful()}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="can't be read"):
        read(tmp_path / "run.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "written by a newer avbvi; update"),
        (1, "written by an older avbvi"),
        (None, "version None"),
        ("x", "has version x"),
    ],
)
def test_other_versions(version: Any, message: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / "run.pt", {**CONTENT, "version": version})
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "run.pt")


def test_a_file_that_lacks_something(tmp_path: Path) -> None:
    write_atomically(tmp_path / "run.pt", {"format": "kind", "version": 2, "plain": {}})
    with pytest.raises(CheckpointError, match=r"lacks \['tensor'\]"):
        read(tmp_path / "run.pt")


def test_folders_and_missing_files(tmp_path: Path) -> None:
    for refused in (lambda: read(tmp_path), lambda: write_atomically(tmp_path, CONTENT), lambda: check_path(tmp_path)):
        with pytest.raises(CheckpointError, match="is a folder; give the name of a file in it"):
            refused()
    with pytest.raises(FileNotFoundError, match="no file"):
        read(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="create it first"):
        check_path(tmp_path / "none" / "run.pt")


def test_file_and_folder_reach_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(a: Any, b: Any) -> None:
        events.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(tmp_path / "run.pt", CONTENT)
    assert events == ["file", "rename", "folder"]


def test_only_old_temporaries_are_removed(file: Path) -> None:
    fresh, old, other = (file.parent / name for name in ("run.pt.aaa.tmp", "run.pt.bbb.tmp", "fit.pt.ccc.tmp"))
    for left in (fresh, old, other):
        left.write_bytes(b"half a file")
    for left in (old, other):
        os.utime(left, (time.time() - 7200.0,) * 2)
    write_atomically(file, CONTENT)
    assert {p.name for p in file.parent.iterdir()} == {"run.pt", "run.pt.aaa.tmp", "fit.pt.ccc.tmp"}
