"""The closed form against the model's own log-density and a sum over observations."""

import pytest
import torch
from pyro import poutine

from avbvi.reference import unconstrained_target
from models import conjugate_normal


def test_moments_are_those_of_the_models_density() -> None:
    """A quadratic log-density has its maximum at the mean and minus the precision as Hessian."""
    torch.set_default_dtype(torch.float64)
    y = conjugate_normal.Y.double()
    mean, covariance = conjugate_normal.exact_moments(y)
    target = unconstrained_target(conjugate_normal.model, (y,))

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        return target.log_prob(z[None])[0]

    gradient = torch.autograd.functional.jacobian(log_prob, mean)
    hessian = torch.autograd.functional.hessian(log_prob, mean)
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(-hessian @ covariance, torch.eye(3), atol=1e-6, rtol=0.0)


def test_draws_have_the_moments() -> None:
    n = 20_000
    mean, covariance = conjugate_normal.exact_moments()
    draws = conjugate_normal.exact_posterior(n, seed=0)["mu"]
    sd = covariance.diagonal().sqrt()
    assert bool(((draws.mean(0) - mean).abs() < 4.0 * sd / n**0.5).all())
    found = torch.cov(draws.mT)
    # Var of an entry of a sample covariance: (c_ii c_jj + c_ij^2) / n.
    se = ((torch.outer(sd, sd).square() + covariance.square()) / n).sqrt()
    assert bool(((found - covariance).abs() < 4.0 * se).all())


def test_observations_lie_in_the_plate() -> None:
    node = poutine.trace(conjugate_normal.model).get_trace(torch.zeros(5, 3)).nodes["y"]
    assert node["fn"].batch_shape == (5,)
    assert node["fn"].event_shape == (3,)


@pytest.mark.parametrize("n", [1, 7])
def test_more_data_narrow_the_posterior(n: int) -> None:
    _, fewer = conjugate_normal.exact_moments(torch.zeros(n, 3))
    _, more = conjugate_normal.exact_moments(torch.zeros(n + 1, 3))
    assert float(torch.linalg.eigvalsh(fewer - more).min()) > 0.0
