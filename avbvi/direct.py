"""Trace_ELBO's loss of one guide and a fixed model, evaluated without Pyro's handlers."""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from .distributions import Draw
from .divided.division import own_part, share_of_draws, whole_number
from .guides import AVBGuide
from .recording.steps import CompiledStep, annealed_by, annealing
from .targets import UnconstrainedTarget


def is_direct(elbo: ELBO, guide: Any) -> bool:
    """Whether the loss is :func:`negative_elbo`: Trace_ELBO's, of one guide and a model without parameters.

    The target is the same joint density; evaluating it directly spares the traces and shares log p with
    the adversary's hint.
    """
    if type(elbo) is not Trace_ELBO or not elbo.vectorize_particles:
        return False
    if not isinstance(guide, AVBGuide) or guide.is_amortised:
        return False
    target = guide.target()
    return target is not None and not target.has_parameters and not target.enumerated


def loss_and_gradients(guide: AVBGuide, n: int, compiled: CompiledStep | None) -> float:
    """:func:`negative_elbo`, its gradients left in the parameters' ``.grad``."""
    target = guide.target()
    assert target is not None
    if compiled is None:
        value = negative_elbo(guide, target, n)
        if value.requires_grad:
            value.backward()
        return float(value.detach())
    if compiled.first_in_stage(guide):
        with guide._pyro_context:
            guide.get_posterior(*target.args, **target.kwargs)  # announces the parameters that are to be trained
    value, gradients = compiled.with_gradients(guide, _loss, list(compiled.outer), *annealing(guide), n=n)
    for parameter, gradient in zip(compiled.outer.values(), gradients, strict=True):
        parameter.grad = gradient
    return float(value)


def _loss(guide: AVBGuide, *beta: Tensor, n: int) -> Tensor:
    target = guide.target()
    assert target is not None
    with annealed_by(guide, beta):
        return _negative_elbo(guide, target, n)


def negative_elbo(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> Tensor:
    """Mean of log q - log p (annealed) over n draws, differentiable.

    Of several processes' draws the n are this one's. Parameters are announced to Pyro as in a call of the guide, so
    that SVI trains them.
    """
    with guide._pyro_context:
        return _negative_elbo(guide, target, n)


def _negative_elbo(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> Tensor:
    posterior = guide.get_posterior(*target.args, **target.kwargs)
    weights = None
    if guide.is_adversarial:
        draw = posterior.draw((n,))
    else:
        trunk = guide.part("trunk")
        # All draws: they are cheap, and weighted draws come in strata, which can't be divided.
        base, weights = trunk.weighted_base(whole_number(n), like=guide.anchor)
        base, weights = own_part(base), None if weights is None else own_part(weights) / share_of_draws()
        z, log_det = trunk(base)
        draw = Draw(z, base, log_det)
    log_p = guide.log_p(target, draw)
    terms = guide.base_log_prob(draw, target.args, target.kwargs, log_p=log_p) - log_p
    return terms.mean() if weights is None else (weights * terms).sum()
