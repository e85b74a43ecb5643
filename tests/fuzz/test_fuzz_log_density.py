"""LogDensity: what can't be a density is refused by name, what can is evaluated right, whatever its shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import constraints

import avbvi
from avbvi import AdversarialELBO, AVBGuide, LogDensity
from avbvi.reference import unconstrained_target
from tests.fuzz import cases
from tests.fuzz.cases import check


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


@given(value=cases.NO_OBJECT | st.none())
def test_log_prob_that_is_no_function(value: Any) -> None:
    check("log densities", lambda: LogDensity(value, (2,)), "log_prob", "callable")


@given(value=cases.NO_WIDTHS.filter(lambda value: value is not None) | st.just((0,)) | st.just((2, -1)))
def test_shapes_that_are_none(value: Any) -> None:
    check("log densities", lambda: LogDensity(normal, value), "event_shape")
    check("log densities", lambda: LogDensity(normal, sites={"x": (constraints.real, value)}), "sites['x']", "shape")


@given(value=cases.NO_FLAG)
def test_batched_that_is_no_flag(value: Any) -> None:
    check("log densities", lambda: LogDensity(normal, (2,), batched=value), "batched")


@given(value=cases.NO_OBJECT.filter(lambda value: not isinstance(value, str)) | st.sampled_from(["", "log_density"]))
def test_names_that_are_none(value: Any) -> None:
    check("log densities", lambda: LogDensity(normal, (2,), name=value), "name")


@given(value=cases.NO_OBJECT.filter(lambda value: not isinstance(value, dict)) | st.just({}))
def test_sites_that_are_no_dict(value: Any) -> None:
    check("log densities", lambda: LogDensity(normal, sites=value), "sites")


@pytest.mark.parametrize(
    ("support", "shape"),
    [
        (constraints.simplex, ()),
        (constraints.corr_cholesky, (3, 2)),
        (constraints.corr_cholesky, (3,)),
        (constraints.boolean, (2,)),
        (constraints.nonnegative_integer, ()),
        (constraints.lower_cholesky, (2, 2)),
        ("real", (2,)),
        (torch.distributions.Normal(0.0, 1.0), (2,)),
        (None, (2,)),
    ],
)
def test_supports_and_shapes_that_do_not_fit(support: Any, shape: tuple[int, ...]) -> None:
    check("log densities", lambda: LogDensity(normal, sites={"x": (support, shape)}), "sites['x']", "support")


@pytest.mark.parametrize("entry", [constraints.real, (constraints.real,), (constraints.real, (2,), 3), "ab", None])
def test_sites_that_are_no_pairs(entry: Any) -> None:
    check("log densities", lambda: LogDensity(normal, sites={"x": entry}), "sites['x']")


INITS: list[Any] = [
    [math.nan, 0.0],
    [math.inf, 0.0],
    torch.tensor([1.0, -math.inf]),
    [1.0],
    1.0,
    torch.zeros(2, 1),
    torch.zeros(0),
    "ab",
    ["a", "b"],
    [1j, 0.0],
    torch.tensor([True, False]),
    [[1.0], [1.0, 2.0]],
    {"z": [0.0, 0.0]},
    object(),
]


@pytest.mark.parametrize("init", INITS)
def test_starting_points_that_are_none(init: Any) -> None:
    check("log densities", lambda: LogDensity(normal, (2,), init=init), "init['z']")
    check("log densities", lambda: LogDensity(normal, sites={"z": (constraints.real, (2,))}, init={"z": init}), "init")


@pytest.mark.parametrize("init", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1, 2]), np.float32([1, 2])])
def test_starting_points_of_other_types_are_taken(init: Any) -> None:
    model = LogDensity(normal, (2,), init=init)
    points = unconstrained_target(model).starting_points(64)
    assert points.dtype == torch.float32 or init.dtype == np.float64
    # Half of the points lie within .1 of it: scales rise from 1e-2 to 10 by a constant factor.
    assert torch.allclose(points.median(0).values.float(), torch.tensor([1.0, 2.0]), atol=0.3)


def numpy(z: Tensor) -> Tensor:
    return torch.as_tensor(-0.5 * (z.numpy() ** 2).sum(-1))


def in_place(z: Tensor) -> Tensor:
    z = z.mul_(2.0) if not z.requires_grad else z.clone()
    return -0.5 * z.square().sum(-1)


def without_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        return -0.5 * z.square().sum(-1)


BAD_LOG_PROBS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "nothing": (lambda z: None, {}, ("log_prob", "NoneType")),
    "float": (lambda z: 1.0, {}, ("log_prob", "float")),
    "array": (lambda z: np.zeros(len(z)), {}, ("log_prob", "ndarray")),
    "tuple": (lambda z: (normal(z), z), {}, ("log_prob", "tuple")),
    "dict": (lambda z: {"log_prob": normal(z)}, {}, ("log_prob", "dict")),
    "too wide": (lambda z: -z, {}, ("log_prob", "shape")),
    "kept dimension": (lambda z: normal(z)[:, None], {}, ("log_prob", "shape")),
    "summed over draws": (lambda z: normal(z).sum(), {}, ("log_prob", "shape", "batched=False")),
    "empty": (lambda z: normal(z)[:0], {}, ("log_prob", "shape")),
    "float64": (lambda z: normal(z).double(), {}, ("log_prob", "torch.float64")),
    "float16": (lambda z: normal(z).half(), {}, ("log_prob", "torch.float16")),
    "integers": (lambda z: normal(z).long(), {}, ("log_prob", "torch.int64")),
    "truth": (lambda z: normal(z) > 0, {}, ("log_prob", "torch.bool")),
    "complex": (lambda z: normal(z) * 1j, {}, ("log_prob", "torch.complex64")),
    "NaN": (lambda z: normal(z) * math.nan, {}, ("log-density is NaN",)),
    "NaN off the origin": (lambda z: normal(z) + (z.abs().sum(-1) - 1e-9).neg().sqrt(), {}, ("log-density is NaN",)),
    "+inf": (lambda z: normal(z) + math.inf, {}, ("log-density is +inf",)),
    "-inf": (lambda z: normal(z) - math.inf, {}, ("log-density is -inf", "init")),
    "detached": (lambda z: normal(z.detach()), {}, ("gradient is wrong", "detach()")),
    "detached in part": (
        lambda z: -z[:, 0].square() - 3.0 * z[:, 1].detach().square(),
        {},
        ("gradient is wrong", "detach()"),
    ),
    "without grad": (without_grad, {}, ("gradient is wrong", "no_grad()")),
    "NumPy": (numpy, {}, ("log_prob failed", "numpy()")),
    "NumPy, detached": (lambda z: numpy(z.detach()), {}, ("gradient is wrong", "NumPy")),
    "in place": (in_place, {}, ("log_prob", "in place")),
    "mixes draws": (lambda z: normal(z - z.mean(0) + z.sum() * 0.1), {}, ("by itself", "among others")),
    "one draw": (lambda z: -z[0].square() - z[1].square(), {}, ("log_prob failed", "(1, 2)", "batched=False")),
    "one draw, by number": (lambda z: -(float(z[0]) ** 2), {}, ("log_prob failed", "batched=False")),
    "math": (lambda z: -(math.hypot(z[0], z[1])), {}, ("log_prob failed", "batched=False")),
    "too many arguments": (lambda z, y: normal(z), {}, ("log_prob failed", "'y'")),
    "a dict was expected": (lambda z: normal(z["x"]), {}, ("log_prob failed", "(1, 2)")),
    "an attribute": (lambda z: z.nonsense, {}, ("log_prob failed", "nonsense")),
    "mapped: item()": (lambda z: -z[0] * z[1].item(), {"batched": False}, ("log_prob failed", "torch.vmap")),
    "mapped: if": (lambda z: -z[0] if z[1] > 0 else z[1], {"batched": False}, ("log_prob failed", "torch.vmap")),
    "mapped: batched": (lambda z: -z[:, 0].square(), {"batched": False}, ("log_prob failed", "one draw at a time")),
    "mapped: vector": (lambda z: -z, {"batched": False}, ("log_prob", "shape")),
}


@pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's own, which do not say where
@pytest.mark.parametrize("name", BAD_LOG_PROBS)
def test_functions_that_are_no_log_density(name: str) -> None:
    log_prob, options, words = BAD_LOG_PROBS[name]
    model = LogDensity(log_prob, (2,), **options)
    check("log densities", lambda: AdversarialELBO(num_particles=8).loss(model, AVBGuide(model)), *words)


@pytest.mark.parametrize("name", [n for n in BAD_LOG_PROBS if n not in ("NaN off the origin", "mixes draws")])
def test_hmc_refuses_them_too(name: str) -> None:
    log_prob, options, words = BAD_LOG_PROBS[name]
    words = ("finite at only 0",) if name in ("NaN", "+inf", "-inf") else words
    model = LogDensity(log_prob, (2,), **options)
    check("log densities", lambda: avbvi.hmc_posterior(model, chains=8, draws=4, warmup=10, thin=1), *words)


def test_more_latents_than_memory() -> None:
    model = LogDensity(normal, (10**6,))
    check("log densities", lambda: AVBGuide(model).setup(), "1000000", "GiB")
    check("log densities", lambda: avbvi.hmc_posterior(model, chains=4), "1000000", "GiB")


@pytest.mark.parametrize(
    "log_prob", [lambda v: normal(v), lambda v: normal(v["y"]), lambda v: normal(v.x)], ids=["tensor", "key", "name"]
)
def test_a_dict_of_sites_that_is_misread(log_prob: Any) -> None:
    model = LogDensity(log_prob, sites={"x": (constraints.real, (2,))})
    check("log densities", lambda: AVBGuide(model).setup(), "log_prob failed", "['x']")


@given(
    shape=st.lists(st.integers(1, 3), max_size=3), n=st.integers(1, 4), batched=st.booleans(), seed=st.integers(0, 99)
)
def test_any_shape_is_evaluated_exactly(shape: list[int], n: int, batched: bool, seed: int) -> None:
    weight = torch.arange(1.0, math.prod(shape) + 1.0).reshape(shape)

    def of_many(z: Tensor) -> Tensor:
        return (-0.5 * weight * z.square()).reshape(len(z), -1).sum(-1)

    def of_one(z: Tensor) -> Tensor:
        return (-0.5 * weight * z.square()).sum()

    model = LogDensity(of_many if batched else of_one, tuple(shape), batched=batched)
    target = unconstrained_target(model)
    z = torch.randn(n, math.prod(shape), generator=torch.Generator().manual_seed(seed))
    exact = (-0.5 * weight.flatten().double() * z.double().square()).sum(-1)
    torch.testing.assert_close(target.log_prob(z).double(), exact, rtol=1e-5, atol=1e-5)


@given(values=st.lists(st.floats(-3.0, 3.0, width=32), min_size=3, max_size=3))
def test_supports_are_changed_to_by_the_jacobian(values: list[float]) -> None:
    """x = exp(u) positive, p in (0, 1) by the logistic function: the density in u and v by hand."""
    model = LogDensity(
        lambda s: -s["x"].sum(-1) + 2.0 * s["p"].log(),
        sites={"x": (constraints.positive, (2,)), "p": (constraints.unit_interval, ())},
    )
    u, v = torch.tensor(values[:2], dtype=torch.float64), torch.tensor(values[2], dtype=torch.float64)
    p = 1.0 / (1.0 + torch.exp(-v))
    exact = (u - u.exp()).sum() + 2.0 * p.log() + p.log() + (1.0 - p).log()
    got = unconstrained_target(model).log_prob(torch.tensor(values, dtype=torch.float32)[None])
    assert float(got) == pytest.approx(float(exact), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "log_prob",
    [
        normal,
        lambda z: -z.abs().sum(-1),  # a kink
        lambda z: torch.where(z.abs().amax(-1) < 40.0, 0.0 * z.sum(-1), -math.inf),  # flat: no slope to be wrong
        lambda z: -0.5 * (1e4 * z[:, 0]).square() - z[:, 1].square(),
        lambda z: -0.5 * (z[:, 0] / z[:, 1].exp()).square() - z[:, 1] - z[:, 1].square() / 18.0,
        lambda z: 1e6 - 0.5 * z.square().sum(-1),
        lambda z: -z.round().square().sum(-1),  # steps: its differences are not those of a smooth function
    ],
)
def test_hard_but_true_densities_pass(log_prob: Any) -> None:
    from avbvi.checks import check_gradient

    target = unconstrained_target(LogDensity(log_prob, (2,)))
    check_gradient(target, target.starting_points(32))
