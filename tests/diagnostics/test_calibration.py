"""Classifiers and calibration: Gaussians that differ by a shift, with all figures by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from avbvi.diagnostics import calibrate, held_out_log_ratio, information, reliability
from avbvi.diagnostics.classify import cross_entropies
from avbvi.guides import ADVERSARIAL
from tests.diagnostics.known import LOC, LOG_Z, SCALE_TRIL, guide_at

SHIFT, BINS = 1.5, 15
GRID = np.linspace(-12.0, 12.0, 400_001)


def normal(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def sigmoid(t: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-t))


def exact_ratio(x: Tensor) -> Tensor:
    """log N(x; SHIFT, 1) - log N(x; 0, 1)."""
    return SHIFT * x - 0.5 * SHIFT**2


def shifted(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, dtype=torch.float64) + SHIFT, torch.randn(n, dtype=torch.float64)


def error_by_quadrature(factor: float) -> float:
    """Expected calibration error of factor * T, with T exact."""
    t = SHIFT * GRID - 0.5 * SHIFT**2
    density = 0.5 * (normal(GRID - SHIFT) + normal(GRID)) * (GRID[1] - GRID[0])
    index = np.minimum((sigmoid(factor * t) * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(index, density * (sigmoid(t) - sigmoid(factor * t)), BINS)).sum())


def divergence_by_quadrature() -> float:
    """Jensen-Shannon divergence of the two normals."""
    t = SHIFT * GRID - 0.5 * SHIFT**2
    step = GRID[1] - GRID[0]
    loss = normal(GRID - SHIFT) * np.logaddexp(0.0, -t) + normal(GRID) * np.logaddexp(0.0, t)
    return math.log(2.0) - 0.5 * float(loss.sum() * step)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_calibration_error_is_that_of_quadrature(factor: float) -> None:
    n = 100_000
    q, r = shifted(n)
    found = reliability(factor * exact_ratio(q), factor * exact_ratio(r), BINS)
    # The errors of the bins' frequencies sum to at most sqrt(bins / 4 / draws) on average.
    noise = math.sqrt(BINS / 4.0 / (2 * n))
    assert abs(found.error - error_by_quadrature(factor)) < 2.0 * noise
    assert error_by_quadrature(1.0) == 0.0
    assert error_by_quadrature(2.0) > 20.0 * noise


def test_reliability_is_binned_by_predicted_probability() -> None:
    p_q, p_r = torch.tensor([0.1, 0.9, 0.95]), torch.tensor([0.15, 0.25, 0.92, 0.3])
    found = reliability(torch.logit(p_q), torch.logit(p_r), 5)
    assert found.counts.tolist() == [2.0, 2.0, 0.0, 0.0, 3.0]
    # Draws of q weigh 1/6 each, draws of r 1/8.
    mass = torch.tensor([1 / 6 + 1 / 8, 2 / 8, 2 / 6 + 1 / 8], dtype=torch.float64)
    predicted = torch.tensor([0.1 / 6 + 0.15 / 8, 0.55 / 8, 1.85 / 6 + 0.92 / 8], dtype=torch.float64) / mass
    observed = torch.tensor([1 / 6, 0.0, 2 / 6], dtype=torch.float64) / mass
    full = [0, 1, 4]
    torch.testing.assert_close(found.predicted[full], predicted, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(found.observed[full], observed)
    assert bool(found.observed[2:4].isnan().all())
    assert found.error == pytest.approx(float((mass * (observed - predicted).abs()).sum()), abs=1e-6)


@pytest.mark.parametrize(("n", "bins", "message"), [(0, 5, "draws of both kinds"), (3, 0, "bins must be at least 1")])
def test_unusable_arguments_are_refused(n: int, bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability(torch.zeros(n), torch.zeros(3), bins)


def test_information_of_the_exact_ratio_is_the_divergence() -> None:
    q, r = shifted(50_000)
    found = information(exact_ratio(q), exact_ratio(r))
    assert abs(found.value - divergence_by_quadrature()) < 4.0 * found.stderr
    assert float(cross_entropies(torch.zeros(3), torch.zeros(3)).mean()) == pytest.approx(math.log(2.0))


def test_a_fresh_classifier_comes_near_the_divergence_and_not_above() -> None:
    q, r = shifted(4000)
    found = information(*held_out_log_ratio(q[:, None], r[:, None]))
    exact = divergence_by_quadrature()
    assert exact - 4.0 * found.stderr - 0.01 < found.value < exact + 4.0 * found.stderr


def test_a_fresh_classifier_finds_nothing_between_equal_laws() -> None:
    # Pairs that are nearly the same point: a network that had seen one of a pair would know the other.
    q = torch.randn(2000, 5)
    for r in (torch.randn(2000, 5), q + 0.01 * torch.randn(2000, 5)):
        found = information(*held_out_log_ratio(q, r))
        assert found.value < 3.0 * found.stderr
        assert found.value > -0.02


def test_the_classifier_leaves_the_random_state_alone() -> None:
    q, r = torch.randn(2, 100, 2)
    state = torch.get_rng_state()
    first = held_out_log_ratio(q, r, passes=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, held_out_log_ratio(q, r, passes=1), strict=True))


def adversarial_guide(claim: float) -> tuple[object, object]:
    """q = r = p: the exact T is 0, and the guide's is ``claim`` everywhere, by its hint's centre."""
    guide, target = guide_at(LOC, SCALE_TRIL)
    guide.stage.fill_(ADVERSARIAL)
    guide.part("adversary").observe(torch.tensor([LOG_Z - claim]))
    return guide, target


def test_calibration_of_an_exact_and_of_a_wrong_adversary() -> None:
    exact = calibrate(*adversarial_guide(0.0), n=3000)  # type: ignore[arg-type]
    assert exact.cross_entropy.value == pytest.approx(math.log(2.0), abs=1e-5)
    assert exact.reliability.error < 0.005
    assert exact.excess.value < 3.0 * exact.excess.stderr + 1e-3
    # log p - log q = LOG_Z exactly, but for what the fresh network has learned of noise.
    assert float(exact.log_weights.mean()) == pytest.approx(LOG_Z, abs=0.1)
    claim = 1.0
    wrong = calibrate(*adversarial_guide(claim), n=3000)  # type: ignore[arg-type]
    expected = 0.5 * (math.log1p(math.exp(-claim)) + math.log1p(math.exp(claim)))
    # The hint is squashed, 20 tanh(x / 20), which takes x^3 / 1200 off it.
    assert wrong.cross_entropy.value == pytest.approx(expected, abs=1e-3)
    assert wrong.reliability.error == pytest.approx(1.0 / (1.0 + math.exp(-claim)) - 0.5, abs=2e-3)
    assert abs(wrong.excess.value - (expected - math.log(2.0))) < 0.02
    assert wrong.excess.value > 3.0 * wrong.excess.stderr


def test_calibration_needs_an_adversary_in_force() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    with pytest.raises(ValueError, match="trunk's stage"):
        calibrate(guide, target)
