"""Choice of stage: energy distances against the formula, stages damaged in a known way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from avbvi.diagnostics import choose_stage
from avbvi.diagnostics.stages import _energy_distance
from tests.diagnostics.known import LOC, SCALE_TRIL, guide_at, set_sampler


def test_energy_distance_is_the_formula() -> None:
    x, y = torch.randn(40, 3, dtype=torch.float64), 2.0 * torch.randn(30, 3, dtype=torch.float64) + 1.0
    a, b = x.numpy(), y.numpy()
    within = [cdist(s, s)[~np.eye(len(s), dtype=bool)].mean() for s in (a, b)]
    assert float(_energy_distance(x, y)) == pytest.approx(2.0 * cdist(a, b).mean() - sum(within), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_energy_distance_is_unbiased(shift: float) -> None:
    values = torch.stack(
        [_energy_distance(torch.randn(60, 1).double(), torch.randn(60, 1).double() + shift) for _ in range(500)]
    )

    # E|X - Y| for X - Y ~ N(m, 2) is the mean of a folded normal; 0 in all for equal laws.
    def folded(m: float) -> float:
        s = math.sqrt(2.0)
        return s * math.sqrt(2.0 / math.pi) * math.exp(-0.25 * m * m) + m * math.erf(m / (s * math.sqrt(2.0)))

    exact = 2.0 * folded(shift) - 2.0 * folded(0.0)
    assert abs(float(values.mean()) - exact) < 4.0 * float(values.std()) / math.sqrt(500)


def test_the_trunk_is_kept_where_the_sampler_is_damaged() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    set_sampler(guide, torch.zeros(2), 0.7)
    comparison = choose_stage(guide, target, n=4000)
    assert not comparison.keep_adversarial
    assert comparison.difference.value > 4.0 * comparison.difference.stderr
    assert abs(comparison.trunk_distance.value) < 4.0 * comparison.trunk_distance.stderr  # the trunk is exact


def test_the_adversarial_stage_is_kept_where_the_trunk_is_damaged() -> None:
    loc = LOC + SCALE_TRIL @ torch.tensor([0.6, -0.3])
    guide, target = guide_at(loc, 1.3 * SCALE_TRIL)
    set_sampler(guide, torch.tensor([-0.6, 0.3]) / 1.3, 1.0 / 1.3)
    comparison = choose_stage(guide, target, n=4000)
    assert comparison.k_hat < 0.7
    assert comparison.keep_adversarial
    assert comparison.difference.value < -4.0 * comparison.difference.stderr
    assert comparison.difference.value == pytest.approx(-comparison.trunk_distance.value, abs=0.05)


def test_the_trunk_is_kept_where_both_are_exact() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    comparison = choose_stage(guide, target, n=4000)
    assert abs(comparison.difference.value) < 4.0 * comparison.difference.stderr
    assert comparison.keep_adversarial is (comparison.difference.value < -2.0 * comparison.difference.stderr)


def test_the_trunk_is_kept_where_the_sampler_gives_nan() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    set_sampler(guide, torch.tensor([0.0, math.nan]), 1.0)
    comparison = choose_stage(guide, target, n=2000)
    assert not comparison.keep_adversarial
    assert comparison.reference.startswith("none")
