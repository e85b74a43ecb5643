"""L-BFGS: inverse Hessians against dense BFGS updates, paths against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avbvi.starts import InverseHessian, Pairs, climb_paths


def positive_matrix(dim: int) -> Tensor:
    factor = torch.randn(dim, dim, dtype=torch.float64)
    return factor @ factor.mT + 0.1 * torch.eye(dim, dtype=torch.float64)


def dense_bfgs(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The textbook's update of the inverse Hessian (Nocedal and Wright 2006, equation 6.17)."""
    rho = 1.0 / (step @ change)
    left = torch.eye(len(step), dtype=torch.float64) - rho * torch.outer(step, change)
    return left @ inverse @ left.mT + rho * torch.outer(step, step)


@pytest.mark.parametrize(("dim", "pairs", "history"), [(3, 2, 5), (6, 5, 5), (4, 9, 6)])
def test_the_factored_inverse_hessian_is_that_of_dense_updates(dim: int, pairs: int, history: int) -> None:
    hessian = positive_matrix(dim)
    held, steps = Pairs.none(torch.ones(1, dim, dtype=torch.float64), history), []
    for _ in range(pairs):
        step = torch.randn(dim, dtype=torch.float64)
        held = held.with_pair(step[None], (hessian @ step)[None])
        steps.append(step)
    expected = torch.diag(held.alpha[0])
    for step in steps[-history:]:
        expected = dense_bfgs(expected, step, hessian @ step)
    found = held.inverse_hessian()
    torch.testing.assert_close(found.dense()[0], expected, rtol=1e-7, atol=1e-9)
    v = torch.randn(1, dim, dtype=torch.float64)
    torch.testing.assert_close(found.times(v)[0], expected @ v[0], rtol=1e-7, atol=1e-9)


def test_the_diagonal_is_that_of_the_scaled_bfgs_update_of_the_hessian() -> None:
    alpha = torch.rand(4, dtype=torch.float64) + 0.5
    hessian, step = positive_matrix(4), torch.randn(4, dtype=torch.float64)
    change = hessian @ step
    scale = (change @ (alpha * change)) / (step @ change)
    b = scale * torch.diag(1.0 / alpha)
    updated = b - torch.outer(b @ step, b @ step) / (step @ b @ step) + torch.outer(change, change) / (step @ change)
    held = Pairs.none(alpha[None]).with_pair(step[None], change[None])
    torch.testing.assert_close(held.alpha[0], 1.0 / updated.diagonal())


def test_a_pair_of_negative_curvature_is_left_out() -> None:
    held = Pairs.none(torch.ones(2, 3, dtype=torch.float64))
    step = torch.randn(2, 3, dtype=torch.float64)
    new = held.with_pair(step, torch.stack([-step[0], 2.0 * step[1]]))
    torch.testing.assert_close(new.inverse_hessian().dense()[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(new.inverse_hessian().times(step)[1], 0.5 * step[1])  # the secant equation
    assert not bool(new.steps[0].any())


def test_a_quadratic_is_exact_after_as_many_steps_of_exact_line_search_as_dimensions() -> None:
    dim = 6
    hessian, z = positive_matrix(dim), torch.randn(dim, dtype=torch.float64)
    held = Pairs.none(torch.ones(1, dim, dtype=torch.float64), dim)
    for _ in range(dim):
        gradient = -hessian @ z
        direction = held.inverse_hessian().times(gradient[None])[0]
        step = (gradient @ direction) / (direction @ hessian @ direction) * direction
        # The diagonal stays: with exact line searches the steps are then conjugate.
        held = held.with_pair(step[None], (hessian @ step)[None])._replace(alpha=held.alpha)
        z = z + step
    assert float(z.abs().max()) < 1e-8
    torch.testing.assert_close(held.inverse_hessian().dense()[0], torch.linalg.inv(hessian), rtol=1e-6, atol=1e-8)


def test_without_pairs_it_is_the_diagonal() -> None:
    alpha = torch.rand(2, 3, dtype=torch.float64)
    none: InverseHessian = Pairs.none(alpha).inverse_hessian()
    torch.testing.assert_close(none.dense(), torch.diag_embed(alpha))


def test_paths_climb_to_the_optimum_of_a_badly_scaled_normal() -> None:
    # In float32 the rounding of the first coordinate hides the gradient of the last: that is left to Newton's method.
    dtype = torch.float64
    sds = torch.tensor([1e-3, 1.0, 1e2], dtype=dtype)
    loc = torch.tensor([1.0, -2.0, 300.0], dtype=dtype)

    def log_prob(z: Tensor) -> Tensor:
        return -0.5 * ((z - loc) / sds).square().sum(-1)

    paths = climb_paths(log_prob, 5.0 * torch.randn(12, 3, dtype=dtype))
    assert float(((paths.ends() - loc) / sds).abs().max()) < 0.02
    for i, length in enumerate(paths.lengths.tolist()):
        values = paths.values[i, :length]
        assert bool((values.diff() > 0.0).all())
        torch.testing.assert_close(values, log_prob(paths.points[i, :length]).double(), rtol=1e-5, atol=1e-6)
        exact = -((paths.points[i, :length] - loc) / sds.square()).double()
        torch.testing.assert_close(paths.gradients[i, :length], exact, rtol=1e-3, atol=1e-3)
    assert not bool(paths.ran_off.any())


def test_a_path_does_not_depend_on_its_company() -> None:
    def log_prob(z: Tensor) -> Tensor:  # Rosenbrock's valley
        return -(1.0 - z[:, 0]).square() - 100.0 * (z[:, 1] - z[:, 0].square()).square()

    points = torch.randn(6, 2, dtype=torch.float64)
    together, alone = climb_paths(log_prob, points), climb_paths(log_prob, points[2:3])
    torch.testing.assert_close(together.ends(), torch.ones(6, 2, dtype=torch.float64), atol=1e-2, rtol=0.0)
    assert int(together.lengths[2]) == int(alone.lengths[0])
    torch.testing.assert_close(together.ends()[2], alone.ends()[0], atol=1e-6, rtol=0.0)


def test_a_density_that_rises_for_ever_runs_off() -> None:
    paths = climb_paths(lambda z: z[:, 0] - 0.5 * z[:, 1].square(), torch.randn(4, 2))
    assert bool(paths.ran_off.all())
    assert bool((paths.ends()[:, 0] > 1e8).all())


def test_the_edge_of_the_support_is_not_crossed() -> None:
    def log_prob(z: Tensor) -> Tensor:
        return torch.where(z[:, 0] < 1.0, z[:, 0], math.nan)

    ends = climb_paths(log_prob, torch.zeros(1, 1, dtype=torch.float64)).ends()
    assert 0.999 < float(ends) < 1.0
