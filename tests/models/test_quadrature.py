"""The trapezoidal rule in the plane, and posteriors of two latent coordinates on a grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from avbvi.annealed import GaussianStart, SigmoidTemperatures, annealed_importance_sampling
from models.quadrature import LatentPlane, quadrature_log_evidence
from tests.annealed.known import LinearGaussian


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def test_quadrature_of_a_normal_on_a_rectangle() -> None:
    exact = math.log(2.0 * math.pi)
    assert quadrature_log_evidence(normal, (-9.0, -8.0), 10.0, 101) == pytest.approx(exact, abs=1e-12)


def test_quadrature_is_exact_for_a_linear_density_and_counts_the_edges_half() -> None:
    # The integral of 1 + x + 2 y over [0, 2] x [0, 3] is 6 + 6 + 18.
    value = quadrature_log_evidence(lambda z: (1.0 + z[..., 0] + 2.0 * z[..., 1]).log(), 0.0, (2.0, 3.0), 2)
    assert value == pytest.approx(math.log(30.0), abs=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match="n must be"):
        quadrature_log_evidence(normal, -1.0, 1.0, 1)
    with pytest.raises(ValueError, match="lo must lie below hi"):
        quadrature_log_evidence(normal, 1.0, -1.0, 10)
    with pytest.raises(ValueError, match="log_prob must map"):
        quadrature_log_evidence(lambda z: z, -1.0, 1.0, 10)
    with pytest.raises(ValueError, match="NaN"):
        quadrature_log_evidence(lambda z: z.sum(-1).log(), -1.0, 1.0, 10)
    assert quadrature_log_evidence(lambda z: torch.zeros(len(z)).double(), 0.0, 1.0, 3) == pytest.approx(0.0)


def linear() -> tuple[LinearGaussian, LatentPlane]:
    density = LinearGaussian.simulated(4, 3, 2, noise=0.8, dtype=torch.float64)
    return density, LatentPlane.of(density.log_joint, 4, reach=7.0, n=201)


def test_latent_plane_has_the_evidence_and_moments_of_a_linear_decoder() -> None:
    density, plane = linear()
    loc, covariance = density.posterior()
    torch.testing.assert_close(plane.log_evidence, density.log_evidence(), atol=1e-8, rtol=0)
    torch.testing.assert_close(plane.mean, loc, atol=1e-8, rtol=0)
    torch.testing.assert_close(plane.covariance, covariance, atol=1e-8, rtol=0)
    # A density of each datum, and its highest point is at the mean.
    picture = plane.density(plane.log_posterior)
    assert picture.shape == (4, 201, 201)
    spacing = float(plane.axis[1] - plane.axis[0])
    for i in range(4):
        row, column = divmod(int(picture[i].argmax()), 201)
        assert (torch.stack([plane.axis[row], plane.axis[column]]) - loc[i]).abs().max() < spacing
        assert float(picture[i].sum()) * spacing**2 == pytest.approx(1.0, abs=1e-8)


def test_latent_plane_has_the_elbo_of_any_density() -> None:
    density, plane = linear()
    loc, covariance = density.posterior()
    q = MultivariateNormal(loc + 0.2, torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1)))
    log_q = q.log_prob(plane.points[:, None])
    kl = kl_divergence(q, MultivariateNormal(loc, covariance))
    torch.testing.assert_close(plane.kl(log_q), kl, atol=1e-7, rtol=0)
    torch.testing.assert_close(plane.elbo(log_q), density.log_evidence() - kl, atol=1e-7, rtol=0)
    torch.testing.assert_close(plane.elbo(plane.log_posterior), density.log_evidence(), atol=1e-7, rtol=0)


def test_latent_plane_has_the_divergence_of_the_aggregate_from_the_prior() -> None:
    _, plane = linear()
    prior = MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    # Four times the same density.
    q = MultivariateNormal(torch.tensor([0.5, 0.0]).double(), 0.5 * torch.eye(2).double())
    log_q = q.log_prob(plane.points)[:, None].expand(-1, 4)
    value = plane.aggregate_kl(log_q, prior.log_prob)
    assert value == pytest.approx(float(kl_divergence(q, prior)), abs=1e-7)


def test_latent_plane_agrees_with_annealed_importance_sampling_for_a_bernoulli_decoder() -> None:
    decoder = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 12))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()

    class Bernoulli(LinearGaussian):
        def log_joint(self, z: Tensor) -> Tensor:
            pixels = torch.distributions.Bernoulli(logits=decoder(z), validate_args=False)
            return self.log_prior(z) + pixels.log_prob(self.x).sum(-1)

    density = Bernoulli((torch.rand(8, 12) < 0.5).float(), torch.zeros(12, 2), torch.zeros(12), 1.0)
    plane = LatentPlane.of(density.log_joint, 8, n=201, like=density.x)
    finer = LatentPlane.of(density.log_joint, 8, n=401, like=density.x)
    # Single precision.
    torch.testing.assert_close(plane.log_evidence, finer.log_evidence, atol=1e-4, rtol=0)
    options = {"temperatures": SigmoidTemperatures(40), "chains": 30, "leapfrog_steps": 5, "seed": 0,
               "progress": False}  # fmt: skip
    moments = GaussianStart(plane.mean.float(), plane.covariance.float(), inflation=1.5)
    for start in (None, moments):
        result = annealed_importance_sampling(density, start=start, **options)
        z = (result.log_evidence - plane.log_evidence) / result.stderr
        assert result.stderr.max() < 0.4
        # Eight of Student's t.
        assert z.abs().max() < 4.5


def test_errors_of_the_latent_plane() -> None:
    density, plane = linear()
    with pytest.raises(ValueError, match="n must be"):
        LatentPlane.of(density.log_joint, 4, n=2)
    with pytest.raises(ValueError, match="reach must be"):
        LatentPlane.of(density.log_joint, 4, reach=0.0)
    with pytest.raises(ValueError, match="raise reach"):
        LatentPlane.of(density.log_joint, 4, reach=0.5, n=51)
    with pytest.raises(ValueError, match="log_joint must map"):
        LatentPlane.of(lambda z: z, 4, n=11)
    with pytest.raises(ValueError, match="NaN"):
        LatentPlane.of(lambda z: z.sum(-1).log(), 4, n=11)
    with pytest.raises(ValueError, match="log_q must have shape"):
        plane.elbo(plane.log_posterior[:, :2])
    with pytest.raises(ValueError, match=r"integrates to 0\.5"):
        plane.elbo(plane.log_posterior - math.log(2.0))
