"""Markov chains: Pyro's NUTS, and avbvi's batched HMC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from avbvi.predictive import deterministic
from avbvi.reference import hmc_posterior, unconstrained_target
from benchmarks.fitting import Fitted, Recorder
from benchmarks.problems import Draws, Problem

NUTS_SOURCES = ("avbvi/targets.py",)
HMC_SOURCES = ("avbvi/hmc", "avbvi/starts", *(f"avbvi/{name}.py" for name in ("layout", "reference", "targets")))
#: Chains are thinned to about as many draws as their effective sample size, but not to fewer than this.
LEAST_DRAWS = 1000


def chain_figures(draws: dict[str, Tensor]) -> dict[str, float]:
    """Largest R-hat and smallest effective sample size over all coordinates of draws (chains, draws, *shape)."""
    rhat = torch.cat([split_gelman_rubin(v.double()).reshape(-1) for v in draws.values()])
    ess = torch.cat([effective_sample_size(v.double()).reshape(-1) for v in draws.values()])
    return {"rhat_max": float(rhat.max()), "ess_min": float(ess.min())}


def near_independent(draws: Draws, ess: float) -> tuple[Draws, int]:
    """Every k-th of pooled draws, about ``ess`` of them but at least LEAST_DRAWS, and k."""
    total = len(next(iter(draws.values())))
    wanted = max(ess, float(LEAST_DRAWS), 1.0) if math.isfinite(ess) else float(LEAST_DRAWS)
    thin = max(1, math.floor(total / wanted))
    return {name: value[::thin] for name, value in draws.items()}, thin


def in_random_order(draws: Draws, seed: int, figures: dict[str, Any], seconds: float) -> Fitted:
    """A result whose draws come in random order, so that any number of the first ones is a fair sample."""
    size = len(next(iter(draws.values())))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    shuffled = {name: value[order] for name, value in draws.items()}

    def sample(n: int) -> Draws:
        return {name: value[:n] for name, value in shuffled.items()}

    return Fitted(sample, seconds, figures=figures)


def nuts(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 500,
) -> Fitted:
    """Pyro's NUTS with its defaults, one chain after the other; it takes the time that it takes."""
    recorder = Recorder(problem)
    pyro.clear_param_store()
    found: dict[str, list[Tensor]] = {}
    divergences = 0
    for chain in range(chains):
        pyro.set_rng_seed(1000 * seed + chain)
        mcmc = MCMC(NUTS(problem.model), num_samples=draws, warmup_steps=warmup, disable_progbar=True)
        mcmc.run(*problem.args)
        for name, value in mcmc.get_samples().items():
            found.setdefault(name, []).append(value.detach())
        divergences += sum(len(v) for v in mcmc.diagnostics()["divergences"].values())
    seconds = recorder.seconds()
    grouped = {name: torch.stack(values) for name, values in found.items()}
    figures: dict[str, Any] = {"divergences": divergences, "steps": chains * (draws + warmup)}
    figures.update(chain_figures(grouped))
    target = unconstrained_target(problem.model, problem.args)
    pooled = {site.name: grouped[site.name].flatten(0, 1) for site in target.layout.sites}
    thinned, figures["thin"] = near_independent(pooled, figures["ess_min"])
    return in_random_order(thinned | deterministic(target, thinned), seed, figures, seconds)


def hmc(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    chains: int = 500,
    draws: int = 20,
    warmup: int = 100,
    thin: int = 7,
) -> Fitted:
    """avbvi's batched HMC with its defaults, draws of all chains pooled; it takes the time that it takes."""
    run = hmc_posterior(problem.model, *problem.args, chains=chains, draws=draws, warmup=warmup, thin=thin, seed=seed)
    figures = {
        "divergences": run.divergences,
        "steps": chains * (warmup + draws * thin),
        "rhat_max": max(run.rhat.values()),
        "ess_min": min(run.ess.values()),
    }
    return in_random_order(run.draws, seed, figures, run.seconds)


#: 1000 chains of 500 transitions each, 100 of them warm-up.
hmc_paper = partial(hmc, chains=1000, draws=50, warmup=100, thin=8)
