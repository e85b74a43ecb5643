"""Targets: a user's own log-density as a model, and any model as a batched log-density on unconstrained space."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from opt_einsum import shared_intermediates
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor
from torch.distributions import biject_to, constraints

from .arguments import flag, function, integers
from .errors import ModelError
from .layout import LatentLayout
from .rng import seeded
from .supports import check_name, checked_init, checked_sites

Model = Callable[..., Any]
PARTICLES = "_avbvi_particles"
#: Largest scale of starting points in the unconstrained coordinates of a constrained site.
MOST_CONSTRAINED_SCALE = 5.0


class LogDensity:
    """A user's unnormalised log-density as a Pyro model.

    Args:
        log_prob: maps values (*batch, *event_shape), or a dict of them when ``sites`` is given, to
            log-densities (*batch,), with respect to the values' own coordinates.
        event_shape: shape of one draw of the single real-valued site ``name``.
        sites: instead of ``event_shape``, name -> (support, shape) with supports from
            ``torch.distributions.constraints``; shape is the whole shape of the site's value.
        init: where optimisation starts: a tensor of ``event_shape``, or a dict of them.
        batched: ``False`` if ``log_prob`` takes one draw at a time; it is then run through ``torch.vmap``.
        name: name of the single site.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: neither or both of ``event_shape`` and ``sites``, an ``init`` of the wrong shape, or a support
            that no bijection maps to, or that has no values of the shape.
        ModelError: (when called) ``log_prob`` fails, changes its argument, or returns a wrong type, shape or dtype.
    """

    def __init__(
        self,
        log_prob: Callable[[Any], Tensor],
        event_shape: tuple[int, ...] | None = None,
        sites: Mapping[str, tuple[constraints.Constraint, tuple[int, ...]]] | None = None,
        *,
        init: Tensor | Mapping[str, Tensor] | None = None,
        batched: bool = True,
        name: str = "z",
    ) -> None:
        if (event_shape is None) == (sites is None):
            raise ValueError("give either event_shape (one real-valued site) or sites (name -> (support, shape))")
        function("log_prob", log_prob)
        check_name("name", name)
        self.log_prob = log_prob
        self.single = name if sites is None else None
        self.batched = flag("batched", batched)
        if sites is None:
            assert event_shape is not None
            sites = {name: (constraints.real, integers("event_shape", event_shape, "dimensions"))}
        self.sites = checked_sites(sites)
        self.init = checked_init(init if self.single is None or init is None else {name: init}, self.sites)

    def __call__(self) -> dict[str, Tensor]:
        """Run as a Pyro model: one site per entry of ``sites`` and the factor ``log_density``."""
        values = {
            site: pyro.sample(site, _Proposal(support, torch.Size(shape)))
            for site, (support, shape) in self.sites.items()
        }
        # As pyro.factor, but without validation: what to do about NaN is decided by those who see all draws.
        density = dist.Unit(self.evaluate(values), validate_args=False)
        pyro.sample("log_density", density, obs=density.sample(), infer={"is_auxiliary": True})
        return values

    def evaluate(self, values: dict[str, Tensor]) -> Tensor:
        """log_prob at values (*batch, *shape), checked for type, shape and dtype."""
        site, (_, shape) = next(iter(self.sites.items()))
        first = values[site]
        batch = first.shape[: first.dim() - len(shape)]
        argument: Any = values if self.single is None else values[self.single]
        versions = [value._version for value in values.values()]
        try:
            if not self.batched:
                result = self._mapped(argument, len(batch))
            elif batch:
                result = self.log_prob(argument)
            else:
                # A single draw goes in as a batch of one, so that functions may index z[:, 0].
                result = self.log_prob(_unsqueezed(argument))
                result = result.squeeze(0) if isinstance(result, Tensor) and result.shape == (1,) else result
        except ModelError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            shape = (*(batch or (1,)), *shape) if self.batched else shape
            what = f"values of shape {tuple(shape)}" if self.single else f"a dict of the sites {sorted(values)}"
            hint = (
                "draws along the first dimension; for a function of one draw pass batched=False"
                if self.batched
                else "one draw at a time, through torch.vmap, which allows no item() and no if"
            )
            raise ModelError(
                f"log_prob failed on {what} ({type(error).__name__}: {error}). With batched={self.batched} it "
                f"gets {hint}"
            ) from error
        if versions != [value._version for value in values.values()]:
            raise ModelError("log_prob changes its argument in place; work on a copy, or use operations without _")
        if not isinstance(result, Tensor):
            raise ModelError(f"log_prob must return a torch.Tensor, found {type(result).__name__}")
        if result.shape != batch:
            raise ModelError(
                f"log_prob must return shape {tuple(batch)} for values of shape {tuple(first.shape)} "
                f"(one number per draw), found {tuple(result.shape)}"
                + ("; for a function of one draw pass batched=False" if self.batched else "")
            )
        if result.dtype != first.dtype:
            raise ModelError(
                f"log_prob must return dtype {first.dtype}, that of its argument, found {result.dtype}; "
                "convert the data that it closes over"
            )
        return result

    def _mapped(self, argument: Any, batch_dims: int) -> Tensor:
        function = self.log_prob
        for _ in range(batch_dims):
            function = torch.vmap(function)
        return function(argument)


def _unsqueezed(argument: Any) -> Any:
    return {k: v[None] for k, v in argument.items()} if isinstance(argument, dict) else argument[None]


class _Proposal(dist.TorchDistribution):
    """A place to draw a latent value from whose own density does not count (log_prob is 0).

    It plays the part of ``ImproperUniform``, which can't be drawn from, for LogDensity's sites.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(
        self,
        support: constraints.Constraint,
        event_shape: torch.Size,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self._support = support
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        missing = len(self.event_shape) - self._support.event_dim
        return constraints.independent(self._support, missing) if missing else self._support

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> _Proposal:
        return _Proposal(self._support, self.event_shape, torch.Size(batch_shape))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        transform = biject_to(self._support)
        shape = torch.Size(sample_shape) + self.batch_shape + transform.inverse_shape(self.event_shape)
        return transform(torch.randn(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])


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
        self.kwargs = kwargs or {}
        self.vectorize = vectorize
        # Seeded, so that a resumed run draws what an uninterrupted one does.
        with torch.no_grad(), seeded(0):
            trace = prune_subsample_sites(poutine.block(poutine.trace(model).get_trace)(*args, **self.kwargs))
        nodes = [n for n in trace.nodes.values() if n["type"] == "sample"]
        dims = [f.dim for n in nodes for f in n["cond_indep_stack"] if f.vectorized]
        self.max_plate_nesting = -min(dims) if dims else 0
        self.has_parameters = any(n["type"] == "param" for n in trace.nodes.values())
        known = {site.name for site in layout.sites}
        latent = {n["name"]: n for n in nodes if not n["is_observed"]}
        self.enumerated = [n for n, node in latent.items() if node["infer"].get("enumerate") == "parallel"]
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
        return other

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(x, z) with the constraints' Jacobian: (n, dim) -> (n,), differentiable in z."""
        if not self.vectorize and z.shape[0] != 1:
            return torch.cat([self.log_prob(row[None]) for row in z])
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
        except ModelError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            if not self.vectorize:
                raise
            last = [n for n, node in traced.trace.nodes.items() if node["type"] == "sample"][-1:]
            raise ModelError(
                f"the model failed when run for many draws at once inside an outer plate (last site reached: "
                f"{last[0] if last else 'none'!r}): {error}. If it runs for one draw, make its arithmetic broadcast "
                "over leading dimensions, or use AdversarialELBO(vectorize_particles=False)"
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


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
