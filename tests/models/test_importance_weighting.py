"""The importance-weighted bound against an independent computation, Pyro's, and the exact evidence."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from scipy import special, stats
from torch import nn

from benchmarks.latent import LatentWeight
from models.encoders import FullGaussianEncoder, GaussianEncoder, MLPBody
from models.importance_weighting import ImportanceWeightedELBO, log_weights
from models.vaes import VAE
from tests.models.linear_gaussian import SCALE, exact_posterior, linear_vae, log_evidence

WEIGHT = torch.tensor([[1.0, 0.8], [0.3, 0.9], [-0.5, 1.0]], dtype=torch.float64)
BIAS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def _encoder() -> GaussianEncoder:
    """The exact posterior's mean, its scales 1.2 times as large and no correlation."""
    encoder = GaussianEncoder(nn.Linear(3, 3), 2).double()
    _, covariance = exact_posterior(WEIGHT, BIAS, torch.zeros(1, 3).double())
    with torch.no_grad():
        encoder.body.weight.copy_(torch.eye(3))
        encoder.body.bias.copy_(-BIAS)
        encoder.head.weight.zero_()
        encoder.head.weight[:2] = (WEIGHT @ covariance / SCALE**2).mT
        encoder.head.bias.zero_()
        encoder.head.bias[2:] = (1.2 * covariance.diagonal().sqrt()).log()
    return encoder


def test_the_bound_is_that_of_an_independent_computation_at_the_same_draws() -> None:
    vae, encoder, k = linear_vae(WEIGHT, BIAS), _encoder(), 5
    x = vae.sample(4, WEIGHT)
    pyro.set_rng_seed(7)
    bound = -ImportanceWeightedELBO(k).loss(vae.model, encoder.guide, x)
    pyro.set_rng_seed(7)
    posterior = encoder.posterior(x)
    z = posterior.rsample(torch.Size((k,))).detach().numpy()
    loc, scale = posterior.mean.detach().numpy(), posterior.stddev.detach().numpy()
    log_w = (
        stats.norm.logpdf(z).sum(-1)
        + stats.norm.logpdf(x.numpy(), z @ WEIGHT.numpy().T + BIAS.numpy(), SCALE).sum(-1)
        - stats.norm.logpdf(z, loc, scale).sum(-1)
    )
    assert bound == pytest.approx(float((special.logsumexp(log_w, 0) - math.log(k)).sum()), rel=1e-10)


def test_bounds_rise_towards_the_evidence() -> None:
    vae, encoder = linear_vae(WEIGHT, BIAS), _encoder()
    x = vae.sample(3, WEIGHT)
    log_w = log_weights(vae, encoder, x, 60_000, chunk=7000)
    assert log_w.shape == (60_000, 3)
    assert log_w.dtype == torch.float64
    means, errors = [], []
    for k in (1, 5, 60):
        bounds = log_w.reshape(-1, k, 3).logsumexp(1) - math.log(k)
        means.append(bounds.mean(0))
        errors.append(bounds.std(0) / math.sqrt(len(bounds)))
    for low, high in ((0, 1), (1, 2)):
        assert bool((means[high] - means[low] > 4.0 * (errors[low] + errors[high])).all())
    exact = log_evidence(WEIGHT, BIAS, x)
    assert bool((means[2] < exact + 4.0 * errors[2]).all())
    # L_1 is the ELBO, which falls short by KL(q, p) between two normals of one mean.
    _, covariance = exact_posterior(WEIGHT, BIAS, x)
    own = 1.44 * covariance.diagonal().diag()
    divergence = 0.5 * (
        torch.linalg.solve(covariance, own).trace() - 2.0 - torch.logdet(own) + torch.logdet(covariance)
    )
    assert bool(((means[0] - (exact - divergence)).abs() < 4.0 * errors[0]).all())
    # exp(log_w) has expectation p(x).
    ratio = (log_w - exact).exp()
    assert bool(((ratio.mean(0) - 1.0).abs() < 4.0 * ratio.std(0) / math.sqrt(60_000)).all())


def test_the_exact_posterior_leaves_no_gap() -> None:
    vae = linear_vae(WEIGHT, BIAS)
    x = vae.sample(3, WEIGHT)
    _, covariance = exact_posterior(WEIGHT, BIAS, x)
    encoder = FullGaussianEncoder(nn.Linear(3, 3), 2).double()
    tril = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        encoder.body.weight.copy_(torch.eye(3))
        encoder.body.bias.copy_(-BIAS)
        encoder.head.weight.zero_()
        encoder.head.weight[:2] = (WEIGHT @ covariance / SCALE**2).mT
        encoder.head.bias[:2] = 0.0
        encoder.head.bias[2:4] = tril.diagonal().log()
        encoder.head.bias[4] = tril[1, 0] / tril[1, 1]
    exact = log_evidence(WEIGHT, BIAS, x)
    torch.testing.assert_close(log_weights(vae, encoder, x, 3), exact.expand(3, 3))


def test_pyros_renyi_elbo_is_the_same_bound_and_gradient_for_all_data() -> None:
    vae, x = VAE(nn.Linear(2, 5), 2), torch.bernoulli(torch.full((4, 5), 0.5))
    encoder = GaussianEncoder(MLPBody(5, (6,)), 2)
    parameters = [*vae.parameters(), *encoder.parameters()]
    gradients = []
    losses = []
    for elbo in (
        ImportanceWeightedELBO(6),
        RenyiELBO(alpha=0, num_particles=6, vectorize_particles=True, max_plate_nesting=1),
    ):
        pyro.set_rng_seed(1)
        for p in parameters:
            p.grad = None
        losses.append(elbo.loss_and_grads(vae.model, encoder.guide, x))
        gradients.append([p.grad for p in parameters])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for own, pyros in zip(*gradients, strict=True):
        torch.testing.assert_close(own, pyros, rtol=1e-4, atol=1e-6)


def test_a_minibatch_counts_for_all_data() -> None:
    vae, encoder = linear_vae(WEIGHT, BIAS), _encoder()
    x = vae.sample(4, WEIGHT)
    elbo = ImportanceWeightedELBO(5)
    losses = []
    for size in (None, 4, 20):
        pyro.set_rng_seed(2)
        losses.append(elbo.loss(vae.model, encoder.guide, x, size))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] == pytest.approx(5.0 * losses[0], rel=1e-12)
    # Pyro's own takes the scale into the weights' exponent.
    pyro.set_rng_seed(2)
    renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert renyi.loss(vae.model, encoder.guide, x, 20) < 5.0 * losses[0] - 0.1
    # Of one draw it is the ELBO.
    pyro.set_rng_seed(2)
    one = ImportanceWeightedELBO(1).loss(vae.model, encoder.guide, x, 20)
    pyro.set_rng_seed(2)
    assert one == pytest.approx(Trace_ELBO(max_plate_nesting=1).loss(vae.model, encoder.guide, x, 20), rel=1e-12)


@pytest.mark.parametrize("size", [None, 12])
def test_a_weight_of_the_latents_is_inside_the_weights(size: int | None) -> None:
    vae, encoder = linear_vae(WEIGHT, BIAS), _encoder()
    x = vae.sample(4, WEIGHT)
    pyro.set_rng_seed(2)
    with LatentWeight(0.3):
        loss = ImportanceWeightedELBO(5).loss(vae.model, encoder.guide, x, size)
    pyro.set_rng_seed(2)
    with torch.no_grad():
        z, log_q = encoder.propose(x, 5)
        prior = vae.prior(z).log_prob(z)
        log_w = vae.log_joint(x, z) - prior + 0.3 * (prior - log_q)
    expected = (log_w.logsumexp(0) - math.log(5.0)).sum()
    assert loss == pytest.approx(-(3.0 if size else 1.0) * float(expected), rel=1e-12)


def test_errors() -> None:
    vae = VAE(nn.Linear(2, 5), 2)
    encoder = GaussianEncoder(MLPBody(5, (6,)), 2)
    with pytest.raises(ValueError, match="n must be at least 1, found 0"):
        log_weights(vae, encoder, torch.zeros(2, 5), 0)
    with pytest.raises(ValueError, match="chunk must be at least 1, found 0"):
        log_weights(vae, encoder, torch.zeros(2, 5), 3, chunk=0)
    with pytest.raises(ValueError, match="num_particles must be at least 1, found 0"):
        ImportanceWeightedELBO(0)
