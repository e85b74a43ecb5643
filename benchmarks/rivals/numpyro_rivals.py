"""NumPyro's inverse autoregressive flow and NUTS, where NumPyro is installed and the problem is written for it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.fitting import Fitted, Recorder, mean_with_error
from benchmarks.problems import Draws, Problem
from benchmarks.rivals.chains import chain_figures, in_random_order, near_independent

#: Steps in one compiled block.
BLOCK = 200


def missing(problem: Problem) -> str | None:
    """What NumPyro's methods lack here."""
    if importlib.util.find_spec("numpyro") is None:
        return "numpyro is not installed (pip install numpyro)"
    return None if problem.numpyro_model is not None else "the problem is not written for NumPyro"


def iaf(problem: Problem, seed: int, minutes: float, snapshots: Sequence[float]) -> Fitted:
    """AutoIAFNormal [64, 64] x 3 by SVI: 64 particles, Adam from 5e-3 with cosine decay, compiled.

    The number of steps is what fits into the time left after compilation, by the speed of a trial block, whose
    results are thrown away and whose time is not counted: a user would give a number.
    """
    import jax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoIAFNormal
    from numpyro.optim import Adam

    model = problem.numpyro_model
    assert model is not None
    guide = AutoIAFNormal(model, num_flows=3, hidden_dims=[64, 64])
    loss = Trace_ELBO(num_particles=64)

    def scheduled(steps: Any) -> Any:
        def rate(i: Any) -> Any:
            return 5e-3 * 0.5 * (1.0 + jax.numpy.cos(math.pi * jax.numpy.minimum(i / steps, 1.0)))

        return SVI(model, guide, Adam(rate), loss)

    @jax.jit
    def block(state: Any, steps: Any) -> Any:
        # The number of steps is an argument, so that trial and run share one compilation.
        own = scheduled(steps)
        own.constrain_fn = svi.constrain_fn
        return jax.lax.fori_loop(0, BLOCK, lambda _, s: own.update(s)[0], state)

    jax.block_until_ready(jax.numpy.zeros(1) + 1.0)  # JAX starts up
    recorder = Recorder(problem)
    svi = scheduled(1.0)
    start = svi.init(jax.random.PRNGKey(seed))
    jax.block_until_ready(block(start, 1.0))
    compiled = recorder.seconds()
    jax.block_until_ready(block(start, 1.0))
    of_block = recorder.seconds() - compiled
    compiled -= of_block
    blocks = max(1, round((60.0 * minutes - compiled) / of_block))
    state, began = start, recorder.seconds()
    for _ in range(blocks):
        state = block(state, float(blocks * BLOCK))
    parameters = jax.block_until_ready(svi.get_params(state))
    seconds = compiled + recorder.seconds() - began

    judge = Trace_ELBO(num_particles=2500)
    keys = jax.random.split(jax.random.PRNGKey(seed + 1), 20)
    elbo = mean_with_error(
        torch.tensor([-float(judge.loss(key, parameters, model, guide)) for key in keys], dtype=torch.float64)
    )
    asked = iter(range(1, 1_000_000))

    def sample(n: int) -> Draws:
        key = jax.random.fold_in(jax.random.PRNGKey(seed + 2), next(asked))
        values = guide.sample_posterior(key, parameters, sample_shape=(n,))
        return _tensors({**values, **_deterministic(model, values)})

    return Fitted(sample, seconds, elbo, True, {"steps": blocks * BLOCK, "compile_seconds": compiled})


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
    """NumPyro's NUTS with its defaults, one chain after the other; it takes the time that it takes."""
    import jax
    from numpyro.infer import MCMC, NUTS

    recorder = Recorder(problem)
    mcmc = MCMC(
        NUTS(problem.numpyro_model),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(seed))
    grouped = _tensors(jax.block_until_ready(mcmc.get_samples(group_by_chain=True)))
    seconds = recorder.seconds()
    divergences = int(np.sum(np.array(mcmc.get_extra_fields()["diverging"])))
    figures: dict[str, Any] = {"divergences": divergences, "steps": chains * (draws + warmup)}
    figures.update(chain_figures(grouped))
    pooled = {name: value.flatten(0, 1) for name, value in grouped.items()}
    thinned, figures["thin"] = near_independent(pooled, figures["ess_min"])
    return in_random_order(thinned, seed, figures, seconds)


def _tensors(values: dict[str, Any]) -> Draws:
    return {name: torch.from_numpy(np.array(value)) for name, value in values.items()}


def _deterministic(model: Callable[[], None], values: dict[str, Any]) -> dict[str, Any]:
    """Deterministic sites at posterior draws of the latent ones."""
    import jax
    from numpyro.handlers import seed, trace
    from numpyro.infer import Predictive

    nodes = trace(seed(model, 0)).get_trace()
    names = [name for name, node in nodes.items() if node["type"] == "deterministic"]
    if not names:
        return {}
    found: dict[str, Any] = Predictive(model, values, return_sites=names, parallel=True)(jax.random.PRNGKey(0))
    return found
