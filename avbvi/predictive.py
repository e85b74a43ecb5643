"""What a model gives at draws of its latents: deterministic sites, predictions, log-likelihoods; and its prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import reduce
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.poutine import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .errors import ModelError
from .targets import PARTICLES, Model, UnconstrainedTarget

Node = dict[str, Any]
# Elements of the results that one run of the model may have: bounds the memory of what it computes on the way.
_CHUNK = 2**24


# -- sites --------------------------------------------------------------------------------------------


def single_run(target: UnconstrainedTarget, values: dict[str, Tensor], model: Model | None = None) -> Trace:
    """Trace of the model as it is written (outside any plate over draws), at the first of the draws.

    Discrete latents that the target sums out are drawn.

    Raises:
        ModelError: a latent site has another shape than the draws.
    """
    first = {name: value[0] for name, value in values.items()}
    traced = poutine.trace(poutine.condition(target.model if model is None else model, first))
    try:
        with poutine.block():
            traced.get_trace(*target.args, **target.kwargs)
    except (RuntimeError, ValueError, IndexError):
        _check_shapes(traced.trace, first)
        raise
    _check_shapes(traced.trace, first)
    return prune_subsample_sites(traced.trace)


def _check_shapes(trace: Trace, first: dict[str, Tensor]) -> None:
    for name, value in first.items():
        if name in trace.nodes and (expected := trace.nodes[name]["fn"].shape()) != value.shape:
            raise ModelError(
                f"the latent site {name!r} has shape {tuple(expected)} with these arguments and {tuple(value.shape)} "
                "in the fit, whose draws therefore can't be used. Predict with arguments that keep its shape, or "
                "predict new groups from the posterior's draws of their parameters"
            )


def deterministic_sites(trace: Trace) -> dict[str, Node]:
    """The nodes of ``pyro.deterministic``."""
    return {name: node for name, node in _samples(trace) if node["infer"].get("_deterministic")}


def observed_sites(trace: Trace, latents: Iterable[str]) -> dict[str, Node]:
    """The nodes of observations, in a trace that is conditioned on ``latents``; factors are none."""
    known = set(latents)
    return {name: node for name, node in _samples(trace) if _is_data(node) and _observed(node) and name not in known}


def _samples(trace: Trace) -> list[tuple[str, Node]]:
    return [(name, node) for name, node in trace.nodes.items() if node["type"] == "sample"]


def _observed(node: Node) -> bool:
    return bool(node["is_observed"] or node["infer"].get("was_observed"))


def _is_data(node: Node) -> bool:
    # The value of a factor (and of no other site with something to say) is empty.
    return bool(node["value"].numel()) and not node["infer"].get("_deterministic")


def subsampled_plate(node: Node) -> str | None:
    """What is said of a site whose plate shows another part of the data in every run; ``None`` for others."""
    for frame in node["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            return f"it lies in plate {frame.name!r}, which subsamples {frame.size} of {frame.full_size} at every run"
    return None


class _Unobserved(UnconditionMessenger):
    """Draws observations instead of taking them as given; deterministic sites keep the values that they were given.

    ``poutine.uncondition`` alone draws deterministic sites too, which gives them the wrong shape in a plate.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


# -- the model at many draws ----------------------------------------------------------------------------


def _evaluate(
    target: UnconstrainedTarget,
    values: dict[str, Tensor],
    shapes: dict[str, torch.Size],
    read: Callable[[Trace, str], Tensor],
    model: Callable[[dict[str, Tensor]], Model] | None = None,
) -> dict[str, Tensor]:
    """Run the model at the draws, a chunk of them at a time, and read (n, *shape) for each name of ``shapes``.

    ``model`` maps the draws of a chunk to the model to run there, by default the target's own.
    """
    n = next(iter(values.values())).shape[0]

    def run(start: int, rows: int) -> Trace:
        part = {name: value[start : start + rows] for name, value in values.items()}
        return target.trace(part, None if model is None else model(part))

    return _gather(run, n, target.vectorize, shapes, read)


def _gather(
    run: Callable[[int, int], Trace],
    n: int,
    vectorize: bool,
    shapes: dict[str, torch.Size],
    read: Callable[[Trace, str], Tensor],
) -> dict[str, Tensor]:
    """What ``read`` finds in the traces of ``run(start, rows)``, which hold ``rows`` of the n draws each."""
    if not shapes:
        return {}
    size = max(1, _CHUNK // max(1, sum(shape.numel() for shape in shapes.values()))) if vectorize else 1
    parts: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for start in range(0, n, size):
        rows = min(size, n - start)
        trace = run(start, rows)
        for name, shape in shapes.items():
            parts[name].append(_rows(read(trace, name), rows, shape, name))
    return {name: torch.cat(values) for name, values in parts.items()}


def _value(trace: Trace, name: str) -> Tensor:
    value: Tensor = trace.nodes[name]["value"]
    return value


def _rows(value: Tensor, n: int, shape: torch.Size, name: str) -> Tensor:
    """A site's tensor from inside the plate over draws as (n, *shape); one that does not vary is repeated."""
    if value.numel() == n * math.prod(shape):
        return value.reshape(n, *shape)
    if value.numel() == math.prod(shape):
        return value.reshape(1, *shape).expand(n, *shape)
    raise ModelError(
        f"site {name!r} has shape {tuple(shape)} for one draw and {tuple(value.shape)} for {n} at once: make its "
        "arithmetic broadcast over leading dimensions, or use AdversarialELBO(vectorize_particles=False)"
    )


@torch.no_grad()
def deterministic(target: UnconstrainedTarget, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Deterministic sites {site: (n, *shape)} at draws {latent site: (n, *shape)}.

    Those that depend on a discrete latent which is summed out have no single value and are left out.
    """
    shapes = {name: node["value"].shape for name, node in deterministic_sites(single_run(target, values)).items()}
    if shapes and target.enumerated:
        trace = target.trace({name: value[:1] for name, value in values.items()})
        shapes = {name: shape for name, shape in shapes.items() if _value(trace, name).numel() == shape.numel()}
    return _evaluate(target, values, shapes, _value)


@torch.no_grad()
def log_joint(target: UnconstrainedTarget, z: Tensor) -> Tensor:
    """log p(x, z) (n,) of unconstrained draws (n, dim), with the constraints' Jacobian, some draws at a time."""
    trace = single_run(target, target.layout.constrain(z[:1])[0])
    size = sum(node["value"].numel() for _, node in _samples(trace))
    return torch.cat([target.log_prob(part) for part in z.split(max(1, _CHUNK // max(1, size)))])


# -- predictions ------------------------------------------------------------------------------------------


@torch.no_grad()
def predictions(
    target: UnconstrainedTarget, values: dict[str, Tensor], at: UnconstrainedTarget | None = None
) -> dict[str, Tensor]:
    """New observations {observed site: (n, *shape)} given draws {latent site: (n, *shape)}.

    Discrete latents that the target sums out are drawn too: inside a plate given the continuous ones, as they
    belong to the new observations; outside of all plates given the continuous ones and the fit's observations.

    Args:
        target: the model with the arguments of the fit.
        values: draws of its latent sites.
        at: the same with the arguments to predict at; by default those of the fit.

    Raises:
        ModelError: with the arguments of ``at`` a latent site has another shape than in the fit.
    """
    at = target if at is None else at
    at = at.with_arguments(at.args, at.kwargs)
    at.enumerated = []
    free: Model = _Unobserved()(target.model)
    once = single_run(at, values, free)
    shapes = {
        name: node["value"].shape
        for name, node in _samples(once)
        if name not in values and name not in target.enumerated and _is_data(node)
    }
    shared = [name for name in target.enumerated if name in once.nodes and not once.nodes[name]["cond_indep_stack"]]
    if not shared:
        return _evaluate(at, values, shapes, _value, lambda part: free)
    return _evaluate(at, values, shapes, _value, lambda part: poutine.condition(free, _discrete(target, part, shared)))


@torch.no_grad()
def expectations(target: UnconstrainedTarget, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of each observed site's distribution {site: shape}, averaged over draws {latent site: (n, *shape)}.

    Sites whose distribution has no mean (a categorical one, say) are left out.
    """
    once = single_run(target, values)
    shapes = {}
    for name, node in observed_sites(once, values).items():
        with suppress(NotImplementedError, AttributeError):
            shapes[name] = node["fn"].mean.shape
    draws = _evaluate(target, values, shapes, lambda trace, name: trace.nodes[name]["fn"].mean)
    return {name: value.mean(0) for name, value in draws.items()}


def _discrete(target: UnconstrainedTarget, part: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """A draw of these discrete sites given the continuous latents and the observations, for each draw of the part."""
    if target.vectorize:
        placed = target.layout.in_plates(part, target.max_plate_nesting)
        model = _in_plate(target, target.model, next(iter(part.values())).shape[0])
    else:
        placed = {name: value[0] for name, value in part.items()}
        model = target.model
    inferred = infer_discrete(poutine.condition(model, placed), first_available_dim=-target.max_plate_nesting - 2)
    with poutine.block():
        trace = poutine.trace(inferred).get_trace(*target.args, **target.kwargs)
    return {name: trace.nodes[name]["value"] for name in names}


def _in_plate(target: UnconstrainedTarget, model: Model, n: int) -> Model:
    plated: Model = pyro.plate(PARTICLES, n, dim=-target.max_plate_nesting - 1)(model)
    return plated


@torch.no_grad()
def prior_run(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    """Trace of one run of the model without its observations: a joint draw of latents and data, factors ignored.

    Raises:
        NotImplementedError: a site has a distribution that can't be drawn from (an improper prior).
    """
    with poutine.block():
        return prune_subsample_sites(poutine.trace(_Unobserved()(model)).get_trace(*args, **kwargs))


@torch.no_grad()
def prior_draws(target: UnconstrainedTarget, n: int, device: torch.device | None = None) -> dict[str, Tensor]:
    """n draws of the model without its observations {site: (n, *shape)}, all sites; factors are ignored.

    ``device`` is where tensors are made that the model gives no device, as there are no draws that they could follow.

    Raises:
        NotImplementedError: a site has a distribution that can't be drawn from (an improper prior).
    """
    free: Model = _Unobserved()(target.model)
    where: AbstractContextManager[Any] = nullcontext() if device is None else device
    with where:
        once = prior_run(target.model, target.args, target.kwargs)
    shapes = {name: node["value"].shape for name, node in _samples(once) if node["value"].numel()}

    def run(start: int, rows: int) -> Trace:
        model = _in_plate(target, free, rows) if target.vectorize else free
        with poutine.block(), where:
            return poutine.trace(model).get_trace(*target.args, **target.kwargs)

    return _gather(run, n, target.vectorize, shapes, _value)


# -- log-likelihoods ----------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood(
    target: UnconstrainedTarget, values: dict[str, Tensor], names: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Log-likelihood of every observation of these sites, {site: (n, *plates)}, at draws of the latents.

    It is that of the observation itself: a weight from ``poutine.scale`` does not enter, and a masked
    observation has 0. A discrete latent that is summed out is summed out of each observation by itself, which is
    possible where the two lie in the same plates and no other site depends on it.

    Returns:
        The log-likelihoods, and for each site that has none the reason.
    """
    once = single_run(target, values)
    once.compute_log_prob()
    summands: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    probe = target.trace({name: value[:1] for name, value in values.items()}) if target.enumerated else None
    for name in names:
        found = [name] if probe is None else _summands(probe, name, target)
        if isinstance(found, str):
            left_out[name] = found
        else:
            summands[name] = found
    shapes = {name: once.nodes[name]["log_prob"].shape for name in summands}

    def read(trace: Trace, name: str) -> Tensor:
        total = reduce(torch.add, (_pointwise(trace.nodes[site]) for site in summands[name]))
        beyond = range(total.dim() - target.max_plate_nesting - 1)
        return total.logsumexp(tuple(beyond)) if len(beyond) else total

    return _evaluate(target, values, shapes, read), left_out


def _pointwise(node: Node) -> Tensor:
    term: Tensor = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
    return term


def _summands(trace: Trace, name: str, target: UnconstrainedTarget) -> list[str] | str:
    """The sites whose log-densities have to be added before discrete latents are summed out of ``name``'s.

    These are the site itself and the enumerated ones that it depends on. A string says why there are none.
    """
    outermost = -target.max_plate_nesting - 1

    def dims(node: Node) -> set[int]:
        term = node["unscaled_log_prob"]
        return {dim for dim in range(-term.dim(), outermost) if term.shape[dim] > 1}

    nodes = dict(_samples(trace))
    joined, members = dims(nodes[name]), {name}
    while grown := {other for other, node in nodes.items() if other not in members and dims(node) & joined}:
        members |= grown
        joined = joined.union(*(dims(nodes[other]) for other in grown))
    discrete = [other for other in nodes if other in members and other in target.enumerated]
    others = sorted(members - set(discrete) - {name})
    if others:
        return f"the discrete latents {discrete} are shared with {others}"
    plates = {other: {f.name for f in nodes[other]["cond_indep_stack"]} for other in members}
    wider = [other for other in discrete if plates[other] != plates[name]]
    if wider:
        return f"the discrete latents {wider} lie in other plates than it does"
    if len({nodes[other]["infer"]["_enumerate_dim"] for other in discrete}) < len(discrete):
        return f"the discrete latents {discrete} share a dimension (pyro.markov)"
    return [name, *discrete]
