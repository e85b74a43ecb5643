"""Temperatures replayed: on a tape that stands for a CUDA graph they are those run as they are, bit for bit."""

from __future__ import annotations

import logging
from functools import partial

import pyro
import pytest
import torch
from torch import Tensor

from avbvi.annealed import (
    GaussianStart,
    PriorStart,
    SigmoidTemperatures,
    annealed_importance_sampling,
    chains,
    evaluation,
)
from avbvi.annealed.chains import BackwardAnnealing, ForwardAnnealing
from avbvi.annealed.noise import Keys
from avbvi.annealed.path import Path
from avbvi.annealed.precision import LowPrecisionDensity
from avbvi.annealed.replay import Replayed
from avbvi.capture.straight import StraightLine
from avbvi.precision import Precision
from tests.annealed.known import LinearGaussian
from tests.annealed.test_evaluation import vae_density
from tests.capture.tape import TapeBackend


def annealing(density, *, start=None, low: bool = False, recorded: bool = False, count: int = 12) -> ForwardAnnealing:
    torch.manual_seed(0)
    batch, dim = density.batch, density.dim
    begin = GaussianStart(torch.zeros(batch, dim), torch.ones(batch, dim)) if start is None else start
    seen = LowPrecisionDensity(density, Precision(autocast=torch.bfloat16)) if low else density
    path = Path(seen, begin, exact=density if low else None, recorded=recorded)
    return ForwardAnnealing(
        path, SigmoidTemperatures(count).betas(), chains=3, leapfrog_steps=2, target_acceptance=0.65, keys=Keys(4)
    )


def finished(run):
    while not run.finished:
        run.advance()
    return run


@pytest.fixture
def unvalidated():
    """As in a run, whose trajectories may wander off."""
    with pyro.validation_enabled(False):
        yield


@pytest.fixture
def tapes(monkeypatch):
    """Chains are replayed from tapes; a list of what replays them."""
    made: list[Replayed] = []

    def on_tape(step, device):
        made.append(Replayed(step, TapeBackend()))
        return made[-1]

    monkeypatch.setattr(chains, "repeated", on_tape)
    return made


def cases():
    gaussian = LinearGaussian.simulated(5, 4, 2)
    return {
        "gaussian start": partial(annealing, gaussian),
        "prior start": partial(annealing, gaussian, start=PriorStart(gaussian)),
        "low precision": partial(annealing, gaussian, low=True),
        "recorded model": partial(annealing, vae_density()[1], recorded=True),
    }


@pytest.mark.parametrize("case", list(cases()))
def test_replayed_temperatures_are_those_run_as_they_are(case, tapes, monkeypatch, unvalidated):
    monkeypatch.setattr(evaluation, "RECORDED_AT_CPU", 2)
    replayed = finished(cases()[case]())
    assert len(tapes) == 1
    assert tapes[0].reason is None
    assert tapes[0]._captured.replays >= 8
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "RECORDED_AT_CPU", 2)
    plain = finished(cases()[case]())
    for name in ("log_weights", "acceptance", "step"):
        assert torch.equal(getattr(replayed, name), getattr(plain, name))
    assert torch.equal(replayed.state.z, plain.state.z)
    assert torch.equal(replayed.step_sizes.by_temperature, plain.step_sizes.by_temperature)
    # It did move, and from temperature to temperature differently.
    assert len(replayed.step_sizes.by_temperature.unique(dim=0)) == 12


def test_backward_chains_are_replayed_too(tapes, monkeypatch):
    density = LinearGaussian.simulated(5, 4, 2)
    draw = density.posterior()[0].float()
    replayed = finished(BackwardAnnealing(finished(annealing(density)), draw))
    assert [t.reason for t in tapes] == [None, None]
    monkeypatch.undo()
    plain = finished(BackwardAnnealing(finished(annealing(density)), draw))
    assert torch.equal(replayed.log_weights, plain.log_weights)


def test_a_run_replayed_in_part_and_restored_goes_on_bit_for_bit(tapes):
    density = LinearGaussian.simulated(5, 4, 2)
    whole, first, second = (annealing(density) for _ in range(3))
    finished(whole)
    for _ in range(7):
        first.advance()
    for _ in range(5):  # captured before it is restored
        second.advance()
    second.restore(first.saved())
    finished(second)
    assert torch.equal(second.log_weights, whole.log_weights)
    assert torch.equal(second.acceptance, whole.acceptance)


def inspected(step) -> list[str]:
    """What keeps a step from being captured."""
    with StraightLine() as line:
        step()
    return line.found


@pytest.mark.parametrize("pilots", [False, True])
def test_a_temperature_reads_nothing_back(pilots):
    for density in (LinearGaussian.simulated(5, 4, 2), LinearGaussian.simulated(40, 4, 3)):
        run = annealing(density)
        assert inspected(partial(run._temperature, pilots=pilots)) == []
        run.done += 1
        back = BackwardAnnealing(finished(run), density.posterior()[0].float())
        assert inspected(partial(back._temperature, pilots=False)) == []


def test_a_model_that_reads_back_is_run_as_it_is_and_the_reason_logged(tapes, caplog):
    class Reading(LinearGaussian):
        def log_joint(self, z: Tensor) -> Tensor:
            return super().log_joint(z) * (1.0 if float(z.detach().sum()) < 1e9 else 2.0)

    plain = LinearGaussian.simulated(5, 4, 2)
    with caplog.at_level(logging.INFO, logger="avbvi"):
        run = finished(annealing(Reading(plain.x, plain.weight, plain.bias, plain.noise)))
    assert "reads numbers back" in str(tapes[0].reason)
    assert caplog.text.count("not captured as a CUDA graph") == 1
    assert torch.equal(run.log_weights, finished(annealing(plain)).log_weights)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("what", ["density", "Pyro model"])
@pytest.mark.parametrize("precision", [None, Precision(tf32=True), Precision(autocast=torch.bfloat16)])
def test_a_gpu_captures_chains_and_gives_the_figures_of_the_cpu(what, precision, monkeypatch):
    made: list[Replayed] = []
    plain = chains.repeated

    def kept(step, device):
        made.append(plain(step, device))
        return made[-1]

    vae, _ = vae_density(40)
    x = (torch.rand(40, 16, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    density = LinearGaussian.simulated(40, 6, 3)
    results = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(chains, "repeated", kept if device == "cuda" else plain)
        start = GaussianStart(torch.zeros(40, 3, device=device), torch.ones(40, 3, device=device))
        options = {
            "start": start,
            "temperatures": SigmoidTemperatures(20),
            "chains": 30,
            "leapfrog_steps": 2,
            "seed": 0,
            "device": device,
            "progress": False,
            "precision": precision if device == "cuda" else None,
        }
        if what == "density":
            here = LinearGaussian(*(t.to(device) for t in (density.x, density.weight, density.bias)), density.noise)
            results.append(annealed_importance_sampling(here, **options))
        else:
            results.append(annealed_importance_sampling(vae.to(device).model, x.to(device), **options))
    assert [replayed.reason for replayed in made] == [None]
    assert made[0]._captured.replays > 10
    cpu, gpu = (result.log_weights.cpu() for result in results)
    if precision is None:
        # The same noise: chains part where a rounding decides on an acceptance, which is rare.
        near = ((cpu - gpu).abs() < 1e-2).double().mean()
        assert float(near) > 0.95
    difference = (results[0].log_evidence - results[1].log_evidence.cpu()).mean()
    error = (results[0].stderr.square().sum() + results[1].stderr.cpu().square().sum()).sqrt() / 40
    assert abs(float(difference)) < 4.0 * float(error)
