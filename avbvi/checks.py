"""Checks of a model before it is fitted: each refusal names the site and the remedy."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .errors import ModelError
from .rng import seeded
from .targets import Model, UnconstrainedTarget

#: Unconstrained coordinates up to this size are where a density has to be a number.
NEAR = 30.0


def check_latents(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Check the model's latent sites; returns the names of those to be enumerated.

    The model runs three times on the prior: latents that come and go, or change shape, are dynamic structure.
    """
    runs = []
    with torch.no_grad(), seeded(0):
        for _ in range(3):
            trace = prune_subsample_sites(poutine.block(poutine.trace(model).get_trace)(*args, **kwargs))
            runs.append(dict(trace.iter_stochastic_nodes()))
    shapes = [{name: tuple(node["value"].shape) for name, node in run.items()} for run in runs]
    for other in shapes[1:]:
        if other != shapes[0]:
            changed = sorted(k for k in {*shapes[0], *other} if shapes[0].get(k) != other.get(k))
            raise ModelError(
                f"the model's latent sites change from run to run (dynamic structure): {changed}; AVBGuide needs "
                "the same sites with the same shapes every time"
            )
    enumerated, continuous = [], []
    for name, node in runs[0].items():
        if not node["fn"].support.is_discrete:
            continuous.append(name)
        elif node["infer"].get("enumerate") == "parallel":
            enumerated.append(name)
        else:
            raise ModelError(
                f"site {name!r} is a discrete latent, which a reparameterised guide can't sample; enumerate it "
                "(pyro.infer.config_enumerate(model) with AdversarialELBO(TraceEnum_ELBO(...))), or hide it "
                f"(AVBGuide(poutine.block(model, hide=[{name!r}])) in an AutoGuideList)"
            )
    if not continuous:
        raise ModelError("the model has no continuous latent sites; there is nothing for AVBGuide to approximate")
    return enumerated


def check_plates(trace: poutine.Trace) -> None:
    """Raise if a latent site of a prototype trace lies in a subsampled plate."""
    for name, node in trace.iter_stochastic_nodes():
        for frame in node["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ModelError(
                    f"site {name!r} lies in plate {frame.name!r}, which subsamples {frame.size} of "
                    f"{frame.full_size}: its values would be taken for global latents. Use the whole plate; "
                    "amortised guides for such models are not supported by this version"
                )


def check_density(target: UnconstrainedTarget, like: Tensor) -> None:
    """Raise if the log-density is NaN or +inf where optimisation starts, finite nowhere, or mixes draws.

    ``like`` gives dtype and device.
    """
    with torch.no_grad():
        points = target.starting_points(32).to(like)
        value = target.log_prob(points)
        _check_rows(target, points, value)
    # Far out, where some starts of a LogDensity lie, overflow is no fault of the model.
    wrong = (torch.isnan(value) | (value == torch.inf)) & (points.abs().amax(-1) <= NEAR)
    if bool(wrong.any()):
        bad = points[wrong][0]
        value = value[wrong]
        what = "NaN" if bool(torch.isnan(value).any()) else "+inf"
        raise ModelError(
            f"the log-density is {what} at a starting point (unconstrained coordinates {bad[:8].tolist()}...); it "
            "must be finite, or -inf outside the support"
        )
    if not bool(torch.isfinite(value).any()):
        raise ModelError(
            "the log-density is -inf at all starting points; give LogDensity(init=...) a point inside the support, "
            "or check the model's data"
        )


def _check_rows(target: UnconstrainedTarget, points: Tensor, value: Tensor) -> None:
    """Raise if a draw's log-density depends on the other draws in its batch (a sum over the wrong dimension)."""
    finite = torch.isfinite(value).nonzero().squeeze(-1)[:2]
    if not target.vectorize or len(finite) < 2:
        return
    with seeded(0):
        together = target.log_prob(points[finite])
    for i, index in enumerate(finite):
        with seeded(0):
            alone = target.log_prob(points[index][None])[0]
        if float((alone - together[i]).abs()) > 1e-2 * (1.0 + float(alone.abs())):
            raise ModelError(
                f"the model's log-density of one draw is {float(alone):.6g} by itself but {float(together[i]):.6g} "
                "among others: some term sums over draws (sum() without dimensions, say). Sum over the last dimensions "
                "only, or use AdversarialELBO(vectorize_particles=False)"
            )
