"""A Pyro model, or joint log-densities by datum, as what annealed chains run on, in parts that fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ..arguments import found, function, instance
from ..errors import ModelError
from ..log_density import LogDensity
from ..reference import unconstrained_target
from ..rng import seeded
from ..targets import Model, UnconstrainedTarget
from .chains import GROUP
from .densities import DatumDensity, GaussianStart, PriorDensity, PriorStart, StartDensity

#: Draws of a guide by datum, for its moments.
_GUIDE_DRAWS = 512
#: Covariance of a start taken from a guide, over the guide's own: encoders are often too narrow. More costs
#: temperatures: on digits with 16 latents the variance of log-weights was .07, .29 and 1.4 with factors 1, 1.5 and 2.5.
GUIDE_INFLATION = 1.2
#: A start by datum: a density for all data, or a function of the model's arguments that gives one for these data.
Start = StartDensity | Callable[..., StartDensity]


#: A model's positional and keyword arguments.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class GlobalDensity:
    """The joint log-density of a model without a plate over data, as a single datum.

    Args:
        target: the model on unconstrained space.
    """

    batch = 1

    def __init__(self, target: UnconstrainedTarget) -> None:
        self.target = target
        self.dim: int = target.layout.dim

    def log_joint(self, z: Tensor) -> Tensor:
        return self.target.log_prob(z.reshape(-1, self.dim)).reshape(z.shape[:-1])

    def log_prior(self, z: Tensor) -> Tensor:
        return self.target.log_prior(z)

    def sample_prior(self, n: int) -> Tensor:
        return self.target.sample_prior(n)[:, None]

    @torch.no_grad()
    def simulate(self) -> tuple[Tensor, GlobalDensity]:
        """Draw latents and data from the model: z (1, dim), and the density given these data."""
        target = self.target
        with poutine.block():
            trace = poutine.trace(poutine.uncondition(target.model)).get_trace(*target.args, **target.kwargs)
        trace = prune_subsample_sites(trace)
        names = {site.name for site in target.layout.sites}
        values = {name: node["value"] for name, node in trace.nodes.items() if node["type"] == "sample"}
        data = {name: value for name, value in values.items() if name not in names}
        other = UnconstrainedTarget(
            poutine.condition(target.model, data=data), target.layout, target.args, target.kwargs,
            vectorize=target.vectorize,
        )  # fmt: skip
        return target.layout.unconstrain({name: values[name][None] for name in names})[0], GlobalDensity(other)


class Frozen:
    """A density whose own randomness (dropout, say) is drawn anew from one seed at each evaluation: a fixed function.

    Args:
        density: the random one.
        seed: of its noise.
    """

    def __init__(self, density: DatumDensity, seed: int) -> None:
        self.density: DatumDensity = density
        self.seed: int = seed
        self.batch: int = density.batch
        self.dim: int = density.dim

    def log_joint(self, z: Tensor) -> Tensor:
        with seeded(self.seed):
            return self.density.log_joint(z)

    def log_prior(self, z: Tensor) -> Tensor:
        with seeded(self.seed):
            return cast(PriorDensity, self.density).log_prior(z)

    def sample_prior(self, n: int) -> Tensor:
        return cast(PriorDensity, self.density).sample_prior(n)


def is_random(density: DatumDensity, z: Tensor) -> bool:
    """Whether log_joint at the same z (n, B, dim) depends on the state of the random generators."""
    with torch.no_grad():
        values = []
        for seed in (0, 1):
            with seeded(seed):
                values.append(density.log_joint(z))
    return not torch.allclose(values[0], values[1], rtol=1e-4, atol=1e-3, equal_nan=True)


class Problem:
    """Model, data and starts, cut into parts of at most ``batch_size`` data.

    Args:
        model: a Pyro model, a :class:`~avbvi.LogDensity`, or a :class:`DatumDensity` itself.
        args, kwargs: the model's arguments; where the data are cut, tensors among them that are as long as the first
            of them.
        start: where to begin; see :data:`Start`.
        guide: gives the start instead, by its moments.
        batch_size: the most data at once; all of them by default. From 32 on rounded down to a multiple of 32.
        vectorize: whether the model is run once for all draws.
    """

    def __init__(
        self,
        model: Model | DatumDensity,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        start: Start | None,
        guide: Any,
        batch_size: int | None,
        vectorize: bool,
    ) -> None:
        self.model: Model | DatumDensity = model
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.start: Start | None = start
        self.guide: Any = guide
        self.vectorize: bool = vectorize
        if start is not None and guide is not None:
            raise ValueError("give start or guide, not both: a guide is a start from its own moments")
        if start is not None and not isinstance(start, StartDensity):
            function("start", start)
        if guide is not None and not callable(getattr(_guide_of(guide), "get_posterior", None)):
            raise TypeError(
                f"guide must be an AVBGuide, another of Pyro's AutoContinuous, or a Posterior, found {found(guide)}; "
                "of other encoders hand in start=, a function of the model's arguments that gives a GaussianStart"
            )
        if start is None and guide is None and isinstance(model, LogDensity):
            raise ModelError(
                "a LogDensity has no prior to start from; give start=GaussianStart(loc, covariance) or a fitted guide"
            )
        if isinstance(model, DatumDensity):
            if args or kwargs:
                raise ValueError("a density that has its data takes no further arguments; leave them out")
            if batch_size is not None and batch_size < model.batch:
                raise ValueError("batch_size can't cut a density that has its data; call it for fewer data at a time")
            self.bounds: list[tuple[int, int]] = [(0, -1)]
            return
        function("model", model)
        rows = next((len(a) for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim()), None)
        if batch_size is None or (rows is not None and rows <= batch_size):
            self.bounds = [(0, -1)]
            return
        if rows is None:
            raise ValueError("batch_size needs the data among the model's arguments, as a tensor; there is none")
        # Groups that learn step sizes together stay together.
        step = batch_size if batch_size < GROUP else batch_size // GROUP * GROUP
        self.bounds = [(i, min(i + step, rows)) for i in range(0, rows, step)]

    @property
    def recordable(self) -> bool:
        """Whether the densities are a Pyro model's, which runs the same operations at all points but for branches."""
        return self.vectorize and not isinstance(self.model, DatumDensity)

    def density(self, part: int) -> DatumDensity:
        """The joint log-densities of one part of the data."""
        if isinstance(self.model, DatumDensity):
            return self.model
        args, kwargs = self.arguments(part)
        target = density_of(self.model, args, kwargs, vectorize=self.vectorize)
        begin, end = self.bounds[part]
        if end >= 0 and target.batch != end - begin:
            raise ValueError(
                f"batch_size: of {end - begin} rows of the arguments the model makes {target.batch} data; it takes a "
                "model whose plate has as many data as its first tensor argument has rows"
            )
        return target

    def start_of(self, part: int, density: DatumDensity, arguments: Arguments | None) -> StartDensity:
        """Where the chains of one part begin; ``arguments`` are those that hold its data, if there are such."""
        if self.start is None and self.guide is None:
            return PriorStart(cast(PriorDensity, density))
        begin, end = self.bounds[part]
        if isinstance(self.start, StartDensity):
            return self.start.part(begin, end) if len(self.bounds) > 1 else self.start
        if arguments is None:
            raise ModelError(
                "a guide or a start that is a function needs to know the simulated data, but they can't be put into "
                "the model's arguments: its one observed site must be the first tensor among them, reshaped at most. "
                "Leave guide and start out to start from the prior"
            )
        args, kwargs = arguments
        if self.guide is not None:
            return guide_start(self.guide, density, args, kwargs)
        assert self.start is not None
        start = self.start(*args, **kwargs)
        instance("start", start, StartDensity, "a function that returns a GaussianStart or another StartDensity")
        return start

    def simulated(self, part: int) -> tuple[Tensor, DatumDensity, Arguments | None]:
        """An exact posterior draw (B, dim), the density of the data that it belongs to, and arguments that hold these.

        Raises:
            ModelError: the model has no ``simulate``, or fails there.
        """
        density = self.density(part)
        if not callable(getattr(density, "simulate", None)):
            raise ModelError(
                f"a sandwich needs data simulated from the model, and {type(density).__name__} has no method simulate()"
            )
        z, simulated = cast(Any, density).simulate()
        if isinstance(self.model, DatumDensity):
            return z, simulated, None
        args, kwargs = self.arguments(part)
        model = simulated.model if hasattr(simulated, "model") else simulated.target.model
        return z, simulated, arguments_with(self.model, model, args, kwargs)

    def arguments(self, part: int) -> Arguments:
        """The model's arguments, cut to one part."""
        begin, end = self.bounds[part]
        if end < 0 or len(self.bounds) == 1:
            return self.args, self.kwargs
        rows = self.bounds[-1][1]

        def cut(value: Any) -> Any:
            return value[begin:end] if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

        return tuple(cut(a) for a in self.args), {k: cut(v) for k, v in self.kwargs.items()}


def density_of(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], *, vectorize: bool = True) -> DatumDensity:
    """A Pyro model's joint log-densities: by datum if all of it lies in one plate, as one datum otherwise.

    Raises:
        ModelError: no continuous latents, or others that can't be treated so.
    """
    if has_data_plate(model, args, kwargs):
        from ..amortised.target import DatumTarget  # here, so that chains need no guide

        return DatumTarget(model, None, args, kwargs, vectorize=vectorize)
    return GlobalDensity(unconstrained_target(model, args, kwargs, vectorize=vectorize))


def has_data_plate(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one plate holds all sites of the model, and latent sites lie in no other: its data are independent."""
    if isinstance(model, LogDensity):
        return False
    with torch.no_grad(), seeded(0):
        trace = prune_subsample_sites(poutine.block(poutine.trace(model).get_trace)(*args, **kwargs))
    nodes = [n for n in trace.nodes.values() if n["type"] == "sample" and not n["infer"].get("_deterministic")]
    frames = [{f.name for f in n["cond_indep_stack"] if f.vectorized} for n in nodes]
    latent = [names for names, n in zip(frames, nodes, strict=True) if not n["is_observed"]]
    common = set.intersection(*frames) if frames else set()
    return bool(common) and bool(latent) and all(len(names) == 1 for names in latent)


def guide_start(guide: Any, density: DatumDensity, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GaussianStart:
    """Gaussians with the moments of a guide's draws, 1.2 times as wide in covariance.

    Args:
        guide: of the class AutoContinuous (such as :class:`~avbvi.AVBGuide`), or a posterior that has one.
        density: what it is a guide to.
        args, kwargs: the model's arguments.

    Raises:
        ValueError: the guide's draws have another shape than the density's latents.
    """
    guide = _guide_of(guide)
    with poutine.block():
        if getattr(guide, "prototype_trace", None) is None:
            guide(*args, **kwargs)
    with torch.no_grad(), poutine.block():
        draws = guide.get_posterior(*args, **kwargs).sample(torch.Size((_GUIDE_DRAWS,)))
    if draws.numel() != _GUIDE_DRAWS * density.batch * density.dim:
        raise ValueError(
            f"guide draws vectors of shape {tuple(draws.shape[1:])}, but the model has {density.batch} data with "
            f"{density.dim} unconstrained coordinates each; it is a guide to another model"
        )
    draws = draws.reshape(_GUIDE_DRAWS, density.batch, density.dim)
    return GaussianStart.of_draws(draws, inflation=GUIDE_INFLATION)


def _guide_of(guide: Any) -> Any:
    return guide if hasattr(guide, "get_posterior") else getattr(guide, "guide", guide)


def arguments_with(model: Model, simulated: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
    """The arguments with a simulated model's data in place of the first tensor; ``None`` if the model would differ.

    Args:
        model: the model as it was given.
        simulated: the same, conditioned on simulated data.
        args, kwargs: the model's arguments.
    """
    with torch.no_grad():
        value = _observed(simulated, args, kwargs)
        place = next((i for i, a in enumerate(args) if isinstance(a, Tensor)), None)
        if value is None or place is None or args[place].numel() != value.numel():
            return None
        new = value.reshape(args[place].shape).to(args[place].dtype)
        changed = (*args[:place], new, *args[place + 1 :])
        seen = _observed(model, changed, kwargs)
    same = seen is not None and seen.shape == value.shape and bool((seen.to(value) == value).all())
    return (changed, kwargs) if same else None


def _observed(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The value of the model's one observed site, if it is one."""
    with seeded(0):
        trace = prune_subsample_sites(poutine.block(poutine.trace(model).get_trace)(*args, **kwargs))
    values = [n["value"] for n in trace.nodes.values()
              if n["type"] == "sample" and n["is_observed"] and not n["infer"].get("_deterministic")]  # fmt: skip
    return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None
