"""A linear-Gaussian model with everything in closed form, and a sampler whose density its adversary knows."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from avbvi import PriorContrast
from avbvi.amortised import AmortisedAVBGuide
from avbvi.amortised.adversaries import ConditionalAdversary
from avbvi.amortised.gaussians import Gaussians
from avbvi.amortised.samplers import AmortisedSampler
from avbvi.guides import AVBGuide


class LinearGaussian:
    """x_i ~ N(W z_i + b, s^2 I), z_i ~ N(0, I): W, b a module, learned where ``learned`` is set."""

    def __init__(self, width: int = 3, dim: int = 2, scale: float = 0.6, *, learned: bool = True) -> None:
        generator = torch.Generator().manual_seed(3)
        self.decoder = nn.Linear(dim, width)
        with torch.no_grad():
            self.decoder.weight.copy_(torch.randn(width, dim, generator=generator))
            self.decoder.bias.copy_(torch.linspace(-0.5, 0.5, width))
        self.decoder.requires_grad_(learned)
        self.width, self.dim, self.scale = width, dim, scale

    def model(self, x: Tensor, size: int | None = None) -> None:
        """The data of a minibatch; ``size`` is that of all data."""
        if self.decoder.weight.requires_grad:
            pyro.module("decoder", self.decoder)
        with pyro.plate("data", size or len(x), subsample_size=len(x)):
            self.datum(x)

    def subsampling(self, x: Tensor, size: int) -> None:
        """All data, of which the model draws ``size`` itself."""
        if self.decoder.weight.requires_grad:
            pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x), subsample_size=size) as places:
            self.datum(x[places])

    def datum(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def data(self, n: int) -> Tensor:
        """n data drawn from the model."""
        z = torch.randn(n, self.dim)
        return (self.decoder(z) + self.scale * torch.randn(n, self.width)).detach()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, dim) and covariance (dim, dim) of p(z | x)."""
        w, b = self.decoder.weight.detach(), self.decoder.bias.detach()
        covariance = torch.linalg.inv(torch.eye(self.dim, dtype=w.dtype) + w.mT @ w / self.scale**2)
        return (x - b) @ w @ covariance / self.scale**2, covariance

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) (B,)."""
        w, b = self.decoder.weight.detach(), self.decoder.bias.detach()
        covariance = w @ w.mT + self.scale**2 * torch.eye(self.width, dtype=w.dtype)
        return MultivariateNormal(b, covariance).log_prob(x)

    def log_joint(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(x, z) (*S, B)."""
        log_x = dist.Normal(self.decoder(z), self.scale).log_prob(x).sum(-1)
        return log_x - 0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    def score(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """d log p(z) / dz and d log p(x | z) / dz, by hand: both (*S, B, dim)."""
        w = self.decoder.weight.detach()
        return -z, (x - self.decoder(z).detach()) @ w / self.scale**2


class LinearSampler(AmortisedSampler):
    """z = A x + c + L n with n standard normal of z's width; keeps its noises, and takes one that is set."""

    def _build(self, dim: int) -> None:
        self.noise_dim = dim
        self.a = nn.Parameter(0.1 * torch.arange(float(dim * self.context_dim)).reshape(dim, -1).sin())
        self.c = nn.Parameter(torch.linspace(-0.3, 0.4, dim))
        self.l = nn.Parameter(0.7 * torch.eye(dim) + 0.1 * torch.ones(dim, dim).tril(-1))
        self.noises: list[Tensor] = []
        self.fixed: Tensor | None = None

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        noise = super().sample_noise(shape, like=like)
        if self.fixed is not None and self.fixed.shape == noise.shape:
            noise = self.fixed
        self.noises.append(noise)
        return noise

    def loc(self, context: Tensor) -> Tensor:
        return context @ self.a.mT + self.c

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        return self.loc(context) + noise @ self.l.mT

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        """log q(z | x), its parameters detached."""
        l = self.l.detach()
        return MultivariateNormal(self.loc(context).detach(), l @ l.mT, validate_args=False).log_prob(z)


class SplitSampler(LinearSampler):
    """The same with z = mu(x) + L e, e = n + s: adversary and contrast see e alone."""

    splits = True

    def _build(self, dim: int) -> None:
        super()._build(dim)
        self.s = nn.Parameter(torch.linspace(0.2, -0.1, dim))

    def gaussians(self, context: Tensor) -> Gaussians:
        return Gaussians(super().loc(context), self.l.expand(len(context), *self.l.shape))

    def split(self, noise: Tensor, context: Tensor) -> tuple[Tensor, Gaussians]:
        return noise + self.s, self.gaussians(context)

    def loc(self, context: Tensor) -> Tensor:
        return super().loc(context) + self.l @ self.s


class Oracle(ConditionalAdversary):
    """T* = log q(z | x) - log p(z) against the prior as contrast, whose features are z itself."""

    def __init__(self, sampler: LinearSampler) -> None:
        super().__init__(log_prior=True)
        self.known = (sampler,)

    def _build(self, dim: int) -> None:
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, context: Tensor, log_prior: Tensor | None = None) -> Tensor:
        assert log_prior is not None
        return self.known[0].log_prob(features, context) - log_prior + 0.0 * self.idle


def exact_guide(
    model: object, context_dim: int, kind: type[LinearSampler] = LinearSampler, **kwargs: object
) -> AmortisedAVBGuide:
    """A guide of a linear sampler with the adversary that knows it."""
    sampler = kind(context_dim)
    guide = AVBGuide(model, sampler=sampler, contrast=PriorContrast(), adversary=Oracle(sampler), **kwargs)
    assert isinstance(guide, AmortisedAVBGuide)
    return guide
