"""The synthetic example: quadrature and neighbours against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.synthetic_images import (
    OPTIMUM,
    ImageLaw,
    PlanarTruth,
    all_images,
    kl_to_standard_normal,
    one_hot_images,
)
from models.vaes import VAE, NormalLikelihood

DRAWS = 20_000


class Quadrants(nn.Module):
    """A decoder that lights one pixel in each quadrant, with the given log odds."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, z: Tensor) -> Tensor:
        right, upper = z[..., 0] > 0.0, z[..., 1] > 0.0
        on = torch.stack([right & upper, ~right & upper, ~right & ~upper, right & ~upper], -1)
        return self.sharpness * (2.0 * on.to(z) - 1.0)


def in_quadrants(n: int) -> Tensor:
    """Draws of a standard normal in each of the four quadrants, (n, 4, 2)."""
    signs = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return torch.randn(n, 4, 2).abs() * signs


def linear_gaussian() -> tuple[VAE, Tensor, Tensor, Tensor, torch.Tensor]:
    """x = W z + b + .6 n: the VAE, data, and the posterior's mean (B, 2) and covariance, log p(x) (B,)."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 3)
    scale = 0.6
    vae = VAE(decoder, 2, NormalLikelihood(scale))
    x = torch.randn(5, 3)
    w, b = decoder.weight.detach().double(), decoder.bias.detach().double()
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + w.mT @ w / scale**2)
    mean = (x.double() - b) @ w @ covariance / scale**2
    evidence = torch.distributions.MultivariateNormal(b, w @ w.mT + scale**2 * torch.eye(3, dtype=torch.float64))
    return vae, x, mean, covariance, evidence.log_prob(x.double())


def test_the_likelihood_of_a_perfect_partition_is_the_optimum() -> None:
    sharpness = 12.0
    # A pixel is wrong with probability 1 / (1 + e^12): what a z of another quadrant adds is below 1e-9.
    exact = OPTIMUM - 4.0 * math.log1p(math.exp(-sharpness))
    truth = PlanarTruth(VAE(Quadrants(sharpness), 2), one_hot_images(), points=200)
    # An even number of points puts the axes, where the decoder jumps, midway between two of them.
    torch.testing.assert_close(truth.log_likelihood, torch.full((4,), exact).double(), atol=1e-6, rtol=0.0)


def test_the_elbo_of_exact_posterior_draws_is_the_likelihood() -> None:
    truth = PlanarTruth(VAE(Quadrants(12.0), 2), one_hot_images(), points=200)
    elbo = truth.elbo(in_quadrants(DRAWS))
    assert elbo.stderr < 0.01
    assert elbo.value == pytest.approx(float(truth.log_likelihood.mean()), abs=4.0 * elbo.stderr)


def test_quadrature_of_a_linear_gaussian_model() -> None:
    vae, x, mean, covariance, evidence = linear_gaussian()
    truth = PlanarTruth(vae, x, limit=9.0)
    torch.testing.assert_close(truth.log_likelihood, evidence, atol=1e-9, rtol=0.0)
    z = torch.randn(7, 5, 2).double()
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    torch.testing.assert_close(truth.log_posterior(z), posterior.log_prob(z), atol=1e-9, rtol=0.0)
    # One point for all data broadcasts.
    torch.testing.assert_close(truth.log_posterior(z[:, :1]), posterior.log_prob(z[:, :1].expand(7, 5, 2)))


def test_the_elbo_of_a_wrong_gaussian_encoder_lies_its_kl_below() -> None:
    vae, x, mean, covariance, evidence = linear_gaussian()
    q = torch.distributions.MultivariateNormal(mean + 0.3, 0.5 * covariance)
    p = torch.distributions.MultivariateNormal(mean, covariance)
    kl = torch.distributions.kl_divergence(q, p).mean()
    elbo = PlanarTruth(vae, x, points=101, limit=9.0).elbo(q.sample((DRAWS,)))
    assert elbo.value == pytest.approx(float(evidence.mean() - kl), abs=4.0 * elbo.stderr)
    assert 4.0 * elbo.stderr < 0.2 * float(kl)


def test_draws_of_the_posterior_have_its_moments() -> None:
    vae, x, mean, covariance, _ = linear_gaussian()
    z = PlanarTruth(vae, x, points=201, limit=6.0).sample_posterior(DRAWS)
    stderr = (covariance.diagonal() / DRAWS).sqrt()
    assert bool(((z.mean(0) - mean).abs() < 4.5 * stderr).all())
    # The variance of an estimated covariance is (c_ij^2 + c_ii c_jj) / n; a cell adds its own width^2 / 12.
    variances = covariance.diagonal()
    spread = ((covariance**2 + variances[:, None] * variances) / DRAWS).sqrt()
    cell = torch.eye(2, dtype=torch.float64) * 0.06**2 / 12.0
    for i in range(len(x)):
        assert bool(((torch.cov(z[:, i].mT) - covariance - cell).abs() < 4.5 * spread).all())


def test_later_changes_of_the_decoder_do_not_reach_the_truth() -> None:
    vae, x, *_ = linear_gaussian()
    truth = PlanarTruth(vae, x, points=101, limit=9.0)
    before = truth.log_joint(torch.zeros(1, 5, 2))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(1.0)
    assert torch.equal(truth.log_joint(torch.zeros(1, 5, 2)), before)
    assert next(vae.parameters()).dtype == torch.float32


def test_kl_to_the_prior() -> None:
    scale, shift = 0.8, 0.5
    z = scale * torch.randn(DRAWS, 2) + shift
    exact = scale**2 - 1.0 - 2.0 * math.log(scale) + shift**2
    found = kl_to_standard_normal(z)
    assert found.value == pytest.approx(exact, abs=4.0 * found.stderr)
    # All four quadrants together are the prior.
    found = kl_to_standard_normal(in_quadrants(DRAWS // 4).flatten(0, 1))
    assert found.value == pytest.approx(0.0, abs=4.0 * found.stderr)


def test_all_images_are_there_once_and_the_data_first() -> None:
    images = all_images()
    assert torch.equal(images[:4], one_hot_images())
    numbers = images @ torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert sorted(numbers.tolist()) == list(range(16))


class Constant(nn.Module):
    """A decoder that does not look at z."""

    def __init__(self, log_odds: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_odds", log_odds)

    def forward(self, z: Tensor) -> Tensor:
        return self.log_odds.expand(*z.shape[:-1], 4)


def test_the_law_of_independent_pixels() -> None:
    log_odds = torch.tensor([0.3, -1.2, 2.0, -0.4])
    law = ImageLaw.of(VAE(Constant(log_odds), 2))
    # With constant log odds p(x) is a product over pixels.
    on = torch.sigmoid(log_odds.double())
    x = all_images().double()
    exact = (x * on + (1.0 - x) * (1.0 - on)).prod(-1)
    torch.testing.assert_close(law.probabilities, exact, atol=1e-9, rtol=0.0)
    assert law.share_of_data == pytest.approx(float(exact[:4].sum()), abs=1e-8)
    assert law.kl_from_data == pytest.approx(float((0.25 * (0.25 / exact[:4]).log()).sum()), abs=1e-8)
    # Jensen-Shannon by entropies: H(middle) - H(p) / 2 - H(q) / 2.
    q = torch.zeros(16, dtype=torch.float64)
    q[:4] = 0.25
    entropy = [torch.distributions.Categorical(each).entropy() for each in (0.5 * (exact + q), exact, q)]
    assert law.jensen_shannon == pytest.approx(float(entropy[0] - 0.5 * entropy[1] - 0.5 * entropy[2]), abs=1e-7)


def test_the_law_of_a_perfect_partition_is_that_of_the_data() -> None:
    sharpness = 12.0
    law = ImageLaw.of(VAE(Quadrants(sharpness), 2), points=200)
    right = (1.0 + math.exp(-sharpness)) ** -4
    assert law.share_of_data == pytest.approx(right, abs=1e-8)
    truth = PlanarTruth(VAE(Quadrants(sharpness), 2), one_hot_images(), points=200)
    assert law.kl_from_data == pytest.approx(OPTIMUM - float(truth.log_likelihood.mean()), abs=1e-8)
    # What lies outside the data's images, 1 - right, costs log 2 / 2 each, less a smaller order of it.
    assert law.jensen_shannon == pytest.approx(0.5 * math.log(2.0) * (1.0 - right), rel=1e-3)


def test_the_law_of_a_model_that_lost_an_image() -> None:
    class Half(Quadrants):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.abs() * torch.tensor([1.0, -1.0]))

    law = ImageLaw.of(VAE(Half(12.0), 2), points=200)
    # One image is left, a point mass against four equal ones.
    middle = [0.625, 0.125, 0.125, 0.125]
    exact = 0.5 * math.log(1.0 / 0.625) + 0.5 * sum(0.25 * math.log(0.25 / m) for m in middle)
    assert law.share_of_data > 0.9999
    assert law.jensen_shannon == pytest.approx(exact, abs=1e-4)
    assert law.kl_from_data > 1.0


def test_the_law_needs_pixels_that_are_zero_or_one() -> None:
    with pytest.raises(ValueError, match="must sum to 1"):
        ImageLaw.of(VAE(Constant(torch.zeros(4)), 2, NormalLikelihood(0.5)), points=101)
    with pytest.raises(ValueError, match="two latents"):
        ImageLaw.of(VAE(nn.Linear(3, 4), 3))


def test_errors() -> None:
    with pytest.raises(ValueError, match="two latents"):
        PlanarTruth(VAE(nn.Linear(3, 4), 3), one_hot_images())
    vae = VAE(nn.Linear(2, 4), 2)
    with pytest.raises(ValueError, match="points"):
        PlanarTruth(vae, one_hot_images(), points=1)
    with pytest.raises(ValueError, match="limit"):
        PlanarTruth(vae, one_hot_images(), limit=-1.0)
    truth = PlanarTruth(vae, one_hot_images(), points=11)
    with pytest.raises(ValueError, match="z must have shape"):
        truth.elbo(torch.zeros(10, 3, 2))
    with pytest.raises(ValueError, match="z must have shape"):
        kl_to_standard_normal(torch.zeros(10))
