"""Pyro models: what can't be fitted is refused with the site's name; data of other dtypes give the right density."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import constraints

import avbvi
from avbvi import AdversarialELBO, AVBGuide
from avbvi.reference import unconstrained_target
from tests.fuzz import cases
from tests.fuzz.cases import check

pytestmark = pytest.mark.filterwarnings("ignore:Found vars in model but not guide:UserWarning")


def normal(data: Any = None, *, name: str = "x") -> None:
    """x ~ N(0, 1), y ~ N(x, 2) in a plate."""
    x = pyro.sample(name, dist.Normal(0.0, 1.0))
    if data is not None:
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(x, 2.0), obs=data)


def discrete() -> None:
    k = pyro.sample("k", dist.Poisson(2.0))
    pyro.sample("x", dist.Normal(k, 1.0))


def twice() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def changing() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    for i in range(int(torch.randint(1, 9, ()))):
        pyro.sample(f"more_{i}", dist.Normal(x, 1.0))


def subsampled() -> None:
    with pyro.plate("data", 10, subsample_size=3):
        pyro.sample("local", dist.Normal(0.0, 1.0))


def empty_latent() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(0), 1.0).to_event(1))


def some_empty_latent() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))


def empty_plate() -> None:
    with pyro.plate("nobody", 0):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def improper() -> None:
    pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))


def bad_scale(scale: Any) -> Any:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, torch.as_tensor(scale)), obs=torch.tensor(0.3))

    return model


def bad_prior(scale: Any) -> Any:
    def model() -> None:
        pyro.sample("first", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, torch.as_tensor(scale)))

    return model


def bad_data(value: float, fn: Any = None) -> Any:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            law = dist.Normal(x, 1.0) if fn is None else fn(x)
            pyro.sample("y", law, obs=torch.tensor([1.0, value, 2.0]))

    return model


def misshapen() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(4))


def bad_factor(value: Any) -> Any:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", x * value)

    return model


def detached() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(3.0 * x.detach(), scale), obs=torch.tensor(2.0))


def by_number() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(float(x), 1.0), obs=torch.tensor(0.3))


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no latents": (lambda: None, ("no continuous latent",)),
    "discrete": (discrete, ("'k'", "discrete")),
    "two sites of one name": (twice, ("Multiple", "'x'")),
    "changing": (changing, ("dynamic structure", "more_")),
    "subsampled": (subsampled, ("'local'", "'data'", "3 of 10")),
    "empty latent": (empty_latent, ("'x'", "no elements")),
    "an empty latent beside another": (some_empty_latent, ("'none'", "no elements")),
    "empty plate": (empty_plate, ("size cannot be zero",)),
    "improper": (improper, ("ImproperUniform", "LogDensity")),
    "negative scale": (bad_scale(-1.0), ("scale", "-1", "last site reached: 'x'")),
    "zero scale": (bad_scale(0.0), ("scale", "last site reached: 'x'")),
    "NaN scale": (bad_scale(math.nan), ("scale", "nan", "last site reached: 'x'")),
    "negative scale of a prior": (bad_prior(-1.0), ("scale", "-1", "last site reached: 'first'")),
    "NaN data": (bad_data(math.nan), ("'y'", "NaN in 1 of 3")),
    "infinite data": (bad_data(math.inf), ("'y'", "infinite values in 1 of 3")),
    "data outside the support": (bad_data(-3.0, lambda x: dist.LogNormal(x, 1.0)), ("'y'", "support")),
    "data of another shape": (misshapen, ("'y'", "4", "3")),
    "NaN factor": (bad_factor(math.nan), ("log_factor", "nan")),
    "infinite factor": (bad_factor(math.inf), ("inf",)),
    "detached": (detached, ("gradient is wrong", "'x'", "detach()")),
    "number": (by_number, ("vectorize_particles=False",)),
}


def evaluate(model: Any, *args: Any, **options: Any) -> None:
    AdversarialELBO(num_particles=8, **options).loss(model, AVBGuide(model), *args)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_model_that_can_t_be_fitted(name: str) -> None:
    model, words = BAD[name]
    check("models", lambda: evaluate(model), *words)
    words = tuple(w for w in words if w not in ("vectorize_particles=False", "NaN", "inf", "gradient is wrong"))
    pyro.clear_param_store()
    if name != "number":
        check("models", lambda: avbvi.hmc_posterior(model, chains=4, draws=4, warmup=5, thin=1), *words)


@pytest.mark.parametrize("name", ["NaN data", "infinite data", "NaN factor", "detached", "number"])
def test_a_model_run_draw_by_draw(name: str) -> None:
    model, words = BAD[name]
    words = ("gradient is wrong", "'x'") if name == "number" else words
    check("models", lambda: evaluate(model, vectorize_particles=False), *words)


@given(value=cases.NO_OBJECT | st.none())
def test_a_model_that_is_no_function(value: Any) -> None:
    for call in (avbvi.fit, avbvi.AVBGuide, avbvi.hmc_posterior):
        check("models", lambda call=call: call(value), "model", "callable")


def test_masked_data_may_be_missing() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 2), pyro.poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", dist.Normal(x, 1.0, validate_args=False), obs=torch.tensor([0.5, math.nan]))

    AVBGuide(model).setup()


def exact(z: Tensor, data: Any) -> Tensor:
    y = torch.as_tensor(np.asarray(data), dtype=torch.float64)
    x = z.double()
    prior = -0.5 * x.square().sum(-1) - 0.5 * math.log(2 * math.pi)
    return prior + (-0.125 * (y - x).square() - 0.5 * math.log(8 * math.pi)).sum(-1)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8], ids=str
)
def test_data_of_any_dtype_give_the_density(dtype: torch.dtype) -> None:
    data = torch.tensor([1, 2, 4]).to(dtype)
    z = torch.linspace(-2.0, 2.0, 5)[:, None]
    got = unconstrained_target(normal, (data,)).log_prob(z)
    torch.testing.assert_close(got.double(), exact(z, data), rtol=1e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
    guide = AVBGuide(normal)
    elbo = AdversarialELBO(num_particles=64)
    loss = elbo.loss(normal, guide, data)
    # log Z of the conjugate model, and the guide starts at the posterior itself: the loss is -log Z at every draw.
    y = data.double()
    posterior = torch.distributions.Normal(float(y.sum() / 4.0 / 1.75), 1.75**-0.5)
    at = torch.zeros(1, dtype=torch.float64)
    log_z = float(exact(at[:, None], data) - posterior.log_prob(at))
    assert loss == pytest.approx(-log_z, abs=2e-3)


@pytest.mark.parametrize("data", [np.array([1.0, 2.0]), [1.0, 2.0]], ids=["array", "list"])
def test_data_that_pyro_can_t_take(data: Any) -> None:
    check("models", lambda: evaluate(normal, data), "'y'", "torch.as_tensor")


def test_a_guide_of_another_model() -> None:
    def wider() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    other = lambda: normal(name="other")  # noqa: E731
    conditioned = pyro.poutine.condition(normal, {"x": torch.tensor(0.0)})
    for model in (wider, other, conditioned):
        guide = AVBGuide(normal)
        check("models", lambda m=model, g=guide: avbvi.fit(m, guide=g, steps=2, progress=False), "'x'", "another model")
