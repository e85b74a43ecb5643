"""What data, model and guide have to be for a joint loss; it is asked before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor, nn

from ..arguments import found
from ..errors import ModelError
from ..guides import AVBGuide
from ..model_state import modules_of

if TYPE_CHECKING:
    from .draws import JointDraws


def data_of(args: tuple[Any, ...]) -> Tensor:
    """The data: the first argument.

    Raises:
        TypeError: it is no tensor of floating-point numbers, or there is none.
        ValueError: it has no rows, or holds no numbers.
    """
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        what = found(args[0]) if args else "no positional argument"
        raise TypeError(
            "the first argument of model and guide must be the data, a tensor of floating-point numbers (B, ...), "
            f"found {what}"
        )
    if args[0].dim() < 2 or not args[0].numel():
        raise ValueError(f"x must have shape (B, *shape of a datum), none of them 0, found {tuple(args[0].shape)}")
    return args[0]


def check_data(x: Tensor, width: int | None = None) -> None:
    """Raise unless data (B, *shape) are finite and, if ``width`` is given, have that many numbers each.

    Raises:
        ValueError: they are not, or have not.
    """
    if width is not None and x[0].numel() != width:
        raise ValueError(
            f"x must have {width} numbers for each datum, as in the first call, found {x[0].numel()}: shape "
            f"{tuple(x.shape)}; make a new loss for other data"
        )
    if not bool(torch.isfinite(x).all()):
        nan = int(torch.isnan(x).sum())
        bad = nan or int(torch.isinf(x).sum())
        raise ValueError(
            f"x must be finite, found {'NaN' if nan else 'infinite numbers'} in {bad} of {x.numel()} places; "
            "adversaries see all of x, so that a mask does not help: remove these data, or fill them in"
        )


def check_observed(name: str, node: Any, x: Tensor) -> None:
    """Raise unless an observed site's distribution can have data of this shape, in this range.

    Whether numbers are 0 or 1 is left to Pyro's validation: intensities are at times taken for probabilities.
    """
    fn, value = node["fn"], node["value"]
    event = fn.event_shape
    if tuple(value.shape[value.dim() - len(event) :]) != tuple(event):
        raise ModelError(
            f"site {name!r} has data of shape {tuple(value.shape)}, but its distribution gives data of event shape "
            f"{tuple(event)}; make the decoder's output as wide as a datum"
        )
    if not fn.support.is_discrete and not bool(fn.support.check(value).all()):
        raise ModelError(
            f"site {name!r} has data between {float(x.min()):.4g} and {float(x.max()):.4g}, some of them outside the "
            f"support of its {name_of(fn)}, {fn.support}; scale the data (images of 256 levels to [0, 1], say), or "
            "take another likelihood"
        )


def check_guide(draws: JointDraws) -> None:
    """Raise unless the guide runs on the data and gives finite draws of the model's latents, inside their supports.

    Raises:
        ModelError: it does not; the message names the site.
    """
    try:
        trace = draws.guide_trace
    except ModelError:
        raise
    except (ArithmeticError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ModelError(
            f"the guide failed on data of shape {tuple(draws.args[0].shape)}: {str(error).partition(chr(10))[0]}. Call "
            "it by itself with the same arguments to see where"
        ) from error
    z = draws.encoded.z  # refuses other shapes
    for site in draws.reading.layout.sites:
        fn, value = trace.nodes[site.name]["fn"], trace.nodes[site.name]["value"]
        if not fn.has_rsample and not value.requires_grad:
            raise ModelError(
                f"the guide's site {site.name!r} has a {name_of(fn)}, which has no rsample, so that the guide gets no "
                "gradient; use a reparameterised distribution"
            )
        if bool(torch.isnan(value).any()):
            raise ModelError(f"the guide's site {site.name!r} gives NaN; check its networks and scales")
        if not bool(site.support.check(value).all()):
            raise ModelError(
                f"the guide's site {site.name!r} gives values outside the support of the model's, {site.support}; use "
                "a distribution with the same support"
            )
    if not bool(torch.isfinite(z).all()):
        raise ModelError(
            f"the guide's draws of {sorted(draws.reading.latents)} are infinite in unconstrained coordinates; check "
            "its networks and scales"
        )


def refuse_implicit(guide: Any) -> None:
    """Raise a ModelError if a guide is or holds an AVBGuide, whose sampler has no density."""
    unwrapped = poutine.unwrap(guide)
    held = [m for module in modules_of(unwrapped).values() for m in module.modules()]
    if isinstance(unwrapped, nn.Module) and any(isinstance(m, AVBGuide) for m in held):
        raise ModelError(
            "guide is an AVBGuide, whose sampler has no density; this loss evaluates log q(z | x) at latents that the "
            "model drew. Use a Gaussian or an invertible flow as encoder, or ReconstructionELBO, which takes any"
        )


def check_density(trace: Any, latents: set[str]) -> None:
    """Raise a ModelError if a guide's trace has a latent without a density, or sites to be integrated over."""
    sites = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    for name in sorted(latents):
        if isinstance(_innermost(sites[name]["fn"]), Delta):
            raise ModelError(
                f"the guide's site {name!r} is a Delta, a point without a density, but this loss evaluates "
                "log q(z | x) at latents that the model drew; use a Gaussian, or ReconstructionELBO, which needs none"
            )
    others = sorted(set(sites) - latents)
    if others:
        raise ModelError(
            f"the guide has sites {others} beside the model's latents {sorted(latents)}, so that the density q(z | x) "
            "is an integral over them; use a guide with a density of its own, or ReconstructionELBO, which needs none"
        )


def name_of(fn: Any) -> str:
    """What a distribution is called, without what makes its dimensions events."""
    return type(_innermost(fn)).__name__


def _innermost(fn: Any) -> Any:
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn
