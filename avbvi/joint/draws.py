"""Draws of the two joint laws of data and latents: q(x) q(z | x) of data and encoder, p(z) p(x | z) of the model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from ..amortised.layout import Frame, PlateLayout, data_frame
from ..amortised.target import Reached, StopAfter
from ..checks import check_latents
from ..errors import ModelError
from ..rng import seeded
from ..targets import Model
from .checks import check_data, check_density, check_observed, data_of, name_of, refuse_implicit


class Pairs(NamedTuple):
    """Pairs of a datum and its latents.

    Attributes:
        x: data (B, n), flattened.
        z: latents (B, dim), unconstrained.
    """

    x: Tensor
    z: Tensor


class LatentVariableModel:
    """What the joint losses know of a Pyro model: one plate over data, its latents, the one observed site in it.

    Args:
        model: the model; its first argument is the data, which are the observed site's value.
        args: positional arguments of a first call.
        kwargs: keyword arguments of it.

    Attributes:
        layout: one datum's latent sites.
        observed: name of the observed site.

    Raises:
        TypeError: the first argument is no tensor of floating-point numbers.
        ModelError: latents outside of the plate, in several or discrete; no observed site in it, or several; or the
            first argument is not what is observed.
    """

    def __init__(self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = model
        x = data_of(args)
        check_data(x)
        #: Numbers of a datum.
        self.width: int = x[0].numel()
        enumerated = check_latents(model, args, kwargs)
        if enumerated:
            raise ModelError(f"sites {enumerated} are discrete latents, which have no reparameterised encoder")
        with torch.no_grad(), seeded(0), poutine.block():
            trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
        frame = data_frame(trace)
        self.layout: PlateLayout = PlateLayout.from_trace(trace)
        seen = [name for name, node in trace.nodes.items() if _is_data(node) and _inside(node, frame)]
        if len(seen) != 1:
            raise ModelError(
                f"the model must have one observed site in plate {frame.name!r}, the data; found "
                f"{seen or 'none'}. Join several into one, of which each datum's values are the event"
            )
        self.observed: str = seen[0]
        there = trace.nodes[self.observed]["value"]
        same = len(x) == frame.size and x.numel() == there.numel()
        if not same or not bool((x.flatten() == there.flatten().to(x)).all()):
            raise ModelError(
                f"site {self.observed!r} must observe the model's first argument, whose place simulated data take when "
                f"the encoder is asked about them: a tensor with one row for each of the {frame.size} data of plate "
                f"{frame.name!r}; the argument has shape {tuple(x.shape)}, the site {tuple(there.shape)}"
            )
        check_observed(self.observed, trace.nodes[self.observed], x)

    @property
    def latents(self) -> set[str]:
        """Names of the latent sites."""
        return {site.name for site in self.layout.sites}


class JointDraws:
    """One minibatch's draws of both joint laws; what is not asked for is not drawn.

    Draws carry gradients to guide and model (under ``no_grad`` none), as both are reparameterised.

    Args:
        reading: what is known of the model.
        guide: a Pyro guide of the model's latents.
        args: the positional arguments of model and guide.
        kwargs: their keyword arguments.
    """

    def __init__(self, reading: LatentVariableModel, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.reading: LatentVariableModel = reading
        self.guide = guide
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self._layout = reading.layout

    # -- encoder's side ---------------------------------------------------------------------------

    @cached_property
    def x(self) -> Tensor:
        """The data, flattened: (B, n)."""
        return data_of(self.args).flatten(1)

    @cached_property
    def encoded(self) -> Pairs:
        """x ~ q(x), z ~ q(z | x)."""
        return Pairs(self.x, self._vectors(self.guide_trace, "guide"))

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x | z) at the encoded pairs, (B,)."""
        return self._by_datum(self._replay.nodes[self.reading.observed])

    @cached_property
    def _replay(self) -> Any:
        replayed = poutine.replay(self.reading.model, trace=self.guide_trace)
        return prune_subsample_sites(poutine.trace(replayed).get_trace(*self.args, **self.kwargs))

    @cached_property
    def guide_trace(self) -> Any:
        """Pyro's trace of the guide.

        Raises:
            ModelError: the guide lacks a latent site of the model.
        """
        trace = prune_subsample_sites(poutine.trace(self.guide).get_trace(*self.args, **self.kwargs))
        missing = sorted(self.reading.latents - set(trace.nodes))
        if missing:
            raise ModelError(
                f"the guide has no sample site {', '.join(map(repr, missing))}, which the model has; name the guide's "
                "sites like the model's latents"
            )
        return trace

    # -- decoder's side ---------------------------------------------------------------------------

    @cached_property
    def decoded(self) -> Pairs:
        """z ~ p(z), x ~ p(x | z).

        Raises:
            ModelError: with gradients, the likelihood is not reparameterised.
        """
        trace, reading = self._simulation, self.reading
        node = trace.nodes[reading.observed]
        if torch.is_grad_enabled() and not node["fn"].has_rsample:
            raise ModelError(
                f"site {reading.observed!r} has a {name_of(node['fn'])}, which has no rsample: simulated data carry "
                "no gradient to the model. Use a reparameterised likelihood, such as a normal or a relaxed Bernoulli "
                "(RelaxedBernoulliLikelihood), or a loss that does not simulate"
            )
        return Pairs(node["value"].reshape(self.x.shape), self._vectors(trace, "model"))

    @cached_property
    def log_encoding(self) -> Tensor:
        """log q(z | x) at the decoded pairs, (B,), with gradients to guide, x and z.

        Raises:
            ModelError: the guide has no density, or none at latents that it did not draw itself.
        """
        pairs = self.decoded
        return self._encoding(pairs.x, {name: self._simulation.nodes[name]["value"] for name in self.reading.latents})

    def _encoding(self, x: Tensor, values: dict[str, Tensor]) -> Tensor:
        """log q(z | x) of the sites' values, (B,)."""
        refuse_implicit(self.guide)
        conditioned = poutine.condition(self.guide, data=values)
        try:
            trace = prune_subsample_sites(poutine.trace(conditioned).get_trace(*self._about(x), **self.kwargs))
            check_density(trace, self.reading.latents)
            terms = [self._by_datum(trace.nodes[name]) for name in self.reading.latents]
        except NotImplementedError as error:
            raise ModelError(
                f"the guide's density can't be evaluated at latents that the model drew ({error}); use one that can: a "
                "Gaussian, or a flow whose transforms have an inverse (couplings, autoregressive)"
            ) from error
        return torch.stack(terms).sum(0)

    @cached_property
    def _simulation(self) -> Any:
        model = poutine.uncondition(self.reading.model)
        return prune_subsample_sites(poutine.trace(model).get_trace(*self.args, **self.kwargs))

    @cached_property
    def prior(self) -> Tensor:
        """z ~ p(z), other draws than the decoded pairs', (B, dim)."""
        traced = poutine.trace(StopAfter(self.reading.latents)(self.reading.model))
        with suppress(Reached):
            traced.get_trace(*self.args, **self.kwargs)
        return self._vectors(prune_subsample_sites(traced.trace), "model")

    # -- products of marginals ----------------------------------------------------------------------

    @cached_property
    def model_marginals(self) -> Pairs:
        """x ~ p(x), z ~ p(z), independent."""
        return Pairs(self.decoded.x, self.prior)

    @cached_property
    def encoder_marginals(self) -> Pairs:
        """x ~ q(x), z ~ q(z), independent: each z goes with another datum than its own.

        Raises:
            ValueError: there is but one datum.
        """
        if len(self.x) < 2:
            raise ValueError("x must have at least two data, as each one's latents are paired with another's, found 1")
        order = torch.randperm(len(self.x), device=self.x.device)
        return Pairs(self.x[order.roll(1)], self.encoded.z[order])

    @cached_property
    def encoded_simulations(self) -> Pairs:
        """x ~ p(x), z ~ q(z | x)."""
        x = self.decoded.x
        trace = prune_subsample_sites(poutine.trace(self.guide).get_trace(*self._about(x), **self.kwargs))
        return Pairs(x, self._vectors(trace, "guide"))

    # -- densities at any pairs -----------------------------------------------------------------------

    def log_encoding_ratio_at(self, pairs: Pairs) -> Tensor:
        """log q(z | x) - log p(z) at any pairs, (B,), differentiable in the pairs alone.

        Raises:
            ModelError: the guide has no density, or none at latents that it did not draw itself.
        """

        def value(x: Tensor, z: Tensor) -> Tensor:
            values = self._values(z)
            traced = poutine.trace(StopAfter(self.reading.latents)(poutine.condition(self.reading.model, data=values)))
            with suppress(Reached):
                traced.get_trace(*self._about(x), **self.kwargs)
            prior = [self._by_datum(traced.trace.nodes[name]) for name in self.reading.latents]
            return self._encoding(x, values) - torch.stack(prior).sum(0)

        return _path_only(value, pairs)

    def _about(self, x: Tensor) -> tuple[Any, ...]:
        """The arguments, with other data (B, n)."""
        return (x.reshape(data_of(self.args).shape), *self.args[1:])

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites' values of vectors (B, dim)."""
        values, _ = self._layout.constrain(z)
        return {site.name: self._layout.in_plate(values[site.name], site) for site in self._layout.sites}

    # -- readings of traces ---------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """The factor N / B by which Pyro multiplies every term inside the plate."""
        trace = self._replay if "_replay" in self.__dict__ else self._simulation
        frames = trace.nodes[self.reading.observed]["cond_indep_stack"]
        (frame,) = [f for f in frames if f.name == self._layout.plate]
        return float((frame.full_size or frame.size) / frame.size)

    def _vectors(self, trace: Any, whose: str) -> Tensor:
        """The latent sites of a trace as unconstrained vectors (B, dim)."""
        parts = []
        for site in self._layout.sites:
            value = trace.nodes[site.name]["value"]
            if value.numel() != len(self.x) * site.shape.numel():
                raise ModelError(
                    f"the {whose}'s site {site.name!r} has shape {tuple(value.shape)}, not one draw of shape "
                    f"{tuple(site.shape)} for each of the {len(self.x)} data"
                )
            # A draw that is not finite is the guard's affair.
            free = biject_to(site.support).inv(value.reshape(len(self.x), *site.shape))
            parts.append(free.reshape(len(self.x), -1))
        return torch.cat(parts, -1)

    def _by_datum(self, node: Any) -> Tensor:
        """A site's log-density, summed over all but the data: (B,)."""
        log_prob = scale_and_mask(node["fn"].log_prob(node["value"]), mask=node["mask"])
        if log_prob.numel() != len(self.x):
            raise ModelError(
                f"site {node['name']!r} has a log-density of shape {tuple(log_prob.shape)}, not one number for each of "
                f"the {len(self.x)} data; declare what belongs to one datum as its event (to_event)"
            )
        return log_prob.reshape(len(self.x))


def _path_only(log_density: Callable[[Tensor, Tensor], Tensor], pairs: Pairs) -> Tensor:
    """A log-density of pairs (B,) with its gradient in them, but none in any parameter; first derivatives only."""
    if not (torch.is_grad_enabled() and (pairs.x.requires_grad or pairs.z.requires_grad)):
        with torch.no_grad(), poutine.block():
            return log_density(pairs.x, pairs.z)
    with torch.enable_grad(), poutine.block():
        leaves = [part.detach().requires_grad_() for part in pairs]
        value = log_density(*leaves)
        slopes = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    result = value.detach()
    for part, leaf, slope in zip(pairs, leaves, slopes, strict=True):
        if slope is not None:
            # Zero in value, the slope in gradient.
            result = result + (slope * (part - leaf.detach())).sum(-1)
    return result


def _is_data(node: Any) -> bool:
    return bool(node["type"] == "sample" and node["is_observed"] and not node["infer"].get("_deterministic"))


def _inside(node: Any, frame: Frame) -> bool:
    return any(f.name == frame.name for f in node["cond_indep_stack"])
