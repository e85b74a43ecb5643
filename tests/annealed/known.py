"""Latent-variable densities whose evidence and posteriors are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class LinearGaussian:
    """x_i ~ N(W z_i + b, noise^2 I), z_i ~ N(0, I): evidence and posterior in closed form."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, noise: float) -> None:
        self.x, self.weight, self.bias, self.noise = x, weight, bias, noise
        self.batch, self.dim = len(x), weight.shape[1]

    @classmethod
    def simulated(cls, batch: int, pixels: int, dim: int, *, noise: float = 0.5, dtype=torch.float32, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(pixels, dim, generator=generator, dtype=dtype)
        bias = torch.randn(pixels, generator=generator, dtype=dtype)
        z = torch.randn(batch, dim, generator=generator, dtype=dtype)
        x = z @ weight.mT + bias + noise * torch.randn(batch, pixels, generator=generator, dtype=dtype)
        return cls(x, weight, bias, noise)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square().sum(-1) + self.dim * math.log(2 * math.pi))

    def sample_prior(self, n: int) -> Tensor:
        return torch.randn(n, self.batch, self.dim, dtype=self.x.dtype)

    def log_joint(self, z: Tensor) -> Tensor:
        white = (self.x - z @ self.weight.mT - self.bias) / self.noise
        constant = self.x.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.noise))
        return self.log_prior(z) - 0.5 * white.square().sum(-1) - constant

    def simulate(self) -> tuple[Tensor, LinearGaussian]:
        z = self.sample_prior(1)[0]
        mean = z @ self.weight.mT + self.bias
        x = mean + self.noise * torch.randn_like(mean)
        return z, type(self)(x, self.weight, self.bias, self.noise)

    def log_evidence(self) -> Tensor:
        """(B,), float64."""
        weight = self.weight.double()
        covariance = weight @ weight.mT + self.noise**2 * torch.eye(len(weight), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(self.bias.double(), covariance).log_prob(self.x.double())

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Means (B, dim) and covariances (B, dim, dim), float64."""
        weight = self.weight.double()
        precision = torch.eye(self.dim, dtype=torch.float64) + weight.mT @ weight / self.noise**2
        covariance = torch.linalg.inv(precision)
        loc = (self.x.double() - self.bias.double()) @ weight @ covariance / self.noise**2
        return loc, covariance.expand(self.batch, -1, -1)
