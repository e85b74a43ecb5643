"""Values and gradients of the joint losses with exact adversaries, against the closed forms of linear-Gaussian laws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional

from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from models.linear_gaussian import Laws
from tests.joint.known import (
    SIGMAS,
    ExactPairs,
    ExactSingle,
    Known,
    built,
    flat_gradient,
    frozen,
    mean_and_error,
    monte_carlo_gradient,
    truth,
    unrelated,
)

DRAWS = 100_000


def reconstruction(laws: Laws) -> ReconstructionELBO:
    return ReconstructionELBO(ExactPairs(laws.encoded_ratio), densities=False)


def generation(laws: Laws) -> GenerationELBO:
    return GenerationELBO(ExactPairs(laws.decoded_ratio), densities=False)


def symmetric(laws: Laws) -> SymmetricAdversarialELBO:
    return SymmetricAdversarialELBO((ExactPairs(laws.encoded_ratio), ExactPairs(laws.decoded_ratio)), densities=False)


def contrasted_reconstruction(laws: Laws) -> ReconstructionELBO:
    """f1 = log q(z | x) - log p(z) + T, T = log q(x) - log p(x)."""
    return ReconstructionELBO(ExactPairs(of_data_alone(laws)), densities=True)


def contrasted_generation(laws: Laws) -> GenerationELBO:
    """f2 = log q(z | x) - log p(z) + T, T = log p(x, z) - log q(x, z)."""
    return GenerationELBO(ExactPairs(negative(joint_ratio(laws))), densities=True)


def contrasted_symmetric(laws: Laws) -> SymmetricAdversarialELBO:
    adversaries = ExactPairs(of_data_alone(laws)), ExactPairs(negative(joint_ratio(laws)))
    return SymmetricAdversarialELBO(adversaries, densities=True)


def of_data_alone(laws: Laws) -> Callable[[Tensor, Tensor], Tensor]:
    ratio = data_ratio(laws)
    return lambda x, z: ratio(x)


def negative(ratio: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, z: -ratio(x, z)


def autoencoder(laws: Laws) -> AdversarialAutoencoderLoss:
    return AdversarialAutoencoderLoss(ExactSingle(lambda z: laws.aggregate.log_prob(z) - laws.prior.log_prob(z)))


def joint_ratio(laws: Laws) -> Callable[[Tensor, Tensor], Tensor]:
    """log q(x, z) - log p(x, z)."""

    def ratio(x: Tensor, z: Tensor) -> Tensor:
        both = torch.cat([x, z], -1)
        return laws.encoded.log_prob(both) - laws.decoded.log_prob(both)

    return ratio


def data_ratio(laws: Laws) -> Callable[[Tensor], Tensor]:
    """log q(x) - log p(x)."""
    return lambda x: laws.data.log_prob(x) - laws.evidence.log_prob(x)


def inference(laws: Laws) -> AdversarialInferenceLoss:
    return AdversarialInferenceLoss(ExactPairs(joint_ratio(laws)))


def generator(laws: Laws) -> GenerativeAdversarialLoss:
    return GenerativeAdversarialLoss(ExactSingle(data_ratio(laws)))


def expected_log_likelihood(laws: Laws) -> Tensor:
    """E_q(x, z) log p(x | z), from the law of x - W z - b."""
    decoding, joint = laws.decoding, laws.encoded
    n = len(decoding.bias)
    residual = torch.cat([torch.eye(n).to(decoding.weight), -decoding.weight], -1)
    loc = residual @ joint.loc - decoding.bias
    variance = (residual @ joint.covariance_matrix @ residual.mT).diagonal() + loc.square()
    noise = decoding.covariance.diagonal()
    return -0.5 * ((2.0 * torch.pi * noise).log() + variance / noise).sum()


def reconstruction_value(laws: Laws) -> Tensor:
    """Minus (8), by (20)."""
    return laws.kl_encoded() + laws.kl_data() + laws.data.entropy()


def generation_value(laws: Laws) -> Tensor:
    """Minus (9), by (22)."""
    return laws.kl_decoded() + kl_divergence(laws.prior, laws.aggregate) + laws.prior.entropy()


def contrasted_generation_value(laws: Laws) -> Tensor:
    """The same where log p(z) stands for log q(z)."""
    return laws.kl_decoded() + laws.prior.entropy()


VALUES = [
    (contrasted_reconstruction, reconstruction_value),
    (contrasted_generation, contrasted_generation_value),
    (contrasted_symmetric, lambda laws: reconstruction_value(laws) + contrasted_generation_value(laws)),
    (reconstruction, reconstruction_value),
    (generation, generation_value),
    (symmetric, lambda laws: reconstruction_value(laws) + generation_value(laws)),
    (autoencoder, lambda laws: laws.kl_aggregate() - expected_log_likelihood(laws)),
]
#: What each loss's gradient lowers, in decoder and encoder alike.
LOWERED = [
    (contrasted_reconstruction, Laws.kl_encoded),
    (contrasted_generation, Laws.kl_decoded),
    (contrasted_symmetric, lambda laws: laws.kl_encoded() + laws.kl_decoded()),
    (reconstruction, Laws.kl_encoded),
    (generation, Laws.kl_decoded),
    (symmetric, lambda laws: laws.kl_encoded() + laws.kl_decoded()),
    (autoencoder, lambda laws: laws.kl_aggregate() - expected_log_likelihood(laws)),
]


@pytest.mark.parametrize(("make", "value"), VALUES)
def test_value_with_exact_adversaries(
    make: Callable[[Laws], JointAdversarialLoss], value: Callable[[Laws], Tensor]
) -> None:
    known = unrelated()
    laws = frozen(known)
    loss = built(make(laws), known)
    with torch.no_grad():
        found, stderr = mean_and_error(loss.terms(known.draws(DRAWS), 1.0))
    exact = value(laws)
    assert abs(found - exact) < SIGMAS * stderr
    assert stderr < 0.01 * exact


@pytest.mark.parametrize(("make", "lowered"), LOWERED)
def test_gradient_with_exact_adversaries(
    make: Callable[[Laws], JointAdversarialLoss], lowered: Callable[[Laws], Tensor]
) -> None:
    known = unrelated()
    loss = built(make(frozen(known)), known)
    exact = flat_gradient(lowered(known.laws), known.parameters)
    found, stderr = monte_carlo_gradient(loss, known)
    assert ((found - exact).abs() <= SIGMAS * stderr + 1e-12).all()
    # The test can tell: it is much sharper than the gradients are long.
    assert stderr.max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("make", [reconstruction, generation, symmetric])
def test_no_gradient_is_left_at_the_truth(make: Callable[[Laws], JointAdversarialLoss]) -> None:
    known = truth()
    loss = built(make(frozen(known)), known)
    found, stderr = monte_carlo_gradient(loss, known)
    assert (found.abs() <= SIGMAS * stderr + 1e-9).all()
    assert stderr.max() < 0.05


@pytest.mark.parametrize("make", [inference, generator])
def test_adversarial_losses_leave_nothing_at_the_truth(make: Callable[[Laws], JointAdversarialLoss]) -> None:
    # T is 0 everywhere, to rounding, so that not even single draws have a gradient.
    known = truth()
    loss = built(make(frozen(known)), known)
    assert flat_gradient(loss.terms(known.draws(500), 1.0).sum(), known.parameters).abs().max() < 1e-9


def scores(known: Known, log_prob: Tensor, weights: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """Mean of weights times the gradient of the log-density, and its standard error over chunks of draws."""
    rows = [
        flat_gradient((w * l).mean(), known.parameters)
        for w, l in zip(weights.chunk(chunks), log_prob.chunk(chunks), strict=True)
    ]
    return mean_and_error(torch.stack(rows))


def test_gradient_of_adversarial_inference_is_that_of_scores() -> None:
    # Reparameterised draws against E[w grad log q(z | x)] and E[w grad log p(x | z)], w the loss at constant T.
    known = unrelated()
    laws = frozen(known)
    ratio = joint_ratio(laws)
    found, stderr = monte_carlo_gradient(built(inference(laws), known), known)
    x, z = laws.data.sample((DRAWS,)), laws.prior.sample((DRAWS,))
    encoded, decoded = laws.encoding.given(x).sample(), laws.decoding.given(z).sample()
    log_q = known.encoder.posterior(x).log_prob(encoded)
    log_p = known.vae.likelihood(known.vae.decoder(z)).log_prob(decoded)
    of_encoder = scores(known, log_q, functional.softplus(ratio(x, encoded)), 50)
    of_decoder = scores(known, log_p, functional.softplus(-ratio(decoded, z)), 50)
    away = found - of_encoder[0] - of_decoder[0]
    error = (stderr**2 + of_encoder[1] ** 2 + of_decoder[1] ** 2).sqrt()
    assert (away.abs() <= SIGMAS * error + 1e-12).all()
    assert error.max() < 0.1 * found.abs().max()


def test_gradient_of_the_generator_is_that_of_scores() -> None:
    known = unrelated()
    laws = frozen(known)
    found, stderr = monte_carlo_gradient(built(generator(laws), known), known)
    z = laws.prior.sample((DRAWS,))
    x = laws.decoding.given(z).sample()
    log_p = known.vae.likelihood(known.vae.decoder(z)).log_prob(x)
    mean, other = scores(known, log_p, functional.softplus(-data_ratio(laws)(x)), 50)
    error = (stderr**2 + other**2).sqrt()
    assert ((found - mean).abs() <= SIGMAS * error + 1e-12).all()
    assert error.max() < 0.1 * found.abs().max()
