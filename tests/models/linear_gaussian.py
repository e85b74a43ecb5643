"""A linear-Gaussian latent-variable model, whose posterior and evidence are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
    covariance = torch.linalg.inv(torch.eye(weight.shape[1]).to(weight) + weight.mT @ weight / SCALE**2)
    return (x - bias) @ weight @ covariance / SCALE**2, covariance


def log_evidence(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """log p(x), shape (B,)."""
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(weight.shape[0]).to(weight)
    return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)
