"""Targets: any model as a batched log-density on unconstrained space."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from .errors import ModelError
from .layout import LatentLayout
from .log_density import LogDensity
from .recording.densities import TracedDensity
from .remedies import BROADCAST, innermost, remedy, shortened
from .rng import seeded

Model = Callable[..., Any]
PARTICLES = "_avbvi_particles"
#: Largest scale of starting points in the unconstrained coordinates of a constrained site.
MOST_CONSTRAINED_SCALE = 5.0


class UnconstrainedTarget:
    """log p(x, z) of a Pyro model as a batched function of the unconstrained vector of its latents.

    All latent sites of the model must be in ``layout`` or be enumerated (``infer={"enumerate":
    "parallel"}``), in which case they are summed out.

    Args:
        model: the Pyro model.
        layout: its continuous latent sites.
        args, kwargs: the model's arguments.
        vectorize: run the model once inside an outer plate; ``False`` runs it once per draw.

    Raises:
        ModelError: a latent site is neither in the layout nor enumerated.
    """

    def __init__(
        self,
        model: Model,
        layout: LatentLayout,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        vectorize: bool = True,
    ) -> None:
        self.model = model
        self.layout = layout
        self.args = args
        self.kwargs: dict[str, Any] = kwargs or {}
        self.vectorize = vectorize
        #: Recordings of the log-density, while :meth:`trace_once` is in force.
        self.traced: TracedDensity | None = None
        # Seeded, so that a resumed run draws what an uninterrupted one does.
        with torch.no_grad(), seeded(0):
            trace = prune_subsample_sites(poutine.block(poutine.trace(model).get_trace)(*args, **self.kwargs))
        nodes = [n for n in trace.nodes.values() if n["type"] == "sample"]
        dims = [f.dim for n in nodes for f in n["cond_indep_stack"] if f.vectorized]
        self.max_plate_nesting: int = -min(dims) if dims else 0
        self.has_parameters: bool = any(n["type"] == "param" for n in trace.nodes.values())
        known = {site.name for site in layout.sites}
        latent = {n["name"]: n for n in nodes if not n["is_observed"]}
        self.enumerated: list[str] = [n for n, node in latent.items() if node["infer"].get("enumerate") == "parallel"]
        absent = {site.name: list(site.shape) for site in layout.sites
                  if site.name not in latent or latent[site.name]["value"].shape != site.shape}  # fmt: skip
        if absent:
            there = {name: list(node["value"].shape) for name, node in latent.items()}
            raise ModelError(
                f"the guide belongs to another model: its latent sites {absent} are not among this model's {there} "
                "(name, shape); make a new AVBGuide of this model"
            )
        missing = sorted(set(latent) - known - set(self.enumerated))
        if missing:
            raise ModelError(
                f"the model's latent sites {missing} are not covered by the guide; for discrete ones use "
                "pyro.infer.config_enumerate(model) with AdversarialELBO(TraceEnum_ELBO(...)), for others "
                "combine guides in an AutoGuideList"
            )

    def with_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UnconstrainedTarget:
        """The same target for other arguments of the model, without running it again."""
        other = copy.copy(self)
        other.args, other.kwargs = args, kwargs
        if not _same(other.args, self.args) or not _same(other.kwargs, self.kwargs):
            other.traced = None
        return other

    @contextmanager
    def traced_once(self) -> Iterator[TracedDensity]:
        """Context in which the log-density comes from recordings of the model, which is run anew only now and then.

        The arguments, and all else that the model reads, must not change meanwhile. Where it can't be recorded it is
        run as it is, and the :class:`~avbvi.recording.densities.TracedDensity` says why.
        """
        traced = self.traced = TracedDensity(self._log_prob)
        if not self.vectorize:
            traced.reason = "it is run draw by draw (vectorize_particles=False)"
        elif self.has_parameters:
            traced.reason = "it has parameters of its own, which are being learned"
        try:
            yield traced
        finally:
            traced.stop()  # there may be copies of this target for the same arguments
            self.traced = None

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x, z) with the constraints' Jacobian: (n, dim) -> (n,), differentiable in z."""
        return self._log_prob(z) if self.traced is None else self.traced(z)

    def _log_prob(self, z: Tensor) -> Tensor:
        if not self.vectorize and z.shape[0] != 1:
            return torch.cat([self._log_prob(row[None]) for row in z])
        values, log_det = self.layout.constrain(z)
        trace = self.trace(values)
        if self.enumerated:
            return self._summed_out(trace) + log_det
        return self._summed(trace, z.shape[0]) + log_det

    def trace(self, values: dict[str, Tensor], model: Model | None = None) -> poutine.Trace:
        """Trace of the model at values {site: (n, *shape)}, inside a plate over the n draws.

        Without ``vectorize`` a single draw is run as the model is written, outside any such plate.
        """
        model = self.model if model is None else model
        n = next(iter(values.values())).shape[0]
        if self.vectorize or n > 1:
            placed = self.layout.in_plates(values, self.max_plate_nesting)
            model = self._in_plate(model, n)
        else:
            placed = {site.name: values[site.name][0] for site in self.layout.sites}
        conditioned = poutine.condition(model, data=placed)
        if self.enumerated:
            conditioned = poutine.enum(conditioned, first_available_dim=-self.max_plate_nesting - 2)
        with poutine.block():
            trace = self._run(poutine.trace(conditioned))
        return prune_subsample_sites(trace)

    def _in_plate(self, model: Model, n: int) -> Model:
        plated: Model = pyro.plate(PARTICLES, n, dim=-self.max_plate_nesting - 1)(model)
        return plated

    def _run(self, traced: Any) -> poutine.Trace:
        try:
            trace: poutine.Trace = traced.get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        except ModelError as error:
            refusal = innermost(error)
            raise refusal from refusal.__cause__
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.vectorize:
                raise
            last = [n for n, node in traced.trace.nodes.items() if node["type"] == "sample"][-1:]
            raise ModelError(
                f"the model failed when run for many draws at once inside an outer plate (last site reached: "
                f"{last[0] if last else 'none'!r}): {shortened(error)}. "
                + (remedy(error, self.args, self.kwargs) or BROADCAST)
            ) from error
        return trace

    def _summed(self, trace: poutine.Trace, n: int, only: set[str] | None = None) -> Tensor:
        total: Tensor | None = None
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or (only is not None and name not in only):
                continue
            term = node["log_prob"]
            if term.dim() > self.max_plate_nesting:
                # Dimensions on the left of the plate: draws were broadcast against draws.
                beyond = term.shape[: -self.max_plate_nesting - 1]
                here = term.shape[-self.max_plate_nesting - 1]
                if beyond.numel() != 1 or here not in (1, n) or term[..., :1].numel() == 0:
                    raise ModelError(
                        f"site {name!r} has log-density of shape {tuple(term.shape)} for {n} draws at once: the model "
                        "does not broadcast over an outer plate. Make its arithmetic broadcast over leading dimensions "
                        "(take sums over dim=-1, index from the right), or use "
                        "AdversarialELBO(vectorize_particles=False)"
                    )
                term = term.reshape(here, -1).sum(-1)
            else:
                # A site outside the plate over draws does not depend on them.
                term = term.sum()
            total = term if total is None else total + term
        assert total is not None
        return total.expand(n)

    def _summed_out(self, trace: poutine.Trace) -> Tensor:
        """Sum over enumerated sites by Pyro's tensor contraction, keeping the plate over draws."""
        trace.pack_tensors()
        plates = trace.plate_to_symbol
        # Packing drops dimensions of size 1, and the contraction can't keep a plate that no factor has.
        frames = [f for n in trace.nodes.values() if n["type"] == "sample" for f in n["cond_indep_stack"]]
        single = any(f.name == PARTICLES and f.size == 1 for f in frames)
        factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for node in trace.nodes.values():
            if node["type"] == "sample" and not site_is_subsample(node):
                frames = [f for f in node["cond_indep_stack"] if f.vectorized]
                ordinal = frozenset(plates[f.name] for f in frames if not (single and f.name == PARTICLES))
                factors.setdefault(ordinal, []).append(node["packed"]["log_prob"])
        enumerated = set(trace.symbol_to_dim) - set(plates.values())
        kept = frozenset({plates[PARTICLES]}) if PARTICLES in plates and not single else frozenset()
        with shared_intermediates() as cache:
            total: Tensor = contract_to_tensor(factors, enumerated, target_ordinal=kept, cache=cache)
        return total

    def require_prior(self, who: str) -> None:
        """Raise if the model has no prior to draw from, on behalf of ``who``."""
        if isinstance(self.model, LogDensity):
            raise ModelError(f"{who} needs a prior, and a LogDensity has none; use GaussianContrast()")

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) of the latent sites alone: (*batch, dim) -> (*batch,)."""
        flat = z.reshape(-1, z.shape[-1])
        if not self.vectorize and flat.shape[0] != 1:
            return torch.cat([self.log_prior(row[None]) for row in flat]).reshape(z.shape[:-1])
        values, log_det = self.layout.constrain(flat)
        names = {site.name for site in self.layout.sites}
        return (self._summed(self.trace(values), flat.shape[0], names) + log_det).reshape(z.shape[:-1])

    @torch.no_grad()
    def sample_prior(self, n: int) -> Tensor:
        """n draws of the latent sites from the prior, as unconstrained vectors (n, dim)."""
        if self.vectorize:
            with poutine.block():
                trace = self._run(poutine.trace(self._in_plate(self.model, n)))
            values = {s.name: trace.nodes[s.name]["value"] for s in self.layout.sites}
        else:
            with poutine.block():
                traces = [poutine.trace(self.model).get_trace(*self.args, **self.kwargs) for _ in range(n)]
            values = {s.name: torch.stack([t.nodes[s.name]["value"] for t in traces]) for s in self.layout.sites}
        flat = {s.name: values[s.name].expand(n, *values[s.name].shape[1:]).reshape(n, *s.shape)
                for s in self.layout.sites}  # fmt: skip
        return self.layout.unconstrain(flat)[0]

    def starting_points(self, n: int) -> Tensor:
        """n points (n, dim) for optimisation: prior draws, or around ``init`` at several scales for a LogDensity."""
        if not isinstance(self.model, LogDensity):
            return self.sample_prior(n)
        center, scales = torch.zeros(self.layout.dim), torch.logspace(-2.0, 4.0, n)
        if self.model.init is not None:
            center = self.layout.unconstrain({k: v[None] for k, v in self.model.init.items()})[0][0]
            scales = torch.logspace(-2.0, 1.0, n)
        # Every other one at the scale that most users work in; the last one keeps the largest scale.
        scales[n % 2 :: 2] = scales[n % 2 :: 2].clamp_max(3.0)
        # The logarithm of a positive number, say, is not of the order of 10,000.
        most = torch.full((self.layout.dim,), math.inf)
        for site in self.layout.sites:
            if not _is_real(site.support):
                most[site.start : site.stop] = MOST_CONSTRAINED_SCALE
        return center + torch.minimum(scales[:, None], most) * torch.randn(n, self.layout.dim)

    def broad_draws(self, n: int) -> tuple[Tensor, Tensor]:
        """n draws (n, dim) of the prior, or of N(init, I) for a LogDensity, and their log-density (n,)."""
        if not isinstance(self.model, LogDensity):
            z = self.sample_prior(n)
            return z, self.log_prior(z)
        center = torch.zeros(self.layout.dim)
        if self.model.init is not None:
            center = self.layout.unconstrain({k: v[None] for k, v in self.model.init.items()})[0][0]
        noise = torch.randn(n, self.layout.dim, dtype=center.dtype, device=center.device)
        return center + noise, -0.5 * (noise.square().sum(-1) + self.layout.dim * math.log(2 * math.pi))


def _same(some: Any, others: Any) -> bool:
    """Whether two tuples or dicts of arguments hold the same objects."""
    if isinstance(some, dict):
        return some.keys() == others.keys() and all(value is others[key] for key, value in some.items())
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
