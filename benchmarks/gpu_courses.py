"""Training steps at the sizes of two tasks, taken as ``fit`` takes them: for checks and times of captured steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, Schedule
from avbvi.amortised import NoiseBasisSampler
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.runs import AmortisedRun
from avbvi.capture.graphs import CudaBackend
from avbvi.capture.running import Execution, StepByStep, Straight
from avbvi.precision import Precision, networks_of
from avbvi.training import RECORD_EVERY, Trainer
from models import eight_schools
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

#: Longer than any course, so that no stage ends in one.
STEPS = 1_000_000
PIXELS, LATENT_DIM, BATCH, DATA = 784, 32, 100, 60_000
STEADY = Schedule(anneal=0.0, decay=False)


def schools(quick: bool) -> tuple[Any, ...]:
    """The adversarial stage of the Eight Schools."""
    guide = AVBGuide(eight_schools.model, trunk=AffineTrunk())
    elbo = AdversarialELBO(num_particles=64 if quick else None, pretrain_steps=2 if quick else 20, schedule=STEADY)
    return eight_schools.model, eight_schools.paper_data(), guide, elbo


def mnist(quick: bool) -> tuple[Any, ...]:
    """A fully connected autoencoder for pictures of MNIST's size, 100 made ones at a time."""
    width, batch = (16, 8) if quick else (300, BATCH)
    vae = VAE(FullyConnectedDecoder(LATENT_DIM), LATENT_DIM)
    sampler = NoiseBasisSampler(PIXELS, context_hidden=(width, width), moment_draws=64 if quick else 512)
    guide = AVBGuide(vae.model, sampler=sampler, adversary=InnerProductAdversary((width, width)))
    x = (torch.rand(batch, PIXELS, generator=torch.Generator().manual_seed(0), device="cpu") < 0.2).float()
    elbo = AdversarialELBO(pretrain_steps=2 if quick else 20, schedule=STEADY)
    return vae.model, (x, DATA), guide, elbo


CASES: dict[str, Callable[[bool], tuple[Any, ...]]] = {"eight_schools": schools, "mnist": mnist}


@dataclass
class Course:
    """A run under way, with the contexts that ``fit`` would give it."""

    trainer: Trainer
    execution: Execution
    device: torch.device

    def losses(self, steps: int) -> list[float]:
        """Take at least so many steps; the losses of all that were taken."""
        found: list[float] = []
        while len(found) < steps:
            found += [loss for _, loss in self.execution.advance()]
        return found

    def seconds(self, steps: int) -> float:
        """Wall seconds of one step, from the mean of so many."""
        wait(self.device)
        began = time.perf_counter()
        taken = len(self.losses(steps))
        wait(self.device)
        return (time.perf_counter() - began) / taken


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def execution_of(trainer: Trainer, how: str) -> Execution:
    """The execution of a name: "captured", "uncaptured" (the same function as it is) or "step by step"."""
    if how == "step by step":
        return StepByStep(trainer)
    device = trainer.guide.anchor.device
    return Straight(trainer, RECORD_EVERY, CudaBackend(device) if how == "captured" else None, "as asked for")


@contextmanager
def course(
    case: str, how: str, device: torch.device, *, quick: bool, precision: Precision | None = None
) -> Iterator[Course]:
    """A run of a case at its beginning; always the same one, whatever executes it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with ExitStack() as contexts:
        contexts.enter_context(torch.device(device))
        model, args, guide, elbo = CASES[case](quick)
        args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
        owner = getattr(model, "__self__", None)
        if owner is not None:
            owner.to(device)
        kind = AmortisedRun if guide.is_amortised else Trainer
        trainer = kind(model, args, {}, guide, elbo, 2e-3, device=device)
        elbo.steps = STEPS
        trainer._prepare(STEPS, None, None)
        contexts.enter_context(pyro.validation_enabled(False))
        contexts.enter_context(trainer._target_traced())
        contexts.enter_context((precision or Precision()).applied(networks_of(guide, model), guide.anchor))
        execution = execution_of(trainer, how)
        try:
            yield Course(trainer, execution, device)
        finally:
            execution.close()
            pyro.clear_param_store()


def relative_difference(a: list[float], b: list[float]) -> float:
    """Largest difference of two courses' losses, relative to their size."""
    n = min(len(a), len(b))
    differences = [abs(x - y) / (1.0 + abs(y)) for x, y in zip(a[:n], b[:n], strict=True)]
    return max(differences) if all(math.isfinite(d) for d in differences) else math.inf
