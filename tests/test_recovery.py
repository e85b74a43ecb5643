"""A run that breaks down goes back to its last good state; what is no breakdown changes nothing."""

import math
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import (
    AdversarialELBO,
    AffineTrunk,
    AVBGuide,
    FitFailed,
    GaussianContrast,
    IdentityTrunk,
    LogDensity,
    MLPAdversary,
    MLPSampler,
    NonFiniteError,
    Posterior,
    Schedule,
)
from avbvi import elbo as elbo_module
from avbvi import recovery as recovery_module
from avbvi import training as training_module
from avbvi.diagnostics import choose_stage, judge
from avbvi.guides import ADVERSARIAL
from avbvi.recovery import BestState, base_spread, broken_state
from avbvi.training import Trainer

SD = torch.tensor([0.5, 2.0])


def normal(z: Tensor) -> Tensor:
    return -0.5 * (z / SD).square().sum(-1)


def small_guide(density: LogDensity, **parts: Any) -> AVBGuide:
    default = {
        "trunk": AffineTrunk(),
        "sampler": MLPSampler((16,)),
        "contrast": GaussianContrast(),
        "adversary": MLPAdversary((16,)),
    }
    return AVBGuide(density, **{**default, **parts})


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elbo_module, "choose_stage", partial(choose_stage, n=500))
    monkeypatch.setattr(training_module, "judge", partial(judge, n=500))
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 10)


def fit(steps: int = 120, lr: float = 2e-3, log_prob: Callable[[Tensor], Tensor] = normal, **options: Any) -> Posterior:
    pyro.clear_param_store()
    density = LogDensity(log_prob, (2,))
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5, schedule=options.pop("schedule", Schedule(trunk=0.2)))
    guide = small_guide(density, trunk=avbvi.FlowTrunk())
    return avbvi.fit(density, guide=guide, elbo=elbo, steps=steps, lr=lr, seed=2, progress=False, **options)


def trainer_of(guide: AVBGuide, density: LogDensity, steps: int, elbo: AdversarialELBO) -> Trainer:
    elbo.begin_run()
    elbo.steps = steps
    trainer = Trainer(density, (), {}, guide, elbo, 2e-3)
    trainer._prepare(steps, None, None)
    return trainer


# -- what is no breakdown changes nothing ---------------------------------------------------------------


def test_watching_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = fit()
    monkeypatch.setattr(recovery_module.Recovery, "observe", lambda self, loss: None)
    alone = fit()
    assert watched.run.rollbacks == 0
    expected = alone.guide.state_dict()
    for name, value in watched.guide.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert watched.run.history == alone.run.history


@pytest.mark.parametrize("stage", ["trunk", "adversarial"])
def test_a_restored_state_goes_on_as_before(stage: str) -> None:
    """Parameters, both optimisers, averages and bounds: the same noise gives the same steps again, to the bit."""
    density = LogDensity(normal, (2,))
    guide = small_guide(density, trunk=avbvi.FlowTrunk())
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5, schedule=Schedule(trunk=0.2))
    trainer = trainer_of(guide, density, 100, elbo)
    for _ in range(20 if stage == "trunk" else 70):
        trainer.step()
    assert guide.is_adversarial == (stage == "adversarial")
    state, random_state = trainer.state.capture(), torch.get_rng_state()
    first = [trainer.step() for _ in range(15)]
    after = {k: v.clone() for k, v in guide.state_dict().items()}
    trainer.state.restore(state)
    torch.set_rng_state(random_state)
    assert [trainer.step() for _ in range(15)] == first
    for name, value in guide.state_dict().items():
        assert torch.equal(value, after[name]), name


def test_a_rollback_from_the_adversarial_stage_to_the_trunk() -> None:
    """The adversary's optimiser and the sampler's average are gone with the stage, the counts of steps are not."""
    density = LogDensity(normal, (2,))
    guide = small_guide(density, trunk=avbvi.FlowTrunk())
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5, schedule=Schedule(trunk=0.2))
    trainer = trainer_of(guide, density, 40, elbo)
    for _ in range(10):
        trainer.step()
    state = trainer.state.capture()
    for _ in range(20):
        trainer.step()
    assert guide.is_adversarial
    trainer.state.restore(state, counts=False)
    assert not guide.is_adversarial
    assert int(guide.step_count) == 30
    assert int(guide.adversarial_steps) == 0
    assert guide._pyro_name not in elbo.state_dict()
    trainer.step()  # the schedule is past the trunk's share: the stage is entered anew
    assert guide.is_adversarial
    assert int(guide.adversarial_steps) == 1


# -- signs --------------------------------------------------------------------------------------------------


def placed_guide(trunk: Any = None) -> AVBGuide:
    density = LogDensity(normal, (2,))
    guide = small_guide(density, trunk=trunk or AffineTrunk())
    guide.setup()
    guide.start(guide.target())
    guide.stage.fill_(ADVERSARIAL)
    guide.part("contrast").reset(guide.draw_base(4000))
    return guide


@torch.no_grad()
def _scale_sampler(guide: AVBGuide, factor: float) -> None:
    last = guide.part("sampler").network[-1]
    last.weight.mul_(factor)
    last.bias.mul_(factor)


@torch.no_grad()
def _constant_t(guide: AVBGuide, value: float) -> None:
    last = guide.part("adversary").network[-1]
    last.weight.zero_()
    last.bias.fill_(value)


@torch.no_grad()
def _not_a_number(guide: AVBGuide) -> None:
    guide.part("sampler").network[-1].bias[0] = math.nan


@pytest.mark.parametrize(
    ("damage", "sign"),
    [
        (_not_a_number, "a parameter or running moment is NaN"),
        (partial(_scale_sampler, factor=1e-5), r"the sampler collapsed: .* factor [\d.e-]+"),
        (partial(_scale_sampler, factor=1e5), "the sampler exploded"),
        (partial(_constant_t, value=2e5), r"the adversary exploded: \|T\| reaches 2e\+05"),
        # log(1 + e^1000) on one half of the draws, 0 on the other.
        (partial(_constant_t, value=1000.0), "the adversary exploded: its loss is 1e\\+03, at chance it would be 1.39"),
    ],
)
def test_signs_of_a_breakdown(damage: Callable[[AVBGuide], None], sign: str) -> None:
    guide = placed_guide()
    before = torch.get_rng_state()
    assert broken_state(guide, base_spread(guide)) is None
    assert torch.equal(torch.get_rng_state(), before)
    damage(guide)
    found = broken_state(guide)
    assert found is not None
    assert re.search(sign, found), found


def test_without_a_scaling_trunk_the_spread_is_compared_with_the_last_alone() -> None:
    """A posterior of scale 1e-5 is no collapse where base coordinates are the latents themselves."""
    guide = placed_guide(IdentityTrunk())
    _scale_sampler(guide, 1e-5)
    assert broken_state(guide, base_spread(guide)) is None
    assert "collapsed" in str(broken_state(guide, 1e4 * base_spread(guide)))


# -- rollbacks ------------------------------------------------------------------------------------------------


def sabotage(monkeypatch: pytest.MonkeyPatch, role: str, at: set[int], factor: float) -> None:
    """After these steps, multiply a part's parameters by a factor."""
    step = Trainer.step

    def sabotaged(self: Trainer) -> float:
        loss = step(self)
        if int(self.guide.step_count) in at:
            with torch.no_grad():
                for p in self.guide.part(role).parameters():
                    p.mul_(factor)
        return loss

    monkeypatch.setattr(Trainer, "step", sabotaged)


@pytest.mark.parametrize(
    ("role", "at", "sign"),
    [("trunk", 34, "nats below"), ("sampler", 93, "the ELBO fell from"), ("adversary", 93, "")],
)
def test_a_destroyed_part_is_rolled_back(role: str, at: int, sign: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, role, {at}, 1e5)
    posterior = fit()
    assert posterior.run.rollbacks == 1
    assert posterior.run.steps == 120
    (reason,) = [r for r in posterior.verdict.reasons if "broke down 1 times" in r]
    # A spoiled adversary shows in its values or in what it makes of the ELBO.
    assert sign in reason if sign else "the adversary exploded" in reason or "the ELBO fell from" in reason
    assert posterior.verdict.figures["rollbacks"] == 1.0
    draws = posterior.sample(4000)["z"]
    assert float((draws.std(0) / SD).log().abs().max()) < math.log(2.0)


def test_each_rollback_halves_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    cautions: list[float] = []
    optimise = training_module.TrainingState.optimise

    def noted(self: Any, named: dict[str, Tensor]) -> None:
        optimise(self, named)
        cautions.append(self.optimiser.param_groups[0]["lr"] / self.lr)

    monkeypatch.setattr(training_module.TrainingState, "optimise", noted)
    sabotage(monkeypatch, "trunk", {13, 34}, 1e5)
    posterior = fit(60, schedule=Schedule(trunk=1.0, decay=False))
    assert posterior.run.rollbacks == 2
    assert sorted(set(cautions), reverse=True) == pytest.approx([1.0, 0.5, 0.25])


def test_the_earlier_snapshot_where_the_later_does_not_help() -> None:
    """The later one was taken when the trouble had begun; asked twice in a row, the one before it is restored."""
    density = LogDensity(normal, (2,))
    guide = small_guide(density, trunk=avbvi.FlowTrunk())
    trainer = trainer_of(guide, density, 1000, AdversarialELBO(num_particles=32, pretrain_steps=5))
    seen = []
    for _ in range(3):
        seen.append({k: v.clone() for k, v in guide.state_dict().items() if k.startswith("trunk")})
        for _ in range(10):
            trainer.recovery.observe(trainer.step())
    for expected in (None, seen[2], seen[2]):
        trainer.recovery.roll_back("test")
        if expected is not None:
            assert all(torch.equal(v, guide.state_dict()[k]) for k, v in expected.items())
    assert trainer.recovery.rollbacks == 3
    assert trainer.elbo.caution == 1 / 8


def test_after_too_many_rollbacks_the_error_carries_the_last_good_state(monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "trunk", set(range(25, 1000)), 1e5)
    with pytest.raises(FitFailed, match="broke down 11 times") as caught:
        fit(1000, schedule=Schedule(trunk=1.0))
    posterior = caught.value.posterior
    assert posterior is not None
    assert isinstance(caught.value, NonFiniteError)
    assert posterior.verdict.status == "failed"
    assert posterior.verdict.reasons[0].startswith("the fit broke down 11 times")
    assert posterior.run.rollbacks == 10
    draws = posterior.sample(4000)["z"]  # the start is exact for a normal; the steps before the 25th moved little
    assert float((draws.std(0) / SD).log().abs().max()) < math.log(2.0)


def test_gradients_that_are_never_finite_end_in_the_same_error() -> None:
    offset = torch.ones(())  # data that change under the fit's hands: seen by its recording of the density, too

    def breaking(z: Tensor) -> Tensor:
        return normal(z) + (0.0 * z[..., 0] + offset).sqrt() - offset

    step = Trainer.step

    def breaks(self: Trainer) -> float:
        offset.fill_(float(int(self.guide.step_count) < 15))
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", breaks)
        with pytest.raises(
            FitFailed, match="10 of 10 steps had to be skipped: the log-density or its gradient"
        ) as caught:
            fit(1000, log_prob=breaking)
    posterior = caught.value.posterior
    assert posterior is not None
    assert 15 < posterior.run.skipped_steps <= posterior.run.steps < 200


def test_a_singular_matrix_in_the_model_costs_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_and_grads = AdversarialELBO.loss_and_grads

    def sometimes(self: AdversarialELBO, *args: Any, **kwargs: Any) -> float:
        loss = loss_and_grads(self, *args, **kwargs)
        if int(args[1].step_count) in (7, 50):
            raise torch.linalg.LinAlgError("not positive-definite")
        return loss

    monkeypatch.setattr(AdversarialELBO, "loss_and_grads", sometimes)
    posterior = fit()
    assert (posterior.run.skipped_steps, posterior.run.rollbacks) == (2, 0)


# -- the best trunk -----------------------------------------------------------------------------------------------


def at(guide: AVBGuide, scale: float) -> None:
    guide.part("trunk").start(torch.zeros(2), torch.diag(scale * SD))


def test_the_best_trunk_is_restored_where_it_is_better() -> None:
    guide = placed_guide()
    guide.stage.fill_(0)
    best = BestState()
    assert not best.restore(guide)
    at(guide, 1.0)
    best.offer(guide, -1.0)
    at(guide, 3.0)
    best.offer(guide, -2.0)  # no candidate: its value is lower
    # The exact KL of twice the sds is 2 (log(1/2) + 4/2 - 1/2) = 1.61.
    at(guide, 2.0)
    assert not best.restore(guide, least_gain=2.0)
    assert best.restore(guide, least_gain=1.0)
    sd = torch.linalg.norm(guide.part("trunk").scale_tril, dim=1)
    torch.testing.assert_close(sd, SD)


def test_a_candidate_that_was_lucky_is_not_taken() -> None:
    guide = placed_guide()
    best = BestState()
    at(guide, 2.0)
    best.offer(guide, 100.0)
    at(guide, 1.0)
    assert not best.restore(guide)
    torch.testing.assert_close(torch.linalg.norm(guide.part("trunk").scale_tril, dim=1), SD)


def test_a_trunk_that_training_spoiled_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last steps, after the last look, ruin it by some nats: the last good one is what a fit returns."""
    monkeypatch.setattr(recovery_module.Recovery, "_symptom", lambda self, level: None)
    sabotage(monkeypatch, "trunk", {118}, 10.0)
    schedule = Schedule(trunk=1.0, anneal=0.1)
    kept = fit(120, schedule=schedule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery_module.Recovery, "restore_best", lambda self, guide: None)
        spoiled = fit(120, schedule=schedule)
    log_z = float(SD.log().sum()) + math.log(2.0 * math.pi)
    assert log_z - spoiled.elbo(4000).value > 0.2
    assert log_z - kept.elbo(4000).value < 0.1


# -- resuming a run with rollbacks --------------------------------------------------------------------------------


class Interruption(Exception):
    pass


@pytest.mark.parametrize("after", [33, 37, 41, 95, 101])
def test_resumed_equals_uninterrupted_with_rollbacks(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, "trunk", {34}, 1e5)
    sabotage(monkeypatch, "sampler", {93}, 1e5)
    whole = fit()
    assert whole.run.rollbacks == 2
    file = tmp_path / "run.pt"
    step = Trainer.step

    def interrupted(self: Trainer) -> float:
        if int(self.guide.step_count) == after:
            raise Interruption
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(training_module, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(Interruption):
            fit(checkpoint=file)
    pyro.set_rng_seed(77)
    resumed = fit(checkpoint=file)
    expected = whole.guide.state_dict()
    for name, value in resumed.guide.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.run.history == whole.run.history
    assert resumed.run.rollbacks == 2
    assert resumed.verdict.reasons == whole.verdict.reasons


def test_rates_do_not_stay_lowered_for_the_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5)
    density = LogDensity(normal, (2,))
    sabotage(monkeypatch, "trunk", {12}, 1e5)
    posterior = avbvi.fit(
        density, guide=small_guide(density, trunk=avbvi.FlowTrunk()), elbo=elbo, steps=40, seed=0, progress=False
    )
    assert posterior.run.rollbacks == 1
    assert elbo.caution == 1.0
    assert elbo.before_adversarial is None


def test_threads_are_left_alone() -> None:
    """Outside the main thread no handler can be set; a fit runs all the same."""
    results: list[Posterior] = []
    thread = threading.Thread(target=lambda: results.append(fit(20)))
    thread.start()
    thread.join()
    assert results[0].run.steps == 20
