"""Schedules of inverse temperatures."""

import math

import pytest
import torch

from avbvi.annealed import LinearTemperatures, SigmoidTemperatures


def test_linear_temperatures_are_equidistant():
    torch.testing.assert_close(
        LinearTemperatures(4).betas(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    )


def test_sigmoid_temperatures_follow_the_formula():
    def s(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-x))

    betas = SigmoidTemperatures(5, rate=3.0).betas()
    expected = [(s(3.0 * (2 * t / 5 - 1)) - s(-3.0)) / (s(3.0) - s(-3.0)) for t in range(6)]
    torch.testing.assert_close(betas, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    # Half of the way in either direction is the same, and the shortest step is the first.
    torch.testing.assert_close(betas + betas.flip(0), torch.ones(6, dtype=torch.float64))
    steps = SigmoidTemperatures(100).betas().diff()
    assert (steps > 0.0).all()
    assert steps.argmin() in (0, 99)
    assert float(steps.max() / steps.min()) > 10.0


@pytest.mark.parametrize("schedule", [LinearTemperatures(7), SigmoidTemperatures(7), SigmoidTemperatures(1000, 30.0)])
def test_schedules_begin_at_0_and_end_at_1_exactly(schedule):
    betas = schedule.betas()
    assert betas.dtype == torch.float64
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    assert len(betas) == schedule.count + 1
    assert repr(schedule.count) in repr(schedule)


def test_a_single_step_is_importance_sampling():
    assert SigmoidTemperatures(1).betas().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: LinearTemperatures(0), ValueError, "count"),
        (lambda: LinearTemperatures(2.5), TypeError, "count"),
        (lambda: SigmoidTemperatures(10, 0.0), ValueError, "rate"),
        (lambda: SigmoidTemperatures(10, math.nan), ValueError, "rate"),
        (lambda: SigmoidTemperatures(10, 31.0), ValueError, "rate"),
        (lambda: SigmoidTemperatures(10, "4"), TypeError, "rate"),
    ],
)
def test_errors(make, error, word):
    with pytest.raises(error, match=word):
        make()
