"""Ground truth: a model's posterior by batched HMC, with the evidence that its chains have mixed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from .arguments import (
    device_of,
    fits_in_memory,
    flag,
    function,
    instance,
    integer,
    keywords,
    real_tensor,
    seed_number,
)
from .checks import check_gradient, check_latents, check_plates, check_size
from .devices import moved
from .errors import ModelError
from .hmc import HMCRun, run_hmc
from .hmc.adaptation import DenseMass, DiagonalMass, Mass
from .hmc.mode_jumps import ModeJump
from .layout import LatentLayout
from .rng import seeded
from .starts import CANDIDATES, LaplaceModes, judged_by_draws, laplace_modes
from .targets import Model, UnconstrainedTarget

RHAT_LIMIT = 1.01
LEAST_ESS = 400.0
_DENSE_UP_TO = 200
_SEARCHES = 32
# The chains start somewhat wider than the Laplace approximations, which are often too narrow.
_START_INFLATION = 1.5


def unconstrained_target(
    model: Model, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, *, vectorize: bool = True
) -> UnconstrainedTarget:
    """The model's log-density over its continuous latents, without a guide.

    Raises:
        ModelError: no continuous latents, discrete ones that are not enumerated, latents that come and go, or
            latents in a subsampled plate.
    """
    kwargs = kwargs or {}
    enumerated = check_latents(model, args, kwargs)
    with torch.no_grad(), seeded(0):
        hidden = poutine.block(model, hide=enumerated) if enumerated else model
        trace = prune_subsample_sites(poutine.block(poutine.trace(hidden).get_trace)(*args, **kwargs))
    check_plates(trace)
    return UnconstrainedTarget(model, LatentLayout.from_trace(trace), args, kwargs, vectorize=vectorize)


@dataclass(frozen=True)
class HMCPosterior:
    """Posterior draws by HMC.

    Attributes:
        draws: {site: (chains * draws, *shape)} on the constrained scale, deterministic sites included, those of one
            chain together.
        run: the unconstrained draws, and how they came about.
        target: the model's log-density over its unconstrained latents.
        modes: the optima that the chains were spread over; ``None`` if they started elsewhere.
        seconds: wall time of all of it.
    """

    draws: dict[str, Tensor]
    run: HMCRun
    target: UnconstrainedTarget
    modes: LaplaceModes | None
    seconds: float

    @cached_property
    def rhat(self) -> dict[str, float]:
        """Rank-normalised split R-hat by unconstrained coordinate (transformations one by one do not change it)."""
        return self._by_name(self.run.rhat())

    @cached_property
    def ess(self) -> dict[str, float]:
        """Effective number of draws for the centre, by unconstrained coordinate."""
        return self._by_name(self.run.ess())

    @cached_property
    def tail_ess(self) -> dict[str, float]:
        """Effective number of draws for the 5 % and 95 % quantiles, by unconstrained coordinate."""
        return self._by_name(self.run.tail_ess())

    def _by_name(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.target.layout.coordinate_names, values.tolist(), strict=True))

    @property
    def divergences(self) -> int:
        """Divergent transitions of single chains after the warm-up."""
        return self.run.divergences

    @property
    def warnings(self) -> list[str]:
        """What casts doubt on the draws, in words; empty if nothing does."""
        found = []
        name, rhat = max(self.rhat.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
        if math.isnan(rhat):
            found.append(f"R-hat of {name} is unknown: it takes four draws per chain, two chains, and a spread")
        elif rhat > RHAT_LIMIT:
            found.append(
                f"R-hat of {name} is {rhat:.3f}, above {RHAT_LIMIT}: the chains have not mixed; use a longer warmup or "
                "a larger thin"
            )
        name, ess = self._least_ess
        if ess < LEAST_ESS:
            found.append(f"the effective sample size of {name} is {ess:.0f}, below {LEAST_ESS:.0f}; draw more")
        if self.divergences:
            total = self.run.acceptance.numel()
            found.append(
                f"{self.divergences} transitions diverged, before {int(self.run.diverging.sum())} of {total} draws: "
                "the step is too long somewhere, or chains meet the edge of the support; raise target_acceptance or "
                "reparameterise"
            )
        return found

    @property
    def _least_ess(self) -> tuple[str, float]:
        least = {name: min(value, self.tail_ess[name]) for name, value in self.ess.items()}
        return min(least.items(), key=lambda item: item[1])

    def __repr__(self) -> str:
        chains, draws, dim = self.run.draws.shape
        name, rhat = max(self.rhat.items(), key=lambda item: item[1])
        least, ess = self._least_ess
        lines = [
            f"HMCPosterior({chains} chains of {draws} draws, {dim} coordinates, {self.seconds:.1f} s)",
            f"  largest R-hat {rhat:.4f} ({name}), least effective sample size {ess:.0f} ({least})",
            f"  acceptance {float(self.run.acceptance.mean()):.2f}, step size {self.run.step_size:.3g}, "
            f"{self.run.leapfrog_steps:.1f} leapfrog steps, {self.divergences} divergences",
        ]
        if not math.isnan(self.run.jump_acceptance):
            lines.append(f"  jumps between modes: {self.run.jump_acceptance:.1%} accepted")
        return "\n".join([*lines, *(f"  WARNING: {text}" for text in self.warnings)])

    def to_arviz(self) -> Any:
        """The draws as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x), (chain, draw) in front.

        The group ``sample_stats`` has ``lp`` (log-density with the Jacobian of the constraints, unnormalised),
        ``acceptance_rate`` (mean over the transitions of a draw) and ``diverging`` (whether one of these diverged).
        ArviZ's effective sample sizes are too high for many short chains: see :attr:`ess`.
        """
        from .export import container, dimensions, plate_dims
        from .predictive import single_run

        chains, count, _ = self.run.draws.shape
        posterior = {
            name: value.detach().reshape(chains, count, *value.shape[1:]).cpu().numpy()
            for name, value in self.draws.items()
        }
        stats = {"lp": self.run.log_prob, "acceptance_rate": self.run.acceptance, "diverging": self.run.diverging}
        trace = single_run(self.target, {s.name: self.draws[s.name] for s in self.target.layout.sites})
        shapes = {name: value.shape[2:] for name, value in posterior.items()}
        dims, coords = dimensions(shapes, plate_dims(trace), None, None)
        groups = {"posterior": posterior, "sample_stats": {k: v.cpu().numpy() for k, v in stats.items()}}
        attributes = {"divergences": str(self.divergences), "warnings": "; ".join(self.warnings)}
        with warnings.catch_warnings():
            # ArviZ takes more chains than draws for a mistake.
            warnings.filterwarnings("ignore", "More chains", UserWarning)
            return container(groups, dims, coords, {"posterior": attributes, "sample_stats": attributes})


def hmc_posterior(
    model: Model,
    *args: Any,
    model_kwargs: dict[str, Any] | None = None,
    chains: int = 500,
    draws: int = 20,
    warmup: int = 100,
    thin: int = 7,
    mass: Mass | None = None,
    target_acceptance: float = 0.9,
    max_leapfrog_steps: int = 128,
    states: Tensor | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    vectorize: bool = True,
) -> HMCPosterior:
    """Draw from a model's posterior by HMC with many chains at once, tuned by itself: the truth to compare a fit with.

    Chains start from Gaussians at the optima that a multi-start search finds, or from the prior where that is nearer
    (see :func:`starting_states`). Between several modes they also jump, see :class:`~avbvi.hmc.mode_jumps.ModeJump`.
    Look at ``rhat``: a mode that no search found is the one thing that it can't show.

    Args:
        model: a Pyro model, or a :class:`~avbvi.LogDensity`; discrete latents have to be enumerated.
        args: the model's arguments.
        model_kwargs: its keyword arguments.
        chains: how many run side by side; one evaluation of a model costs about the same for one or a thousand.
        draws: draws kept per chain, at least four for R-hat.
        warmup: transitions before the first kept draw.
        thin: transitions from one kept draw to the next; the default makes them nearly independent in easy models.
        mass: by default ``DenseMass()`` up to 200 dimensions, ``DiagonalMass()`` above.
        target_acceptance: mean acceptance probability aimed at, in (0, 1).
        max_leapfrog_steps: of one trajectory; see :func:`~avbvi.hmc.run_hmc`.
        states: unconstrained starting points (chains, dim) in place of the search.
        seed: of everything random; the caller's generators are left alone. ``None`` draws from these.
        device: where to run; tensors among the arguments are moved there.
        vectorize: ``False`` runs a model that does not broadcast over an outer plate draw by draw (slow).

    Returns:
        The draws {site: (chains * draws, *shape)}, with what tells whether the chains have mixed.

    Raises:
        ModelError: the model has no continuous latents, or ones that can't be treated so; or its density is finite at
            no starting point.
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of its range.
        MemoryError: so many draws do not fit in memory.

    Example:
        >>> import avbvi, torch
        >>> density = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
        >>> truth = avbvi.hmc_posterior(density, chains=100, draws=10, seed=0)
        >>> truth.draws["z"].shape
        torch.Size([1000, 2])
        >>> round(float(truth.draws["z"].std()), 1), max(truth.rhat.values()) < 1.1
        (1.0, True)

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, chapter 5; length of trajectories Hoffman,
    Radul and Sountsov (2021), An adaptive MCMC scheme for setting trajectory lengths in HMC, AISTATS; R-hat Vehtari et
    al. (2021), Rank-normalization, folding, and localization, Bayesian Analysis 16(2).
    """
    start = time.perf_counter()
    function("model", model)
    chains, draws = integer("chains", chains, 1), integer("draws", draws, 1)
    kwargs, seed, device = keywords("model_kwargs", model_kwargs), seed_number(seed), device_of(device)
    flag("vectorize", vectorize)
    if mass is not None:
        instance("mass", mass, Mass, "a Mass such as DenseMass()")
    if device is not None:
        args = tuple(moved(a, device) for a in args)
        kwargs = {k: moved(v, device) for k, v in kwargs.items()}
    where: AbstractContextManager[Any] = nullcontext() if device is None else torch.device(device)
    with seeded(seed), where:
        target = unconstrained_target(model, args, kwargs, vectorize=vectorize)
        fits_in_memory("chains * draws", chains * draws, target.layout.dim)
        if states is None:
            check_size(target.layout.dim)
        else:
            states = _checked_states(states, target.layout.dim)
        check_gradient(target, target.starting_points(32 if target.vectorize else 4) if states is None else states)
        # Without validation: a trajectory that wanders off to NaN is rejected, not an error. It also saves a fourth.
        with pyro.validation_enabled(False):
            found = Starts(states, None) if states is not None else starting_states(target, chains)
            modes = found.modes
            if mass is None:
                mass = DenseMass() if target.layout.dim <= _DENSE_UP_TO else DiagonalMass()
            run = run_hmc(
                target.log_prob,
                found.states,
                draws=draws,
                warmup=warmup,
                thin=thin,
                mass=mass,
                target_acceptance=target_acceptance,
                max_leapfrog_steps=max_leapfrog_steps,
                jump=ModeJump(modes) if modes is not None and len(modes.locs) > 1 else None,
            )
            values = constrained(target, run.draws.flatten(0, 1))
    return HMCPosterior(values, run, target, modes, time.perf_counter() - start)


def _checked_states(states: Any, dim: int) -> Tensor:
    states = real_tensor("states", states)
    states = states if states.is_floating_point() else states.to(torch.get_default_dtype())
    if states.dim() != 2 or len(states) < 1 or states.shape[1] != dim:
        raise ValueError(
            f"states must have shape (chains, {dim}), one column per unconstrained coordinate of the model, found "
            f"{tuple(states.shape)}"
        )
    return states


@torch.no_grad()
def constrained(target: UnconstrainedTarget, z: Tensor) -> dict[str, Tensor]:
    """Unconstrained draws (n, dim) as {site: (n, *shape)} on the constrained scale, deterministic sites included."""
    from .predictive import deterministic

    values, _ = target.layout.constrain(z)
    return {**values, **deterministic(target, values)}


class Starts(NamedTuple):
    """Starting points (chains, dim), and the modes that they were spread over, if they were."""

    states: Tensor
    modes: LaplaceModes | None


@torch.no_grad()
def starting_states(target: UnconstrainedTarget, chains: int) -> Starts:
    """Points (chains, dim) to start from: the better of Laplace approximations and the prior.

    A search from 32 points gives optima with Gaussians at them. Each is judged by an importance-weighted bound
    of the evidence, not by its height: a narrow spike may be high and hold nothing (Neal's funnel). Those within
    7 nats of the best are kept, weighted by exp(bound), and compared by the same bound with draws of the prior, or
    of N(init, I) for a :class:`~avbvi.LogDensity`. The better of the two is where the chains start: from
    importance-resampled draws of Gaussians 1.5 times as wide in variance, or of the prior.

    Raises:
        ModelError: the density is not finite at any of these points.
    """
    with torch.enable_grad():
        modes = laplace_modes(target.log_prob, target.starting_points(_SEARCHES if target.vectorize else 4))
    broad, broad_log_q = target.broad_draws(1000 if target.vectorize else 80)
    modes = None if modes is None else judged_by_draws(modes, target.log_prob, target.log_prob(broad) - broad_log_q)
    if modes is None:
        return Starts(_resampled(target, target.broad_draws, chains), None)
    wide = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=modes.log_weights),
        torch.distributions.MultivariateNormal(modes.locs, _START_INFLATION * modes.covariances, validate_args=False),
        validate_args=False,
    )

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = wide.sample(torch.Size((n,)))
        return z, wide.log_prob(z)

    return Starts(_resampled(target, draw, chains), modes)


def _resampled(target: UnconstrainedTarget, draw: Callable[[int], tuple[Tensor, Tensor]], n: int) -> Tensor:
    """n of eight times as many draws, picked by importance weight without replacement (Efraimidis and Spirakis 2006).

    A chain that starts far out, in a corner narrower than the common step size, would stay there.
    """
    found, keys = [], []
    for _ in range(20):
        z, log_q = draw(CANDIDATES * n)
        log_weight = target.log_prob(z) - log_q
        finite = torch.isfinite(log_weight)
        found.append(z[finite])
        # The n largest log-weights plus Gumbel noise.
        keys.append(log_weight[finite] - torch.rand_like(log_weight[finite]).log().neg().log())
        if sum(map(len, found)) >= n:
            return torch.cat(found)[torch.cat(keys).topk(n).indices]
    raise ModelError(
        f"the log-density is finite at only {sum(map(len, found))} of {20 * CANDIDATES * n} starting points; give "
        "LogDensity(init=...) a point inside the support, check the model's data, or pass states="
    )
