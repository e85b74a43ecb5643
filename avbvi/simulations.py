"""One round of simulation-based calibration: a joint draw from the model, a fit to its data, the ranks of the truth."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from .errors import ModelError, NonFiniteError
from .log_density import LogDensity
from .predictive import log_joint, observed_sites, prior_run
from .reference import unconstrained_target
from .rng import seeded
from .targets import Model, UnconstrainedTarget

Values = dict[str, Tensor]
#: (latents {site: (n, *shape)}, data {site: (*shape)}) -> (n,)
Statistic = Callable[[Values, Values], Tensor]
_CHUNK = 2**22


class Draws(Protocol):
    """What a fit has to return: a source of independent draws {site: (n, *shape)} of all latents."""

    def sample(self, n: int) -> Values:
        """n draws."""
        ...


Fit = Callable[..., Draws]


@dataclass(frozen=True)
class Simulation:
    """One round: the ``truth`` {site: value}, and what a fit to the data simulated from it gave.

    ``ranks`` says of each statistic how many of the posterior's draws were below the truth's value; it is empty if
    the fit failed, and ``failure`` then has the reason. ``verdict`` is the status that the fit gave itself, if it did.
    """

    index: int
    truth: Values
    ranks: dict[str, int]
    verdict: str | None
    failure: str | None
    seconds: float


@dataclass(frozen=True)
class Experiment:
    """All that one round needs; rounds are independent of each other and may run in any order or process.

    Made by :meth:`prepare`, which checks the model.
    """

    model: Model
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    observed: tuple[str, ...]
    fit: Fit
    draws: int
    seed: int
    statistics: Mapping[str, Statistic]
    #: The model's log-density with the data of some simulation.
    target: UnconstrainedTarget

    @classmethod
    def prepare(
        cls,
        model: Model,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        observed: Sequence[str] | None,
        fit: Fit,
        draws: int,
        seed: int,
        statistics: Mapping[str, Statistic],
        vectorize: bool,
    ) -> Experiment:
        """Check that the model can be simulated, fitted and ranked; arguments and errors as in :func:`avbvi.sbc`."""
        if isinstance(model, LogDensity):
            raise ModelError("a LogDensity has no prior to simulate from; write the model with pyro.sample")
        with seeded(seed), pyro.get_param_store().scope(), pyro.validation_enabled(True):
            try:
                trace = prior_run(model, args, kwargs)
            except NotImplementedError as error:
                reason = (str(error).splitlines() or ["improper prior"])[0]
                raise ModelError(
                    f"the model can't be simulated: a site's distribution has no draws ({reason}); "
                    "give it a proper prior"
                ) from error
            data = _data(trace, observed)
            _check_generative(trace)
            target = unconstrained_target(poutine.condition(model, data), args, kwargs, vectorize=vectorize)
            runs = [*(prior_run(model, args, kwargs) for _ in range(4)), trace]
            names = [site.name for site in target.layout.sites]
            _check_broadcasting(target, {n: torch.stack([t.nodes[n]["value"] for t in runs]) for n in names})
        ranked = [*target.layout.coordinate_names, *JOINT, *statistics]
        twice = sorted({name for name in ranked if ranked.count(name) > 1})
        if twice:
            raise ValueError(f"sites and statistics share the names {twice}; rename the statistics or sites")
        return cls(model, args, kwargs, tuple(data), fit, draws, seed, dict(statistics), target)

    @property
    def sites(self) -> dict[str, tuple[int, ...]]:
        """Latent site -> its shape in unconstrained coordinates."""
        return {site.name: tuple(site.unconstrained_shape) for site in self.target.layout.sites}

    def joint_draw(self, index: int) -> tuple[Values, Values]:
        """Latents and data of a round, {site: (*shape)} each."""
        with seeded(self._seeds(index)[0]), pyro.get_param_store().scope():
            return self._joint_draw()

    def _joint_draw(self) -> tuple[Values, Values]:
        trace = prior_run(self.model, self.args, self.kwargs)
        return {n: trace.nodes[n]["value"] for n in self.sites}, {n: trace.nodes[n]["value"] for n in self.observed}

    def run(self, index: int) -> Simulation:
        """One round.

        Raises:
            ValueError: the fit returned draws that lack a latent site, or too few.
        """
        started = time.monotonic()
        truth, data = self.joint_draw(index)
        ranks, verdict, failure = self._ranked(index, truth, data)
        return Simulation(index, truth, ranks, verdict, failure, time.monotonic() - started)

    def _ranked(self, index: int, truth: Values, data: Values) -> tuple[dict[str, int], str | None, str | None]:
        """Ranks, verdict and reason of a failure."""
        _, fit_seed, other_seed = self._seeds(index)
        model: Model = poutine.condition(self.model, data)
        verdict: str | None = None
        with pyro.get_param_store().scope():
            target = copy.copy(self.target)
            target.model = model
            with seeded(fit_seed):
                bound = functools.partial(model, **self.kwargs) if self.kwargs else model
                try:
                    posterior = self.fit(bound, *self.args, seed=fit_seed)
                    verdict = _status(posterior)
                    drawn = posterior.sample(2 * self.draws)
                except (ArithmeticError, RuntimeError, ValueError) as error:
                    verdict = verdict or _status(getattr(error, "posterior", None))
                    return {}, verdict, f"{type(error).__name__}: {error}"
            draws = _checked_draws(drawn, truth, 2 * self.draws)
            with seeded(other_seed):
                values = {n: torch.cat([truth[n][None], draws[n][: self.draws]]) for n in truth}
                spare = {n: draws[n][self.draws :] for n in truth}
                found: dict[str, int] = {}
                try:
                    for name, value in self._statistics(target, values, spare, data, posterior):
                        found[name] = _rank(name, value)
                except (_Unranked, NonFiniteError) as error:
                    return {}, verdict, str(error)
        return found, verdict, None

    def _statistics(
        self, target: UnconstrainedTarget, values: Values, spare: Values, data: Values, posterior: Draws
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and values (1 + draws,) of each statistic, the truth's first.

        Ranks are uniform only if a statistic treats the truth and the draws alike: its constants may depend on the
        data and on other draws (``spare``), not on those that are ranked.
        """
        z, log_det = _unconstrained(target, values, "the posterior's draws or the truth")
        yield from zip(target.layout.coordinate_names, z.mT, strict=True)
        lp = log_joint(target, z)
        yield "log_joint", lp - log_det
        if not target.enumerated:
            yield "log_likelihood", lp - _log_prior(target, z, z.shape[1] + sum(v.numel() for v in data.values()))
        if hasattr(posterior, "log_prob"):
            yield "log_q", posterior.log_prob(values)
        rest, _ = _unconstrained(target, spare, "the posterior's draws")
        center, whiten = _whitening(rest)
        yield "distance", ((z.double() - center) @ whiten).square().sum(-1)
        reference, _ = target.layout.unconstrain({n: v[None] for n, v in self._joint_draw()[0].items()})
        yield "tarp_distance", ((z - reference).double() @ whiten).square().sum(-1)
        for name, statistic in self.statistics.items():
            value = statistic(values, data)
            if not isinstance(value, Tensor) or value.shape != (1 + self.draws,):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"statistics[{name!r}] must map draws {{site: (n, *shape)}} and data to a tensor (n,), one number "
                    f"per draw; for n = {1 + self.draws} it gave {shape}"
                )
            yield name, value

    def _seeds(self, index: int) -> tuple[int, int, int]:
        """Seeds of the joint draw, of the fit, and of all that comes after."""
        a, b, c = np.random.SeedSequence((self.seed, index)).generate_state(3).tolist()
        return a, b, c


#: Statistics of all latents together, in the order in which they are ranked.
JOINT = ("log_joint", "log_likelihood", "log_q", "distance", "tarp_distance")


class _Unranked(ValueError):
    """The truth has no rank: a statistic is NaN, or draws lie outside of the support."""


def _status(posterior: Any) -> str | None:
    """What a fit said of itself, if it says anything."""
    return getattr(getattr(posterior, "verdict", None), "status", None)


def _rank(name: str, value: Tensor) -> int:
    """How many of value[1:] are below value[0]; ties are broken at random."""
    if bool(torch.isnan(value).any()):
        raise _Unranked(f"the statistic {name} is NaN at {int(torch.isnan(value).sum())} of {len(value)} points")
    below, ties = int((value[1:] < value[0]).sum()), int((value[1:] == value[0]).sum())
    return below + int(torch.randint(ties + 1, ()))


def _unconstrained(target: UnconstrainedTarget, values: Values, whose: str) -> tuple[Tensor, Tensor]:
    try:
        z, log_det = target.layout.unconstrain(values)
    except ValueError as error:
        raise _Unranked(f"{whose} can't be ranked: {error}") from error
    if not bool(torch.isfinite(z).all()):
        bad = int((~torch.isfinite(z)).any(-1).sum())
        raise _Unranked(f"{bad} of {len(z)} points are not finite in unconstrained coordinates ({whose})")
    return z, log_det


def _whitening(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (dim,) of draws (n, dim), and a matrix (dim, dim) that makes their covariance the identity."""
    z = z.double()
    center = z.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(z.mT).reshape(z.shape[1], z.shape[1]))
    # Directions without any spread would be weighted infinitely.
    scale = values.clamp_min(1e-12 * float(values[-1].clamp_min(1e-300))).rsqrt()
    return center, vectors * scale


@torch.no_grad()
def _log_prior(target: UnconstrainedTarget, z: Tensor, size: int) -> Tensor:
    """log p(z) (n,), some draws at a time, as the model computes the likelihood of ``size`` data for each too."""
    return torch.cat([target.log_prior(part) for part in z.split(max(1, _CHUNK // size))])


def _data(trace: Trace, observed: Sequence[str] | None) -> Values:
    """Simulated observations: of all observed sites, or of those that are named."""
    found = observed_sites(trace, ())
    if observed is None:
        if not found:
            raise ModelError(
                "the model has no observed sites with these arguments; give it data, or name the sites that are data: "
                "observed=['y']"
            )
        names = list(found)
    else:
        if isinstance(observed, str):
            raise TypeError(f"observed must be a list of site names, found the string {observed!r}")
        names = list(observed)
        unknown = [name for name in names if name not in trace.nodes or trace.nodes[name]["type"] != "sample"]
        if unknown or not names:
            known = [n for n, node in trace.nodes.items() if node["type"] == "sample"]
            raise ValueError(f"observed must name sites of the model, found {unknown or names}; there are {known}")
        kept = sorted(set(found) - set(names))
        if kept:
            raise ValueError(f"observed leaves out {kept}, whose data would not be simulated; name all data sites")
    data = {name: trace.nodes[name]["value"] for name in names}
    for name, value in data.items():
        given = trace.nodes[name]["infer"].get("obs")
        if isinstance(given, Tensor) and given.shape != value.shape:
            raise ModelError(
                f"site {name!r} has observations of shape {tuple(given.shape)} but draws of shape "
                f"{tuple(value.shape)}: put it in a plate, or make the parameters of its distribution that large"
            )
    return data


def _check_generative(trace: Trace) -> None:
    """Raise if the density that is fitted is not the law that a run of the model draws from."""
    for name, node in trace.nodes.items():
        if node["type"] == "param":
            raise ModelError(
                f"the model learns the parameter {name!r}, which has no prior to simulate from; give it one with "
                "pyro.sample, or make it a constant"
            )
        if node["type"] != "sample" or node["infer"].get("_deterministic"):
            continue
        if node["infer"].get("was_observed") and not node["value"].numel():
            raise ModelError(f"the factor {name!r} takes part in the posterior but can't be simulated")
        if bool((torch.as_tensor(node["scale"]) != 1.0).any()):
            raise ModelError(
                f"site {name!r} has a weight other than 1 (poutine.scale or a subsampled plate): its posterior is not "
                "that of the data which a run of the model draws"
            )


def _check_broadcasting(target: UnconstrainedTarget, values: Values) -> None:
    """Raise, before anything is fitted, if densities can't be evaluated at many draws at once.

    The data have been simulated from the last of ``values`` {site: (n, *shape)}, whose density is finite therefore.
    """
    z, _ = target.layout.unconstrain(values)
    try:
        together, alone = float(log_joint(target, z)[-1]), float(log_joint(target, z[-1:])[0])
    except ModelError as error:
        raise ModelError(f"{error}; here: sbc(vectorize=False)" if target.vectorize else str(error)) from error
    if abs(together - alone) > 1e-2 * (1.0 + abs(alone)):
        raise ModelError(
            f"the model's log-density of one draw is {alone:.6g} by itself but {together:.6g} among others: make its "
            "arithmetic broadcast over leading dimensions (index from the right, sum over the last dimensions only), "
            "or use vectorize=False"
        )


def _checked_draws(draws: Any, truth: Values, n: int) -> Values:
    """The latents among the draws, as the truth's dtype and device."""
    if not isinstance(draws, Mapping):
        raise TypeError(f"the fit's sample(n) must return {{site: (n, *shape)}}, found {type(draws).__name__}")
    checked = {}
    for name, value in truth.items():
        if name not in draws:
            raise ValueError(f"the fit's draws lack the latent site {name!r}; they have {sorted(draws)}")
        drawn = torch.as_tensor(draws[name]).detach().to(value)
        if drawn.shape != (n, *value.shape):
            raise ValueError(
                f"the fit's draws of {name!r} must have shape {(n, *value.shape)} for sample({n}), found "
                f"{tuple(drawn.shape)}"
            )
        checked[name] = drawn
    return checked


def element_names(site: str, shape: tuple[int, ...]) -> list[str]:
    """Names of a site's unconstrained coordinates, as in :attr:`~avbvi.layout.LatentLayout.coordinate_names`."""
    return [f"{site}[{', '.join(map(str, i))}]" if i else site for i in product(*map(range, shape))]
