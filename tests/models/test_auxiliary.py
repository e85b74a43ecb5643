"""The auxiliary-variable encoder's bound where everything is linear and Gaussian."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from models.auxiliary import AuxiliaryEncoder
from models.encoders import MLPBody
from tests.models.linear_gaussian import linear_vae, log_evidence

# q(a | x) = N(m(x), 0.8^2), q(z | a, x) = N(c(x) + G a, 0.5^2 I): z is normal with covariance 0.5^2 I + 0.8^2 G G'.
A_SCALE, Z_SCALE = 0.8, 0.5
GAIN = torch.tensor([[1.2], [-0.7]], dtype=torch.float64)


class _Linear(nn.Module):
    """N(offset(x) + gain y, scale^2 I)."""

    def __init__(self, offset: nn.Module, gain: Tensor, scale: float) -> None:
        super().__init__()
        self.offset, self.gain, self.scale = offset, gain, scale

    def forward(self, features: Tensor, given: Tensor) -> TorchDistribution:
        return dist.Normal(self.offset(features) + given @ self.gain.mT, self.scale).to_event(1)


def _encoder(reverse_gain: Tensor | None = None, reverse_scale: float | None = None) -> AuxiliaryEncoder:
    """By default with the exact q(a | x, z) in the place of p(a | x, z)."""
    encoder = AuxiliaryEncoder(nn.Linear(4, 3), nn.Linear(4, 3), 2, auxiliary_dim=1).double()
    with torch.no_grad():
        encoder.auxiliary.weight[1:].zero_()
        encoder.auxiliary.bias[1:].fill_(math.log(A_SCALE))
    centre = nn.Linear(3, 2).double()
    encoder.conditional = _Linear(centre, GAIN, Z_SCALE)
    variance = 1.0 / (1.0 / A_SCALE**2 + float(GAIN.square().sum()) / Z_SCALE**2)
    gain = variance / Z_SCALE**2 * GAIN.mT

    class Offset(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            # The exact E[a | x, z] = m(x) + gain (z - E[z | x]).
            return _mean(encoder, features) - _centre(encoder, features) @ gain.mT

    encoder.reverse_body = encoder.body
    encoder.reverse = _Linear(
        Offset(), gain if reverse_gain is None else reverse_gain, reverse_scale or math.sqrt(variance)
    )
    return encoder


def _mean(encoder: AuxiliaryEncoder, features: Tensor) -> Tensor:
    return encoder.auxiliary(features)[:, :1]


def _centre(encoder: AuxiliaryEncoder, features: Tensor) -> Tensor:
    centre: Tensor = encoder.conditional.offset(features) + _mean(encoder, features) @ GAIN.mT
    return centre


def _marginal(encoder: AuxiliaryEncoder, x: Tensor) -> torch.distributions.MultivariateNormal:
    covariance = Z_SCALE**2 * torch.eye(2).double() + A_SCALE**2 * GAIN @ GAIN.mT
    return torch.distributions.MultivariateNormal(_centre(encoder, encoder.body(x)), covariance)


def test_with_the_exact_reverse_log_q_is_that_of_the_marginal() -> None:
    # Bayes: q(a | x) q(z | a, x) / q(a | x, z) = q(z | x), whatever a.
    encoder, x = _encoder(), torch.randn(3, 4).double()
    z, log_q = encoder.propose(x, 5)
    torch.testing.assert_close(log_q, _marginal(encoder, x).log_prob(z))


def test_draws_have_the_moments_of_the_marginal() -> None:
    encoder, x, n = _encoder(), torch.randn(2, 4).double(), 40_000
    loc, covariance = encoder.moments(x, n)
    exact = _marginal(encoder, x)
    variances = exact.variance
    assert bool(((loc - exact.mean).abs() < 4.0 * (variances / n).sqrt()).all())
    error = ((exact.covariance_matrix.square() + variances.unsqueeze(-1) * variances.unsqueeze(-2)) / n).sqrt()
    assert bool(((covariance - exact.covariance_matrix).abs() < 4.0 * error).all())


def test_the_bound_lies_below_the_elbo_by_the_divergence_of_the_reverse() -> None:
    reverse_scale = 0.9
    encoder = _encoder(reverse_scale=reverse_scale)
    weight, bias = torch.randn(4, 2).double(), torch.randn(4).double()
    vae, x, n = linear_vae(weight, bias), torch.randn(3, 4).double(), 40_000
    with torch.no_grad():
        z, log_q = encoder.propose(x, n)
        marginal = _marginal(encoder, x)
        # The part whose mean is known exactly, at the same draws: E["log q" - log q(z | x)] = KL between two normals
        # of the same mean.
        excess = log_q - marginal.log_prob(z)
        variance = encoder.reverse.scale**2, 1.0 / (1.0 / A_SCALE**2 + float(GAIN.square().sum()) / Z_SCALE**2)
        divergence = 0.5 * (variance[1] / variance[0] - 1.0 - math.log(variance[1] / variance[0]))
        error = excess.std(0) / math.sqrt(n)
        assert bool(((excess.mean(0) - divergence).abs() < 4.0 * error).all())
        assert divergence > 50.0 * float(error.max())
        # The loss is minus that bound.
        elbo = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
        loss = elbo.loss(vae.model, encoder.guide, x)
        terms = (vae.log_joint(x, z) - log_q).sum(-1)
        assert abs(-loss - float(terms.mean())) < 4.0 * float(terms.std()) * math.sqrt(1.0 / 4000 + 1.0 / n)
        assert float(terms.mean()) < float(log_evidence(weight, bias, x).sum())


def test_weights_average_to_the_evidence_whatever_the_reverse() -> None:
    # Narrower than the exact one, so that the weights are bounded in a.
    encoder = _encoder(reverse_gain=torch.tensor([[0.3, -0.1]]).double(), reverse_scale=0.3)
    weight, bias = 0.3 * torch.randn(4, 2).double(), torch.randn(4).double()
    vae, x, n = linear_vae(weight, bias), 0.3 * torch.randn(2, 4).double(), 200_000
    with torch.no_grad():
        z, log_q = encoder.propose(x, n)
        ratio = (vae.log_joint(x, z) - log_q - log_evidence(weight, bias, x)).exp()
    error = ratio.std(0) / math.sqrt(n)
    assert bool((error < 0.1).all())
    assert bool(((ratio.mean(0) - 1.0).abs() < 4.0 * error).all())


def test_a_trained_reverse_makes_up_for_most_of_the_gap() -> None:
    encoder = AuxiliaryEncoder(MLPBody(4, (8,)), MLPBody(4, (16,)), 2, auxiliary_dim=1, hidden=16).double()
    encoder.conditional = _Linear(nn.Linear(8, 2).double(), GAIN, Z_SCALE)
    x = torch.randn(16, 4).double()
    with torch.no_grad():
        encoder.auxiliary.weight.mul_(0.3)
        encoder.auxiliary.bias[1:].fill_(math.log(A_SCALE))
        _, before = encoder.propose(x, 4000)
    optimizer = torch.optim.Adam(encoder.reverse.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        encoder.propose(x, 8).log_q.mean().backward()
        optimizer.step()
    with torch.no_grad():
        features = encoder.body(x)
        scale = encoder.auxiliary(features)[:, 1:].exp()
        loc = encoder.conditional.offset(features) + _mean(encoder, features) @ GAIN.mT
        covariance = Z_SCALE**2 * torch.eye(2).double() + scale.square().unsqueeze(-1) * (GAIN @ GAIN.mT)
        z, log_q = encoder.propose(x, 4000)
        gap = float((log_q - torch.distributions.MultivariateNormal(loc, covariance).log_prob(z)).mean())
    assert 0.0 < gap < 0.05
    assert float(before.mean() - log_q.mean()) > 0.3


def test_errors() -> None:
    body = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="reverse_body must have parameters of its own"):
        AuxiliaryEncoder(body, body, 2, auxiliary_dim=1)
    with pytest.raises(ValueError, match="auxiliary_dim must be at least 1"):
        AuxiliaryEncoder(body, nn.Linear(4, 3), 2, auxiliary_dim=0)
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        AuxiliaryEncoder(body, nn.Linear(4, 3), 2, auxiliary_dim=1, hidden=0)
