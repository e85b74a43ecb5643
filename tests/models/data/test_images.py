"""Pictures as one tensor: levels, intensities, parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from models.data import Images, held_out


def numbered(n: int = 6) -> Images:
    levels = torch.arange(n * 2 * 3 * 4).remainder(17).to(torch.uint8).reshape(n, 2, 3, 4)
    return Images(levels, 16, torch.arange(n) * 10)


def test_intensities_are_levels_over_the_maximum() -> None:
    images = numbered()
    assert images.image_shape == (2, 3, 4)
    assert images.pixels == 24
    expected = torch.tensor([[(24 * i + j) % 17 / 16.0 for j in range(24)] for i in range(6)])
    assert torch.equal(images.intensities(), expected)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(images.intensities(), expected.double())
    assert int(images.levels.max()) == 16  # the division is not in place


def test_parts_keep_their_labels() -> None:
    images = numbered()
    part = images[torch.tensor([4, 1])]
    assert isinstance(part, Images)
    assert part.labels is not None
    assert part.labels.tolist() == [40, 10]
    assert torch.equal(part.intensities(), images.intensities()[[4, 1]])
    assert len(images[2:]) == 4
    assert part.maximum == 16
    bare = Images(images.levels, 16)
    assert bare[:2].labels is None
    with pytest.raises(TypeError, match=r"rows must be a slice or a tensor of indices.*found int 3"):
        images[3]  # type: ignore[index]


def test_another_device(device: torch.device) -> None:
    moved = numbered().to(device)
    assert moved.levels.device.type == device.type
    assert moved.labels is not None
    assert moved.labels.device.type == device.type
    assert torch.equal(moved.intensities().cpu(), numbered().intensities())


LEVELS = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((LEVELS.float(),), TypeError, "levels must be a tensor of dtype uint8.*float32"),
        (([0],), TypeError, "levels must be a tensor of dtype uint8, found list"),
        ((LEVELS[:, 0],), ValueError, r"levels must have shape \(n, channels, height, width\).*\(2, 3, 3\)"),
        ((LEVELS[:0],), ValueError, r"none of them 0, found \(0, 1, 3, 3\)"),
        ((LEVELS + 17, 16), ValueError, "must not exceed maximum=16, found a level of 17"),
        ((LEVELS, 0), ValueError, "maximum must be at least 1"),
        ((LEVELS, 255, torch.zeros(2)), TypeError, "labels must be a tensor of integers"),
        ((LEVELS, 255, [0, 1]), TypeError, "labels must be a tensor of integers or None, found list"),
        ((LEVELS, 255, torch.zeros(3).long()), ValueError, "labels must have one entry for each of the 2 pictures"),
    ],
)
def test_bad_pictures_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Images(*arguments)


def counted(n: int) -> Images:
    """Pictures whose only level and label are their number."""
    numbers = torch.arange(n)
    return Images(numbers.to(torch.uint8).reshape(n, 1, 1, 1), 255, numbers)


def test_what_is_held_out_is_a_part_of_a_partition() -> None:
    state = torch.get_rng_state()
    train, test = held_out(counted(200), 30, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(train), len(test)) == (170, 30)
    for part in (train, test):
        assert part.labels is not None
        assert torch.equal(part.levels.flatten().long(), part.labels)
    assert torch.cat([train.labels, test.labels]).sort().values.tolist() == list(range(200))
    # Each picture is as likely as any other: the mean number of those held out is uniform's.
    means = torch.stack([held_out(counted(200), 30, seed=s).test.labels.double().mean() for s in range(200)])
    sd = math.sqrt((200**2 - 1) / 12 / 30 * (200 - 30) / (200 - 1))
    assert abs(float(means.mean()) - 99.5) < 4.5 * sd / math.sqrt(200)
    assert float(means.std()) == pytest.approx(sd, rel=0.25)


def test_what_is_held_out_never_changes() -> None:
    # Results rest on the parts: the permutations of NumPy's legacy generator.
    train, test = held_out(counted(12), 4)
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([6, 11, 4, 10, 2, 8, 1, 7], [9, 3, 0, 5])
    other = held_out(counted(12), 4, seed=1).test.labels
    assert other is not None
    assert other.tolist() == [11, 9, 8, 5]


def test_bad_requests_to_hold_out_are_refused() -> None:
    with pytest.raises(ValueError, match="count=5 leaves nothing to learn from: there are 5 pictures"):
        held_out(counted(5), 5)
    with pytest.raises(ValueError, match="count must be positive, found 0"):
        held_out(counted(5), 0)
    with pytest.raises(TypeError, match="seed must be an integer"):
        held_out(counted(5), 2, seed=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"images must be models\.data\.Images"):
        held_out(torch.zeros(5), 2)  # type: ignore[arg-type]
