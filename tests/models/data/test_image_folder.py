"""A folder of pictures made here: where the crop lies, what the cache knows, what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avbvi.errors import CheckpointError
from models.data import image_folder

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(file)


def framed(height: int, width: int, side: int, inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
    """A square of one colour in the centre of a picture of another."""
    picture = np.full((height, width, 3), outside, dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = inside
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of other sizes: red, green and blue squares on white."""
    place = tmp_path / "pictures"
    save(place / "a.png", framed(40, 30, 20, RED, (255, 255, 255)))
    save(place / "inner" / "c.PNG", framed(22, 60, 20, BLUE, (255, 255, 255)))
    save(place / "b.png", framed(24, 24, 20, GREEN, (255, 255, 255)))
    (place / "notes.txt").write_text("no picture")
    return place


def test_the_centre_is_cut_out_in_the_order_of_the_names(folder: Path) -> None:
    images = image_folder.load(folder, 8, crop=20)
    assert images.levels.shape == (3, 3, 8, 8)
    for row, colour in zip(images.levels, (RED, GREEN, BLUE), strict=True):
        assert torch.equal(row, torch.tensor(colour, dtype=torch.uint8).reshape(3, 1, 1).expand(3, 8, 8))
    # One pixel more on each side and the white frame is in the corners.
    assert int(image_folder.load(folder, 8, crop=22).levels[:, :, 0, 0].min()) > 0


def test_without_a_crop_the_largest_square_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = np.arange(100).reshape(10, 10)
    save(tmp_path / "wide.png", wide)
    save(tmp_path / "tall.png", wide.T)
    tall, found = image_folder.load(tmp_path, 10, colour=False).levels[:, 0]
    expected = torch.arange(100, dtype=torch.uint8).reshape(10, 10)
    assert torch.equal(found, expected)  # at its own size nothing is interpolated
    assert torch.equal(tall, expected.T)


def test_shrinking_averages(tmp_path: Path) -> None:
    fine = np.indices((64, 64)).sum(0) % 2 * 255  # a chessboard: picking pixels would give black or white
    save(tmp_path / "chess.png", fine)
    small = image_folder.load(tmp_path, 8, colour=False).levels.double()
    assert float((small - 127.5).abs().max()) <= 8.0
    ramp = np.repeat(np.arange(64)[None] * 4, 64, 0)
    save(tmp_path / "chess.png", ramp)
    small = image_folder.load(tmp_path, 8, colour=False).levels[0, 0, 0].double()
    assert torch.allclose(small[1:-1], (torch.arange(8) * 32.0 + 14.0)[1:-1].double(), atol=1.0)


def test_grey_is_the_luminance(folder: Path) -> None:
    images = image_folder.load(folder, 4, crop=20, colour=False)
    assert images.image_shape == (1, 4, 4)
    # ITU-R 601-2: .299 R + .587 G + .114 B.
    assert torch.allclose(images.levels[:, 0, 0, 0].double(), torch.tensor([76.2, 149.7, 29.1]).double(), atol=0.9)


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    upright = np.zeros((8, 8), dtype=np.uint8)
    upright[:2] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter: to be turned clockwise when shown
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    found = image_folder.load(tmp_path, 8, colour=False).levels[0, 0]
    assert torch.equal(found, torch.from_numpy(upright))


def test_the_cache_is_used_while_nothing_changes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "pictures.pt"
    first = image_folder.load(folder, 8, crop=20, cache=cache)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["pictures.pt"]

    def read(*args: Any) -> None:
        raise AssertionError("a picture was read")

    with monkeypatch.context() as patched:
        patched.setattr(image_folder, "_square", read)
        assert torch.equal(image_folder.load(folder, 8, crop=20, cache=cache).levels, first.levels)
        for changed in ({"size": 4}, {"crop": 18}, {"crop": None}, {"colour": False}):
            with pytest.raises(AssertionError, match="a picture was read"):
                image_folder.load(folder, **({"size": 8, "crop": 20, "cache": cache} | changed))


def test_the_cache_is_made_anew_when_pictures_change(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "pictures.pt"
    image_folder.load(folder, 8, cache=cache)
    save(folder / "d.png", framed(20, 20, 20, (9, 9, 9), RED))
    assert len(image_folder.load(folder, 8, cache=cache)) == 4
    (folder / "d.png").rename(folder / "0.png")
    assert int(image_folder.load(folder, 8, cache=cache).levels[0].max()) == 9
    # Same name and size, another time.
    status = (folder / "0.png").stat()
    save(folder / "0.png", framed(20, 20, 20, (7, 7, 7), RED))
    assert (folder / "0.png").stat().st_size == status.st_size
    os.utime(folder / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert int(image_folder.load(folder, 8, cache=cache).levels[0].max()) == 7
    (folder / "0.png").unlink()
    assert len(image_folder.load(folder, 8, cache=cache)) == 3


def test_a_cache_that_is_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "mine.pt"
    image_folder.load(folder, 8, cache=cache)
    whole = cache.read_bytes()
    torch.save({"format": "fit"}, tmp_path / "fit.pt")
    for content in (b"my notes", whole[: len(whole) // 2], (tmp_path / "fit.pt").read_bytes()):
        cache.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"cache: .*mine\.pt.*delete the file to have it made anew"):
            image_folder.load(folder, 8, cache=cache)
        assert cache.read_bytes() == content
    with pytest.raises(FileNotFoundError, match=r"cache: the folder of .* does not exist"):
        image_folder.load(folder, 8, cache=tmp_path / "absent" / "x.pt")


def test_an_unreadable_picture_is_named(folder: Path) -> None:
    bad = folder / "b.png"
    whole = bad.read_bytes()
    photograph = folder / "p.jpg"
    save(photograph, np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    photograph.write_bytes(photograph.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"p\.jpg can't be read as a picture .*remove it or copy it again"):
        image_folder.load(folder, 8)
    for content in (b"", b"no picture at all", whole[: len(whole) // 2], whole[:20]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.png can't be read as a picture .*remove it or copy it again"):
            image_folder.load(folder, 8)


def test_bad_arguments_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder: no picture in .*empty; their names must end with one of .*\.png"):
        image_folder.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"folder: no folder at .*absent"):
        image_folder.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"crop=23 is larger than .*c\.PNG, which has 60 x 22 pixels"):
        image_folder.load(folder, 8, crop=23)
    with pytest.raises(ValueError, match="size must be positive, found 0"):
        image_folder.load(folder, 0)
    with pytest.raises(TypeError, match="colour must be True or False"):
        image_folder.load(folder, 8, colour="grey")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="folder must be a path, found int 3"):
        image_folder.load(3)  # type: ignore[arg-type]
