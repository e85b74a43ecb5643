"""Posteriors of 31 to 65 dimensions: a logistic regression on real data, and a hierarchical linear one.

`breast_cancer` reads scikit-learn's copy of the Wisconsin diagnostic data (569 tumours, 30 measurements of cell
nuclei, many of them nearly collinear; Street, Wolberg and Mangasarian 1993); nothing is downloaded. `counties`
simulates data of the shape of the radon study (Gelman and Hill 2006, chapter 12): many small groups of very unequal
size, with intercepts and slopes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Counties", "breast_cancer", "counties", "hierarchical_model", "logistic_model"]

_GROUPS = 30
_OBSERVATIONS = 240
_TRUTH = {"mu_intercept": 1.3, "mu_slope": -0.7, "tau_intercept": 0.4, "tau_slope": 0.25, "sigma": 0.7}


def breast_cancer(*, squares: bool = False, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Design matrix and diagnoses of scikit-learn's breast-cancer data.

    Args:
        squares: whether the squares of the standardised measurements follow them as 30 further columns.
        dtype: of the result; PyTorch's default dtype if None.

    Returns:
        x, shape (569, 31) or (569, 61): a column of ones, then columns with mean 0 and standard deviation 1; and
        y, shape (569,), 1 for benign.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise ImportError(
            "breast_cancer() reads scikit-learn's copy of the data: install scikit-learn, or avbvi's extra "
            "'benchmarks', which has it"
        ) from error
    data = load_breast_cancer()
    x = _standardised(torch.from_numpy(data.data).double())
    if squares:
        x = torch.cat([x, _standardised(x.square())], -1)
    x = torch.cat([x.new_ones(len(x), 1), x], -1)
    dtype = dtype or torch.get_default_dtype()
    return x.to(dtype), torch.from_numpy(data.target).to(dtype)


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0, correction=0)


def logistic_model(x: Tensor, y: Tensor | None = None) -> None:
    """Pyro model: coefficients w ~ N(0, 1) each, y_i ~ Bernoulli with log odds x_i' w.

    Args:
        x: design matrix with a column of ones, shape (n, d).
        y: outcomes 0 or 1, shape (n,); None draws them from the prior predictive.
    """
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    # One event instead of a plate: the product of all draws and all rows is a single matrix product.
    pyro.sample("y", dist.Bernoulli(logits=w @ x.mT).to_event(1), obs=y)


@dataclass(frozen=True)
class Counties:
    """Grouped observations.

    Args:
        group: number of each observation's group, shape (n,), int64.
        x: its covariate, shape (n,).
        y: its outcome, shape (n,).
    """

    group: Tensor
    x: Tensor
    y: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of `hierarchical_model`."""
        return self.group, self.x, self.y


def counties(seed: int = 0, *, dtype: torch.dtype | None = None) -> Counties:
    """240 observations of 30 groups of 2 to 49, simulated from `hierarchical_model` with known parameters.

    Args:
        seed: of the simulation.
        dtype: of covariate and outcome; PyTorch's default dtype if None.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    # Two observations each, the others by weights that fall as 1 / k.
    share = 1.0 / torch.arange(1, _GROUPS + 1, dtype=torch.float64)
    others = torch.multinomial(share, _OBSERVATIONS - 2 * _GROUPS, replacement=True, generator=generator)
    group = torch.cat([torch.arange(_GROUPS).repeat(2), others]).sort().values
    x = (torch.rand(_OBSERVATIONS, generator=generator, dtype=torch.float64) < 0.3).double()
    intercept = _TRUTH["mu_intercept"] + _TRUTH["tau_intercept"] * normal(_GROUPS)
    slope = _TRUTH["mu_slope"] + _TRUTH["tau_slope"] * normal(_GROUPS)
    y = intercept[group] + slope[group] * x + _TRUTH["sigma"] * normal(_OBSERVATIONS)
    dtype = dtype or torch.get_default_dtype()
    return Counties(group, x.to(dtype), y.to(dtype))


def hierarchical_model(group: Tensor, x: Tensor, y: Tensor | None = None) -> None:
    """Pyro model of varying intercepts and slopes, non-centred: 5 + 2 groups latents, 65 for `counties`.

    y_i ~ N(mu_a + tau_a a_g(i) + (mu_b + tau_b b_g(i)) x_i, sigma) with a_g, b_g ~ N(0, 1), mu_a, mu_b ~ N(0, 2) and
    tau_a, tau_b, sigma ~ half-normal(1). Sites mu_intercept, mu_slope, tau_intercept, tau_slope, sigma, intercept and
    slope (plate "groups"), y (plate "observations").

    Args:
        group: number of each observation's group, from 0 on, shape (n,).
        x: covariate, shape (n,).
        y: outcome, shape (n,); None draws it from the prior predictive.
    """
    one = x.new_ones(())
    mu_a = pyro.sample("mu_intercept", dist.Normal(0.0 * one, 2.0))
    mu_b = pyro.sample("mu_slope", dist.Normal(0.0 * one, 2.0))
    tau_a = pyro.sample("tau_intercept", dist.HalfNormal(one))
    tau_b = pyro.sample("tau_slope", dist.HalfNormal(one))
    sigma = pyro.sample("sigma", dist.HalfNormal(one))
    with pyro.plate("groups", int(group.max()) + 1, dim=-1):
        a = pyro.sample("intercept", dist.Normal(0.0 * one, 1.0))
        b = pyro.sample("slope", dist.Normal(0.0 * one, 1.0))
    mean = mu_a + tau_a * a[..., group] + (mu_b + tau_b * b[..., group]) * x
    with pyro.plate("observations", len(x), dim=-1):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)
