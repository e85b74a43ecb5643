"""Trained AS-VAE on linear-Gaussian data: the laws and adversaries that it ends with, against their closed forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal
from pyro.infer import SVI
from torch import Tensor, nn

from avbvi import AVBGuide
from avbvi.amortised.samplers import ConditionalGaussianSampler
from avbvi.joint import (
    GenerationELBO,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from benchmarks.linear_gaussian import adversary_errors
from models.linear_gaussian import Laws, LinearConditional, LinearDecoder, LinearEncoder, laws_of, linear_vae
from models.vaes import VAE

#: x | z of the data; coordinates with different noise, which is known: three of them do not tell it from two factors.
TRUTH = LinearConditional(
    torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, -0.6]]),
    torch.tensor([0.5, -1.0, 0.3]),
    torch.tensor([1.2, 1.7, 1.4]).square().diag(),
)
DATA, BATCH, RATE = 10_000, 256, 2e-2
STEPS = 1500
#: Fixed beforehand.
CLOSE, ACCURATE = 0.02, 0.1
#: A start with everything in the wrong place.
FAR = 1.5


def data_law() -> MultivariateNormal:
    return TRUTH.marginal(MultivariateNormal(torch.zeros(2), torch.eye(2)))


def train(loss: JointAdversarialLoss, vae: VAE, guide: Any, steps: int) -> None:
    x = data_law().sample((DATA,))
    svi = SVI(vae.model, guide, loss.optimizer(lr=RATE), loss=loss)
    for step in range(steps):
        with pyro.validation_enabled(step == 0):
            svi.step(x[torch.randint(DATA, (BATCH,))])


def modules(away: float = 0.0) -> tuple[LinearDecoder, LinearEncoder]:
    decoder, encoder = LinearDecoder(2, 3, TRUTH.covariance.diagonal().sqrt()), LinearEncoder(3, 2)
    with torch.no_grad():
        decoder.linear.bias.add_(away)
        encoder.linear.bias.sub_(away)
    return decoder, encoder


def assert_recovered(laws: Laws) -> None:
    assert float(laws.kl_data()) <= CLOSE
    assert float(laws.kl_posterior()) <= CLOSE
    assert float(laws.kl_aggregate()) <= CLOSE


CASES: list[Any] = [
    (lambda n: SymmetricAdversarialELBO(steps=n), ("f1", "f2"), FAR),
    (lambda n: ReconstructionELBO(steps=n), ("f1",), 0.0),
    (lambda n: GenerationELBO(steps=n), ("f2",), 0.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "ratios", "away"), CASES, ids=["as-vae", "as-vae-r", "as-vae-g"])
def test_laws_and_adversaries_are_recovered(
    make: Callable[[int], JointAdversarialLoss], ratios: tuple[str, ...], away: float
) -> None:
    decoder, encoder = modules(away)
    with torch.no_grad():
        begun = laws_of(decoder, data_law(), encoder)
    assert begun.kl_encoded() > 1.0
    loss = make(STEPS)
    vae = linear_vae(decoder)
    train(loss, vae, encoder.guide, STEPS)
    with torch.no_grad():
        laws = laws_of(decoder, data_law(), encoder)
        errors = adversary_errors(loss, ratios, laws, 50_000, partial(loss.draws, vae.model, encoder.guide))
    assert_recovered(laws)
    assert len(errors) == 2 * len(ratios)
    assert all(error <= ACCURATE for error in errors.values()), errors


@pytest.mark.slow
def test_reconstruction_elbo_trains_a_sampler_whose_density_it_never_asks_for() -> None:
    decoder, _ = modules()
    vae = linear_vae(decoder)
    sampler = ConditionalGaussianSampler(3, body=nn.Identity(), full=True)
    guide = AVBGuide(vae.model, sampler=sampler)
    train(ReconstructionELBO(steps=STEPS), vae, guide, STEPS)
    # The sampler's covariance may depend on x: the divergences are means over data, and those of their moments.
    data = data_law()
    x: Tensor = data.sample((20_000,))
    with torch.no_grad():
        posterior = decoder.conditional().reverse(
            prior := MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        )
        loc, covariance = sampler.moments(x)
        of_encoder = MultivariateNormal(loc.double(), covariance.double())
        kl_posterior = torch.distributions.kl_divergence(of_encoder, posterior.given(x.double())).mean()
        evidence = decoder.conditional().marginal(prior)
        exact = MultivariateNormal(data.loc.double(), data.covariance_matrix.double())
        aggregate = MultivariateNormal(loc.double().mean(0), covariance.double().mean(0) + loc.double().mT.cov())
    assert float(torch.distributions.kl_divergence(exact, evidence)) <= CLOSE
    assert float(kl_posterior) <= CLOSE
    assert float(torch.distributions.kl_divergence(aggregate, prior)) <= CLOSE
