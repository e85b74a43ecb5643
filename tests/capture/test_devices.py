"""Every stage's step on a device without numbers: nothing is read, nothing comes from the host, no devices are mixed.

Meta tensors have shapes, dtypes and a device but no values, so that reading one raises, and what is on the CPU is on
another device, as for a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, FlowTrunk, MixtureTrunk, Schedule
from avbvi.amortised import NoiseBasisSampler
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.capture.arithmetic import RESULTS, StepArithmetic
from avbvi.capture.constants import Constants
from avbvi.capture.straight import StraightLine
from avbvi.host_buffers import on_host
from avbvi.training_state import TrainingState
from models import eight_schools
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

SIZES = {"num_particles": 16, "pretrain_steps": 1, "steps": 100}


def schools(
    trunk: Callable[[], Any],
    contrast: Callable[[], Any] = avbvi.MixtureContrast,
    polishing: bool = False,
    **schedule: float,
) -> Callable[[], tuple[Any, ...]]:
    def make() -> tuple[Any, ...]:
        guide = AVBGuide(eight_schools.model, trunk=trunk(), contrast=contrast())
        guide.setup(*eight_schools.paper_data()).started.fill_(True)
        if polishing:
            guide.polishing.fill_(True)
        return (
            eight_schools.model,
            eight_schools.paper_data(),
            guide,
            AdversarialELBO(**SIZES, schedule=Schedule(**schedule)),
        )

    return make


def amortised() -> tuple[Any, ...]:
    vae = VAE(FullyConnectedDecoder(2, (1, 2, 2), hidden=(4,)), 2)
    sampler = NoiseBasisSampler(4, bases=2, basis_hidden=(4,), context_hidden=(4,), moment_draws=8)
    guide = AVBGuide(vae.model, sampler=sampler, adversary=InnerProductAdversary((4,), dropout=0.1))
    return vae.model, (torch.ones(3, 4), 30), guide, AdversarialELBO(steps=100, pretrain_steps=1, schedule=WARMING)


WARMING = Schedule(kl_warm_up=0.5)
CASES = {
    "mixture": schools(lambda: MixtureTrunk(4)),
    "flow, annealed": schools(lambda: FlowTrunk(1, (8,))),
    "adversarial, annealed": schools(AffineTrunk),
    "adversarial": schools(AffineTrunk, anneal=0.0),
    "gaussian contrast": schools(AffineTrunk, contrast=lambda: avbvi.GaussianContrast(full=True), anneal=0.0),
    "polishing": schools(AffineTrunk, polishing=True, anneal=0.0, polish=0.999),
    "amortised": amortised,
}


def fused_adam(params: list[Tensor], grads: list[Tensor], *moments: Any, **options: Any) -> None:
    """What CUDA's kernel demands of its arguments; there is none for meta tensors."""
    found = options["found_inf"]
    for tensor in (*params, *grads, *(t for some in moments for t in some), options["lr"], found):
        assert tensor.device.type == "meta"
    assert (options["lr"].dtype, found.dtype) == (torch.float32, torch.float32)
    assert options["lr"].shape == found.shape == ()


@pytest.mark.parametrize("default", ["cpu", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_stays_on_its_device(name: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the device is the default one; constants are made in the first step."""
    model, args, guide, elbo = CASES[name]()
    with pyro.validation_enabled(False):
        elbo.loss_and_grads(model, guide, *args)  # sets up what reads numbers once, on the CPU
        plan = elbo.plan(guide)._replace(begins=False)
        monkeypatch.setattr(torch, "_fused_adam_", fused_adam)
        adam = sys.modules["torch.optim.adam"]  # which torch.optim hides
        monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
        pyro.clear_param_store()
        elbo._trainers.forget(guide)
        guide.to("meta")
        if hasattr(model, "__self__"):
            model.__self__.to("meta")
        args = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
        arithmetic = StepArithmetic(model, guide, elbo, TrainingState(guide, elbo, 1e-3), {})
        numbers, constants = torch.empty(5, dtype=torch.float64, device="meta"), Constants()
        for _ in range(2):
            with torch.device(default), constants, StraightLine(on_host(guide), "meta") as line:
                result = arithmetic(plan.filled(numbers), args, moves=not bool(guide.polishing))
    assert (result.shape, result.device.type) == ((RESULTS,), "meta")
    assert line.found == []
