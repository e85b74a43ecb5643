"""Training steps to be timed: those of ``avbvi.fit``, of SVI, and the yardsticks beside them.

A step is made in the middle of its stage, with nothing annealed, at constant learning rates: what most steps of a run
are like.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

import avbvi
from avbvi.adversarial import WARM_UP_STEPS
from avbvi.amortised.runs import AmortisedRun
from avbvi.capture import running
from avbvi.direct import negative_elbo
from avbvi.recording.steps import compiler
from avbvi.rng import seeded
from avbvi.training import RECORD_EVERY, Trainer
from benchmarks import mnist, step_marks
from benchmarks.reference_step import ReferenceStep
from benchmarks.step_problems import StepProblem
from benchmarks.step_split import Marks
from models.vaes import VAE

__all__ = [
    "EXECUTIONS",
    "TRUNKS",
    "Execution",
    "Step",
    "bare_step",
    "fit_step",
    "reference_step",
    "svi_step",
    "vae_step",
]

#: Steps of a run that no timing comes to the end of.
ENDLESS = 10**9
LR = 2e-3
#: Trunks by the stage that is timed.
TRUNKS: dict[str, Callable[[], avbvi.Trunk]] = {
    "mixture": avbvi.MixtureTrunk,
    "flow": avbvi.FlowTrunk,
    "adversarial": avbvi.AffineTrunk,
}


@dataclass(frozen=True)
class Step:
    """A step to be timed.

    Args:
        run: one step, or ``count`` of them.
        marks: the functions of its parts.
        count: steps that ``run`` takes.
        context: what it runs in, entered; it lasts as long as the step.
        describe: says how steps were taken.
    """

    run: Callable[[], object]
    marks: Marks
    count: int = 1
    context: ExitStack = field(default_factory=ExitStack)
    describe: Callable[[], str] = lambda: "step by step"


@dataclass(frozen=True)
class Execution:
    """A way in which avbvi's step is run.

    Args:
        name: as it stands in the records' ``method``.
        label: as it reads in tables.
        missing: device -> what is lacking to run it there; None if nothing is.
        taken: gives how a trainer takes its steps.
        traced: whether the model's log-density is recorded once, as a fit does for its whole loop.
        count: steps that are taken at a time.
        amortised: whether it is for amortised guides too, whose models learn.
        is_eager: whether the work of a step can be counted call by call, and split.
    """

    name: str
    label: str
    missing: Callable[[torch.device], str | None]
    taken: Callable[[Trainer], running.Execution]
    traced: bool = True
    count: int = 1
    amortised: bool = True
    is_eager: bool = True


def _nothing(device: torch.device) -> str | None:
    return None


def _no_compiler(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it is for the CPU; on CUDA the whole step is captured"
    return None if compiler() else "torch.compile needs a C++ compiler"


def _no_graphs(device: torch.device) -> str | None:
    return None if device.type == "cuda" else "there is no CUDA graph without a CUDA device"


def _compiled(trainer: Trainer) -> running.Execution:
    return running.execution_of(trainer, False, True, RECORD_EVERY)


def _uncaptured(trainer: Trainer) -> running.Execution:
    return running.Straight(trainer, RECORD_EVERY, None)


def _captured(trainer: Trainer) -> running.Execution:
    return running.execution_of(trainer, True, False, RECORD_EVERY)


EXECUTIONS: dict[str, Execution] = {
    execution.name: execution
    for execution in (
        Execution("eager", "the model run at every step", _nothing, running.StepByStep, traced=False),
        Execution("traced", "log-density recorded once", _nothing, running.StepByStep, amortised=False),
        Execution("compiled", "pieces compiled", _no_compiler, _compiled, amortised=False, is_eager=False),
        Execution("uncaptured", "nothing read back", _no_graphs, _uncaptured, count=RECORD_EVERY),
        Execution("captured", "CUDA graph", _no_graphs, _captured, count=RECORD_EVERY, is_eager=False),
    )
}


def _elbo(**settings: Any) -> avbvi.AdversarialELBO:
    return avbvi.AdversarialELBO(schedule=avbvi.Schedule(anneal=0.0), pretrain_steps=0, **settings)


def _on(device: torch.device, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a.to(device) for a in arguments)


def _begun(trainer: Trainer) -> Trainer:
    """The trainer at the first step of its run."""
    trainer.elbo.begin_run()
    trainer.elbo.steps = ENDLESS
    with pyro.validation_enabled(False):
        trainer._prepare(ENDLESS, None, None)
    return trainer


def _default(device: torch.device) -> AbstractContextManager[Any]:
    """Where ``avbvi.fit`` makes its tensors; on the CPU it sets no default, which would slow down every call."""
    return nullcontext() if device.type == "cpu" else torch.device(device)


def _quietly(step: Callable[[], object], where: Callable[[], AbstractContextManager[Any]] = nullcontext) -> object:
    """A step without Pyro's validation, as all of a fit's steps are run."""
    with pyro.validation_enabled(False), where():
        return step()


def _fitted_step(trainer: Trainer, execution: Execution, device: torch.device) -> Step:
    _begun(trainer)
    context = ExitStack()
    if execution.traced:
        context.enter_context(trainer._target_traced())
    taken = execution.taken(trainer)
    context.callback(taken.close)
    run = partial(_quietly, lambda: list(taken.advance()), partial(_default, device))
    run()  # where some are taken at a time, the first look comes after fewer
    return Step(run, step_marks.AVBVI, execution.count, context, taken.describe)


def fit_step(problem: StepProblem, stage: str, execution: Execution, device: torch.device) -> Step:
    """The step that ``avbvi.fit`` takes in a stage of ``TRUNKS``, with defaults otherwise."""
    with seeded(0), _default(device):
        guide = avbvi.AVBGuide(problem.model, trunk=TRUNKS[stage]())
        arguments = _on(device, problem.arguments(torch.float32))
        trainer = Trainer(problem.model, arguments, {}, guide, _elbo(), LR)
        return _fitted_step(trainer, execution, device)


def vae_step(batch: int, execution: Execution, device: torch.device) -> Step:
    """The step of the amortised fit of MNIST's board, 784-300-300-32, on made binary pictures."""
    with seeded(0), _default(device):
        task = mnist.task("table_3a", ENDLESS)
        vae = VAE(task.decoder(), task.latent_dim, task.likelihood(), f"decoder_{execution.name}")
        guide = avbvi.AVBGuide(
            vae.model,
            sampler=task.sampler(),
            adversary=task.adversary(),
            contrast=avbvi.amortised.ConditionalGaussianContrast(),
        )
        elbo = avbvi.AdversarialELBO(
            adversary_steps=task.adversary_steps,
            adversary_batch=task.adversary_draws,
            adversary_lr=task.adversary_lr,
            pretrain_steps=0,
        )
        x = torch.bernoulli(torch.full((batch, task.pixels), 0.3))
        trainer = AmortisedRun(vae.model, (x,), {}, guide, elbo, task.recipe.lr)
        return _fitted_step(trainer, execution, device)


def reference_step(problem: StepProblem, device: torch.device) -> Step:
    """The yardstick on a problem, above the affine map that avbvi's own start finds."""
    with seeded(0), _default(device):
        guide = avbvi.AVBGuide(problem.model, trunk=avbvi.AffineTrunk())
        arguments = _on(device, problem.arguments(torch.float32))
        elbo = _elbo()
        elbo._ready(problem.model, guide, arguments, {})
        trunk = guide.part("trunk")
        step = ReferenceStep(
            lambda z: problem.log_density(z, *arguments),
            problem.dim,
            loc=trunk.loc,
            scale_tril=trunk.scale_tril,
            device=device,
        )
        step.begin()
        return Step(step.step, step_marks.REFERENCE)


def _warm(
    elbo: avbvi.AdversarialELBO, problem: StepProblem, guide: avbvi.AVBGuide, arguments: tuple[Tensor, ...]
) -> None:
    """Set the guide up and bring it to full learning rates, its sampler as it was."""
    with pyro.validation_enabled(False):
        elbo.loss_and_grads(problem.model, guide, *arguments)
    for p in guide.parameters():
        p.grad = None
    guide.adversarial_steps += WARM_UP_STEPS


def svi_step(problem: StepProblem, device: torch.device) -> Step:
    """``SVI.step`` with AdversarialELBO and its optimiser, as a Pyro user writes it."""
    with seeded(0), _default(device):
        guide = avbvi.AVBGuide(problem.model, trunk=avbvi.AffineTrunk())
        arguments = _on(device, problem.arguments(torch.float32))
        elbo = _elbo(steps=ENDLESS)
        svi = SVI(problem.model, guide, elbo.optimizer(LR), loss=elbo)
        _warm(elbo, problem, guide, arguments)
        return Step(partial(_quietly, partial(svi.step, *arguments)), step_marks.AVBVI)


def bare_step(problem: StepProblem, device: torch.device) -> Step:
    """The same without SVI, AdversarialELBO's book-keeping and Pyro's optimiser: what a torch loop would call.

    Adversary and contrast move by the same trainer; then the same loss, its gradient, its bound, one fused Adam.
    """
    with seeded(0), _default(device):
        guide = avbvi.AVBGuide(problem.model, trunk=avbvi.AffineTrunk())
        arguments = _on(device, problem.arguments(torch.float32))
        elbo = _elbo(steps=ENDLESS)
        _warm(elbo, problem, guide, arguments)
        trainer, target = elbo._trainers.of(guide), guide.target(*arguments)
        assert target is not None
        weights = [p for p in guide.part("sampler").parameters() if p.requires_grad]
        adam = torch.optim.Adam(weights, lr=LR, betas=(0.5, 0.999), fused=True)

        def step() -> float:
            trainer.update_average(guide, elbo.schedule.average)
            trainer.steps(guide, elbo.adversary_batch, 1.0, elbo.adversary_steps)
            loss = negative_elbo(guide, target, elbo.num_particles)
            loss.backward()
            elbo._guard.admits(float(loss.detach()), [p.grad for p in weights if p.grad is not None], [guide])
            adam.step()
            adam.zero_grad()
            return float(loss.detach())

        return Step(partial(_quietly, step), step_marks.AVBVI)
