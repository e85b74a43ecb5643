"""The learned judges against best possible accuracies, controls, and their own seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avbvi.divergences import classifier_two_sample_test
from models import eight_schools


def normal(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift


def test_c2st_is_at_chance_for_one_law() -> None:
    accuracy = classifier_two_sample_test(normal(4000, 5, 1), normal(4000, 5, 2))
    assert abs(accuracy.value - 0.5) < 3.5 * accuracy.stderr
    assert accuracy.stderr == pytest.approx(0.5 / math.sqrt(8000), rel=1e-2)


@pytest.mark.parametrize("shift", [0.4, 1.5])
def test_c2st_reaches_the_best_accuracy_for_shifted_normals(shift: float) -> None:
    # N(0, I) against N(shift e_1, I): the best rule is right with probability Phi(shift / 2).
    x, y = normal(6000, 3, 1), normal(6000, 3, 2)
    x[:, 0] += shift
    accuracy = classifier_two_sample_test(x, y)
    best = 0.5 * math.erfc(-shift / 2.0 / math.sqrt(2.0))
    assert accuracy.value < best + 3.5 * accuracy.stderr
    assert accuracy.value > best - 3.5 * accuracy.stderr - 0.01


def test_c2st_is_seeded_and_leaves_the_global_state_alone() -> None:
    x, y = normal(500, 2, 1), normal(500, 2, 2, 0.5)
    state = torch.random.get_rng_state()
    with torch.no_grad():  # must not stop the training inside
        first = classifier_two_sample_test(x, y, seed=3, max_epochs=3)
    torch.rand(5)
    second = classifier_two_sample_test(x.numpy(), y.numpy(), seed=3, max_epochs=3)
    torch.random.set_rng_state(state)
    classifier_two_sample_test(x, y, seed=4, max_epochs=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == second


def test_c2st_takes_unequal_sizes_and_a_constant_coordinate() -> None:
    # 5 times as many of one law must not read as a difference.
    x, y = normal(5000, 2, 1), normal(1000, 2, 2)
    x[:, 1] = y[:, 1] = 3.0
    accuracy = classifier_two_sample_test(x, y, max_epochs=5)
    assert abs(accuracy.value - 0.5) < 3.5 * accuracy.stderr
    assert accuracy.stderr == pytest.approx(0.5 / math.sqrt(2000), rel=1e-2)


def test_c2st_refuses_options_out_of_range() -> None:
    x = normal(15, 2, 1)
    with pytest.raises(ValueError, match="folds must be at least 2"):
        classifier_two_sample_test(x, x, folds=1)
    with pytest.raises(ValueError, match="patience"):
        classifier_two_sample_test(x, x, patience=0)
    with pytest.raises(ValueError, match="15 draws; 5 folds need at least 20"):
        classifier_two_sample_test(x, x)


def eight_schools_draws(n: int, seed: int) -> Tensor:
    draws = eight_schools.exact_posterior(n, seed)
    return torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["eta"]], 1)


@pytest.mark.slow
def test_c2st_has_the_power_that_a_benchmark_needs() -> None:
    n = 50_000
    x, y = eight_schools_draws(n, 1), eight_schools_draws(n, 2)
    same = classifier_two_sample_test(x, y)
    assert abs(same.value - 0.5) < 3.5 * same.stderr
    for coordinate in (0, 4):
        wide = x.clone()
        wide[:, coordinate] = 1.1 * (x[:, coordinate] - x[:, coordinate].mean())
        wide[:, coordinate] += x[:, coordinate].mean()
        accuracy = classifier_two_sample_test(wide, y)
        assert 0.515 < accuracy.value < 0.53  # the best rule reaches about .523
    # Modes weighted 60 to 40: the best rule reaches .55.
    side = torch.where(torch.arange(n) % 10 < 6, 1.0, -1.0).double()
    tilted = x.clone()
    tilted[:, 1:] *= (side * x[:, 1].sign())[:, None]
    accuracy = classifier_two_sample_test(tilted, y)
    assert 0.54 < accuracy.value < 0.555
