"""Batches: every picture once an epoch, pixels of the rule, a run that repeats and resumes with the state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.data import (
    Binarisation,
    DynamicBinarisation,
    Images,
    Intensities,
    PixelRows,
    StaticBinarisation,
    ThresholdBinarisation,
    loader,
)

N, PIXELS = 23, 64


@pytest.fixture
def images() -> Images:
    """Pictures whose first eight pixels, 0 or 255, spell their number."""
    levels = torch.randint(0, 256, (N, 1, 8, 8), dtype=torch.uint8)
    bits = torch.arange(N).unsqueeze(-1).bitwise_and(2 ** torch.arange(8)).bool()
    levels[:, 0, 0] = bits * torch.tensor(255, dtype=torch.uint8)
    return Images(levels)


def numbers(batch: Tensor) -> list[int]:
    return (batch[:, :8].round() @ 2.0 ** torch.arange(8)).long().tolist()


@pytest.mark.parametrize(
    "rule", [DynamicBinarisation(), StaticBinarisation(2), ThresholdBinarisation(), Intensities()], ids=str
)
def test_an_epoch_has_every_picture_once_with_the_pixels_of_the_rule(images: Images, rule: Binarisation) -> None:
    batches = loader(images, 5, rule)
    assert len(batches) == 5
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    whole = torch.cat(list(batches))
    assert sorted(numbers(whole)) == list(range(N))
    assert numbers(whole) != list(range(N))
    if rule.is_fixed:
        assert torch.equal(whole, rule(images.intensities())[numbers(whole)])
    else:
        assert set(whole.unique().tolist()) == {0.0, 1.0}
    assert numbers(torch.cat(list(batches))) != numbers(whole)  # another epoch, another order


def test_order_and_incomplete_batches(images: Images) -> None:
    in_order = torch.cat(list(loader(images, 4, ThresholdBinarisation(), shuffle=False)))
    assert numbers(in_order) == list(range(N))
    assert [len(batch) for batch in loader(images, 10, drop_last=True)] == [10, 10]


def test_fresh_pixels_have_the_intensities_as_probabilities(images: Images) -> None:
    batches = loader(images, N, shuffle=False)
    epochs = 2000
    mean = torch.stack([next(iter(batches)) for _ in range(epochs)]).mean(0)
    p = images.levels.flatten(1).double() / 255.0
    z = (mean - p).abs() / (p * (1.0 - p) / epochs).sqrt().clamp(min=1e-9)
    assert float(z.max()) <= 5.0  # the largest of 1,288 standard scores


@pytest.mark.parametrize("own", [False, True])
def test_a_run_resumes_in_the_middle_of_an_epoch(images: Images, own: bool) -> None:
    generator = torch.Generator().manual_seed(7) if own else None

    def state() -> Tensor:
        return torch.get_rng_state() if generator is None else generator.get_state()

    def set_state(value: Tensor) -> None:
        torch.set_rng_state(value) if generator is None else generator.set_state(value)

    batches = loader(images, 4, generator=generator)
    start = state()
    run = iter(batches)
    _ = [next(run) for _ in range(3)]
    middle = state()
    rest = list(run)
    following = next(iter(batches))

    set_state(start)
    again = iter(loader(images, 4, generator=generator))
    for _ in range(3):
        next(again)
    set_state(middle)
    for batch, other in zip(again, rest, strict=True):
        assert torch.equal(batch, other)
    assert torch.equal(next(iter(batches)), following)


def test_an_own_generator_leaves_the_global_one_alone(images: Images) -> None:
    before = torch.get_rng_state()
    first = list(loader(images, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(50)
    second = list(loader(images, 4, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batches_are_made_where_the_pictures_are(images: Images, device: torch.device) -> None:
    for generator in (None, torch.Generator().manual_seed(1)):
        batch = next(iter(loader(images.to(device), 4, generator=generator)))
        assert batch.device.type == device.type
        assert batch.dtype == torch.get_default_dtype()


def test_single_rows(images: Images) -> None:
    rows = PixelRows(images, ThresholdBinarisation())
    assert len(rows) == N
    assert torch.equal(rows[-1], ThresholdBinarisation()(images.intensities())[N - 1])
    with pytest.raises(IndexError):
        rows[N]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be positive, found 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        ({"batch_size": 24, "drop_last": True}, ValueError, "batch_size=24 with drop_last=True leaves no batch of 23"),
        ({"binarisation": "dynamic"}, TypeError, "binarisation must be a Binarisation.*found str 'dynamic'"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, found int 3"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, found int 1"),
        ({"images": torch.zeros(3, 4)}, TypeError, "images must be models.data.Images"),
    ],
)
def test_bad_arguments_are_refused(
    images: Images, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"images": images, "batch_size": 4} | changes
    with pytest.raises(error, match=message):
        loader(**arguments)
