"""Ctrl-C: the first ends a fit between two steps and gives the posterior so far, the second raises."""

import os
import signal
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
    GaussianContrast,
    LogDensity,
    MLPAdversary,
    MLPSampler,
    Posterior,
    Schedule,
)
from avbvi import elbo as elbo_module
from avbvi import recovery as recovery_module
from avbvi import training as training_module
from avbvi.diagnostics import choose_stage, judge
from avbvi.interrupts import Interrupt
from avbvi.training import Trainer

pytestmark = pytest.mark.usefixtures("default_sigint")


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elbo_module, "choose_stage", partial(choose_stage, n=500))
    monkeypatch.setattr(training_module, "judge", partial(judge, n=500))


def fit(checkpoint: Path | None = None) -> Posterior:
    pyro.clear_param_store()
    density = LogDensity(normal, (2,))
    guide = AVBGuide(
        density,
        trunk=avbvi.FlowTrunk(),
        sampler=MLPSampler((8,)),
        contrast=GaussianContrast(),
        adversary=MLPAdversary((8,)),
    )
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5, schedule=Schedule(trunk=0.2))
    return avbvi.fit(density, guide=guide, elbo=elbo, steps=60, seed=1, progress=False, checkpoint=checkpoint)


def press(patch: pytest.MonkeyPatch, at: int, times: int = 1) -> None:
    """Ctrl-C while the step after so many is under way."""
    step = Trainer.step

    def pressed(self: Trainer) -> float:
        if int(self.guide.step_count) == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    patch.setattr(Trainer, "step", pressed)


@pytest.mark.parametrize("at", [9, 45])
def test_the_posterior_so_far(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trunk's stage as well as in the adversarial one; the step under way is completed."""
    press(monkeypatch, at)
    posterior = fit()
    assert posterior.run.interrupted
    assert posterior.run.steps == at + 1
    assert posterior.verdict.status in ("suspect", "failed")
    assert posterior.verdict.reasons[-1] == f"interrupted after {at + 1} steps, {(at + 1) / 60:.0%} of the run"
    assert (posterior.comparison is not None) == (at == 45)
    assert bool(torch.isfinite(posterior.sample(100)["z"]).all())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit()
    with monkeypatch.context() as patch:
        press(patch, 37)
        assert fit(tmp_path / "run.pt").run.interrupted
    resumed = fit(tmp_path / "run.pt")
    assert not resumed.run.interrupted
    expected = whole.guide.state_dict()
    for name, value in resumed.guide.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.verdict.reasons == whole.verdict.reasons


def test_the_second_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    press(monkeypatch, 12, times=2)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_the_model_raises_ends_the_run_at_the_last_good_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a handler of the program's own raises it, a step may be left half done."""
    monkeypatch.setattr(recovery_module, "CHECK_EVERY", 10)
    step = Trainer.step
    seen: list[dict[str, Tensor]] = []

    def raises(self: Trainer) -> float:
        if int(self.guide.step_count) == 10:
            seen.append({k: v.clone() for k, v in self.guide.state_dict().items()})
        if int(self.guide.step_count) == 15:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "step", raises)
    posterior = fit()
    assert posterior.run.interrupted
    for name, value in posterior.guide.part("trunk").state_dict().items():
        assert torch.equal(value, seen[0][f"trunk.{name}"]), name


def test_while_the_fit_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training_module, "judge", judged)
    posterior = fit()
    assert posterior.verdict.status == "suspect"
    assert posterior.verdict.reasons[0] == "the fit was not judged"
    assert posterior.run.steps == 60


def test_while_the_stages_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk is kept, whose density is exact."""
    monkeypatch.setattr(AdversarialELBO, "_finish_in_time", lambda self, guides: None)

    def finish(self: AdversarialELBO, guide: AVBGuide) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(AdversarialELBO, "finish", finish)
    posterior = fit()
    assert posterior.elbo_is_exact
    assert posterior.run.interrupted
    assert posterior.verdict.status != "ok"


def test_a_handler_of_the_program_is_left_alone() -> None:
    seen: list[int] = []

    def own(number: int, frame: Any) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, own)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]
        assert not interrupt.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_first_noted_second_raised_and_handler_restored() -> None:
    interrupt = Interrupt()
    with pytest.raises(KeyboardInterrupt), interrupt:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_affine_trunk_that_is_not_trained_keeps_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    press(monkeypatch, 20)
    density = LogDensity(normal, (2,))
    guide = AVBGuide(density, trunk=AffineTrunk(), sampler=MLPSampler((8,)), adversary=MLPAdversary((8,)))
    elbo = AdversarialELBO(num_particles=32, pretrain_steps=5)
    posterior = avbvi.fit(density, guide=guide, elbo=elbo, steps=60, seed=1, progress=False)
    assert posterior.run.interrupted
    assert posterior.guide.is_adversarial != AffineTrunk.is_trainable
