"""A run whose steps read nothing back is the run that looks at each: by itself, and replayed from a recording."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, BestTrunk, FlowTrunk, GaussianContrast, MixtureTrunk, Schedule
from avbvi.amortised import NoiseBasisSampler
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.runs import AmortisedRun
from avbvi.capture.running import Straight, execution_of
from avbvi.diagnostics import Verdict
from avbvi.recovery import Recovery
from avbvi.runs import Run
from avbvi.training import RECORD_EVERY, Trainer
from models import eight_schools
from tests.capture.tape import TapeBackend

#: Rates are rounded to float32 in a masked step, all else is float64.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SHARED = {"adversary_steps": 2, "pretrain_steps": 3, "num_particles": 32}


def small(model: Any, trunk: Any, **parts: Any) -> AVBGuide:
    return AVBGuide(
        model,
        trunk=trunk,
        sampler=avbvi.ResidualSampler(hidden=8, blocks=1),
        adversary=avbvi.ResidualAdversary(hidden=8, blocks=1),
        **parts,
    )


def schools(made: Callable[[], Any], **schedule: float) -> Callable[[], dict[str, Any]]:
    """A fit of the Eight Schools, anew on each call."""

    def make() -> dict[str, Any]:
        y, sigma = (x.double() for x in eight_schools.paper_data())
        return {
            "args": (eight_schools.model, y, sigma),
            "guide": small(eight_schools.model, made()),
            "elbo": AdversarialELBO(**SHARED, schedule=Schedule(**schedule)),
        }

    return make


def learned(y: Tensor) -> None:
    """A model with a parameter of its own: its loss goes through Pyro's traces."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(z, scale).to_event(1), obs=y)


def with_parameters() -> dict[str, Any]:
    return {
        "args": (learned, torch.tensor([0.5, -1.0, 2.0]).double()),
        "guide": small(learned, AffineTrunk(), contrast=GaussianContrast(full=True)),
        "elbo": AdversarialELBO(**SHARED, schedule=Schedule(anneal=0.0)),
    }


class Decoding(nn.Module):
    """A decoder of two latents to four pixels, over a plate of 26 data."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def model(self, x: Tensor) -> None:
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", 26, subsample=x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)


def amortised() -> dict[str, Any]:
    """Batches of 8, 8, 8 and 2 data, KL warm-up, dropout in the adversary."""
    known = Decoding()
    data = (torch.rand(26, 4, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    guide = AVBGuide(
        known.model,
        sampler=NoiseBasisSampler(4, bases=3, basis_noise=2, basis_hidden=(8,), context_hidden=(8,), moment_draws=16),
        adversary=InnerProductAdversary(hidden=(8,), dropout=0.1),
    )
    return {
        "args": (known.model, DataLoader(TensorDataset(data), 8, shuffle=True)),
        "guide": guide,
        "elbo": AdversarialELBO(pretrain_steps=3, schedule=Schedule(kl_warm_up=0.4, polish=0.2)),
    }


RUNS = {
    # Both candidates' parts of the race, with annealing of the flow's, then the better one to the end.
    "race": schools(lambda: BestTrunk((MixtureTrunk(4), FlowTrunk(1, (8,)))), settle=0.0, race=0.5, trunk=1.0),
    # Flow, then the adversary in its base coordinates, and the polish.
    "stages": schools(lambda: FlowTrunk(1, (8,)), trunk=0.2, polish=0.2),
    # The adversary from the first step, its target annealed.
    "annealed": schools(AffineTrunk, polish=0.1),
    "parameters": with_parameters,
    "amortised": amortised,
}


#: Kinds of steps in 80, by stage, candidate, annealing and size of the minibatch.
KINDS = {"race": 4, "stages": 4, "annealed": 3, "parameters": 2, "amortised": 6}


@pytest.fixture(autouse=True)
def _only_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Double precision; no search for a start, no choice of stage and no verdict, which are not of interest here."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(AVBGuide, "start", lambda self, target, effort=None: self.started.fill_(True))
    monkeypatch.setattr(AdversarialELBO, "finish", lambda self, guide: None)
    for kind in (Trainer, AmortisedRun):
        monkeypatch.setattr(kind, "_verdict", lambda self: Verdict("ok", []))


def fitted(name: str, **options: Any) -> tuple[Run, dict[str, Tensor], dict[str, Tensor]]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    made = RUNS[name]()
    run = avbvi.fit(
        *made["args"], guide=made["guide"], elbo=made["elbo"], seed=3, progress=False, **{"steps": 80, **options}
    ).run
    own = {id(p) for p in made["guide"].parameters()}
    others = {k: p.detach() for k, p in pyro.get_param_store().named_parameters() if id(p) not in own}
    # A bias whose gradient is zero but for rounding is moved by that rounding: the adversary shows in the losses.
    state = {k: v for k, v in made["guide"].state_dict().items() if not k.startswith("adversary.")}
    return run, state, others


@functools.cache
def expected_of(name: str) -> Any:
    """The run that looks at each step."""
    return fitted(name, capture=False)


def assert_same_run(found: Any, expected: Any) -> None:
    for own, other in zip(found, expected, strict=True):
        if isinstance(own, Run):
            assert own.history["step"] == other.history["step"]
            assert own.history["stage"] == other.history["stage"]
            assert own.history["elbo"] == pytest.approx(other.history["elbo"], rel=1e-5, abs=1e-5, nan_ok=True)
            assert (own.skipped_steps, own.rollbacks) == (other.skipped_steps, other.rollbacks)
        else:
            torch.testing.assert_close(own, other, **CLOSE)


def test_steps_that_read_nothing_back_make_the_same_run() -> None:
    """Losses, all of the guide's state but its adversary's, after 80 steps with the same seed."""
    expected = expected_of("stages")
    found = fitted("stages", capture=True)
    assert expected[0].execution == "step by step"
    assert found[0].execution == "uncaptured: there is no CUDA graph without a CUDA device"
    assert_same_run(found, expected)


@pytest.mark.parametrize("name", RUNS)
def test_replayed_steps_make_the_same_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in them speaks against a capture, and from the fourth step of each kind on all are replayed."""
    expected = expected_of(name)
    backends: list[TapeBackend] = []

    def recorded(trainer: Any, *_: Any) -> Straight:
        backends.append(TapeBackend())
        return Straight(trainer, RECORD_EVERY, backends[-1])

    monkeypatch.setattr("avbvi.training.execution_of", recorded)
    found = fitted(name)
    assert_same_run(found, expected)
    execution, _, remarks = found[0].execution.partition("; ")
    assert remarks.startswith("the model is run at every step") or not remarks, remarks
    replayed, taken = int(execution.split()[0]), int(execution.split()[2])
    # Three runs of each kind before it is captured, and the head start of an amortised guide's adversary.
    assert taken == 80
    assert replayed == 80 - 3 * backends[0].captures - (name == "amortised"), (execution, backends[0].captures)
    assert backends[0].captures == KINDS[name]


def faulty(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
    """Enter a fit whose log-density is NaN in the steps whose numbers (from 1) are told."""
    factor, plan = torch.ones(()), AdversarialELBO.plan

    def planned(self: AdversarialELBO, guide: AVBGuide) -> Any:
        factor.fill_(math.nan if fails(int(guide.step_count) + 1) else 1.0)
        return plan(self, guide)

    def make() -> dict[str, Any]:
        factor.fill_(1.0)
        model = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1) * factor, (2,))
        guide = small(model, AffineTrunk(), contrast=GaussianContrast(full=True))
        return {"args": (model,), "guide": guide, "elbo": AdversarialELBO(**SHARED)}

    monkeypatch.setattr(Trainer, "_target_traced", lambda self: nullcontext())  # the density changes
    monkeypatch.setattr(AdversarialELBO, "plan", planned)
    monkeypatch.setitem(RUNS, "faulty", make)


def test_skipped_steps_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in ten steps of 60: neither way moves anything in them."""
    faulty(monkeypatch, lambda step: 23 <= step < 33)
    expected, found = (fitted("faulty", capture=capture, steps=60) for capture in (False, True))
    assert expected[0].skipped_steps == 10
    assert_same_run(found, expected)


def test_a_run_that_breaks_down_goes_back_to_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look after 50 steps, most of them skipped, rolls back; steps to come have half the rate."""
    faulty(monkeypatch, lambda step: 10 <= step < 45)
    expected, found = (fitted("faulty", capture=capture, steps=60) for capture in (False, True))
    assert expected[0].rollbacks == 1
    assert_same_run(found, expected)


def test_after_a_rollback_steps_are_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was captured reads and writes tensors that the rollback has replaced."""
    backend = TapeBackend()
    monkeypatch.setattr("avbvi.training.execution_of", lambda run, *_: Straight(run, RECORD_EVERY, backend))
    monkeypatch.setattr(Recovery, "_symptom", lambda self, level: None if self.rollbacks else "it is the first look")
    replayed = fitted("parameters", steps=120)
    monkeypatch.setattr("avbvi.training.execution_of", execution_of)
    assert_same_run(replayed, fitted("parameters", steps=120, capture=True))
    assert replayed[0].rollbacks == 1
    assert backend.captures == KINDS["parameters"] + 1
    assert backend.renewals == 3  # after the rollback, at the polish and at the end


def test_what_can_t_be_captured_says_so_and_runs(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def log_prob(z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) * (2.0 if float(z.detach().sum()) > 0.0 else 1.0)

    def reading() -> dict[str, Any]:
        model = avbvi.LogDensity(log_prob, (2,))
        return {"args": (model,), "guide": small(model, AffineTrunk()), "elbo": AdversarialELBO(**SHARED)}

    monkeypatch.setitem(RUNS, "reading", reading)
    monkeypatch.setattr("avbvi.training.execution_of", lambda run, *_: Straight(run, RECORD_EVERY, TapeBackend()))
    with caplog.at_level("INFO", logger="avbvi"):
        run = fitted("reading", steps=30)[0]
    assert run.execution.startswith("uncaptured: _local_scalar_dense reads numbers back from the device")
    assert "not captured as a CUDA graph: _local_scalar_dense" in caplog.text
    assert run.history["step"] == [10.0, 20.0, 30.0]


def test_a_loss_of_another_kind_is_run_step_by_step() -> None:
    y, sigma = (x.double() for x in eight_schools.paper_data())
    elbo = AdversarialELBO(TraceMeanField_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1))
    guide = small(eight_schools.model, AffineTrunk())
    run = avbvi.fit(eight_schools.model, y, sigma, guide=guide, elbo=elbo, steps=3, progress=False, capture=True).run
    assert run.execution.startswith("step by step: TraceMeanField_ELBO reads numbers back")


@pytest.mark.usefixtures("default_sigint")
def test_an_interrupted_run_resumes_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after 20 steps, taken up by a run that goes on in the same way: bit for bit."""
    file = tmp_path / "run"
    whole = fitted("parameters", capture=True, steps=40)
    advance = Straight.advance

    def interrupted(self: Straight) -> Any:
        if int(self._trainer.guide.step_count) == 20:
            signal.raise_signal(signal.SIGINT)
        yield from advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Straight, "advance", interrupted)
        assert fitted("parameters", capture=True, steps=40, checkpoint=file)[0].interrupted
    resumed = fitted("parameters", capture=True, steps=40, checkpoint=file)
    assert resumed[0].history == whole[0].history
    for own, other in zip(resumed[1:], whole[1:], strict=True):
        torch.testing.assert_close(own, other, atol=0.0, rtol=0.0)
