"""Refinement leaves exact draws alone, moves wrong ones towards the truth by the right amount, and says so."""

import math

import pytest
import torch

from avbvi import AffineTrunk, AVBGuide, LogDensity, Posterior, Verdict
from avbvi.posterior import Run
from avbvi.reference import unconstrained_target
from avbvi.refinement import Refinement, moved_draws, refinement
from models import eight_schools

SD = torch.tensor([0.01, 1.0, 30.0])
MEAN = torch.tensor([5.0, 0.0, -100.0])


def normal(z: torch.Tensor) -> torch.Tensor:
    return -0.5 * ((z - MEAN) / SD).square().sum(-1)


TARGET = unconstrained_target(LogDensity(normal, event_shape=(3,)))


def refined(shift: float = 0.0, scale: float = 1.0, n: int = 4000) -> Refinement:
    """From draws whose second coordinate is off by ``shift`` sds and ``scale`` times too wide."""
    base = torch.randn(n, 3)
    base[:, 1] = shift + scale * base[:, 1]
    return refinement(TARGET, MEAN + SD * base, steps=40)


def test_exact_draws_stay():
    for _ in range(3):
        result = refined()
        assert not result.moved
        assert result.changed == []
        assert bool((result.mean_shift.abs() < 4 * result.mean_shift_stderr).all())
        assert bool(((result.sd_ratio - 1).abs() < 4 * result.sd_ratio_stderr).all())
        assert result.divergences == 0
        assert "the draws stayed where they were" in str(result)
        z = (result.draws["z"] - MEAN) / SD
        assert float(z.mean(0).abs().max()) < 4 / math.sqrt(4000)
        assert float((z.square().mean(0) - 1).abs().max()) < 4 * math.sqrt(2 / 4000)


def test_a_shift_is_found_and_undone():
    result = refined(shift=0.3)
    assert result.moved
    assert result.changed == ["z[1]"]
    name, shift = result.largest_mean_shift
    assert name == "z[1]"
    assert abs(shift.value + 0.3) < 4 * shift.stderr
    assert abs(float(result.draws["z"][:, 1].mean())) < 4 / math.sqrt(4000)
    assert "the approximation is off" in repr(result)
    assert next(line for line in str(result).splitlines() if "changed" in line).split()[0] == "z[1]"


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_a_wrong_width_is_found_and_undone(scale):
    result = refined(scale=scale)
    assert result.changed == ["z[1]"]
    name, ratio = result.largest_sd_change
    assert name == "z[1]"
    assert abs(ratio.value - 1 / scale) < 4 * ratio.stderr
    assert abs(float(result.draws["z"][:, 1].square().mean()) - 1) < 4 * math.sqrt(2 / 4000)


def test_changes_below_the_tolerance_do_not_count():
    z = MEAN + SD * (torch.randn(20_000, 3) + 0.06)
    assert not refinement(TARGET, z, steps=20).moved
    strict = refinement(TARGET, z, steps=20, tolerance=0.02)
    assert strict.changed == ["z[0]", "z[1]", "z[2]"]


def test_draws_without_density_are_counted():
    def half(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > -2.0, -0.5 * z.square().sum(-1), -math.inf)

    target = unconstrained_target(LogDensity(half, event_shape=(2,)))
    z = torch.randn(4000, 2)
    expected = int((z[:, 0] <= -2.0).sum())
    result = refinement(target, z, steps=20)
    assert result.outside == expected
    assert result.draws["z"].shape == (4000 - expected, 2)
    # 2.3 % of the draws are outside: too many, though the others stay where they are.
    assert result.changed == []
    assert result.moved
    assert f"{expected} of 4000 draws lie where the density is zero" in str(result)
    with pytest.raises(ValueError, match="only 0 of 50 draws have positive, finite density"):
        refinement(target, torch.full((50, 2), -3.0), steps=20)


def test_a_lost_mode_is_not_seen():
    def two(z: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(-0.5 * (z[:, 0] - 20).square(), -0.5 * (z[:, 0] + 20).square())

    target = unconstrained_target(LogDensity(two, event_shape=(1,)))
    result = refinement(target, 20 + torch.randn(2000, 1), steps=20)
    assert not result.moved
    assert "A lost mode" in str(result)


def test_slow_chains_are_mentioned():
    result = refinement(TARGET, MEAN + SD * torch.randn(500, 3), steps=2)
    slow = Refinement(**{**vars(result), "correlation": torch.tensor([0.1, 0.95, 0.2])})
    assert "z[1] has hardly been renewed (correlation 0.95)" in str(slow)
    assert "hardly" not in str(Refinement(**{**vars(result), "correlation": torch.tensor([0.1, 0.2, 0.3])}))


def test_names_and_the_constrained_scale():
    target = unconstrained_target(eight_schools.classic_model)
    exact = eight_schools.classic_exact_posterior(3000, seed=0)
    values = {"mu": exact["mu"].float(), "tau": exact["tau"].float(), "eta": exact["eta"].float()}
    z, _ = target.layout.unconstrain(values)
    result = refinement(target, z, steps=30)
    assert result.names == ["mu", "tau", *(f"eta[{i}]" for i in range(8))]
    assert not result.moved
    assert bool((result.draws["tau"] > 0).all())
    theta = result.draws["mu"][:, None] + result.draws["tau"][:, None] * result.draws["eta"]
    torch.testing.assert_close(result.draws["theta"], theta)
    wide = refinement(target, z * torch.tensor([1.0, 1.0, 1.0, 1.3, *[1.0] * 6]), steps=30)
    assert wide.changed == ["eta[1]"]


def test_many_coordinates_are_not_all_listed():
    target = unconstrained_target(LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(20,)))
    text = str(refinement(target, torch.randn(1000, 20), steps=10))
    assert "(8 coordinates that changed less are not listed)" in text


def test_method_of_a_posterior():
    guide = AVBGuide(LogDensity(normal, event_shape=(3,)), trunk=AffineTrunk())
    guide.setup()
    target = guide.target()
    assert target is not None
    # The Laplace approximation of a normal is exact.
    guide.start(target)
    posterior = Posterior(guide._own_model[0], guide, (), {}, verdict=Verdict("ok", []), run=Run())
    result = posterior.refine(steps=20, n=2000)
    assert (result.n, result.steps) == (2000, 20)
    assert not result.moved
    assert set(result.draws) == {"z"}
    with torch.no_grad():
        guide.part("trunk").start(MEAN + 0.5 * SD, torch.diag(SD))
    assert posterior.refine(steps=20, n=2000).changed == ["z[0]", "z[1]", "z[2]"]
    with pytest.raises(ValueError, match="n must be at least 1"):
        posterior.refine(n=0)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        posterior.refine(steps=1)


@pytest.mark.parametrize("steps", [10, 60])
def test_moved_draws_of_the_posterior_stay_its_draws(steps):
    guide = AVBGuide(LogDensity(normal, event_shape=(3,)), trunk=AffineTrunk()).setup()
    guide.part("trunk").start(MEAN, torch.diag(SD))
    n = 20_000
    z = (moved_draws(guide, TARGET, n, steps) - MEAN) / SD
    assert float(z.mean(0).abs().max()) < 4.5 / math.sqrt(n)
    assert float((z.square().mean(0) - 1.0).abs().max()) < 4.5 * math.sqrt(2.0 / n)


@pytest.mark.parametrize("n", [1, 3, 20_001])
def test_any_number_of_draws_can_be_moved(n):
    guide = AVBGuide(LogDensity(normal, event_shape=(3,)), trunk=AffineTrunk()).setup()
    guide.part("trunk").start(MEAN + 2.0 * SD, torch.diag(SD))
    z = torch.cat([moved_draws(guide, TARGET, n, 40) for _ in range(max(1, 40 // n))])
    assert len(z) == n * max(1, 40 // n)
    # The shift of two sds is gone for a single draw too, and for the last of many.
    assert float(((z[-39:] - MEAN) / SD).mean(0).abs().max()) < 4.5 / math.sqrt(39)


def test_moved_draws_go_where_the_posterior_is():
    guide = AVBGuide(LogDensity(normal, event_shape=(3,)), trunk=AffineTrunk()).setup()
    guide.part("trunk").start(MEAN + 0.5 * SD, torch.diag(0.7 * SD))
    z = (moved_draws(guide, TARGET, 20_000, 60) - MEAN) / SD
    # By the exact draws: a step size adapted in the first half, then 30 transitions of length near a quarter period.
    assert float(z.mean(0).abs().max()) < 0.05
    assert float((z.std(0) - 1.0).abs().max()) < 0.05


def test_a_posterior_moves_its_draws_as_told():
    model = LogDensity(normal, event_shape=(3,))
    guide = AVBGuide(model, trunk=AffineTrunk()).setup()
    guide.part("trunk").start(MEAN + 0.5 * SD, torch.diag(SD))
    guide.bind(model, (), {}, vectorize=True)
    posterior = Posterior(model, guide, (), {}, verdict=Verdict("ok", []), run=Run(), hmc_steps=60)
    shifts = {
        steps: float(((posterior.sample(20_000, hmc_steps=steps)["z"] - MEAN) / SD).mean(0).abs().max())
        for steps in (None, 0, 60)
    }
    assert shifts[0] == pytest.approx(0.5, abs=4.5 / math.sqrt(20_000))
    assert shifts[None] < 0.05
    assert shifts[60] < 0.05
    stats = posterior.to_arviz(100).sample_stats
    assert "log_q" not in stats
    assert (
        "60 HMC steps" in stats.attrs["density"] or "60 HMC steps" in posterior.to_arviz(100).posterior.attrs["density"]
    )
    with pytest.raises(ValueError, match="hmc_steps"):
        posterior.sample(10, hmc_steps=-1)
