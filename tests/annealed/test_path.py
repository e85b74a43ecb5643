"""The path between two densities: its gradients, and moves that leave each point of it invariant."""

import math

import pytest
import torch

from avbvi.annealed.densities import DenseBatchMetric, GaussianStart
from avbvi.annealed.path import Path, hmc_move
from avbvi.hmc import DiagonalMetric
from tests.annealed.known import LinearGaussian


class GammaOfLog:
    """Logarithms of independent Gamma(2, 1) variables, two data."""

    batch, dim = 2, 1

    def log_joint(self, z: torch.Tensor) -> torch.Tensor:
        return (2.0 * z - z.exp()).sum(-1)


def between(dtype: torch.dtype = torch.float64) -> tuple[LinearGaussian, GaussianStart]:
    density = LinearGaussian.simulated(3, 4, 2, dtype=dtype)
    loc, covariance = density.posterior()
    return density, GaussianStart((loc + 0.5).to(dtype), 3.0 * covariance.to(dtype))


def test_values_and_gradients_of_all_temperatures_come_from_one_evaluation():
    density, start = between()
    z = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    state = Path(density, start).evaluate(z)
    for beta in (0.0, 0.3, 1.0):
        value = (1.0 - beta) * start.log_prob(z) + beta * density.log_joint(z)
        torch.testing.assert_close(state.log_prob(beta), value.detach())
        torch.testing.assert_close(state.gradient(beta), torch.autograd.grad(value.sum(), z)[0])
    torch.testing.assert_close(state.log_ratio(), (density.log_joint(z) - start.log_prob(z)).detach())


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
def test_moves_leave_the_path_invariant(metric):
    # Between two Gaussians every point of the path is Gaussian: draw from it exactly, move, and test the moments.
    density, start = between()
    beta, n = 0.4, 4000
    loc, covariance = density.posterior()
    p0, p1 = torch.linalg.inv(start._factor @ start._factor.mT), torch.linalg.inv(covariance)
    precision = (1.0 - beta) * p0 + beta * p1
    mean = torch.linalg.solve(
        precision, (1.0 - beta) * (p0 @ start.loc[..., None]) + beta * (p1 @ loc[..., None])
    ).squeeze(-1)
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    path = Path(density, start)
    state = path.evaluate(exact.sample((n,)))
    first = state.z
    scales = DiagonalMetric(covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    for _ in range(3):
        state, probability = hmc_move(
            path, state, beta, step_size=torch.tensor([0.9, 1.1, 1.3]).double()[:, None], leapfrog_steps=3,
            metric=start.metric(first) if metric == "dense" else scales,
        )  # fmt: skip
    assert 0.5 < float(probability.mean()) < 0.99
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(exact.covariance_matrix), (state.z - mean).permute(1, 2, 0), upper=False
    )
    assert (white.mean(-1) * math.sqrt(n)).abs().max() < 4.5
    second = white @ white.mT / n - torch.eye(2).double()
    assert (second * math.sqrt(n / 2.0)).abs().max() < 4.5
    # They did move, nearly all of them.
    assert ((state.z != first).any(-1).double().mean(0) > 0.9).all()
    # The values that travel with the states are theirs.
    torch.testing.assert_close(state.log_joint, density.log_joint(state.z))
    torch.testing.assert_close(state.joint_gradient, path.evaluate(state.z).joint_gradient)


def test_moves_leave_a_skewed_density_invariant():
    path = Path(GammaOfLog(), GaussianStart(torch.zeros(2, 1).double(), torch.ones(2, 1).double()))
    gamma = torch.distributions.Gamma(torch.tensor(2.0, dtype=torch.float64), 1.0)
    state = path.evaluate(gamma.sample((5000, 2, 1)).log())
    for _ in range(3):
        state, _ = hmc_move(
            path, state, 1.0, step_size=torch.tensor([[0.8], [1.6]]).double(), leapfrog_steps=2,
            metric=DiagonalMetric(torch.ones(1).double()),
        )  # fmt: skip
    # E x = 2 with variance 2, E x^2 = 6 with variance 84.
    x = state.z.exp().squeeze(-1)
    assert ((x.mean(0) - 2.0) * math.sqrt(5000 / 2.0)).abs().max() < 4.5
    assert ((x.square().mean(0) - 6.0) * math.sqrt(5000 / 84.0)).abs().max() < 4.5


def test_short_steps_are_nearly_always_accepted():
    density, start = between()
    path = Path(density, start)
    state = path.evaluate(start.sample(50))
    errors = []
    for step, steps in ((0.1, 10), (0.05, 20)):
        torch.manual_seed(0)
        move = hmc_move(
            path, state, 0.7, step_size=torch.tensor(step).double(), leapfrog_steps=steps, metric=start.metric(state.z)
        )
        errors.append(float((1.0 - move.probability).mean()))
    assert errors[0] < 0.01
    # The energy error is of second order in the step size.
    assert errors[1] < errors[0] / 3.0


def test_no_chain_enters_where_the_density_is_zero_or_nan():
    class Half(GammaOfLog):
        def log_joint(self, z):
            assert torch.isfinite(z).all()
            inside = -0.5 * z.square().sum(-1)
            bad = torch.where(torch.arange(2) == 0, -math.inf, math.nan)
            return torch.where(z[..., 0] > 0.0, inside, bad)

    path = Path(Half(), GaussianStart(torch.zeros(2, 1), torch.ones(2, 1)))
    state = path.evaluate(torch.full((200, 2, 1), 0.5))
    for _ in range(10):
        state, probability = hmc_move(
            path, state, 0.5, step_size=torch.tensor(0.7), leapfrog_steps=3,
            metric=DiagonalMetric(torch.ones(1)),
        )  # fmt: skip
        assert (state.z > 0.0).all()
        assert ((probability >= 0.0) & (probability <= 1.0)).all()
    assert state.z.std(0).min() > 0.2


def test_a_chain_where_the_density_is_zero_accepts_any_other():
    class Half(GammaOfLog):
        def log_joint(self, z):
            return torch.where(z[..., 0] > 0.0, -0.5 * z.square().sum(-1), -math.inf)

    path = Path(Half(), GaussianStart(torch.zeros(2, 1), torch.ones(2, 1)))
    state = path.evaluate(torch.full((100, 2, 1), -0.01))
    assert (state.log_prob(0.5) == -math.inf).all()
    moved, probability = hmc_move(
        path, state, 0.5, step_size=torch.tensor(1.0), leapfrog_steps=1, metric=DenseBatchMetric(torch.ones(2, 1, 1))
    )
    entered = moved.z[..., 0] > 0.0
    assert 0.2 < float(entered.double().mean()) < 0.8
    assert torch.equal(probability == 1.0, entered)
