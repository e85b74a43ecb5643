"""Recipe B: its annealing, its schedule, what it samples, and that it learns."""

import math
import time

import pytest
import torch
from torch import Tensor

from benchmarks.fitting import Fitted
from benchmarks.problems import EIGHT_SCHOOLS_CLASSIC, EIGHT_SCHOOLS_PAPER
from benchmarks.rivals.recipe_b import RECIPE_B, RecipeB, fit

LOC, SCALE = torch.tensor([1.0, -1.0]), torch.tensor([0.7, 1.4])


def log_p(z: Tensor) -> Tensor:
    log_prob: Tensor = torch.distributions.Normal(LOC.to(z), SCALE.to(z)).log_prob(z).sum(-1)
    return log_prob


def test_annealing_is_a_geometric_mean_with_a_broad_gaussian() -> None:
    recipe = RecipeB(log_p, 2)
    z = torch.randn(5, 2)
    broad = torch.distributions.Normal(0.0, 2.0).log_prob(z).sum(-1)
    torch.testing.assert_close(recipe.log_p(z, 0.25), 0.25 * log_p(z) + 0.75 * broad)
    torch.testing.assert_close(recipe.log_p(z, 1.0), log_p(z))


def test_rates_follow_half_a_cosine_and_beta_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RecipeB(log_p, 2)
    recipe.begin()
    betas = []
    own = recipe.log_p
    monkeypatch.setattr(recipe, "log_p", lambda z, beta: betas.append(beta) or own(z, beta))
    for progress, rate, beta in ((0.0, 1.0, 0.1), (0.15, 0.5 * (1 + math.cos(0.15 * math.pi)), 0.55), (0.5, 0.5, 1.0)):
        betas.clear()
        recipe.step(progress)
        assert recipe.adam.adam.param_groups[0]["lr"] == pytest.approx(2e-3 * rate)
        assert recipe.adversary_adam.adam.param_groups[0]["lr"] == pytest.approx(4e-3 * rate)
        # Two steps of the adversary, one of the sampler.
        assert betas == [pytest.approx(beta)] * 3


def test_it_starts_at_a_standard_normal_and_samples_by_averaged_weights() -> None:
    recipe = RecipeB(log_p, 2)
    draws = recipe.sample(40_000)
    assert (draws.mean(0).abs() < 5 / 200.0).all()
    torch.testing.assert_close(torch.cov(draws.mT), torch.eye(2), rtol=0.0, atol=5 * math.sqrt(2) / 200.0)
    with torch.no_grad():
        recipe.average[1] += 3.0  # the bias of the linear map
    assert (recipe.sample(1000).mean(0) > 2.5).all()
    assert (recipe.draw(1000).detach().mean(0) < 0.5).all()


def test_the_adversary_reads_the_log_ratio_as_a_squashed_feature() -> None:
    recipe = RecipeB(log_p, 2)
    recipe.center = torch.tensor(2.0)
    feature = torch.tensor([2.0, 3.0, 500.0])
    # The network starts at zero and the feature's multiple at one.
    expected = torch.tensor([0.0, 20 * math.tanh(1 / 20), 20.0])
    torch.testing.assert_close(recipe.log_ratio(torch.zeros(3, 2), feature).detach(), expected)


def test_it_learns_a_gaussian() -> None:
    recipe = RecipeB(log_p, 2, batch=128)
    recipe.begin()
    for i in range(150):
        recipe.step(i / 150)
    draws = recipe.sample(4000)
    assert ((draws.mean(0) - LOC) / SCALE).abs().max() < 0.25
    assert (draws.std(0) / SCALE - 1.0).abs().max() < 0.25


def test_a_fit_takes_its_time_and_follows_its_seed() -> None:
    began = time.monotonic()
    recipe = fit(log_p, 2, seconds=0.5, seed=0)
    assert 0.5 <= time.monotonic() - began < 5.0
    assert recipe.count > 1
    with pytest.raises(ValueError, match="seconds must be positive"):
        fit(log_p, 2, seconds=0.0, seed=0)


def test_as_a_method_of_the_boards() -> None:
    fitted: Fitted = RECIPE_B(EIGHT_SCHOOLS_PAPER, 0, 0.01, (0.1,))
    draws = fitted.sample(50)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"mu": (50,), "tau": (50,), "eta": (50, 8)}
    assert fitted.snapshots[-1].steps == fitted.figures["steps"] >= 1
    assert fitted.seconds >= 0.3
    assert RECIPE_B.missing(EIGHT_SCHOOLS_CLASSIC) is not None
