"""Families of known density: their densities, and the path gradient, which vanishes draw by draw at the posterior."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from pyro.distributions import Normal, TransformedDistribution
from torch import Tensor

from avbvi.targets import UnconstrainedTarget
from avbvi.trunks import standard_normal_log_prob
from benchmarks.problems import EIGHT_SCHOOLS_PAPER
from benchmarks.rivals import families
from benchmarks.rivals.families import AutoregressiveFlow, Family, GaussianMixture, SplineFlow


class Target:
    """As much of a target as the families use: a log-density, its dimension and points to search from."""

    class layout:
        dim = 3

    def __init__(self, log_prob: Callable[[Tensor], Tensor]) -> None:
        self.log_prob = log_prob

    def starting_points(self, n: int) -> Tensor:
        return torch.randn(n, 3)

    def broad_draws(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 3)
        return z, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)


PRECISION = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)


def normal(z: Tensor) -> Tensor:
    return -0.5 * torch.einsum("...i,ij,...j->...", z, PRECISION.to(z), z)


def _family(make: Callable[[UnconstrainedTarget], Family]) -> Family:
    torch.set_default_dtype(torch.float64)
    family = make(cast(UnconstrainedTarget, Target(normal)))
    for p in family.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return family


def _autoregressive_log_prob(family: AutoregressiveFlow, z: Tensor) -> Tensor:
    """By Pyro's own sequential inverse."""
    for layer in family.layers:
        layer.clear_cache()
    base = Normal(torch.zeros(3), 1.0).to_event(1)
    result: Tensor = TransformedDistribution(base, list(family.layers)).log_prob(z)
    return result


MAKERS: dict[str, Callable[[Any], Any]] = {"mixture": GaussianMixture, "autoregressive": AutoregressiveFlow}
if families.zuko_missing(EIGHT_SCHOOLS_PAPER) is None:
    MAKERS["spline"] = SplineFlow


@pytest.mark.parametrize("kind", MAKERS)
def test_draws_and_density_belong_together(kind: str) -> None:
    family = _family(MAKERS[kind])
    with torch.no_grad():
        z, log_q = family.draw(40_000)
    # E_q[r/q] = 1 for any normalised r: here one narrower than q, so that the weights are bounded.
    r = torch.distributions.MultivariateNormal(z.mean(0), 0.5 * torch.cov(z.mT))
    weights = (r.log_prob(z) - log_q).exp()
    assert abs(float(weights.mean()) - 1.0) < 4 * float(weights.std()) / math.sqrt(40_000)


def test_autoregressive_density_is_that_of_the_sequential_inverse() -> None:
    family = _family(AutoregressiveFlow)
    assert isinstance(family, AutoregressiveFlow)
    with torch.no_grad():
        z, log_q = family.draw(20)
    assert torch.allclose(log_q, _autoregressive_log_prob(family, z), atol=1e-9)


def test_autoregressive_score_is_the_gradient_of_the_density() -> None:
    family = _family(AutoregressiveFlow)
    assert isinstance(family, AutoregressiveFlow)
    e = torch.randn(20, 3, requires_grad=True)
    z, log_det = family.carried(e)
    score = family.score(e, z, log_det)
    leaf = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(_autoregressive_log_prob(family, leaf).sum(), leaf)
    assert torch.allclose(score, expected, atol=1e-9)


@pytest.mark.parametrize("kind", MAKERS)
def test_gradient_vanishes_where_the_family_is_the_posterior(kind: str) -> None:
    family = _family(MAKERS[kind])
    parameters = family.parameters()
    if isinstance(family, AutoregressiveFlow):
        frozen = _family(AutoregressiveFlow)
        assert isinstance(frozen, AutoregressiveFlow)
        frozen.layers = torch.nn.ModuleList(family.layers)

        def log_prob(z: Tensor) -> Tensor:
            # A constant score field: differentiable in z alone.
            leaf = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(_autoregressive_log_prob(frozen, leaf).sum(), leaf)
            return (z * score).sum(-1)
    elif isinstance(family, SplineFlow):
        log_prob = family.log_prob
    else:
        assert isinstance(family, GaussianMixture)
        own = family._detached()
        log_prob = own.log_prob
    gradients = torch.autograd.grad(family.loss(cast(UnconstrainedTarget, Target(log_prob))), parameters)
    for gradient in gradients:
        assert float(gradient.abs().max()) < 1e-9
    # Any other target moves something.
    moving = torch.autograd.grad(family.loss(cast(UnconstrainedTarget, Target(normal))), parameters)
    assert max(float(g.abs().max()) for g in moving) > 1e-3


def test_spline_starts_at_laplace() -> None:
    pytest.importorskip("zuko")
    torch.set_default_dtype(torch.float64)
    loc = torch.tensor([100.0, -3.0, 0.0])
    family = SplineFlow(cast(UnconstrainedTarget, Target(lambda z: normal(1e3 * (z - loc)))))
    assert torch.allclose(family.start, loc, atol=1e-6)
    covariance = family.scale @ family.scale.mT
    assert torch.allclose(covariance, 1e-6 * torch.linalg.inv(PRECISION), rtol=1e-3, atol=1e-10)


def test_base_density_is_normalised() -> None:
    assert float(standard_normal_log_prob(torch.zeros(3))) == pytest.approx(-1.5 * math.log(2 * math.pi))
