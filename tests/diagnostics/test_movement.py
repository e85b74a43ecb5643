"""Moment shift: Gaussians against Gaussians, whose changes are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avbvi.diagnostics import moment_shift, move
from avbvi.diagnostics.movement import move_chains
from avbvi.guides import AVBGuide
from avbvi.log_density import LogDensity
from avbvi.trunks import AffineTrunk
from tests.diagnostics.known import LOC, SCALE_TRIL, guide_at

N = 4000


def standard(e: Tensor) -> Tensor:
    return -0.5 * e.square().sum(-1)


def test_changes_are_found_in_all_directions() -> None:
    """A shift and two wrong scales along directions that are no axes."""
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    mixing = torch.randn(4, 4, dtype=torch.float64)
    scales = torch.tensor([0.7, 1.0, 1.0, 1.4], dtype=torch.float64)
    offset = torch.tensor([0.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    after = torch.randn(N, 4, dtype=torch.float64)
    before = offset + scales * torch.randn(N, 4, dtype=torch.float64)
    found = moment_shift(before @ rotation @ mixing, after @ rotation @ mixing)
    assert abs(found.mean.value - 0.5) < 4.0 * found.mean.stderr
    # The directions are those of the other half: their own error can only draw the extremes inwards, by about dim / n.
    assert abs(found.narrowest.value - 0.7) < 4.0 * found.narrowest.stderr + 4.0 / N
    assert abs(found.widest.value - 1.4) < 4.0 * found.widest.stderr + 4.0 / N
    # Independent samples: sd of a mean difference sqrt((1 + 1) / n), relative sd of a ratio sqrt(2 / (2 n)).
    assert found.mean.stderr == pytest.approx(math.sqrt(2.0 / N), rel=0.15)
    assert found.narrowest.stderr == pytest.approx(0.7 / math.sqrt(N), rel=0.15)


def test_equal_laws_show_no_change_beyond_their_errors() -> None:
    x, y = torch.randn(2, N, 30)
    found = moment_shift(x, y)
    assert found.mean.value < 4.0 * found.mean.stderr
    assert abs(found.narrowest.value - 1.0) < 4.0 * found.narrowest.stderr
    assert abs(found.widest.value - 1.0) < 4.0 * found.widest.stderr
    assert bool((found.shifts.abs() < 4.5 * found.shift_errors).all())
    assert bool(((found.ratios - 1.0).abs() < 4.5 * found.ratio_errors).all())


def test_figures_of_coordinates_are_those_of_numpy() -> None:
    x, y = torch.randn(2, 50, 3, dtype=torch.float64)
    found = moment_shift(x, y)
    a, b = x.numpy(), y.numpy()
    torch.testing.assert_close(found.ratios, torch.as_tensor(a.std(0) / b.std(0)))
    torch.testing.assert_close(found.shifts, torch.as_tensor((b.mean(0) - a.mean(0)) / b.std(0)))


@pytest.mark.parametrize("dim", [1, 20])
def test_chains_leave_the_target_alone_and_come_to_it(dim: int) -> None:
    exact = torch.randn(N, dim)
    moved, log_prob, acceptance = move_chains(standard, exact, 24)
    torch.testing.assert_close(log_prob, standard(moved))
    assert 0.65 < acceptance < 0.95
    far, _, _ = move_chains(standard, 1.0 + 0.5 * torch.randn(N, dim), 24)
    for draws in (moved, far):
        assert float(draws.mean(0).abs().max()) < 4.5 / math.sqrt(N)
        assert float((draws.var(0) - 1.0).abs().max()) < 4.5 * math.sqrt(2.0 / N)
    # And they do move: a chain that stood still would show no error.
    assert abs(float((exact * moved).mean())) < 0.2


@pytest.mark.parametrize("bijection", [True, False])
def test_divergence_of_a_gaussian_is_jeffreys(bijection: bool) -> None:
    """q = N(m, s^2) beside N(0, 1) in whitened coordinates: J = (s^2 + m^2 - 1) / 2 + (1 / s^2 + m^2 / s^2 - 1) / 2."""
    shift, s = torch.tensor([0.4, -0.3]), 0.8
    guide, target = guide_at(LOC + SCALE_TRIL @ shift, s * SCALE_TRIL)
    guide.part("trunk").is_bijection = bijection
    movement = move(guide, target, chains=N)
    m2 = float(shift.square().sum())
    exact = 0.5 * (2.0 * s**2 + m2 - 2.0) + 0.5 * (2.0 / s**2 + m2 / s**2 - 2.0)
    found = movement.divergence()
    assert abs(found.value - exact) < 4.0 * found.stderr
    # E_p[log p] - E_q[log p] = (d s^2 + m^2 - d) / 2
    energy = movement.energy()
    assert abs(energy.value - 0.5 * (2.0 * s**2 + m2 - 2.0)) < 4.0 * energy.stderr
    found_shift = moment_shift(movement.before, movement.after)
    assert abs(found_shift.mean.value - math.sqrt(m2)) < 4.0 * found_shift.mean.stderr
    assert abs(found_shift.narrowest.value - s) < 4.0 * found_shift.narrowest.stderr


def test_an_exact_guide_does_not_move() -> None:
    movement = move(*guide_at(LOC, SCALE_TRIL))
    assert abs(movement.divergence().value) < 1e-4  # all weights are equal
    assert abs(movement.energy().value) < 4.0 * movement.energy().stderr


def test_draws_without_density_are_refused() -> None:
    guide = AVBGuide(LogDensity(lambda z: torch.full_like(z[..., 0], -math.inf), (2,)), trunk=AffineTrunk()).setup()
    target = guide.target()
    assert target is not None
    with pytest.raises(ValueError, match="only 0 of 100 draws have a finite density"):
        move(guide, target, chains=100)
