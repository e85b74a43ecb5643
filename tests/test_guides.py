"""AVBGuide against closed forms: densities, posteriors, quantiles; copies, names, company."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from torch import Tensor
from torch.distributions import biject_to, constraints

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, FlowTrunk, GaussianContrast, LogDensity, ResidualSampler

EXACT = {"atol": 1e-8, "rtol": 1e-8}


@pytest.fixture
def float64() -> None:
    """Double precision, so that identities hold to rounding; the default is restored by another fixture."""
    torch.set_default_dtype(torch.float64)


def small_guide(model: Any, **parts: Any) -> AVBGuide:
    """A guide with tiny networks that is in its adversarial stage from the first training call."""
    given = {
        "trunk": AffineTrunk(),
        "sampler": ResidualSampler(hidden=8, blocks=1),
        "adversary": avbvi.ResidualAdversary(hidden=8, blocks=1),
        "contrast": GaussianContrast(full=True),
    }
    return AVBGuide(model, **(given | parts))


def train(guide: Any, model: Any, *args: Any, steps: int = 3, **kwargs: Any) -> None:
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(model, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    for _ in range(steps):
        svi.step(*args, **kwargs)


def parameters(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in module.named_parameters()}


def moved(before: dict[str, Tensor], module: torch.nn.Module) -> set[str]:
    return {k for k, p in module.named_parameters() if not torch.equal(before[k], p)}


# -- the density of the guide's trace ---------------------------------------------------------------


def positive() -> None:
    pyro.sample("x", dist.Gamma(2.0, 3.0))


def interval() -> None:
    pyro.sample("x", dist.Uniform(-1.0, 3.0))


def unit_interval() -> None:
    pyro.sample("x", dist.Beta(2.0, 3.0))


def simplex() -> None:
    pyro.sample("x", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0, 4.0])))


def correlation() -> None:
    pyro.sample("x", dist.LKJCholesky(3, 1.5))


def plates() -> None:
    with pyro.plate("rows", 2, dim=-1):
        pyro.sample("x", dist.Exponential(1.0))


def nested_plates() -> None:
    columns = pyro.plate("columns", 3, dim=-1)
    with pyro.plate("rows", 2, dim=-2):
        pyro.sample("row", dist.LogNormal(0.0, 1.0))
        with columns:
            pyro.sample("cell", dist.Normal(0.0, 1.0))


def event_dims() -> None:
    pyro.sample("matrix", dist.Gamma(2.0, 1.0).expand([2, 3]).to_event(2))


def vectors_in_a_plate() -> None:
    with pyro.plate("rows", 2):
        pyro.sample("x", dist.Dirichlet(torch.ones(3)))


def several(y: Tensor, *, scale: float = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(scale))
    with pyro.plate("data", len(y)):
        p = pyro.sample("p", dist.Beta(1.0, 2.0))
        pyro.sample("y", dist.Normal(mu + p, sigma), obs=y)


def on(support: constraints.Constraint, shape: tuple[int, ...]) -> LogDensity:
    n = len(shape)
    return LogDensity(
        lambda v: -0.5 * v["x"].square().sum(tuple(range(-n, 0))),
        sites={"x": (support, shape)},
    )


Free = Callable[[Tensor], Tensor]


def lower(diagonal: int) -> Free:
    return lambda m: m[tuple(torch.tril_indices(m.shape[-1], m.shape[-1], diagonal))]


Y = torch.tensor([0.3, -1.2, 2.0])
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], int, dict[str, Free]]] = {
    "positive": (positive, (), {}, 1, {}),
    "interval": (interval, (), {}, 1, {}),
    "unit interval": (unit_interval, (), {}, 1, {}),
    # The last entry of a simplex, and all but the lower triangle of a factor, follow from the rest.
    "simplex": (simplex, (), {}, 3, {"x": lambda v: v[:-1]}),
    "correlation": (correlation, (), {}, 3, {"x": lower(-1)}),
    "ordered": (on(dist.constraints.ordered_vector, (4,)), (), {}, 4, {}),
    "greater than": (on(constraints.greater_than(2.0), (2,)), (), {}, 2, {}),
    "less than": (on(constraints.less_than(-1.0), ()), (), {}, 1, {}),
    "several supports": (
        LogDensity(
            lambda v: -v["a"] - v["b"].square().sum(-1),
            sites={"a": (constraints.positive, ()), "b": (constraints.interval(0.0, 2.0), (2,))},
        ),
        (),
        {},
        3,
        {},
    ),
    "plate": (plates, (), {}, 2, {}),
    "nested plates": (nested_plates, (), {}, 8, {}),
    "event dimensions": (event_dims, (), {}, 6, {}),
    "vectors in a plate": (vectors_in_a_plate, (), {}, 4, {"x": lambda v: v[:, :-1]}),
    "arguments": (several, (Y,), {"scale": 3.0}, 5, {}),
}


def log_abs_det(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(function, at)
    return torch.linalg.slogdet(jacobian.reshape(at.numel(), at.numel()))[1]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trunk", [None, AffineTrunk, FlowTrunk])
def test_density_of_a_trace_is_that_of_the_change_of_variables(case: str, trunk: Any) -> None:
    model, args, kwargs, dim, free = CASES[case]
    args = tuple(a.double() if isinstance(a, Tensor) else a for a in args)
    guide = AVBGuide(model, trunk=None if trunk is None else trunk()).setup(*args, **kwargs)
    assert guide.layout is not None
    assert guide.layout.dim == dim
    with torch.no_grad():
        for p in guide.trunk.parameters():
            p.add_(0.1 * torch.randn_like(p))
    guide.trunk.start(0.3 * torch.randn(dim), torch.eye(dim) + 0.3 * torch.randn(dim, dim).tril(-1))

    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    prototype = guide.prototype_trace
    latent = [name for name, _ in prototype.iter_stochastic_nodes()]
    z, jacobians = [], torch.zeros(())
    for name in latent:
        value = trace.nodes[name]["value"].detach()
        support = prototype.nodes[name]["fn"].support
        assert value.shape == prototype.nodes[name]["value"].shape
        assert bool(support.check(value).all())
        transform = biject_to(support)
        unconstrained = transform.inv(value)
        pick = free.get(name, lambda v: v)
        jacobians = jacobians + log_abs_det(lambda u, t=transform, f=pick: f(t(u)), unconstrained)
        z.append(unconstrained.reshape(-1))
    e, _ = guide.trunk.inverse(torch.cat(z))
    back, _ = guide.trunk(e)
    torch.testing.assert_close(back, torch.cat(z), **EXACT)
    log_det = log_abs_det(lambda x: guide.trunk(x)[0], e.detach())
    base = guide.trunk.base_log_prob(e) if trunk is None else dist.Normal(0.0, 1.0).log_prob(e).sum()
    expected = base - log_det - jacobians
    torch.testing.assert_close(trace.log_prob_sum(), expected, **EXACT)


# -- a conjugate model, whose posterior is an affine trunk --------------------------------------------

DESIGN = torch.tensor([[1.0, 0.2], [1.0, -1.1], [1.0, 0.7], [1.0, 1.9], [1.0, -0.4]])
RESPONSE = torch.tensor([0.9, -0.8, 1.3, 2.4, 0.1])
NOISE, PRIOR = 0.7, 1.5


def two_sites(x: Tensor, y: Tensor | None = None) -> Tensor:
    # Predictive (Pyro 1.9) can't put vectors outside a plate into the model again, so here they are two scalars.
    a = pyro.sample("a", dist.Normal(x.new_zeros(()), PRIOR))
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), PRIOR))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("y", dist.Normal(a * x[:, 0] + b * x[:, 1], NOISE), obs=y)


def regression(x: Tensor, y: Tensor | None = None) -> Tensor:
    beta = pyro.sample("beta", dist.Normal(x.new_zeros(2), PRIOR).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("y", dist.Normal((x * beta).sum(-1), NOISE), obs=y)


def exact_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean, covariance and log evidence."""
    covariance = torch.linalg.inv(x.mT @ x / NOISE**2 + torch.eye(2).to(x) / PRIOR**2)
    mean = covariance @ x.mT @ y / NOISE**2
    marginal = NOISE**2 * torch.eye(len(y)).to(x) + PRIOR**2 * x @ x.mT
    return mean, covariance, torch.distributions.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)


def exact_guide(x: Tensor, y: Tensor, model: Any = regression) -> AVBGuide:
    guide = AVBGuide(model, trunk=AffineTrunk()).setup(x, y)
    mean, covariance, _ = exact_regression(x, y)
    guide.trunk.start(mean, torch.linalg.cholesky(covariance))
    return guide


@pytest.mark.parametrize("vectorize", [False, True])
def test_exact_trunk_gives_the_log_evidence_without_variance(vectorize: bool, device: torch.device) -> None:
    x, y = DESIGN.double().to(device), RESPONSE.double().to(device)
    guide = exact_guide(x, y)
    evidence = float(exact_regression(x, y)[2])
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
    for _ in range(5):
        assert -elbo.loss(regression, guide, x, y) == pytest.approx(evidence, abs=1e-10)


def test_predictive_draws_have_the_posterior_moments(device: torch.device) -> None:
    x, y = DESIGN.to(device), RESPONSE.to(device)
    guide = exact_guide(x, y, two_sites)
    mean, covariance, _ = exact_regression(x, y)
    n = 10_000
    draws = Predictive(two_sites, guide=guide, num_samples=n, parallel=True)(x)
    beta, future = torch.stack([draws["a"].reshape(n), draws["b"].reshape(n)], -1), draws["y"]
    assert future.shape == (n, 5)
    expected_variance = NOISE**2 + (x @ covariance * x).sum(-1)
    for value, center, variance in ((beta, mean, covariance.diagonal()), (future, x @ mean, expected_variance)):
        assert bool(((value.mean(0) - center).abs() < 4.5 * (variance / n).sqrt()).all())
        assert bool(((value.var(0) - variance).abs() < 4.5 * variance * math.sqrt(2 / n)).all())
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    found = torch.corrcoef(beta.mT)[0, 1]
    assert abs(float(found - correlation)) < 4.5 * float(1 - correlation**2) / math.sqrt(n)


def test_quantiles_and_median_are_those_of_the_gaussian() -> None:
    def model() -> None:
        pyro.sample("real", dist.Normal(0.0, 1.0))
        pyro.sample("positive", dist.LogNormal(0.0, 1.0))

    guide = AVBGuide(model, trunk=AffineTrunk()).setup()
    loc, factor = torch.tensor([1.0, -0.5]), torch.tensor([[2.0, 0.0], [0.3, 0.4]])
    guide.trunk.start(loc, factor)
    sd = (factor @ factor.mT).diagonal().sqrt()
    levels = [0.1, 0.5, 0.9]
    standard = dist.Normal(0.0, 1.0)
    at = standard.icdf(torch.tensor(levels))
    # The s.e. of an empirical quantile is sqrt(p (1 - p) / n) / density.
    p = torch.tensor(levels)
    error = 4.5 * (p * (1 - p) / 20_000).sqrt() / standard.log_prob(at).exp()
    state = torch.get_rng_state()
    found = guide.quantiles(levels)
    assert torch.equal(state, torch.get_rng_state())
    for found_standard in ((found["real"] - loc[0]) / sd[0], (found["positive"].log() - loc[1]) / sd[1]):
        assert bool(((found_standard - at).abs() < error).all())
    median = guide.median()
    assert torch.equal(median["real"], found["real"][1])
    assert torch.equal(median["positive"], found["positive"][1])


def test_float64_model_gets_float64_parts_and_draws() -> None:
    x, y = DESIGN.double(), RESPONSE.double()
    guide = small_guide(regression)
    train(guide, regression, x, y)
    assert guide.is_adversarial
    assert {v.dtype for v in guide.state_dict().values() if v.is_floating_point()} == {torch.float64}
    draw = guide(x, y)["beta"]
    assert draw.dtype == torch.float64
    # A learned density is asked for in double precision too.
    trace = poutine.trace(guide).get_trace(x, y)
    assert trace.log_prob_sum().dtype == torch.float64


def test_flow_trunk_trains_on_a_float64_model() -> None:
    x, y = DESIGN.double(), RESPONSE.double()
    guide = AVBGuide(regression)
    elbo = AdversarialELBO(steps=10, num_particles=64, pretrain_steps=0)
    svi = SVI(regression, guide, elbo.optimizer(), loss=elbo)
    losses = [svi.step(x, y) for _ in range(10)]
    assert all(map(math.isfinite, losses))
    assert {p.dtype for p in guide.parameters()} == {torch.float64}


def test_guide_trains_where_the_model_is(device: torch.device) -> None:
    x, y = DESIGN.to(device), RESPONSE.to(device)
    guide = small_guide(regression)
    train(guide, regression, x, y)
    assert {v.device.type for v in guide.state_dict().values()} == {device.type}
    assert guide(x, y)["beta"].device.type == device.type


# -- copies ---------------------------------------------------------------------------------------------


def same_draws_and_density(a: AVBGuide, b: AVBGuide, *args: Any) -> None:
    draws = []
    for guide in (a, b):
        pyro.set_rng_seed(3)
        draws.append(guide(*args)["beta"].detach())
    torch.testing.assert_close(draws[0], draws[1], rtol=0.0, atol=0.0)
    z = torch.randn(20, 2)
    values = [guide.get_posterior(*args).log_prob(z) for guide in (a, b)]
    torch.testing.assert_close(values[0], values[1], rtol=0.0, atol=0.0)
    assert float(values[0].detach().std()) > 0.1


def test_state_dict_goes_into_a_second_guide() -> None:
    first = small_guide(regression)
    train(first, regression, DESIGN, RESPONSE)
    second = small_guide(regression).setup(DESIGN, RESPONSE)
    second.load_state_dict(first.state_dict())
    assert second.is_adversarial
    same_draws_and_density(first, second, DESIGN, RESPONSE)


def test_state_dict_of_a_flow_goes_into_a_second_guide() -> None:
    first = AVBGuide(regression)
    elbo = AdversarialELBO(steps=6, num_particles=64, pretrain_steps=0)
    svi = SVI(regression, first, elbo.optimizer(lr=1e-2), loss=elbo)
    for _ in range(5):
        svi.step(DESIGN, RESPONSE)
    second = AVBGuide(regression).setup(DESIGN, RESPONSE)
    second.load_state_dict(first.state_dict())
    same_draws_and_density(first, second, DESIGN, RESPONSE)


def test_deepcopy_draws_the_same_under_its_own_name_and_leaves_the_original_alone() -> None:
    guide = small_guide(regression, name="original")
    train(guide, regression, DESIGN, RESPONSE)
    twin = copy.deepcopy(guide)
    assert twin._pyro_name != guide._pyro_name
    same_draws_and_density(guide, twin, DESIGN, RESPONSE)
    before = parameters(twin)
    train(guide, regression, DESIGN, RESPONSE)
    assert moved(before, guide)
    assert not moved(before, twin)
    before = parameters(guide)
    twin_before = parameters(twin)
    train(twin, regression, DESIGN, RESPONSE)
    assert not moved(before, guide)
    assert moved(twin_before, twin)


def test_deepcopy_before_set_up() -> None:
    guide = small_guide(regression)
    twin = copy.deepcopy(guide)
    train(guide, regression, DESIGN, RESPONSE)
    train(twin, regression, DESIGN, RESPONSE)
    assert twin._pyro_name != guide._pyro_name


# -- company ----------------------------------------------------------------------------------------------


def test_two_guides_train_independently() -> None:
    first, second = small_guide(regression), small_guide(regression)
    for g in (first, second):
        g.setup(DESIGN, RESPONSE)
    for stepping, resting in ((first, second), (second, first)):
        before, rest = parameters(stepping), parameters(resting)
        train(stepping, regression, DESIGN, RESPONSE, steps=4)
        parts = {name.split(".")[0] for name in moved(before, stepping)}
        assert parts == {"sampler", "adversary"}
        assert not moved(rest, resting)


def test_second_guide_of_the_same_name_is_refused() -> None:
    train(small_guide(regression, name="mine"), regression, DESIGN, RESPONSE)
    clash = small_guide(regression, name="mine")
    with pytest.raises(ValueError, match=r"name='mine' is already used.*choose another name or call pyro.clear_param"):
        train(clash, regression, DESIGN, RESPONSE)
    pyro.clear_param_store()
    train(small_guide(regression, name="mine"), regression, DESIGN, RESPONSE)


def pair(y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a, b), obs=y)


@pytest.mark.parametrize("other", [AutoNormal, AutoDelta])
@pytest.mark.parametrize("first", [True, False], ids=["AVBGuide first", "AVBGuide last"])
@pytest.mark.parametrize("steps", [None, 8])
def test_beside_another_guide_both_parts_train(other: Any, first: bool, steps: int | None) -> None:
    guide = AutoGuideList(pair)
    ours = small_guide(poutine.block(pair, hide=["b"]))
    parts = [ours, other(poutine.block(pair, hide=["a"]))]
    for part in parts if first else parts[::-1]:
        guide.append(part)
    elbo = AdversarialELBO(steps=steps, num_particles=64, pretrain_steps=0)
    svi = SVI(pair, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    svi.step(Y)
    before = [parameters(p) for p in parts]
    for _ in range(7):
        svi.step(Y)
    assert {k.split(".")[0] for k in moved(before[0], ours)} == {"sampler", "adversary"}
    assert moved(before[1], parts[1]) == set(before[1])
    assert {"a", "b"} <= set(guide(Y))


def test_prior_contrast_beside_another_guide_is_refused() -> None:
    guide = AutoGuideList(pair)
    prior = {"contrast": avbvi.PriorContrast(), "trunk": avbvi.IdentityTrunk()}
    guide.append(small_guide(poutine.block(pair, hide=["b"]), **prior))
    guide.append(AutoNormal(poutine.block(pair, hide=["a"])))
    with pytest.raises(ValueError, match=r"PriorContrast\(\) needs the joint density.*use GaussianContrast"):
        train(guide, pair, Y)
