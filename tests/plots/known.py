"""Guides in their adversarial stage whose adversary is a known function."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from avbvi import Adversary, AffineTrunk, AVBGuide, GaussianContrast, Hint
from avbvi.guides import ADVERSARIAL

LOC = torch.tensor([0.5, -1.0, 0.2, 0.0])
SCALE_TRIL = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.3, 0.5, 0.0, 0.0], [-0.2, 0.1, 0.8, 0.0], [0.0, 0.4, 0.1, 0.6]])
#: Of the contrast, in base coordinates.
CENTRE, SPREAD = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 1.5, 0.7, 1.2])


def model() -> None:
    """Four latents: mu, a positive tau, a vector eta."""
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("tau", dist.HalfNormal(1.0))
    pyro.sample("eta", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def bowl(x: Tensor) -> Tensor:
    """T of features x (*batch, 4), which has both signs."""
    return x[..., 0] + 0.5 * x[..., 1].square() - 0.3 * x[..., 2] * x[..., 3] - 0.4


class Bowl(Adversary):
    """T = :func:`bowl`."""

    def _build(self, dim: int) -> None:
        pass

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        return bowl(features)


def base(z: Tensor) -> Tensor:
    """Base coordinates of unconstrained latents (n, 4)."""
    return torch.linalg.solve(SCALE_TRIL, (z - LOC).mT).mT


def log_ratio(z: Tensor) -> Tensor:
    """log q - log r (n,) at unconstrained latents (n, 4), by hand."""
    return bowl((base(z) - CENTRE) / SPREAD)


def log_contrast(z: Tensor) -> Tensor:
    """log r (n,) at unconstrained latents (n, 4), by hand."""
    covariance = SCALE_TRIL @ torch.diag(SPREAD.square()) @ SCALE_TRIL.mT
    return torch.distributions.MultivariateNormal(LOC + SCALE_TRIL @ CENTRE, covariance).log_prob(z)


def known_guide(*, adversarial: bool = True) -> AVBGuide:
    """The guide of :func:`model` with these parts."""
    guide = AVBGuide(model, trunk=AffineTrunk(), contrast=GaussianContrast(), adversary=Bowl()).setup()
    with torch.no_grad():
        guide.part("trunk").start(LOC, SCALE_TRIL)
        contrast = guide.part("contrast")
        contrast.loc.copy_(CENTRE)
        contrast.scale_tril.copy_(torch.diag(SPREAD))
    if adversarial:
        guide.stage.fill_(ADVERSARIAL)
    return guide
