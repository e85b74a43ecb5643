"""Targets: batched log-densities against single traces, scipy and quadrature; what users can get wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.util import prune_subsample_sites
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from avbvi.errors import ModelError
from avbvi.layout import LatentLayout
from avbvi.log_density import LogDensity
from avbvi.targets import UnconstrainedTarget


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def target_of(model: Any, *args: Any, hide: tuple[str, ...] = (), vectorize: bool = True) -> UnconstrainedTarget:
    trace = poutine.trace(poutine.block(model, hide=[*hide, "log_density"])).get_trace(*args)
    return UnconstrainedTarget(model, LatentLayout.from_trace(prune_subsample_sites(trace)), args, vectorize=vectorize)


# -- models ------------------------------------------------------------------------------------------


def positive(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
    share = pyro.sample("share", dist.Uniform(-1.0, 2.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(share, rate), obs=y)


def many_supports(y: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    c = pyro.sample("c", dist.LKJCholesky(3, 1.5))
    b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(3), scale_tril=c))
    pyro.sample("y", dist.Normal(b, 1.0 + w).to_event(1), obs=y)


def nested(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            s = pyro.sample("s", dist.LogNormal(a, 0.5))
            with poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(a + slope[..., 0] + slope[..., 1] * s, s), obs=y)
    with pyro.plate("columns_again", 3, dim=-1):
        pyro.sample("t", dist.Normal(mu, 1.0))


MODELS: list[tuple[Callable[[Tensor], None], tuple[int, ...]]] = [
    (positive, (4,)),
    (many_supports, (3,)),
    (nested, (2, 3)),
]


def data_for(shape: tuple[int, ...]) -> Tensor:
    return torch.linspace(-1.0, 1.5, math.prod(shape)).reshape(shape)


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_log_prob_is_the_models_own_for_every_draw(model: Callable[[Tensor], None], shape: tuple[int, ...]) -> None:
    y = data_for(shape)
    target = target_of(model, y)
    z = 0.7 * torch.randn(6, target.layout.dim)
    values, log_det = target.layout.constrain(z)  # its Jacobian is checked in test_layout
    single = [
        poutine.trace(poutine.condition(model, data={k: v[i] for k, v in values.items()})).get_trace(y).log_prob_sum()
        for i in range(6)
    ]
    torch.testing.assert_close(target.log_prob(z), torch.stack(single) + log_det)
    torch.testing.assert_close(target.log_prob(z[:1]), (torch.stack(single) + log_det)[:1])


def test_log_prob_is_the_formula() -> None:
    y = data_for((4,))
    z = torch.randn(5, 2)
    rate, share = z[:, 0].exp().numpy(), (-1.0 + 3.0 * torch.sigmoid(z[:, 1])).numpy()
    u = z.numpy()
    expected = (
        stats.gamma(2.0, scale=1.0 / 3.0).logpdf(rate)
        - np.log(3.0)
        + stats.norm(share[:, None], rate[:, None]).logpdf(y.numpy()).sum(1)
        + u[:, 0]  # d exp(u) / du
        + np.log(3.0) - np.logaddexp(0.0, -u[:, 1]) - np.logaddexp(0.0, u[:, 1])  # 3 sigmoid (1 - sigmoid)
    )  # fmt: skip
    np.testing.assert_allclose(target_of(positive, y).log_prob(z).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_gradient_is_that_of_finite_differences(model: Callable[[Tensor], None], shape: tuple[int, ...]) -> None:
    target = target_of(model, data_for(shape))
    z = (0.5 * torch.randn(2, target.layout.dim)).requires_grad_()
    assert torch.autograd.gradcheck(target.log_prob, (z,))


@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_draw_by_draw_equals_vectorised(model: Callable[[Tensor], None], shape: tuple[int, ...]) -> None:
    y = data_for(shape)
    z = 0.7 * torch.randn(4, target_of(model, y).layout.dim)
    looped, vectorised = target_of(model, y, vectorize=False), target_of(model, y)
    torch.testing.assert_close(looped.log_prob(z), vectorised.log_prob(z))
    torch.testing.assert_close(looped.log_prior(z), vectorised.log_prior(z))


def single_draws_only() -> None:
    """A model whose indexing does not broadcast over an outer plate."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x[0] * x[1], 1.0), obs=torch.tensor(0.5))


def test_draw_by_draw_runs_models_that_do_not_broadcast() -> None:
    z = torch.randn(4, 2)
    target = target_of(single_draws_only, vectorize=False)
    prior = stats.norm.logpdf(z.numpy()).sum(1)
    expected = prior + stats.norm(z.prod(-1).numpy(), 1.0).logpdf(0.5)
    np.testing.assert_allclose(target.log_prob(z).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(target.log_prior(z).numpy(), prior, rtol=1e-10)
    assert target.sample_prior(3).shape == (3, 2)
    with pytest.raises(ModelError, match=r"(?s)last site reached: 'x'.*vectorize_particles=False"):
        target_of(single_draws_only).log_prob(z)


def two_clusters(y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(weights))
        chosen = torch.where(k == 0, loc[..., 0], loc[..., 1])
        pyro.sample("y", dist.Normal(chosen, 0.5), obs=y)


@pytest.mark.parametrize("vectorize", [True, False])
def test_enumerated_latents_are_summed_out(vectorize: bool) -> None:
    y = data_for((5,))
    target = target_of(config_enumerate(two_clusters), y, hide=("k",), vectorize=vectorize)
    assert target.enumerated == ["k"]
    z = torch.randn(4, 3)
    values, log_det = target.layout.constrain(z)
    weights, loc = values["weights"], values["loc"]
    joint = weights.log()[:, :, None] + torch.distributions.Normal(loc[:, :, None], 0.5).log_prob(y)
    expected = (
        torch.logsumexp(joint, 1).sum(-1)
        + torch.distributions.Dirichlet(torch.ones(2)).log_prob(weights)
        + torch.distributions.Normal(0.0, 3.0).log_prob(loc).sum(-1)
        + log_det
    )
    torch.testing.assert_close(target.log_prob(z), expected)


def test_latents_outside_the_layout_are_named() -> None:
    with pytest.raises(ModelError, match=r"latent sites \['k'\] are not covered"):
        target_of(two_clusters, data_for((5,)), hide=("k",))


def test_other_arguments_change_the_density() -> None:
    y, other = data_for((4,)), data_for((4,)) + 1.0
    target = target_of(positive, y)
    z = torch.randn(3, 2)
    torch.testing.assert_close(target.with_arguments((other,), {}).log_prob(z), target_of(positive, other).log_prob(z))
    torch.testing.assert_close(target.log_prob(z), target_of(positive, y).log_prob(z))


def test_prior_draws_have_the_priors_moments_in_every_plate() -> None:
    n = 20_000
    draws, _ = (target := target_of(nested, data_for((2, 3)))).layout.constrain(target.sample_prior(n))
    mu, a, s = draws["mu"], draws["a"], draws["s"].log()
    assert a.shape == (n, 2, 1)
    # Differences along the hierarchy are independent normal with the model's scales.
    for value, sd in ((mu, 2.0), (a - mu[:, None, None], 1.0), (s - a, 0.5), (draws["t"] - mu[:, None], 1.0)):
        flat = value.reshape(n, -1)
        assert bool((flat.mean(0).abs() < 4.0 * sd / math.sqrt(n)).all())
        assert bool(((flat.var(0) / sd**2 - 1.0).abs() < 4.0 * math.sqrt(2.0 / n)).all())
        if flat.shape[1] > 1:
            assert float(flat.mT.corrcoef().fill_diagonal_(0.0).abs().max()) < 4.5 / math.sqrt(n)


# -- LogDensity --------------------------------------------------------------------------------------


def gamma_log_density(x: Tensor) -> Tensor:
    return 2.0 * x.log() - 1.5 * x + 3.0 * math.log(1.5) - math.log(2.0)  # Gamma(3, 1.5)


def test_a_density_on_the_positive_half_line_gets_its_jacobian() -> None:
    model = LogDensity(lambda v: gamma_log_density(v["x"]), sites={"x": (constraints.positive, ())})
    target = target_of(model)
    u = torch.linspace(-12.0, 5.0, 4001)
    log_prob = target.log_prob(u[:, None])
    torch.testing.assert_close(log_prob, torch.distributions.Gamma(3.0, 1.5).log_prob(u.exp()) + u)
    assert float(torch.trapezoid(log_prob.exp(), u)) == pytest.approx(1.0, abs=1e-9)


def several_sites(values: dict[str, Tensor]) -> Tensor:
    return (
        torch.distributions.Dirichlet(torch.tensor([2.0, 1.0, 3.0])).log_prob(values["w"])
        + gamma_log_density(values["s"]).sum((-1, -2))
        - values["m"].square()
    )


SITES = {"w": (constraints.simplex, (3,)), "s": (constraints.positive, (2, 2)), "m": (constraints.real, ())}


def test_several_sites_with_supports() -> None:
    target = target_of(LogDensity(several_sites, sites=SITES))
    assert target.layout.dim == 2 + 4 + 1
    z = torch.randn(5, 7)
    values, log_det = target.layout.constrain(z)
    torch.testing.assert_close(values["s"], z[:, 2:6].exp().reshape(5, 2, 2))
    torch.testing.assert_close(target.log_prob(z), several_sites(values) + log_det)


def test_one_draw_at_a_time_equals_batched() -> None:
    def one(z: Tensor) -> Tensor:
        assert z.dim() == 1
        return -0.5 * z @ z + z[0].sin()

    z = torch.randn(6, 3, requires_grad=True)
    mapped = target_of(LogDensity(one, event_shape=(3,), batched=False))
    batched = target_of(LogDensity(lambda z: -0.5 * z.square().sum(-1) + z[..., 0].sin(), event_shape=(3,)))
    torch.testing.assert_close(mapped.log_prob(z), batched.log_prob(z))
    gradients = [torch.autograd.grad(t.log_prob(z).sum(), z)[0] for t in (mapped, batched)]
    torch.testing.assert_close(*gradients)
    one_by_one = target_of(LogDensity(several_sites, sites=SITES, batched=False))
    z = torch.randn(5, 7)
    torch.testing.assert_close(one_by_one.log_prob(z), target_of(LogDensity(several_sites, sites=SITES)).log_prob(z))


def test_the_single_site_can_be_named() -> None:
    model = LogDensity(lambda z: -z.square().sum(-1), event_shape=(2,), name="theta")
    assert [s.name for s in target_of(model).layout.sites] == ["theta"]


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (lambda z: 0.0, r"must return a torch\.Tensor, found float"),
        (lambda z: -z.square().sum(), r"shape \(3,\) for values of shape \(3, 2\).*found \(\).*batched=False"),
        (lambda z: -z.square(), r"shape \(3,\) for values of shape \(3, 2\).*found \(3, 2\)"),
        (lambda z: -z.square().sum(-1).float(), r"dtype torch\.float64.*found torch\.float32"),
    ],
)
def test_what_a_log_density_may_not_return(log_prob: Any, message: str) -> None:
    model = LogDensity(log_prob, event_shape=(2,))
    with pytest.raises(ModelError, match=message):
        model.evaluate({"z": torch.randn(3, 2)})


def test_arguments_of_a_log_density() -> None:
    def f(z: Any) -> Tensor:
        raise AssertionError("not to be called")

    for arguments in ({}, {"event_shape": (2,), "sites": SITES}):
        with pytest.raises(ValueError, match="give either event_shape"):
            LogDensity(f, **arguments)
    with pytest.raises(ValueError, match=r"init\['z'\] must have shape \(2,\), found \(3,\)"):
        LogDensity(f, event_shape=(2,), init=torch.zeros(3))
    with pytest.raises(ValueError, match=r"init must give a value for each of the sites \['x'\]"):
        LogDensity(f, sites={"x": (constraints.positive, ())}, init={"y": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"init\['x'\] lies outside its support"):
        LogDensity(f, sites={"x": (constraints.positive, ())}, init={"x": -1.0})


# -- starting points ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [31, 32])
def test_starting_points_without_init_reach_all_scales(n: int) -> None:
    target = target_of(LogDensity(lambda z: -z.square().sum(-1), event_shape=(500,)))
    scales = target.starting_points(n).square().mean(-1).sqrt()
    # The root mean square of 500 standard normals lies within 4 / sqrt(1000) of 1, relatively.
    expected = torch.logspace(-2.0, 4.0, n)
    common = expected.clamp_max(3.0)
    error = 4.0 / math.sqrt(1000.0)
    near = ((scales / expected - 1.0).abs() < error) | ((scales / common - 1.0).abs() < error)
    assert bool(near.all())
    assert float(scales.max()) == pytest.approx(1e4, rel=error)
    assert float(scales.min()) == pytest.approx(1e-2, rel=error)
    assert int((scales < 3.5).sum()) >= n // 2


def test_starting_points_lie_around_init_in_unconstrained_coordinates() -> None:
    init = {"x": 5.0}
    target = target_of(LogDensity(lambda v: -v["x"], sites={"x": (constraints.positive, ())}, init=init))
    n = 20_000
    points = target.starting_points(n)[:, 0]
    # Scales go from .01 to 10 around log 5, those of every other point at most to 3.
    scales = torch.logspace(-2.0, 1.0, n)
    scales[::2] = scales[::2].clamp_max(3.0)
    standard = (points - math.log(5.0)) / scales
    assert abs(float(standard.mean())) < 4.0 / math.sqrt(n)
    assert abs(float(standard.square().mean()) - 1.0) < 4.0 * math.sqrt(2.0 / n)


def test_starting_points_of_a_model_are_prior_draws() -> None:
    target = target_of(positive, data_for((4,)))
    torch.manual_seed(1)
    points = target.starting_points(7)
    torch.manual_seed(1)
    assert torch.equal(points, target.sample_prior(7))
