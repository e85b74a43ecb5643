"""The VAE's joint density and its ELBO against closed forms; trained encoders against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats
from torch import Tensor, nn

from benchmarks.latent import Recipe, train
from models.encoders import Encoder, FullGaussianEncoder, GaussianEncoder
from models.vaes import VAE, NormalLikelihood
from tests.models.linear_gaussian import SCALE, exact_posterior, linear_vae, log_evidence


def test_log_joint_is_that_of_scipy_and_of_the_model() -> None:
    vae = VAE(nn.Linear(2, 5), 2)
    x, z = torch.bernoulli(torch.full((3, 5), 0.4)), torch.randn(4, 3, 2)
    probabilities = torch.sigmoid(vae.decoder(z)).detach().numpy()
    expected = stats.norm.logpdf(z.numpy()).sum(-1) + stats.bernoulli.logpmf(x.numpy(), probabilities).sum(-1)
    torch.testing.assert_close(vae.log_joint(x, z).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    # Images that are not flattened are the same data, and a minibatch counts for all of them.
    conditioned = poutine.condition(vae.model, {"z": z[0]})
    trace = poutine.trace(conditioned).get_trace(x.reshape(3, 1, 5, 1), size=30)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(10.0 * expected[0].sum(), rel=1e-5)


def test_the_model_broadcasts_over_particles() -> None:
    vae, x = VAE(nn.Sequential(nn.Linear(2, 6), nn.ELU(), nn.Linear(6, 5)), 2), torch.ones(3, 5)
    z = torch.randn(4, 3, 2)
    conditioned = poutine.condition(vae.model, {"z": z})
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(conditioned).get_trace(x)
    trace.compute_log_prob()
    together = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    alone = torch.stack([vae.log_joint(x, each) for each in z])
    torch.testing.assert_close(together, alone)


def test_mean_and_draws_of_data() -> None:
    weight, bias = torch.tensor([[1.0, 0.0], [1.0, -2.0]]), torch.tensor([3.0, -1.0])
    vae = linear_vae(weight, bias)
    z = torch.randn(2, 3, 2)
    torch.testing.assert_close(vae.mean(z), z @ weight.mT + bias)
    n = 40_000
    draws = vae.sample(n, weight)
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(2)
    sds = covariance.diagonal().sqrt()
    assert bool(((draws.mean(0) - bias).abs() < 4.0 * sds / math.sqrt(n)).all())
    # Standard error of a covariance of normals.
    error = ((covariance.square() + torch.outer(sds.square(), sds.square())) / n).sqrt()
    assert bool(((draws.mT.cov() - covariance).abs() < 4.0 * error).all())


class _SigmaPoints:
    """Noise ± sqrt(d) e_i: 2 d points with mean 0 and covariance I, so that averages of quadratics are exact."""

    def __call__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        particles, _, d = shape
        assert particles == 2 * d
        points = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)]).to(dtype)
        return points.unsqueeze(1).expand(shape)


@pytest.mark.parametrize("size", [None, 20])
def test_elbo_and_its_gradient_are_those_of_the_closed_form(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    d, n = 2, 4
    vae = linear_vae(torch.randn(n, d).double(), torch.randn(n).double())
    encoder = GaussianEncoder(nn.Linear(n, 3), d).double()
    x = torch.randn(5, n).double()
    monkeypatch.setattr("torch.distributions.normal._standard_normal", _SigmaPoints())
    elbo = Trace_ELBO(num_particles=2 * d, vectorize_particles=True, max_plate_nesting=1)
    loss = elbo.differentiable_loss(vae.model, encoder.guide, x, size)

    loc, log_scale = encoder.head(encoder.body(x)).chunk(2, -1)
    variance = (2.0 * log_scale).exp()
    decoder = vae.decoder
    error = (x - decoder(loc)).square().sum(-1) + (variance @ decoder.weight.square().mT).sum(-1)
    reconstruction = -0.5 * error / SCALE**2 - n * math.log(SCALE) - 0.5 * n * math.log(2.0 * math.pi)
    kl = 0.5 * (loc.square() + variance - 1.0 - 2.0 * log_scale).sum(-1)
    closed = (1.0 if size is None else size / len(x)) * (reconstruction - kl).sum()

    torch.testing.assert_close(loss, -closed)
    parameters = [*vae.parameters(), *encoder.parameters()]
    for got, expected in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(-closed, parameters), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("make", "weight"),
    [
        # Columns at right angles: the exact posterior has no correlation.
        (GaussianEncoder, torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 1.0]])),
        (FullGaussianEncoder, torch.tensor([[1.0, 0.8], [0.3, 0.9], [-0.5, 1.0]])),
    ],
)
def test_a_trained_gaussian_encoder_has_the_exact_posterior(make: Callable[..., Encoder], weight: Tensor) -> None:
    bias = torch.tensor([0.3, -0.2, 0.1])
    vae = linear_vae(weight, bias)
    x = vae.sample(32, weight)
    loc, covariance = exact_posterior(weight, bias, x)
    # One linear map from the data to mean, log-scales and correlations holds the exact answer.
    encoder = make(nn.Linear(3, 5), 2)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    train(elbo, vae.model, encoder.guide, [x], encoder.parameters(), Recipe(300, lr=0.06), seed=0)
    got_loc, got_covariance = encoder.moments(x)
    assert float((got_loc - loc).abs().max()) < 0.05
    assert float((got_covariance - covariance).abs().max()) < 0.02


def test_a_trained_linear_vae_finds_the_principal_subspace() -> None:
    # Probabilistic PCA (Tipping and Bishop 1999): with the noise known, the best W has W W' = U (L - s^2 I) U' with
    # the largest eigenvalues L of the data's covariance; the ELBO of a Gaussian encoder has the same optimum (Lucas
    # et al. 2019).
    n, d = 6, 2
    data = linear_vae(torch.randn(n, d), torch.randn(n)).sample(200, torch.ones(1))
    covariance = data.mT.cov(correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    top = vectors[:, -d:] * (values[-d:] - SCALE**2).sqrt()
    best = log_evidence(top, data.mean(0), data).mean()

    vae = linear_vae(0.1 * torch.randn(n, d), torch.zeros(n))
    encoder = GaussianEncoder(nn.Linear(n, 4), d)
    train(
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        vae.model,
        encoder.guide,
        list(data.split(100)),
        [*vae.parameters(), *encoder.parameters()],
        Recipe(400, lr=0.05),
        seed=0,
    )
    with torch.no_grad():
        reached = log_evidence(vae.decoder.weight, vae.decoder.bias, data).mean()
    assert float(best) - 0.02 < float(reached) < float(best) + 1e-4
    # Training began well below.
    assert float(log_evidence(0.1 * torch.ones(n, d), torch.zeros(n), data).mean()) < float(best) - 1.0


def test_another_vae_under_the_same_name_is_refused() -> None:
    x = torch.ones(3, 5)
    VAE(nn.Linear(2, 5), 2).model(x)
    VAE(nn.Linear(2, 5), 2, name="second").model(x)
    with pytest.raises(ValueError, match="name='decoder' belongs to another module"):
        VAE(nn.Linear(2, 5), 2).model(x)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"decoder must be a torch\.nn\.Module, found type"):
        VAE(nn.Linear, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent_dim must be at least 1, found 0"):
        VAE(nn.Linear(2, 5), 0)
    with pytest.raises(TypeError, match="likelihood must be callable, found str 'bernoulli'"):
        VAE(nn.Linear(2, 5), 2, "bernoulli")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be positive"):
        NormalLikelihood(0.0)
