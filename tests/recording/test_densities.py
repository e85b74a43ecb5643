"""Recorded log-densities against the models they stand for: values, first and second derivatives, refusals."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor

from avbvi import AdversarialELBO, AVBGuide, FlowTrunk, LogDensity
from avbvi.targets import UnconstrainedTarget
from models import eight_schools


def target_of(model: Any) -> UnconstrainedTarget:
    target = AVBGuide(model).setup().target()
    assert target is not None
    return target


def constrained() -> None:
    """Sites of all kinds: a scale, a simplex, a plate, a matrix normal through its Cholesky factor."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("groups", 3):
        location = pyro.sample("location", dist.StudentT(4.0, 0.0, 1.0))
    covariance = scale[..., None, None] * torch.eye(3) + 0.1
    factor = torch.linalg.cholesky(covariance)
    at = weights * location
    pyro.sample("y", dist.MultivariateNormal(at, scale_tril=factor), obs=torch.tensor([0.3, -1.0, 2.0]))


def one_by_one(z: Tensor) -> Tensor:
    return -(z**4).sum() - torch.logsumexp(z, 0)


MODELS = {
    "eight schools": eight_schools.model,
    "constrained": constrained,
    "log-density": LogDensity(lambda z: -0.5 * z.square().sum(-1) - z[..., 0].exp(), (4,)),
    "one draw at a time": LogDensity(one_by_one, (3,), batched=False),
    "linear": LogDensity(lambda z: z.sum(-1), (2,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_values_and_derivatives_are_the_model_s(name: str) -> None:
    target = target_of(MODELS[name])
    dim = target.layout.dim

    def derivatives(z: Tensor) -> list[Tensor]:
        z = z.detach().requires_grad_()
        log_p = target.log_prob(z)
        (score,) = torch.autograd.grad(log_p.sum(), z, create_graph=True)
        weighted = (score * torch.sin(z.detach())).sum() + (0.0 * z).sum()
        (along,) = torch.autograd.grad(weighted, z)
        return [log_p.detach(), score.detach(), along]

    z = torch.randn(7, dim)
    expected, plain = derivatives(z), target.log_prob(z)
    with pyro.validation_enabled(False), target.traced_once() as traced:
        for draws in (torch.randn(7, dim), z):
            found = derivatives(draws)
        recorded = target.log_prob(z)
    assert traced.reason is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(recorded, plain, rtol=1e-6, atol=1e-6)


def test_model_is_not_run_again() -> None:
    runs = []

    def model() -> None:
        runs.append(None)
        pyro.sample("z", dist.Normal(0.0, 1.0))

    target = target_of(model)
    with pyro.validation_enabled(False), target.traced_once():
        target.log_prob(torch.randn(5, 1))
        before = len(runs)
        for _ in range(10):
            target.log_prob(torch.randn(5, 1))
        assert len(runs) == before
        target.log_prob(torch.randn(6, 1))  # another number of draws
        assert len(runs) > before
    before = len(runs)
    target.log_prob(torch.randn(5, 1))
    assert len(runs) == before + 1


def test_loop_of_one_s_own_may_record_its_model() -> None:
    """As docs/speed.md says, and with Pyro's validation on."""
    runs = []

    def model(y: Tensor) -> None:
        runs.append(None)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    args, losses = (torch.tensor(1.0),), []
    for recorded in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide, elbo = AVBGuide(model, trunk=FlowTrunk()), AdversarialELBO(num_particles=32)
        svi = SVI(model, guide, elbo.optimizer(), loss=elbo)
        losses.append([svi.step(*args) for _ in range(3)])
        before = len(runs)
        target = guide.setup(*args).target(*args)
        assert target is not None
        with target.traced_once() if recorded else nullcontext():
            losses[-1] += [svi.step(*args) for _ in range(10)]
        assert (len(runs) - before < 10) is recorded
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def branching() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", z if bool((z > 0).all()) else -z)


def restless() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", z * torch.rand(()))


def learning() -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


@pytest.mark.parametrize(
    ("model", "reason"),
    [(branching, "data-dependent"), (restless, "draws random numbers"), (learning, "parameters of its own")],
)
def test_model_that_can_t_be_recorded_is_run_as_it_is(model: Any, reason: str) -> None:
    target = target_of(model)
    z = torch.randn(5, 1).abs()
    with pyro.validation_enabled(False), target.traced_once() as traced:
        for _ in range(2):
            torch.manual_seed(3)
            found = target.log_prob(z)
    torch.manual_seed(3)
    torch.testing.assert_close(found, target.log_prob(z), rtol=0, atol=0)
    assert traced.reason is not None
    assert reason in traced.reason


def test_model_that_changes_is_found_out() -> None:
    shift = [0.0]

    def model() -> None:
        pyro.sample("z", dist.Normal(shift[0], 1.0))

    target = target_of(model)
    z = torch.randn(4, 1)
    with pyro.validation_enabled(False), target.traced_once() as traced:
        first = target.log_prob(z)
        traced.review(z)
        assert traced.reason is None
        shift[0] = 1.0
        torch.testing.assert_close(target.log_prob(z), first, rtol=0, atol=0)  # not known yet
        traced.review(z)
        assert traced.reason is not None
        assert "changes from call to call" in traced.reason
        assert not torch.equal(target.log_prob(z), first)


def test_other_arguments_are_not_the_recorded_ones() -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y, z = torch.tensor(1.0), torch.randn(4, 1)
    guide = AVBGuide(model).setup(y)
    target = guide.target(y)
    assert target is not None
    with pyro.validation_enabled(False), target.traced_once():
        first = target.log_prob(z)
        assert target.with_arguments((y,), {}).traced is target.traced
        other = target.with_arguments((torch.tensor(-2.0),), {})
        assert other.traced is None
        assert not torch.allclose(other.log_prob(z), first)


def test_draw_by_draw_is_left_alone() -> None:
    guide = AVBGuide(eight_schools.model).setup()
    target = guide.bind(eight_schools.model, (), {}, vectorize=False)
    assert target is not None
    with target.traced_once() as traced:
        assert traced.reason is not None
        assert "vectorize_particles=False" in traced.reason
