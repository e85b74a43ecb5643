"""Pathfinder: draws and densities of its Gaussians, and the Gaussian that it picks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.starts import LaplaceModes, Pairs, climb_paths, gaussian_bounds, laplace_modes, pathfinder
from avbvi.starts.pathfinder import draw_factored


@pytest.mark.parametrize(("dim", "history"), [(3, 5), (12, 4)])
def test_draws_have_the_density_that_they_are_given(dim: int, history: int) -> None:
    hessian = torch.randn(dim, dim, dtype=torch.float64)
    hessian = hessian @ hessian.mT + torch.eye(dim, dtype=torch.float64)
    pairs = Pairs.none(torch.ones(1, dim, dtype=torch.float64), history)
    for _ in range(history):
        step = torch.randn(1, dim, dtype=torch.float64)
        pairs = pairs.with_pair(step, step @ hessian)
    inverse, loc = pairs.inverse_hessian(), torch.randn(1, dim, dtype=torch.float64)
    n = 20_000
    z, log_q = draw_factored(loc, inverse, n)
    exact = MultivariateNormal(loc[0], inverse.dense()[0])
    torch.testing.assert_close(log_q[0], exact.log_prob(z[0]), rtol=1e-6, atol=1e-6)
    # In the coordinates in which the Gaussian is standard, so that every entry has a standard error of its own.
    white = torch.linalg.solve_triangular(exact.scale_tril, (z[0] - loc[0]).mT, upper=False).mT
    assert float(white.mean(0).abs().max()) < 4.5 / math.sqrt(n)
    error = white.mT @ white / n - torch.eye(dim, dtype=torch.float64)
    assert float(error.abs().max()) < 4.5 * math.sqrt(2.0 / n)


def test_on_a_normal_the_elbo_is_the_evidence() -> None:
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.1, 0.0], [-3.0, 4.0, 10.0]], dtype=torch.float64)
    q = MultivariateNormal(torch.tensor([3.0, -1.0, 40.0], dtype=torch.float64), scale_tril=factor)
    paths = climb_paths(lambda z: q.log_prob(z) + 2.5, 5.0 * torch.randn(8, 3, dtype=torch.float64))
    found = pathfinder(lambda z: q.log_prob(z) + 2.5, paths, draws=200)
    # At KL(q, p) = 2.5 - ELBO the estimate's standard error is about sqrt(2 KL / 200), so that it can't hide a larger.
    assert float((found.elbos - 2.5).abs().max()) < 0.1
    assert float((found.locs - q.mean).abs().max()) < 1.0


def test_in_a_funnel_it_finds_mass_that_the_optimum_lacks() -> None:
    def funnel(z: Tensor) -> Tensor:
        v, rest = z[:, 0], z[:, 1:].square().sum(-1)
        normaliser = math.log(3.0) + 5.0 * math.log(2 * math.pi)
        return -0.5 * ((v / 3.0).square() + rest * (-v).exp() + 9 * v) - normaliser

    points = 3.0 * torch.randn(16, 10)
    paths = climb_paths(funnel, points)
    found = pathfinder(funnel, paths)
    best = int(found.elbos.argmax())
    gaussian = LaplaceModes(found.locs[[best]], found.covariances[[best]], torch.zeros(1))
    at_optimum = laplace_modes(funnel, points)
    assert at_optimum is not None
    bound = float(gaussian_bounds(funnel, gaussian, 2000))
    assert bound > float(gaussian_bounds(funnel, at_optimum, 2000).max()) + 5.0
    assert bound > -3.0  # the evidence is exp(0)


def test_a_path_without_curvature_has_no_gaussian() -> None:
    paths = climb_paths(lambda z: z.sum(-1), torch.randn(3, 2))
    assert bool((pathfinder(lambda z: z.sum(-1), paths).elbos == -math.inf).all())
