"""Checks of a model before it is fitted: each refusal names the site and the remedy."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from .arguments import memory
from .errors import ModelError
from .remedies import innermost, remedy, shortened
from .rng import seeded
from .samplers import Sampler
from .targets import Model, UnconstrainedTarget

#: Unconstrained coordinates up to this size are where a density has to be a number.
NEAR = 30.0
#: Points from which optimisation starts.
SEARCHES = 32
#: A gradient counts as wrong only if it is off by this share of the difference quotient, wherever that is reliable.
WRONG_GRADIENT = 0.2


def check_latents(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Check the model's latent sites; returns the names of those to be enumerated.

    The model runs three times on the prior: latents that come and go, or change shape, are dynamic structure.
    """
    runs = []
    with torch.no_grad(), seeded(0):
        for _ in range(3):
            trace = prune_subsample_sites(_run(model, args, kwargs))
            runs.append(dict(trace.iter_stochastic_nodes()))
    _check_data(trace)
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
        if not node["value"].numel():
            raise ModelError(
                f"site {name!r} has no elements (shape {tuple(node['value'].shape)}); leave it out of the model, or "
                "give it the size that was meant"
            )
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


def _run(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """The model's trace on its prior; what fails there is reported with the last site that was reached."""
    traced = poutine.trace(model)
    try:
        trace: poutine.Trace = poutine.block(traced.get_trace)(*args, **kwargs)
    except ModelError as error:
        refusal = innermost(error)
        raise refusal from refusal.__cause__
    except NotImplementedError as error:
        raise ModelError(
            f"the model has a site that can't be drawn from ({shortened(error)}), and a fit starts from draws of the "
            "prior; give the site a proper prior, or write the density as a LogDensity"
        ) from error
    except (ArithmeticError, RuntimeError, ValueError, IndexError) as error:
        last = [name for name, node in traced.trace.nodes.items() if node["type"] == "sample"][-1:]
        advice = remedy(error, args, kwargs) or "Call it by itself with the same arguments to see where"
        raise ModelError(
            f"the model failed when run on draws of its prior (last site reached: {last[0] if last else 'none'!r}): "
            f"{shortened(error)}. {advice}"
        ) from error
    return trace


def _check_data(trace: poutine.Trace) -> None:
    """Raise if an observed site holds NaN, or infinities that its distribution gives no density."""
    for name, node in trace.nodes.items():
        value = node.get("value")
        if node["type"] != "sample" or not node["is_observed"] or node["infer"].get("_deterministic"):
            continue
        if not isinstance(value, Tensor):
            raise ModelError(
                f"site {name!r}: the observed data must be a torch.Tensor, found {type(value).__name__}; convert them "
                "with torch.as_tensor"
            )
        if node["mask"] is not None or isinstance(node["fn"], MaskedDistribution):
            continue  # what is masked may be missing
        if not value.is_floating_point() or not value.numel() or bool(torch.isfinite(value).all()):
            continue
        nan = int(torch.isnan(value).sum())
        if nan or not bool(torch.isfinite(node["fn"].log_prob(value)).all()):
            what = f"NaN in {nan}" if nan else f"infinite values in {int(torch.isinf(value).sum())}"
            raise ModelError(
                f"site {name!r}: the observed data have {what} of {value.numel()} places; remove them, make them "
                "latent, or mask them (poutine.mask, and a finite number in their place)"
            )


def check_sampler(sampler: Sampler, base_dim: int, like: Tensor, *, context: Tensor | None = None) -> None:
    """Raise unless the sampler gives finite draws with the dtype of ``like`` and a gradient.

    Their shape is (2, base_dim), and (2, B, base_dim) of a context (B, context_dim).
    """
    trainable = [p for p in sampler.parameters() if p.requires_grad]
    batch = (2,) if context is None else (2, len(context))
    with torch.enable_grad(), seeded(0):
        noise = sampler.sample_noise(torch.Size(batch), like=like)
        shape = f"{tuple(noise.shape)}" if isinstance(noise, Tensor) else type(noise).__name__
        if context is not None:
            shape += f" and context {tuple(context.shape)}"
        try:
            draws = sampler(noise) if context is None else sampler(noise, context)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"sampler failed on noise of shape {shape}: {error}") from error
    if not isinstance(draws, Tensor):
        raise TypeError(f"sampler must return a torch.Tensor, found {type(draws).__name__}")
    if tuple(draws.shape) != (*batch, base_dim):
        raise ValueError(
            f"sampler must map noise {shape} to {(*batch, base_dim)}, one coordinate per "
            f"unconstrained latent of the model; found {tuple(draws.shape)}"
        )
    if draws.dtype != like.dtype:
        raise ValueError(
            f"sampler must return dtype {like.dtype}, that of the model's latents, found {draws.dtype}; make its "
            "noise and constants with dtype=like.dtype"
        )
    if not bool(torch.isfinite(draws).all()):
        raise ValueError("sampler must return finite draws, found NaN or infinite ones; check its weights and scale")
    if trainable and not (draws.requires_grad and _has_gradient(draws, trainable)):
        raise ValueError(
            "sampler's draws have no gradient to any of its parameters, so that it could not be trained: found draws "
            "that are cut off from them; write it in torch throughout, without detach(), no_grad() or item()"
        )


def _has_gradient(draws: Tensor, parameters: list[nn.Parameter]) -> bool:
    gradients = torch.autograd.grad(draws.square().sum(), parameters, allow_unused=True)
    return any(g is not None for g in gradients)


def check_name_is_free(name: str, guide: nn.Module) -> None:
    """Raise if Pyro's parameter store has entries of another guide under this name."""
    own = {id(p) for p in guide.parameters()}
    for key, value in pyro.get_param_store().named_parameters():
        if key.startswith(f"{name}.") and id(value) not in own:
            raise ValueError(
                f"name={name!r} is already used by another guide in Pyro's parameter store, whose "
                "parameters would be trained instead; choose another name or call pyro.clear_param_store()"
            )


def check_store(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise if Pyro's store has another module's parameters under the names of the model's: SVI would train those."""
    with torch.no_grad(), seeded(0), poutine.block(), poutine.trace(param_only=True) as capture:
        model(*args, **kwargs)
    for name, site in capture.trace.nodes.items():
        given = site["args"][1] if len(site["args"]) > 1 else None
        if isinstance(given, nn.Parameter) and site["value"].unconstrained() is not given:
            module = name.partition("$$$")[0]
            raise ModelError(
                f"the module {module!r} of this model is not the one that Pyro's parameter store knows by that name: "
                "SVI would train the other one and leave this model's as it is. Call pyro.clear_param_store() before "
                f"the second fit, or give pyro.module({module!r}, ...) another name"
            )


def check_size(dim: int) -> None:
    """Raise if the search for starting points, which takes matrices (dim, dim), can't fit in memory."""
    needed, there = 4.0 * SEARCHES * float(dim) ** 2, memory()
    if needed > there:
        raise ModelError(
            f"the model has {dim} unconstrained latent coordinates: the matrices of its starts take "
            f"{needed / 2**30:.3g} GiB, more than this machine's {there / 2**30:.3g}; fit fewer latents at a time"
        )


def check_plates(trace: poutine.Trace) -> None:
    """Raise if a latent site of a prototype trace lies in a subsampled plate."""
    for name, node in trace.iter_stochastic_nodes():
        for frame in node["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ModelError(
                    f"site {name!r} lies in plate {frame.name!r}, which subsamples {frame.size} of "
                    f"{frame.full_size}: its values would be taken for global latents. Use the whole plate, or "
                    "AVBGuide(sampler=...) with a sampler that takes the data as context"
                )


def check_density(target: UnconstrainedTarget, like: Tensor) -> None:
    """Raise if the log-density is NaN or +inf where optimisation starts, finite nowhere, or mixes draws.

    ``like`` gives dtype and device.
    """
    with torch.no_grad():
        points = target.starting_points(32).to(like)
        value = target.log_prob(points)
        _check_rows(target, points, value)
    check_gradient(target, points)
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


def check_gradient(target: UnconstrainedTarget, points: Tensor) -> None:
    """Raise if differences of the log-density contradict its gradient, site by site, near points (n, dim).

    Only points count at which central differences with two steps agree, far above rounding: a density with kinks or
    noise is let pass, one that is detached from a site is not.
    """
    sites = target.layout.sites
    points = points[points.abs().amax(-1) <= NEAR].detach()
    if not len(points):
        return
    # Each point is moved along one site; each site gets two points at least, so that one does not decide.
    count = max(2 * len(sites), len(points) if target.vectorize else 4)
    points = points[torch.arange(count, device=points.device) % len(points)]
    of_site = torch.arange(count, device=points.device) * len(sites) // count
    with seeded(0):
        direction = torch.randn(points.shape).to(points)
    for i, site in enumerate(sites):
        direction[of_site == i, : site.start] = 0.0
        direction[of_site == i, site.stop :] = 0.0
    step = 1e-2 * (1.0 + points.abs().amax(-1, keepdim=True))
    h = step * torch.nn.functional.normalize(direction, dim=-1)

    def at(z: Tensor) -> Tensor:
        with pyro.validation_enabled(False), seeded(0):
            return target.log_prob(z)

    with torch.enable_grad():
        z = points.clone().requires_grad_()
        value = at(z)
        gradient = torch.autograd.grad(value.sum(), z, allow_unused=True)[0] if value.requires_grad else None
    slope = torch.zeros_like(value) if gradient is None else (gradient * h).sum(-1) / step[:, 0]
    with torch.no_grad():
        near, far = ((at(points + k * h) - at(points - k * h)) / (2.0 * k * step[:, 0]) for k in (1.0, 2.0))
    rounding = 1e3 * torch.finfo(points.dtype).eps * (1.0 + value.detach().abs()) / step[:, 0]
    finite = torch.isfinite(value) & torch.isfinite(near) & torch.isfinite(far) & torch.isfinite(slope)
    reliable = finite & ((near - far).abs() < 0.1 * near.abs()) & (near.abs() > rounding)
    wrong = reliable & ((slope - near).abs() > WRONG_GRADIENT * near.abs())
    for i, site in enumerate(sites):
        here = wrong & (of_site == i)
        if int(here.sum()) < 2 or 2 * int(here.sum()) <= int((reliable & (of_site == i)).sum()):
            continue
        example = int(here.nonzero()[0])
        raise ModelError(
            f"the log-density's gradient is wrong: along site {site.name!r} it is {float(slope[example]):.4g}, but "
            f"differences of the log-density give {float(near[example]):.4g}. Something cuts the graph between the two;"
            " write the model in torch throughout, without detach(), no_grad(), item(), int() or NumPy"
        )


def _check_rows(target: UnconstrainedTarget, points: Tensor, value: Tensor) -> None:
    """Raise if a draw's log-density depends on the other draws in its batch (a sum over the wrong dimension)."""
    # The last ones lie farthest out: near each other, draws show little of what they share.
    finite = (torch.isfinite(value) & (points.abs().amax(-1) <= NEAR)).nonzero().squeeze(-1)[-2:]
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
