"""Where annealing starts: Gaussians by datum against torch's, their metric, the prior."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from avbvi.annealed import GaussianStart, PriorStart
from avbvi.annealed.densities import DenseBatchMetric
from avbvi.hmc import DiagonalMetric
from tests.annealed.known import LinearGaussian


def gaussians(batch: int = 3, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    factor = torch.randn(batch, dim, dim, dtype=torch.float64)
    return torch.randn(batch, dim, dtype=torch.float64), factor @ factor.mT + 0.1 * torch.eye(dim).double()


@pytest.mark.parametrize("inflation", [1.0, 1.7])
def test_gaussian_start_is_the_multivariate_normal(inflation):
    loc, covariance = gaussians()
    start, exact = GaussianStart(loc, covariance, inflation=inflation), MultivariateNormal(loc, inflation * covariance)
    z = torch.randn(7, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(start.log_prob(z), exact.log_prob(z))
    expected = torch.autograd.grad(exact.log_prob(z).sum(), z)[0]
    torch.testing.assert_close(torch.autograd.grad(start.log_prob(z).sum(), z)[0], expected)
    value, gradient = start.evaluate(z)
    torch.testing.assert_close(value, exact.log_prob(z).detach())
    torch.testing.assert_close(gradient, expected)
    assert not value.requires_grad
    # Any number of dimensions on the left.
    assert start.log_prob(z.reshape(7, 1, 3, 4)).shape == (7, 1, 3)


def test_gaussian_start_draws_from_itself():
    loc, covariance = gaussians()
    z = GaussianStart(loc, covariance).sample(20_000, torch.Generator().manual_seed(1))
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (z - loc).permute(1, 2, 0), upper=False
    )  # (B, dim, n), standard normal
    assert (white.mean(-1) * math.sqrt(20_000)).abs().max() < 4.5
    # Second moments have variance 1 off the diagonal and 2 on it.
    second = white @ white.mT / 20_000 - torch.eye(4).double()
    assert (second * math.sqrt(20_000 / 2.0)).abs().max() < 4.5


def test_variances_are_a_diagonal_covariance():
    loc, covariance = gaussians()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    z = torch.randn(5, 3, 4, dtype=torch.float64)
    expected = torch.distributions.Normal(loc, variance.sqrt()).log_prob(z).sum(-1)
    torch.testing.assert_close(GaussianStart(loc, variance).log_prob(z), expected)


def test_gaussian_of_draws_has_their_moments():
    loc, covariance = gaussians()
    draws = MultivariateNormal(loc, covariance).sample((50_000,))
    start = GaussianStart.of_draws(draws)
    reached = start._factor @ start._factor.mT
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    relative = (reached - covariance) / (scale[:, :, None] * scale[:, None, :])
    # Correlations and relative variances have standard errors of at most sqrt(2 / n) = .0063.
    assert relative.abs().max() < 0.03
    assert ((start.loc - loc) / scale).abs().max() < 4.5 / math.sqrt(50_000)


def test_gaussian_of_few_draws_is_proper():
    draws = torch.randn(2, 5, 20)
    draws[:, :, 3] = 1.0  # does not vary
    start = GaussianStart.of_draws(draws)
    assert torch.isfinite(start.log_prob(start.sample(10))).all()


def test_part_is_the_density_of_these_data():
    loc, covariance = gaussians(6)
    start, z = GaussianStart(loc, covariance, inflation=1.3), torch.randn(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(start.part(2, 5).log_prob(z[:, 2:5]), start.log_prob(z)[:, 2:5])


def test_metrics_multiply_by_chain_and_datum():
    factor = torch.randn(3, 4, 4, dtype=torch.float64).tril()
    r = torch.randn(5, 3, 4, dtype=torch.float64)
    dense = DenseBatchMetric(factor)
    for i in range(5):
        for j in range(3):
            torch.testing.assert_close(dense.scale(r)[i, j], factor[j] @ r[i, j])
            torch.testing.assert_close(dense.pull(r)[i, j], factor[j].mT @ r[i, j])
    torch.testing.assert_close(dense.whiten(dense.scale(r)), r)
    scales = torch.rand(3, 4, dtype=torch.float64)
    diagonal, same = DiagonalMetric(scales), DenseBatchMetric(torch.diag_embed(scales))
    torch.testing.assert_close(diagonal.scale(r), same.scale(r))
    torch.testing.assert_close(diagonal.pull(r), same.pull(r))


def test_prior_start_measures_scales_by_quartiles():
    density = LinearGaussian.simulated(4, 3, 2)
    start = PriorStart(density)
    draws = torch.randn(2000, 4, 2) * torch.tensor([0.1, 30.0])
    draws[:50] *= 1e6  # heavy tails leave the quartiles alone
    metric = start.metric(draws)
    # A quartile of n normal draws has a standard error of 1.36 sd / sqrt(n), and 50 of 2000 draws move it by 3 %.
    torch.testing.assert_close(metric.scale(torch.ones(1, 2))[0], torch.tensor([0.1, 30.0]), rtol=0.08, atol=0)
    torch.testing.assert_close(start.metric(draws[:1]).scale(torch.ones(1, 2))[0], torch.ones(2))
    value, gradient = start.evaluate(draws[100:103])
    torch.testing.assert_close(value, density.log_prior(draws[100:103]))
    torch.testing.assert_close(gradient, -draws[100:103])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: GaussianStart([0.0], torch.ones(1, 1)), TypeError, "loc must be a tensor"),
        (lambda: GaussianStart(torch.zeros(2), torch.ones(2)), ValueError, "loc must have shape"),
        (lambda: GaussianStart(torch.zeros(2, 3), torch.ones(2, 2)), ValueError, "covariance must have shape"),
        (lambda: GaussianStart(torch.zeros(2, 3), torch.ones(2, 3) * math.nan), ValueError, "covariance.*finite"),
        (lambda: GaussianStart(torch.zeros(2, 3), torch.tensor([1.0, 1.0, -1.0]).expand(2, 3)), ValueError, "2 of 2"),
        (lambda: GaussianStart(torch.zeros(2, 3), torch.ones(2, 3), inflation=0.0), ValueError, "inflation"),
        (lambda: GaussianStart.of_draws(torch.zeros(1, 2, 3)), ValueError, "n at least 2"),
        (lambda: GaussianStart.of_draws(torch.full((4, 2, 3), math.inf)), ValueError, "finite"),
        (lambda: PriorStart(object()), TypeError, "sample_prior"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()
