"""Starts: Laplace approximations are exact where the log-density is Gaussian near its optima."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.starts import LaplaceModes, importance_bound, judged_by_draws, laplace_modes


def points_at_all_scales(dim: int, dtype: torch.dtype = torch.float64, n: int = 32) -> Tensor:
    return torch.logspace(-2.0, 4.0, n, dtype=dtype)[:, None] * torch.randn(n, dim, dtype=dtype)


SHAPE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.7, 0.0], [-0.3, 0.4, 1.2]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1e-1, 1.0, 1e2, 1e4])
def test_laplace_is_exact_on_a_gaussian_of_any_scale(scale: float, dtype: torch.dtype) -> None:
    factor = (scale * SHAPE).to(dtype)
    loc = scale * torch.tensor([3.0, -1.0, 0.5], dtype=dtype)
    modes = laplace_modes(MultivariateNormal(loc, scale_tril=factor).log_prob, points_at_all_scales(3, dtype))
    assert modes is not None
    assert modes.locs.shape == (1, 3)  # all starts meet in one optimum
    assert float(modes.log_weights) == pytest.approx(0.0, abs=1e-6)
    error = torch.linalg.solve_triangular(factor, (modes.locs[0] - loc)[:, None], upper=False)
    assert float(error.abs().max()) < 0.05  # in posterior sds
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(
        modes.covariances[0] / scale**2, factor @ factor.mT / scale**2, rtol=tolerance, atol=tolerance
    )


def test_laplace_is_exact_where_the_coordinates_scales_differ() -> None:
    factor = torch.diag(torch.tensor([1e-2, 1.0, 1e3], dtype=torch.float64))
    q = MultivariateNormal(torch.zeros(3, dtype=torch.float64), scale_tril=factor)
    modes = laplace_modes(q.log_prob, points_at_all_scales(3))
    assert modes is not None
    torch.testing.assert_close(modes.covariances[0] / torch.outer(*2 * [factor.diagonal()]), torch.eye(3).double())


LOCS = torch.tensor([[-6.0, 0.0], [6.0, 3.0]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 2.0]]], dtype=torch.float64)
LOG_WEIGHTS = torch.tensor([0.25, 0.75], dtype=torch.float64).log()


def two_gaussians(z: Tensor) -> Tensor:
    joint = MultivariateNormal(LOCS, COVARIANCES).log_prob(z[..., None, :]) + LOG_WEIGHTS
    return torch.logsumexp(joint, -1)


def test_both_gaussians_of_a_mixture_are_found_once_each() -> None:
    constant = 7.0  # an unknown normaliser takes no part
    modes = laplace_modes(lambda z: two_gaussians(z) + constant, 6.0 * torch.randn(24, 2, dtype=torch.float64))
    assert modes is not None
    assert modes.locs.shape == (2, 2)
    order = modes.locs[:, 0].argsort()
    # Where one is centred the other's density is below e^-30, so each is Gaussian to rounding. Weights are
    # the modes' Laplace evidence, so that these too are exact.
    torch.testing.assert_close(modes.locs[order], LOCS, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(modes.covariances[order], COVARIANCES, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(modes.log_weights[order], LOG_WEIGHTS, atol=1e-4, rtol=0.0)
    loc, covariance = modes.moments()
    w = LOG_WEIGHTS.exp()
    torch.testing.assert_close(loc, w @ LOCS, atol=1e-2, rtol=0.0)
    shift = LOCS - w @ LOCS
    exact = torch.einsum("k,kij->ij", w, COVARIANCES + shift[:, :, None] * shift[:, None, :])
    torch.testing.assert_close(covariance, exact, atol=1e-2, rtol=0.0)


def test_moments_are_those_of_the_mixture() -> None:
    factors = torch.randn(4, 3, 3, dtype=torch.float64)
    modes = LaplaceModes(
        torch.randn(4, 3, dtype=torch.float64),
        factors @ factors.mT,
        torch.log_softmax(torch.randn(4, dtype=torch.float64), 0),
    )
    loc, covariance = modes.moments()
    w = modes.log_weights.exp()
    second = sum(w[k] * (modes.covariances[k] + torch.outer(modes.locs[k], modes.locs[k])) for k in range(4))
    torch.testing.assert_close(loc, sum(w[k] * modes.locs[k] for k in range(4)))
    torch.testing.assert_close(covariance, second - torch.outer(loc, loc))


def test_a_flat_direction_gets_the_curvature_of_the_others() -> None:
    modes = laplace_modes(lambda z: -0.5 * z[:, 0].square() / 4.0, torch.randn(8, 2, dtype=torch.float64))
    assert modes is not None
    torch.testing.assert_close(modes.covariances[0], 4.0 * torch.eye(2, dtype=torch.float64))


def test_starts_outside_the_support_are_left_out() -> None:
    def half_line(z: Tensor) -> Tensor:
        x = z[:, 0]
        inside = x > 0.0
        return torch.where(inside, -0.5 * (x.clamp_min(1e-9).log() - 1.0).square() / 0.01, -math.inf)

    points = torch.linspace(-3.0, 3.0, 12, dtype=torch.float64)[:, None]
    modes = laplace_modes(half_line, points)
    assert modes is not None
    # log x ~ N(1, .1^2) as a function of x: optimum e, second derivative -1 / (.01 e^2) there.
    assert float(modes.locs[0, 0]) == pytest.approx(math.e, rel=1e-3)
    assert float(modes.covariances[0, 0, 0]) == pytest.approx(0.01 * math.e**2, rel=1e-2)


def test_nothing_is_returned_where_nothing_is_finite() -> None:
    assert laplace_modes(lambda z: z.sum(-1) * torch.nan, torch.randn(5, 2)) is None
    assert laplace_modes(lambda z: z.sum(-1) - math.inf, torch.randn(5, 2)) is None


def test_a_nearly_degenerate_regression_is_found_in_single_precision() -> None:
    """A covariate far from zero: the coefficients' correlation is -.9995, and float32 loses the Hessian."""
    x = 65.0 + 2.0 * torch.randn(1000, dtype=torch.float64)
    y = 2.5 + 0.025 * x + 0.4 * torch.randn(1000, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], 1)
    precision = design.mT @ design / 0.4**2
    exact = torch.linalg.solve(design.mT @ design, design.mT @ y)
    covariance = torch.linalg.inv(precision)

    def log_prob(beta: torch.Tensor) -> torch.Tensor:
        residual = y.float() - beta @ design.mT.float()
        return -0.5 * (residual / 0.4).square().sum(-1)

    modes = laplace_modes(log_prob, 3.0 * torch.randn(32, 2))
    assert modes is not None
    loc, found = modes.moments()
    sd = covariance.diagonal().sqrt()
    assert float(((loc - exact) / sd).abs().max()) < 0.05
    # In all directions: the root of the covariance's ratio to the exact one.
    ratio = torch.linalg.eigvals(found.double() @ precision).real
    assert float(ratio.min()) > 0.95
    assert float(ratio.max()) < 1.05


def test_a_line_search_that_leaves_the_finite_numbers_turns_back() -> None:
    def log_prob(z: torch.Tensor) -> torch.Tensor:
        inside = (z.abs() < 3.0).all(-1)
        return torch.where(inside, -0.5 * (z - 2.9).square().sum(-1) / 1e-2, torch.nan)

    modes = laplace_modes(log_prob, torch.rand(16, 2))
    assert modes is not None
    torch.testing.assert_close(modes.moments()[0], torch.full((2,), 2.9), atol=1e-3, rtol=0.0)


def test_a_spike_that_holds_nothing_is_no_place_to_start() -> None:
    """Neal's funnel has its optimum in the neck, at v = -40, where there is no mass to speak of."""

    def funnel(z: torch.Tensor) -> torch.Tensor:
        v, rest = z[:, 0], z[:, 1:].square().sum(-1)
        return -0.5 * ((v / 3.0).square() + rest * (-v).exp() + 9 * v)

    modes = laplace_modes(funnel, 3.0 * torch.randn(32, 10))
    assert modes is not None
    draws = torch.randn(1000, 10)
    log_q = -0.5 * (draws.square().sum(-1) + 10 * math.log(2 * math.pi))
    assert judged_by_draws(modes, funnel, funnel(draws) - log_q) is None


def test_judged_modes_have_the_weights_of_their_evidence() -> None:
    locs = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])
    sds, shares = torch.tensor([1.0, 0.5]), torch.tensor([0.7, 0.3])

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        normal = torch.distributions.Normal(locs, sds[:, None])
        return torch.logsumexp(normal.log_prob(z[:, None]).sum(-1) + shares.log(), -1)

    modes = laplace_modes(log_prob, 4.0 * torch.randn(32, 2))
    assert modes is not None
    wrong = modes._replace(log_weights=torch.tensor([0.5, 0.5]).log())
    broad = torch.full((1000,), -50.0)  # of draws that miss
    judged = judged_by_draws(wrong, log_prob, broad)
    assert judged is not None
    weight = judged.log_weights.exp()[judged.locs[:, 0].argsort()]
    torch.testing.assert_close(weight, shares, atol=1e-3, rtol=0.0)


def test_the_bound_of_exact_draws_is_the_evidence() -> None:
    assert importance_bound(torch.full((80,), 2.5)) == pytest.approx(2.5)
    half = torch.where(torch.arange(1600) < 800, 2.5, -math.inf)
    assert importance_bound(half) == pytest.approx(2.5 - math.log(2.0))
    assert importance_bound(torch.full((80,), -math.inf)) == -math.inf
