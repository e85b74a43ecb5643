"""One training step of a guide as a function of tensors alone: it reads nothing back and branches on no number."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from ..amortised.guide import AmortisedAVBGuide
from ..annealing import Annealed
from ..control import StepPlan
from ..direct import is_direct, negative_elbo
from ..elbo import AdversarialELBO
from ..gradients import with_gradient
from ..guides import AVBGuide
from ..targets import Model
from ..training_state import TrainingState, named_parameters

#: What a step leaves: its loss, whether the outer step was skipped, how many of the adversary's were.
RESULTS = 3


def why_not_straight(elbo: AdversarialELBO) -> str | None:
    """Why a loss can't be run without reading numbers back; ``None`` if it can."""
    if type(elbo.elbo) is not Trace_ELBO:
        return f"{type(elbo.elbo).__name__} reads numbers back; only Trace_ELBO's loss is known to the fit itself"
    if not elbo.vectorize_particles and elbo.num_particles > 1:
        return "its particles are looped over (vectorize_particles=False)"
    return None


def traced_negative_elbo(elbo: Trace_ELBO, model: Model, guide: AVBGuide, args: Any, kwargs: Any) -> Tensor:
    """``Trace_ELBO``'s loss of a guide whose draws are all reparameterised, as a tensor; Pyro's own is a number."""
    terms = [
        (guide_trace.log_prob_sum() - model_trace.log_prob_sum()) / elbo.num_particles
        for model_trace, guide_trace in elbo._get_traces(model, guide, args, kwargs)
    ]
    return torch.stack(terms).sum()


class StepArithmetic:
    """A step of a run: average, adversary's steps, loss, gradients, both optimisers; all masked.

    Args:
        model, guide, kwargs: as in ``SVI.step``; the guide is set up.
        elbo: the loss.
        state: what the steps change; has the outer optimiser.
    """

    def __init__(
        self, model: Model, guide: AVBGuide, elbo: AdversarialELBO, state: TrainingState, kwargs: dict[str, Any]
    ) -> None:
        self.model: Model = model
        self.guide: AVBGuide = guide
        self.elbo: AdversarialELBO = elbo
        self.state: TrainingState = state
        self.kwargs: dict[str, Any] = kwargs

    def __call__(self, plan: StepPlan, args: tuple[Any, ...], *, moves: bool) -> Tensor:
        """Take the step that the plan describes, its numbers tensors.

        Args:
            plan: the plan.
            args: the model's arguments.
            moves: whether the outer step moves anything; while the adversary is polished only its loss is of interest.

        Returns:
            (RESULTS,) float64.
        """
        guide, elbo = self.guide, self.elbo
        for p in with_gradient(guide):
            p.grad = None  # left by a step, or its capture, that failed
        elbo._ready(self.model, guide, args, self.kwargs)
        elbo._guard.mask(guide.anchor)
        trainer = None if plan.adversary is None else elbo._trainers.of(guide)
        if trainer is not None:
            trainer.mask(guide.anchor)
        with ExitStack() as call, poutine.trace(param_only=True) as traced:
            if isinstance(guide, AmortisedAVBGuide):
                call.enter_context(guide.training_call(args, self.kwargs))
            elbo.carry_out(guide, plan)
            annealed = call.enter_context(Annealed(self.model, [guide], plan.beta))
            call.enter_context(torch.set_grad_enabled(moves))
            if is_direct(elbo.elbo, guide):
                target = guide.target()
                assert target is not None
                loss = negative_elbo(guide, target, elbo.num_particles)
            else:
                assert annealed is not None
                loss = traced_negative_elbo(elbo.elbo, annealed, guide, args, self.kwargs)
        if moves:
            loss.backward()
            elbo._trainers.meet([guide])
        gradients = [p.grad for p in with_gradient(guide) if p.grad is not None]
        skipped = elbo._guard.judge(loss.detach(), gradients)
        if moves:
            assert isinstance(plan.outer, Tensor)
            self.state.optimise_masked(named_parameters(traced.trace), elbo.caution * plan.outer, skipped)
        others = torch.zeros_like(skipped) if trainer is None else trainer.take_skipped()
        return torch.stack([loss.detach().double(), skipped.double(), others.double()])
