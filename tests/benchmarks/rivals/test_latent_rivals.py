"""Rivals of AVB's encoder: as many parameters for all, and all of them learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks.latent import Recipe, train
from benchmarks.rivals.latent import RIVALS
from models.encoders import ConvBody, MLPBody, parameter_count
from models.importance_weighting import log_weights
from tests.models.linear_gaussian import exact_posterior, linear_vae, log_evidence

SETTINGS: dict[str, tuple[Callable[[int], nn.Module], int, int]] = {
    "digits, 2-d": (lambda width: MLPBody(64, (width, width)), 2, 55_000),
    "digits, 16-d": (lambda width: MLPBody(64, (width, width)), 16, 60_000),
    "MNIST, 32-d": (lambda width: MLPBody(784, (width, width)), 32, 345_000),
    "MNIST, 32-d, convolutions": (lambda width: ConvBody((1, 28, 28), hidden=width), 32, 250_000),
}


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("name", list(RIVALS))
def test_every_rival_meets_the_budget(name: str, setting: str) -> None:
    body, latent_dim, budget = SETTINGS[setting]
    encoder = RIVALS[name].encoder(body, latent_dim, budget)
    # Counted here without the class's own method: all that is not p(a | x, z).
    reverse = [p.numel() for key, p in encoder.named_parameters() if key.startswith("reverse")]
    assert abs(parameter_count(encoder) - sum(reverse) - budget) <= 0.1 * budget
    assert bool(reverse) == (name == "aux-vae")


#: A posterior with correlation -0.87.
WEIGHT = torch.tensor([[1.5, 1.2], [0.9, 1.2], [1.0, 0.9]])
BIAS = torch.tensor([0.3, -0.2, 0.1])


#: Families that hold every Gaussian with a mean and covariance of their own for each datum.
EXACT = ("full-vae", "iaf-vae", "nvp-vae", "householder-vae")
QUICK = ("vae", "full-vae", "iaf-vae", "householder-vae")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RIVALS]
)
def test_every_rival_comes_as_near_to_a_gaussian_posterior_as_its_family_can(name: str) -> None:
    vae = linear_vae(WEIGHT, BIAS)
    x = vae.sample(40, WEIGHT)
    _, covariance = exact_posterior(WEIGHT, BIAS, x)
    precision = torch.linalg.inv(covariance)
    # The best diagonal Gaussian has the exact mean and the conditional variances.
    diagonal = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert diagonal > 0.6
    rival = RIVALS[name]
    encoder = rival.encoder(lambda width: MLPBody(3, (width, width)), 2, 25_000)
    train(rival.elbo(), vae.model, encoder.guide, [x], encoder.parameters(), Recipe(300, lr=5e-3), seed=0)
    log_w = log_weights(vae, encoder, x, 2000)
    if name == "iwae":
        log_w = log_w.reshape(-1, 5, 40).logsumexp(1) - math.log(5.0)
    gap = float((log_evidence(WEIGHT, BIAS, x) - log_w.mean(0)).mean())
    if name == "vae":
        assert diagonal - 0.05 < gap < diagonal + 0.1
    else:
        assert -0.05 < gap < (0.05 if name in EXACT else 0.5 * diagonal)
