"""A normal mean with known covariance: few data, correlated prior and noise, the posterior in closed form."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["NOISE_COVARIANCE", "PRIOR_COVARIANCE", "Y", "exact_moments", "exact_posterior", "model"]

PRIOR_COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, -0.5], [0.0, -0.5, 4.0]])
NOISE_COVARIANCE = torch.tensor([[1.0, -0.6, 0.0], [-0.6, 1.0, 0.0], [0.0, 0.0, 0.25]])
#: Two observations, (2, 3).
Y = torch.tensor([[0.5, -0.2, 1.0], [-0.3, 0.8, 1.5]])


def model(y: Tensor = Y) -> None:
    """Pyro model: mu ~ N(0, PRIOR_COVARIANCE), and y_i ~ N(mu, NOISE_COVARIANCE) in plate "data".

    Args:
        y: observations, shape (n, 3).
    """
    mu = pyro.sample("mu", dist.MultivariateNormal(y.new_zeros(3), PRIOR_COVARIANCE.to(y)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(mu, NOISE_COVARIANCE.to(y)), obs=y)


def exact_moments(y: Tensor = Y) -> tuple[Tensor, Tensor]:
    """Posterior mean (3,) and covariance (3, 3) given y (n, 3), float64 on the CPU."""
    prior, noise = (torch.linalg.inv(c.double()) for c in (PRIOR_COVARIANCE, NOISE_COVARIANCE))
    covariance = torch.linalg.inv(prior + len(y) * noise)
    return covariance @ noise @ y.double().cpu().sum(0), covariance


def exact_posterior(n: int, seed: int, y: Tensor = Y) -> dict[str, Tensor]:
    """Independent exact draws of the posterior given y (n, 3).

    Args:
        n: number of draws.
        seed: of a local generator; the global random state is not touched.
        y: observations.

    Returns:
        "mu" (n, 3), float64 on the CPU.
    """
    mean, covariance = exact_moments(y)
    noise = torch.randn(n, 3, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return {"mu": mean + noise @ torch.linalg.cholesky(covariance).mT}
