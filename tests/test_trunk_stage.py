"""The race of trunks: who is in force when, which one stays, and when an adversarial stage is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AVBGuide, FlowTrunk, LogDensity, MixtureTrunk, Schedule
from avbvi.guides import ADVERSARIAL, TRUNK
from avbvi.trunk_stage import TrunkStage
from avbvi.trunks import BestTrunk

CENTRES = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]])
WEIGHTS = torch.tensor([0.2, 0.3, 0.5])
WIDTH = 0.4


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def three_modes(z: Tensor) -> Tensor:
    square = (z[..., None, :] - CENTRES).square().sum(-1) / WIDTH**2
    return torch.logsumexp(-0.5 * square + WEIGHTS.log(), -1) - math.log(2.0 * math.pi * WIDTH**2)


def stage(guide: AVBGuide, *, weighted: bool = True, schedule: Schedule | None = None) -> TrunkStage:
    return TrunkStage(guide, schedule or Schedule(), 0.5, guide.target(), weighted=weighted)


def started(log_prob: object = normal, **parts: object) -> AVBGuide:
    guide = AVBGuide(LogDensity(log_prob, (2,)), **parts).setup()  # type: ignore[arg-type]
    guide.start(guide.target())
    return guide


def test_each_candidate_has_its_leg_and_the_winner_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrunkStage, "_suffices", lambda self: False)
    guide = started()
    seen = []
    for progress in (0.0, 0.149, 0.151, 0.299, 0.31, 0.49):  # of the half that is the trunk's, .6 are the race
        beta, factor = stage(guide).advance(progress)
        seen.append((int(guide.part("trunk").active), beta, factor))
    assert [active for active, _, _ in seen[:4]] == [0, 0, 1, 1]
    # The mixture is not annealed, the flow over the first 30 % of its leg.
    assert [beta for _, beta, _ in seen[:2]] == [1.0, 1.0]
    within = (0.151 - 0.15) / 0.15
    assert seen[2][1] == pytest.approx(0.1 + 0.9 * within / 0.3)
    assert seen[3][1:] == (1.0, pytest.approx(0.5 + 0.25 * (1.0 + math.cos(math.pi * (0.299 - 0.15) / 0.15))))
    # The rest of the trunk's time begins where the race's rates ended.
    assert bool(guide.trunk_decided)
    done = (0.31 - 0.3) / 0.2
    assert seen[4][1:] == (1.0, pytest.approx(0.25 * (1.0 + math.cos(math.pi * done))))
    assert seen[4][0] == seen[5][0]


@pytest.mark.parametrize("spoiled", [0, 1])
def test_the_higher_elbo_stays(spoiled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrunkStage, "_suffices", lambda self: False)
    guide = started()
    trunk = guide.part("trunk")
    trunk.candidates[spoiled].loc.add_(2.0)
    stage(guide).advance(0.4)
    assert int(trunk.active) == 1 - spoiled


def test_a_trunk_that_is_close_needs_no_rival_and_no_adversary() -> None:
    guide = started()  # a Gaussian: the mixture starts at it
    first = stage(guide)
    assert first.share == 0.5
    first.advance(0.16)
    assert int(guide.part("trunk").active) == 0
    assert bool(guide.trunk_suffices)
    assert stage(guide).share == 1.0
    # Rates go on from where the leg ended, to the end of the run.
    again = stage(guide)
    done = (0.65 - 0.3) / (1.0 - 0.3)
    assert again.advance(0.65) == (1.0, pytest.approx(0.25 * (1.0 + math.cos(math.pi * done))))


def test_settle_0_always_runs_all() -> None:
    guide = started()
    stage(guide, schedule=Schedule(settle=0.0)).advance(0.16)
    assert int(guide.part("trunk").active) == 1
    assert not bool(guide.trunk_suffices)


def test_a_far_trunk_does_not_suffice() -> None:
    guide = started()
    for candidate in guide.part("trunk").candidates:
        candidate.loc.add_(3.0)
    stage(guide).advance(0.16)
    assert not bool(guide.trunk_suffices)


def test_without_weighted_draws_only_reparameterised_candidates_run() -> None:
    guide = started()
    one = stage(guide, weighted=False)
    one.advance(0.0)
    assert int(guide.part("trunk").active) == 1
    with pytest.raises(ValueError, match=r"trunk=MixtureTrunk\(\) is fitted from weighted draws.*FlowTrunk"):
        stage(started(trunk=MixtureTrunk()), weighted=False)


def test_what_the_search_for_a_start_took_is_no_part_of_the_schedule() -> None:
    """By the clock the first step comes late; the stages share what is left."""

    class Hands:
        seconds, started, at = 10.0, 0.0, 0.6

        def progress(self) -> float:
            return self.at

    guide, elbo, clock = started(), avbvi.AdversarialELBO(), Hands()
    elbo.clock = clock  # type: ignore[assignment]
    assert elbo._progress_of_training(guide) == 0.0
    guide.step_count.fill_(1)
    clock.at = 0.7
    assert elbo._progress_of_training(guide) == pytest.approx(0.25)
    clock.at = 1.0
    assert elbo._progress_of_training(guide) == pytest.approx(1.0, abs=1e-12)


def test_one_trunk_has_the_whole_stage() -> None:
    guide = started(trunk=FlowTrunk(hidden=(4,)))
    beta, factor = stage(guide).advance(0.05)
    assert beta == pytest.approx(0.1 + 0.9 * 0.1 / 0.3)
    assert factor == pytest.approx(0.5 * (1.0 + math.cos(0.1 * math.pi)))


def test_three_separated_modes_are_fitted_with_their_weights() -> None:
    posterior = avbvi.fit(LogDensity(three_modes, (2,)), seed=0, steps=400, progress=False)
    z = posterior.sample(40_000)["z"]
    nearest = (z[:, None] - CENTRES).square().sum(-1).argmin(1)
    shares = torch.bincount(nearest, minlength=3) / len(z)
    assert float((shares / WEIGHTS - 1.0).abs().max()) < 0.1
    assert -0.03 < posterior.elbo().value < 0.005  # log Z is 0
    assert posterior.verdict.status == "ok", str(posterior.verdict)
    assert int(posterior.guide.part("trunk").active) == 0


def test_the_adversarial_stage_stands_on_a_mixture() -> None:
    """At the stage's beginning the sampler is the mixture, the contrast its density, and T = 0."""
    guide = started(three_modes, trunk=MixtureTrunk(6))
    trunk = guide.part("trunk")
    guide.part("sampler").begin(trunk)
    draws = trunk.sample_base(torch.Size((4000,)), like=guide.anchor).detach()
    guide.part("contrast").begin(trunk, draws)
    torch.testing.assert_close(guide.part("contrast").log_prob(draws), trunk.base_log_prob(draws), atol=2e-4, rtol=1e-4)
    guide.stage.fill_(ADVERSARIAL)
    z = guide.draw(40_000).z
    nearest = (z[:, None] - CENTRES).square().sum(-1).argmin(1)
    guide.stage.fill_(TRUNK)
    expected = guide.draw(40_000).z
    of_trunk = (expected[:, None] - CENTRES).square().sum(-1).argmin(1)
    for k in range(3):
        mine, theirs = z[nearest == k], expected[of_trunk == k]
        n = min(len(mine), len(theirs))
        share = n / 40_000
        assert abs(len(mine) - len(theirs)) / 40_000 < 4.0 * math.sqrt(2.0 * share / 40_000)
        error = (mine.mean(0) - theirs.mean(0)).abs() / (theirs.std(0) * math.sqrt(2.0 / n))
        assert float(error.max()) < 4.5
        assert float((mine.std(0) / theirs.std(0) - 1.0).abs().max()) < 4.5 * math.sqrt(1.0 / n)


def test_a_saved_fit_knows_which_trunk_won(tmp_path: object) -> None:
    model = LogDensity(normal, (2,))
    posterior = avbvi.fit(model, seed=0, steps=30, progress=False)
    assert isinstance(posterior.guide.part("trunk"), BestTrunk)
    path = f"{tmp_path}/fit.pt"
    posterior.save(path)
    loaded = avbvi.load(path, model)
    z = torch.randn(5, 2)
    torch.testing.assert_close(loaded.log_prob({"z": z}), posterior.log_prob({"z": z}))
    assert int(loaded.guide.part("trunk").active) == int(posterior.guide.part("trunk").active)
