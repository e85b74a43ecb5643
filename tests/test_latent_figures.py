"""Figures of latent-variable models against closed forms of a linear-Gaussian decoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from avbvi.annealed import GaussianStart
from avbvi.latent_figures import (
    ImportanceBound,
    active_units,
    aggregate_kl,
    importance_weighted_bound,
    mixture_kl,
    reconstruction_error,
)
from tests.annealed.known import LinearGaussian


def example() -> tuple[LinearGaussian, GaussianStart]:
    density = LinearGaussian.simulated(8, 5, 2, noise=0.7, dtype=torch.float64)
    loc, covariance = density.posterior()
    return density, GaussianStart(loc + 0.1, covariance, inflation=1.5)


def proposing(start: GaussianStart):
    def propose(n: int) -> tuple[Tensor, Tensor]:
        z = start.sample(n)
        return z, start.log_prob(z)

    return propose


def test_bounds_rise_from_the_elbo_to_the_evidence():
    density, start = example()
    result = importance_weighted_bound(density.log_joint, proposing(start), 5000, chunk_size=700)
    exact = density.log_evidence()
    loc, covariance = density.posterior()
    kl = kl_divergence(
        MultivariateNormal(start.loc, 1.5 * covariance), MultivariateNormal(loc, covariance)
    )  # fmt: skip
    assert result.log_weights.shape == (5000, 8)
    assert result.log_weights.dtype == torch.float64
    assert ((result.bound - exact) / result.stderr).abs().max() < 4.5
    assert result.stderr.max() < 0.03
    value, stderr = result.elbo
    assert abs(value - float((exact - kl).mean())) < 4.0 * stderr
    # L_1 <= L_2 <= ... <= log p, and L_1 is the ELBO itself.
    bounds = [result.at(k) for k in (1, 2, 8, 32)]
    assert bounds[0].value == pytest.approx(value)
    assert [b.value for b in bounds] == sorted(b.value for b in bounds)
    assert float(exact.mean()) - bounds[-1].value > -4.0 * bounds[-1].stderr
    assert result.at(5000).value == pytest.approx(result.mean.value)
    assert (result.ess > 100.0).all()


def test_an_exact_proposal_has_equal_weights():
    density, _ = example()
    exact = GaussianStart(*density.posterior())
    result = importance_weighted_bound(density.log_joint, proposing(exact), 20, chunk_size=7)
    torch.testing.assert_close(result.log_weights, density.log_evidence().expand(20, -1))
    torch.testing.assert_close(result.ess, torch.full((8,), 20.0, dtype=torch.float64))


def test_chunks_bound_what_is_proposed_at_once():
    density, start = example()
    sizes: list[int] = []

    def propose(n: int) -> tuple[Tensor, Tensor]:
        sizes.append(n)
        return proposing(start)(n)

    importance_weighted_bound(density.log_joint, propose, 25, chunk_size=10)
    assert sizes == [10, 10, 5]


def test_reconstruction_error_is_the_expected_negative_log_likelihood_per_pixel():
    density, _ = example()
    loc, covariance = density.posterior()
    draws = MultivariateNormal(loc, covariance).sample((4000,))
    value, stderr = reconstruction_error(density, draws, 5)
    # E |x - W z - b|^2 / (2 noise^2) under the posterior, plus the constant.
    residual = density.x - loc @ density.weight.mT - density.bias
    spread = torch.einsum("pi,bij,pj->b", density.weight, covariance, density.weight)
    expected = (residual.square().sum(-1) + spread) / (2 * 0.49) + 5 * (0.5 * math.log(2 * math.pi) + math.log(0.7))
    assert stderr < 0.005
    assert abs(value - float(expected.mean()) / 5) < 4.0 * stderr


def test_active_units_are_those_whose_means_vary():
    means = torch.randn(500, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + 3.0
    found = active_units(means)
    assert found.active == 2
    torch.testing.assert_close(found.variances, means.double().var(0))
    assert active_units(means, threshold=0.1).active == 1


def test_aggregate_kl_of_a_gaussian_mixture():
    # Encoders N(m_i, 1 - v) with means m_i ~ N(0, v) make up a standard normal aggregate, shifted here by .5.
    torch.manual_seed(0)
    means = 0.6 * torch.randn(3000, 2)
    draws = means + 0.8 * torch.randn(2, 3000, 2) + torch.tensor([0.5, 0.0])
    prior = torch.randn(6000, 2)
    # KL(N(.5, 1), N(0, 1)) = 1/8.
    assert abs(aggregate_kl(draws, prior).value - 0.125) < 0.05
    assert abs(aggregate_kl(torch.randn(6000, 2), prior).value) < 0.05


def test_mixture_kl_of_two_far_components():
    # q(z) is a half of each of two far Gaussians, whose entropy is that of one plus log 2.
    loc = torch.tensor([[-20.0, 0.0], [20.0, 0.0]]).double()
    q = MultivariateNormal(loc, 0.25 * torch.eye(2).double())
    prior = MultivariateNormal(torch.zeros(2).double(), 400.0 * torch.eye(2).double())
    value, stderr = mixture_kl(q.sample((2000,)), lambda z: q.log_prob(z[:, None]), prior.log_prob, chunk_size=300)
    entropy = float(q.entropy()[0]) + math.log(2.0)
    cross = math.log(2 * math.pi * 400.0) + (400.0 + 2 * 0.25) / (2 * 400.0)
    assert stderr < 0.05
    assert abs(value - (cross - entropy)) < 4.0 * stderr


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d, s: importance_weighted_bound(3, proposing(s)), TypeError, "log_joint"),
        (lambda d, s: importance_weighted_bound(d.log_joint, None), TypeError, "propose"),
        (lambda d, s: importance_weighted_bound(d.log_joint, proposing(s), 0), ValueError, "draws"),
        (lambda d, s: importance_weighted_bound(d.log_joint, proposing(s), 5, chunk_size=0), ValueError, "chunk_size"),
        (lambda d, s: importance_weighted_bound(lambda z: z, proposing(s), 5), ValueError, "same shape as log q"),
        (lambda d, s: importance_weighted_bound(d.log_joint, lambda n: proposing(s)(3), 5), ValueError, "must return"),
        (lambda d, s: reconstruction_error(s, s.sample(3), 5), TypeError, "density"),
        (lambda d, s: reconstruction_error(d, s.sample(3)[:, :2], 5), ValueError, "draws must have shape"),
        (lambda d, s: reconstruction_error(d, s.sample(3), 0), ValueError, "pixels"),
        (lambda d, s: active_units(torch.zeros(1, 3)), ValueError, "means"),
        (lambda d, s: active_units(torch.full((4, 3), math.nan)), ValueError, "finite"),
        (lambda d, s: active_units(torch.zeros(4, 3), threshold=0.0), ValueError, "threshold"),
        (lambda d, s: aggregate_kl([1.0], torch.zeros(3, 2)), TypeError, "draws"),
        (lambda d, s: mixture_kl(torch.zeros(3, 2), s.log_prob, s.log_prob), ValueError, "draws must have shape"),
        (lambda d, s: mixture_kl(s.sample(3), lambda z: z, lambda z: z), ValueError, "log_q must return"),
        (lambda d, s: ImportanceBound(torch.zeros(4, 2)).at(5), ValueError, "k must be at most"),
    ],
)
def test_errors(call, error, words):
    density, start = example()
    with pytest.raises(error, match=words):
        call(density, start)
