"""Rotated normal and Student-t in many dimensions against scipy's densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.high_dimensional import HIGH_DIMENSIONAL, RotatedNormal, RotatedStudentT

DRAWS = 100_000


@pytest.mark.parametrize(("dim", "condition", "seed"), [(100, 1e4, 0), (7, 50.0, 1)])
def test_normal_has_scipys_density_and_the_condition_number_asked_for(dim: int, condition: float, seed: int) -> None:
    normal = RotatedNormal(dim, condition, seed)
    covariance = normal.covariance.numpy()
    assert np.linalg.cond(covariance) == pytest.approx(condition, rel=1e-9)
    z = normal.draw(40, torch.Generator().manual_seed(1)) + 0.1 * torch.randn(40, dim, dtype=torch.float64)
    expected = stats.multivariate_normal(cov=covariance).logpdf(z.numpy())
    np.testing.assert_allclose((normal.log_prob(z) - normal.log_evidence).numpy(), expected, rtol=1e-9, atol=1e-9)
    # No coordinate is a principal axis: each has a part of the widest direction.
    assert float(np.abs(np.linalg.eigh(covariance)[1][:, -1]).max()) < 0.95


@pytest.mark.parametrize(("dim", "df", "condition"), [(50, 5, 100.0), (3, 4, 9.0)])
def test_student_has_scipys_density(dim: int, df: int, condition: float) -> None:
    student = RotatedStudentT(dim, df, condition, 2)
    z = student.draw(40, torch.Generator().manual_seed(1))
    exact = stats.multivariate_t(shape=student.scale_matrix.numpy(), df=df)
    np.testing.assert_allclose((student.log_prob(z) - student.log_evidence).numpy(), exact.logpdf(z.numpy()), rtol=1e-9)
    torch.testing.assert_close(student.covariance, student.scale_matrix * df / (df - 2.0))


def _principal(z: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Draws in units of the scale matrix, uncorrelated under it."""
    return torch.linalg.solve_triangular(torch.linalg.cholesky(scale), z.mT, upper=False).mT


def test_draws_of_the_normal_are_standard_once_whitened() -> None:
    normal = RotatedNormal()
    w = _principal(HIGH_DIMENSIONAL["gaussian_100"].sample(DRAWS, seed=3), normal.covariance)
    error = (w.mT @ w / DRAWS - torch.eye(100)).abs() * math.sqrt(DRAWS) / (1.0 + torch.eye(100)).sqrt()
    assert float(error.max()) < stats.norm.isf(0.5e-4 / 5050)
    assert float(w.mean(0).abs().max()) * math.sqrt(DRAWS) < stats.norm.isf(0.5e-4 / 100)
    radius = w.square().sum(-1).numpy()
    assert stats.kstest(radius, stats.chi2(100).cdf).pvalue > 1e-4


def test_draws_of_the_student_have_its_marginals_and_radius() -> None:
    student = RotatedStudentT()
    w = _principal(HIGH_DIMENSIONAL["student_50"].sample(DRAWS, seed=4), student.scale_matrix)
    for column in w.numpy().T:
        assert stats.kstest(column, stats.t(5).cdf).pvalue > 1e-5
    # |w|^2 / dim follows F(dim, df): the coordinates share one chi-square variable.
    assert stats.kstest(w.square().mean(-1).numpy(), stats.f(50, 5).cdf).pvalue > 1e-4
    # Directions are uniform: E[u u'] = I / dim, whatever the tails.
    u = w / w.norm(dim=-1, keepdim=True) * math.sqrt(50)
    error = (u.mT @ u / DRAWS - torch.eye(50)).abs() * math.sqrt(DRAWS) / (1.0 + torch.eye(50)).sqrt()
    assert float(error.max()) < stats.norm.isf(0.5e-4 / 1275)


@pytest.mark.parametrize("name", list(HIGH_DIMENSIONAL))
def test_gradients_are_those_of_the_quadratic_form(name: str) -> None:
    target = HIGH_DIMENSIONAL[name]
    assert target.name == name
    z = target.sample(20, seed=6).requires_grad_()
    (score,) = torch.autograd.grad(target.log_prob(z).sum(), z)
    z = z.detach()
    if name == "gaussian_100":
        expected = -torch.linalg.solve(RotatedNormal().covariance, z.mT).mT
    else:
        precision_z = torch.linalg.solve(RotatedStudentT().scale_matrix, z.mT).mT
        expected = -(5 + 50) * precision_z / (5.0 + (z * precision_z).sum(-1, keepdim=True))
    torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)
    assert target.log_prob(z.float()).dtype == torch.float32
    far = torch.full((1, target.dim), 1e6, requires_grad=True)
    (steep,) = torch.autograd.grad(target.log_prob(far).sum(), far)
    assert bool(torch.isfinite(steep).all())


def test_errors() -> None:
    with pytest.raises(ValueError, match="dim must be at least 2, got 1"):
        RotatedNormal(1)
    with pytest.raises(ValueError, match=r"condition must be finite and at least 1, got 0\.5"):
        RotatedNormal(3, 0.5)
    with pytest.raises(ValueError, match="df must be at least 3"):
        RotatedStudentT(3, 2)
    with pytest.raises(ValueError, match=r"z must have shape \(\*batch, 50\), got \(4, 49\)"):
        RotatedStudentT().log_prob(torch.zeros(4, 49))
