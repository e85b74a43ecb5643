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


def test_classes_are_the_folders_in_alphabetical_order(tmp_path: Path) -> None:
    for name, level in (("n02/b.png", 20), ("n02/deep/a.png", 21), ("n01/z.JPEG", 10), ("n10/c.png", 30)):
        save(tmp_path / name, np.full((9, 12, 3), level))
    images = image_folder.load(tmp_path, 8, labelled=True)
    assert image_folder.classes(tmp_path) == ("n01", "n02", "n10")
    assert images.labels is not None
    # In the order of the paths: n01/z, n02/b, n02/deep/a, n10/c.
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert images.levels[:, 0, 0, 0].tolist() == [10, 20, 21, 30]
    assert image_folder.load(tmp_path, 8).labels is None
    again = image_folder.load(tmp_path, 8, labelled=True, cache=tmp_path / "c.pt")
    from_cache = image_folder.load(tmp_path, 8, labelled=True, cache=tmp_path / "c.pt")
    for found in (again, from_cache):
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, 1, 2]
    save(tmp_path / "stray.png", np.zeros((9, 9)))
    with pytest.raises(ValueError, match=r"stray\.png lies in no class's folder; put it into one, or load without"):
        image_folder.load(tmp_path, 8, labelled=True)
    with pytest.raises(TypeError, match="labelled must be True or False"):
        image_folder.load(tmp_path, 8, labelled="yes")  # type: ignore[arg-type]


def one(tmp_path: Path, picture: Image.Image, name: str = "a.png", **settings: Any) -> list[int]:
    """Red, green and blue that the loader finds in a picture of one colour."""
    file = tmp_path / name
    picture.save(file, **settings)
    levels = image_folder.load(tmp_path, 4).levels
    file.unlink()
    assert int((levels - levels[:, :, :1, :1]).abs().max()) == 0
    return levels[0, :, 0, 0].tolist()


def test_every_way_of_storing_colours(tmp_path: Path) -> None:
    size = (6, 5)
    assert one(tmp_path, Image.new("L", size, 77)) == [77, 77, 77]
    assert one(tmp_path, Image.new("1", size, 1)) == [255, 255, 255]
    assert one(tmp_path, Image.new("CMYK", size, (0, 255, 255, 0)), "a.tif") == [255, 0, 0]
    assert one(tmp_path, Image.new("CMYK", size, (255, 0, 0, 102)), "a.tif") == [0, 153, 153]
    palette = Image.new("P", size, 1)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    assert one(tmp_path, palette) == [40, 50, 60]
    assert one(tmp_path, palette, "a.gif") == [40, 50, 60]
    # Transparent: share a of the colour on white, (1 - a) 255 + a c.
    assert one(tmp_path, Image.new("RGBA", size, (200, 100, 0, 51))) == [244, 224, 204]
    assert one(tmp_path, Image.new("LA", size, (200, 0))) == [255, 255, 255]
    assert one(tmp_path, palette, transparency=bytes([255, 51])) == [212, 214, 216]
    assert one(tmp_path, palette, transparency=1) == [255, 255, 255]
    assert one(tmp_path, Image.new("RGB", size, (200, 100, 0)), transparency=(200, 100, 0)) == [255, 255, 255]


def test_deep_greys_are_scaled_not_cut(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 257], [32768, 1000, 65407, 65535]] * 2, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(deep).save(tmp_path / name)
        found = image_folder.load(tmp_path, 4, colour=False).levels[0, 0]
        assert found.tolist() == [[0, 0, 1, 1], [128, 4, 255, 255]] * 2  # v / 257, rounded
        (tmp_path / name).unlink()
    for values in (np.ones((4, 4), np.int32), np.ones((4, 4), np.float32)):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a\.tif can't be read .*levels of mode '[IF]' have no known range: save"):
            image_folder.load(tmp_path, 4)


def test_pictures_of_mixed_sizes_become_one_tensor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(3, 5), (64, 64), (100, 375), (500, 70)]):
        save(tmp_path / f"{i}.png", rng.integers(0, 256, (height, width, 3)))
    images = image_folder.load(tmp_path)
    assert images.levels.shape == (4, 3, 64, 64)
    assert torch.equal(images.levels[1].permute(1, 2, 0), torch.from_numpy(np.array(Image.open(tmp_path / "1.png"))))
    assert bool((images.levels.double().flatten(1).std(1) > 20.0).all())


def test_a_cache_of_another_way_of_reading_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "pictures.pt"
    with monkeypatch.context() as before:
        before.setattr(image_folder, "_READING", 1)
        before.setattr(image_folder, "_square", lambda *_: torch.zeros(3, 8, 8, dtype=torch.uint8))
        assert not bool(image_folder.load(folder, 8, cache=cache).levels.any())
    assert bool(image_folder.load(folder, 8, cache=cache).levels.any())


def test_aligned_faces_are_cut_as_usual(tmp_path: Path) -> None:
    # celebA's files have 178 x 218 pixels; the square of 108 begins 35 from the left and 55 from above.
    face = framed(218, 178, 108, (10, 90, 200), (255, 255, 255))
    face[55, 35:143] = face[55:163, 35] = 0
    save(tmp_path / "000001.png", face)
    found = image_folder.load(tmp_path, 108, crop=108).levels[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, face[55:163, 35:143])
    assert image_folder.load(tmp_path, 64, crop=108).levels[0, :, 32, 32].tolist() == [10, 90, 200]
