"""Steps from compiled graphs against the same steps as they are."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AdversarialELBO, AVBGuide, FlowTrunk, MixtureTrunk, ResidualAdversary, ResidualSampler, Schedule
from avbvi.recording.graphs import ModuleGraph
from avbvi.recording.steps import CompiledStep, why_not_compiled
from avbvi.rng import seeded
from avbvi.training import Trainer
from avbvi.trunks import AffineTrunk
from models import eight_schools

STEPS = 12
TRUNKS = {"mixture": lambda: MixtureTrunk(4), "flow": lambda: FlowTrunk(2, (8, 8)), "affine": AffineTrunk}


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are recorded and run, but not compiled, which takes long."""
    monkeypatch.setattr(ModuleGraph, "compile", lambda self: None)


def stepped(trunk: Any, *, compiled: bool) -> tuple[list[float], dict[str, Tensor], CompiledStep | None]:
    """Losses and final state of some steps of one stage, which is annealed at its beginning."""
    with seeded(3), pyro.validation_enabled(False):
        guide = AVBGuide(
            eight_schools.model, trunk=trunk(), sampler=ResidualSampler(hidden=8), adversary=ResidualAdversary(hidden=8)
        )
        elbo = AdversarialELBO(num_particles=48, pretrain_steps=3, schedule=Schedule(anneal=0.5))
        trainer = Trainer(eight_schools.model, (), {}, guide, elbo, 2e-3)
        elbo.begin_run()
        elbo.steps = 4 * STEPS
        trainer._prepare(4 * STEPS, None, None)
        if compiled:
            elbo.compiled = CompiledStep(guide)
        losses = [trainer.step() for _ in range(STEPS)]
        state = {name: value.clone() for name, value in guide.state_dict().items()}
    return losses, state, elbo.compiled


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", TRUNKS)
def test_steps_from_graphs_are_the_same_steps(name: str) -> None:
    losses, state, _ = stepped(TRUNKS[name], compiled=False)
    found, found_state, step = stepped(TRUNKS[name], compiled=True)
    assert step is not None
    assert step.reason is None
    # The loss; and with an adversary what it sees, its loss and the outer loss.
    assert len(step._graphs) == {"affine": 3}.get(name, 1)
    assert found == pytest.approx(losses, rel=1e-4)
    for key, value in state.items():
        torch.testing.assert_close(found_state[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.usefixtures("uncompiled")
def test_guide_that_can_t_be_recorded_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Branching(ResidualSampler):
        def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
            draws = super().forward(noise, context)
            return draws if bool((draws.abs() < 1e6).all()) else 0.0 * draws

    with seeded(0), caplog.at_level("WARNING", logger="avbvi"):
        guide = AVBGuide(eight_schools.model, trunk=AffineTrunk(), sampler=Branching(hidden=8))
        elbo = AdversarialELBO(num_particles=32, pretrain_steps=2)
        posterior = avbvi.fit(
            eight_schools.model, guide=guide, elbo=elbo, steps=4, seed=0, progress=False, compile=True
        )
    assert "not compiled, since" in posterior.run.execution
    assert "data-dependent" in posterior.run.execution
    assert "steps are not compiled" in caplog.text


def test_what_is_known_not_to_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = AVBGuide(eight_schools.model).setup()
    elbo = AdversarialELBO()
    assert why_not_compiled(elbo, guide) is None
    looped = AdversarialELBO(vectorize_particles=False)
    assert "Trace_ELBO" in str(why_not_compiled(looped, guide))
    monkeypatch.setattr("avbvi.recording.steps.compiler", lambda: None)
    assert "C++ compiler" in str(why_not_compiled(elbo, guide))


def test_compiled_and_captured_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        avbvi.fit(eight_schools.model, steps=2, compile=True, capture=True, progress=False)


def funnel() -> None:
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, (0.5 * scale).exp()))


@pytest.mark.slow
def test_compiled_fit_is_the_fit() -> None:
    """Rounding apart, for some steps: the compiler's own arithmetic, with the same random numbers."""
    results = []
    for compiled in (False, True):
        guide = AVBGuide(funnel, trunk=AffineTrunk(), adversary=ResidualAdversary(hidden=16))
        elbo = AdversarialELBO(num_particles=64, pretrain_steps=4)
        posterior = avbvi.fit(funnel, guide=guide, elbo=elbo, steps=30, seed=1, progress=False, compile=compiled)
        results.append(posterior.run.history["elbo"])
        assert posterior.run.execution.startswith("step by step, 5 graphs" if compiled else "step by step")
    assert results[1] == pytest.approx(results[0], rel=1e-2)
