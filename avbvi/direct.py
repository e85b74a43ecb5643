"""Trace_ELBO's loss of one guide and a fixed model, evaluated without Pyro's handlers."""

from __future__ import annotations

from typing import Any

from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from .distributions import Draw
from .guides import AVBGuide
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


def negative_elbo(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> Tensor:
    """Mean of log q - log p (annealed) over n draws, differentiable.

    Parameters are announced to Pyro as in a call of the guide, so that SVI trains them.
    """
    with guide._pyro_context:
        posterior = guide.get_posterior(*target.args, **target.kwargs)
    weights = None
    if guide.is_adversarial:
        draw = posterior.draw((n,))
    else:
        trunk = guide.part("trunk")
        base, weights = trunk.weighted_base(n, like=guide.anchor)
        z, log_det = trunk(base)
        draw = Draw(z, base, log_det)
    log_p = guide.log_p(target, draw)
    terms = guide.base_log_prob(draw, target.args, target.kwargs, log_p=log_p) - log_p
    return terms.mean() if weights is None else (weights * terms).sum()
