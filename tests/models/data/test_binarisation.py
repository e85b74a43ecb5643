"""Frequencies against probabilities, with the binomial's standard error; what is fixed stays fixed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.data import (
    Binarisation,
    DynamicBinarisation,
    Intensities,
    StaticBinarisation,
    ThresholdBinarisation,
)

SIGMAS = 4.5  # over about a hundred comparisons of this file


def levels_and_rows(rows: int = 20_000) -> tuple[Tensor, Tensor]:
    """Seventeen probabilities, 0 and 1 among them, and a row of them repeated."""
    probabilities = torch.arange(17) / 16.0
    return probabilities, probabilities.expand(rows, 17)


@pytest.mark.parametrize("rule", [StaticBinarisation(3), DynamicBinarisation()], ids=str)
def test_draws_are_independent_with_the_intensities_as_probabilities(rule: Binarisation) -> None:
    p, rows = levels_and_rows()
    pixels = rule(rows)
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    error = (pixels.mean(0) - p).abs()
    assert bool((error <= SIGMAS * (p * (1.0 - p) / len(rows)).sqrt()).all()), error  # 0 and 1 exactly
    inner = pixels[:, 1:-1]
    correlation = torch.corrcoef(inner.T) - torch.eye(15)
    assert float(correlation.abs().max()) <= SIGMAS / math.sqrt(len(rows))
    along = torch.corrcoef(torch.stack([inner[1:].flatten(), inner[:-1].flatten()]) - p[1:-1].repeat(len(rows) - 1))
    assert abs(float(along[0, 1])) <= SIGMAS / math.sqrt(inner.numel())


def test_threshold_is_inclusive() -> None:
    x = torch.tensor([[0.0, 0.25, 0.4999, 0.5, 1.0]], dtype=torch.float64)
    assert ThresholdBinarisation()(x).tolist() == [[0.0, 0.0, 0.0, 1.0, 1.0]]
    assert ThresholdBinarisation(0.25)(x).tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0]]
    assert ThresholdBinarisation()(x).dtype == torch.float64


def test_intensities_stay() -> None:
    x = torch.rand(3, 4)
    assert torch.equal(Intensities()(x), x)


def test_static_draw_knows_only_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(50, 784)
    before = torch.get_rng_state()
    pixels = StaticBinarisation(0)(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(StaticBinarisation(0)(x), pixels)
    assert torch.equal(StaticBinarisation()(x, torch.Generator().manual_seed(5)), pixels)
    assert not torch.equal(StaticBinarisation(1)(x), pixels)
    assert torch.equal(StaticBinarisation(0)(x.double()), pixels.double())
    # The first pictures of a set are the same without the rest, in blocks of any size.
    assert torch.equal(StaticBinarisation(0)(x[:7]), pixels[:7])
    monkeypatch.setattr("models.data.binarisation._BLOCK", 1000)
    assert torch.equal(StaticBinarisation(0)(x), pixels)


def test_static_draw_is_the_one_that_was_reported() -> None:
    # torch.rand of the CPU generator (Mersenne twister) at seed 0 starts so; results are stated with this draw.
    x = torch.tensor([0.4962, 0.4964, 0.7682, 0.7683, 0.0884, 0.0886])
    assert StaticBinarisation(0)(x[[0, 2, 4]]).tolist() == [0.0, 0.0, 0.0]
    assert StaticBinarisation(0)(x[[1, 3, 5]]).tolist() == [1.0, 1.0, 1.0]


def test_dynamic_draws_are_fresh_and_repeat_with_the_state() -> None:
    x = torch.rand(20, 784)
    rule = DynamicBinarisation()
    state = torch.get_rng_state()
    first, second = rule(x), rule(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(rule(x), first)
    own = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    first = rule(x, own)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rule(x, own.manual_seed(0)), first)


def test_the_choice_is_stated() -> None:
    names = {
        str(r)
        for r in (
            DynamicBinarisation(),
            Intensities(),
            StaticBinarisation(0),
            StaticBinarisation(7),
            ThresholdBinarisation(),
            ThresholdBinarisation(0.25),
        )
    }
    assert len(names) == 6
    assert "static: one Bernoulli draw, seed 7" in names
    assert "static: threshold at 0.25" in names


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (torch.zeros(2, dtype=torch.uint8), TypeError, "intensities must be floating-point.*uint8"),
        ([0.5], TypeError, "intensities must be a tensor, found list"),
        (torch.tensor([0.5, 1.5]), ValueError, r"intensities must lie in \[0, 1\]"),
        (torch.tensor([-0.1]), ValueError, r"intensities must lie in \[0, 1\]"),
        (torch.tensor([math.nan]), ValueError, r"intensities must lie in \[0, 1\]"),
    ],
)
def test_bad_intensities_are_refused(value: Tensor, error: type[Exception], message: str) -> None:
    for rule in (DynamicBinarisation(), StaticBinarisation(), ThresholdBinarisation(), Intensities()):
        with pytest.raises(error, match=message):
            rule(value)


def test_bad_settings_are_refused() -> None:
    for level in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"level must lie in \(0, 1\]"):
            ThresholdBinarisation(level)
    with pytest.raises(TypeError, match="level must be a number"):
        ThresholdBinarisation("half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be at least 0"):
        StaticBinarisation(-1)
    with pytest.raises(TypeError, match="seed must be an integer; for fresh draws use DynamicBinarisation"):
        StaticBinarisation(None)  # type: ignore[arg-type]
