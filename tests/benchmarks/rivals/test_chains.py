"""Markov chains: thinning, figures, and a conjugate posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import avbvi
from benchmarks.fitting import Fitted
from benchmarks.problems import Problem, stacked
from benchmarks.rivals import chains

Y = torch.tensor([1.0, 2.0, 0.0])


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.deterministic("twice", 2.0 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


# mu given y: precision 1 + 3, mean 3/4.
PROBLEM = Problem(
    "conjugate",
    model,
    args=(Y,),
    exact=lambda n, seed: 0.75 + 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed)).double(),
    matrix=lambda draws: stacked(draws, "mu"),
)


# Gamma(5, 2) on the positive numbers: mean and variance 2.5 and 1.25.
GAMMA = Problem(
    "gamma",
    avbvi.LogDensity(
        lambda values: 4.0 * values["x"].log() - 2.0 * values["x"], sites={"x": (constraints.positive, ())}
    ),
    exact=lambda n, seed: torch.zeros(n, 1),
    matrix=lambda draws: stacked(draws, "x"),
)


def test_near_independent_thins_to_the_effective_size_but_not_below_the_least() -> None:
    draws = {"a": torch.arange(10_000), "b": torch.arange(20_000).reshape(10_000, 2)}
    thinned, thin = chains.near_independent(draws, 2_400.0)
    assert thin == 4
    assert torch.equal(thinned["a"], torch.arange(0, 10_000, 4))
    assert torch.equal(thinned["b"][:, 0], 2 * thinned["a"])
    assert chains.near_independent(draws, 10.0)[1] == 10
    assert chains.near_independent(draws, math.nan)[1] == 10
    assert chains.near_independent(draws, 50_000.0)[1] == 1


def test_figures_name_the_worst_coordinate() -> None:
    good = torch.randn(4, 1000)
    stuck = torch.randn(4, 1000) + torch.tensor([0.0, 0.0, 0.0, 10.0])[:, None]
    figures = chains.chain_figures({"good": good, "both": torch.stack([good, stuck], -1)})
    assert figures["rhat_max"] > 2.0
    assert figures["ess_min"] < 20.0
    assert chains.chain_figures({"good": good})["rhat_max"] < 1.01


def _check(fitted: Fitted, n: int) -> None:
    draws = fitted.sample(10**6)
    assert torch.allclose(draws["twice"], 2.0 * draws["mu"])
    mu = draws["mu"].double()
    # Standard errors by the effective size, not by the number of draws.
    size = min(fitted.figures["ess_min"], len(mu))
    assert abs(float(mu.mean()) - 0.75) < 4 * 0.5 / math.sqrt(size)
    assert abs(float(mu.std()) - 0.5) < 4 * 0.5 / math.sqrt(2 * size)
    assert fitted.figures["rhat_max"] < 1.05
    assert fitted.elbo is None
    assert len(fitted.sample(n)["mu"]) == n
    assert torch.equal(fitted.sample(n)["mu"], draws["mu"][:n])


def _check_gamma(fitted: Fitted) -> None:
    x = fitted.sample(10**6)["x"].double()
    assert bool((x > 0).all())
    assert abs(float(x.mean()) - 2.5) < 4 * math.sqrt(1.25 / min(fitted.figures["ess_min"], len(x)))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_nuts_on_a_log_density() -> None:
    _check_gamma(chains.nuts(GAMMA, 0, 1.0, (), chains=2, draws=150, warmup=100))


def test_hmc_on_a_log_density() -> None:
    _check_gamma(chains.hmc(GAMMA, 0, 1.0, (), chains=200, draws=10, warmup=60, thin=2))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_nuts_on_a_conjugate_model_with_arguments() -> None:
    _check(chains.nuts(PROBLEM, 0, 1.0, (), chains=2, draws=150, warmup=100), 50)


def test_hmc_on_a_conjugate_model_with_arguments() -> None:
    _check(chains.hmc(PROBLEM, 0, 1.0, (), chains=200, draws=10, warmup=60, thin=2), 50)
