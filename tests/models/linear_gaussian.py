"""A linear decoder with noise of known scale, its posterior and evidence in closed form."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from models.linear_gaussian import LinearConditional
from models.vaes import VAE, NormalLikelihood

SCALE = 0.7


def linear_vae(weight: Tensor, bias: Tensor) -> VAE:
    """x ~ N(W z + b, SCALE^2 I) with W (n, d) and b (n,)."""
    decoder = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        decoder.weight.copy_(weight)
        decoder.bias.copy_(bias)
    return VAE(decoder, weight.shape[1], NormalLikelihood(SCALE))


def exact_posterior(weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (d, d) of p(z | x)."""
    posterior = _likelihood(weight, bias).reverse(_prior(weight))
    return posterior.given(x).mean, posterior.covariance


def log_evidence(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """log p(x), shape (B,)."""
    return _likelihood(weight, bias).marginal(_prior(weight)).log_prob(x)


def _likelihood(weight: Tensor, bias: Tensor) -> LinearConditional:
    return LinearConditional(weight, bias, SCALE**2 * torch.eye(len(bias)).to(weight))


def _prior(weight: Tensor) -> MultivariateNormal:
    d = weight.shape[1]
    return MultivariateNormal(torch.zeros(d).to(weight), torch.eye(d).to(weight))
