"""run_hmc and hmc_posterior: each argument refuses what it can't use, by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import avbvi
from avbvi.hmc import DenseMass, DiagonalMass, run_hmc, short_hmc
from tests.fuzz import cases
from tests.fuzz.cases import check


def some(strategy: Any) -> Any:
    return strategy.filter(lambda value: value is not None)


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


STATES = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)
COUNT, FROM_0 = cases.no_integer_from(1), cases.no_integer_from(0)
RUN: dict[str, Any] = {
    "draws": COUNT,
    "warmup": FROM_0,
    "thin": COUNT,
    "mass": some(cases.NO_OBJECT) | st.just(DenseMass),
    "target_acceptance": cases.no_number_in(0.0, 1.0),
    "leapfrog_steps": some(COUNT),
    "max_leapfrog_steps": COUNT,
    "jump": some(cases.NO_OBJECT),
    "restart_stuck": cases.NO_FLAG,
    "generator": some(cases.NO_OBJECT),
}


@pytest.mark.parametrize("name", RUN)
@given(data=st.data())
def test_an_argument_of_run_hmc(name: str, data: st.DataObject) -> None:
    options = {"draws": 2, "warmup": 2, name: data.draw(RUN[name])}
    check("HMC", lambda: run_hmc(normal, STATES, **options), name)


@pytest.mark.parametrize(
    "states",
    [
        STATES.numpy(),
        STATES.tolist(),
        None,
        STATES.long(),
        STATES > 0,
        STATES * 1j,
        STATES[0],
        STATES[None],
        STATES[:0],
        STATES[:, :0],
        STATES * math.nan,
        STATES / 0.0,
    ],
)
def test_states_that_are_none(states: Any) -> None:
    check("HMC", lambda: run_hmc(normal, states, draws=2), "states")


SHORT = {"steps": COUNT, "leapfrog_steps": COUNT, "target_acceptance": cases.no_number_in(0.0, 1.0)}


@pytest.mark.parametrize("name", SHORT)
@given(data=st.data())
def test_an_argument_of_short_hmc(name: str, data: st.DataObject) -> None:
    value = data.draw(SHORT[name])
    check("HMC", lambda: short_hmc(normal, STATES, **{name: value}), name)


@pytest.mark.parametrize("states", [None, STATES.numpy(), STATES.long(), STATES[0], STATES[:1], STATES[:0]])
def test_states_that_short_hmc_can_t_move(states: Any) -> None:
    check("HMC", lambda: short_hmc(normal, states), "states")


def test_states_without_density() -> None:
    check("HMC", lambda: run_hmc(lambda z: normal(z).log(), STATES, draws=2), "states", "NaN", "8 of 8")
    check("HMC", lambda: run_hmc(lambda z: normal(z) + math.inf, STATES, draws=2), "states", "+inf", "8 of 8")


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda z: None,
        lambda z: 1.0,
        lambda z: normal(z).detach().numpy(),
        lambda z: (normal(z), z),
        lambda z: -z,
        lambda z: normal(z)[:, None],
        lambda z: normal(z)[None],
        lambda z: normal(z).sum(),
        lambda z: normal(z)[:3],
        lambda z: normal(z) * 1j,
        lambda z: normal(z).long(),
        lambda z: normal(z) > -1.0,
        lambda z: normal(z.detach()),
        lambda z: torch.as_tensor(normal(z.detach()).numpy()),
        None,
        "log_prob",
        3,
    ],
)
def test_functions_that_are_no_log_density(log_prob: Any) -> None:
    check("HMC", lambda: run_hmc(log_prob, STATES, draws=2, warmup=2), "log_prob")
    check("HMC", lambda: short_hmc(log_prob, STATES), "log_prob")


def test_a_constant_density_is_one() -> None:
    """A box: no gradient, and the draws stay inside."""
    run = run_hmc(lambda z: torch.where(z.abs().amax(-1) < 2.0, 0.0, -math.inf), STATES, draws=5, warmup=20)
    assert float(run.draws.abs().max()) < 2.0


POSTERIOR: dict[str, Any] = {
    **{name: RUN[name] for name in ("draws", "warmup", "thin", "mass", "target_acceptance", "max_leapfrog_steps")},
    "chains": COUNT,
    "model_kwargs": some(cases.NO_OBJECT.filter(lambda v: not isinstance(v, dict))) | st.just({1: 2}),
    "states": some(cases.USELESS)
    | st.sampled_from([STATES[0], STATES[:, :1], STATES[:0], STATES.T, STATES * math.nan]),
    "seed": some(cases.NO_INTEGER) | cases.NEGATIVE | st.just(2**32),
    "device": some(cases.NO_OBJECT) | st.sampled_from(["cup", "cuda:99", "", "meta"]),
    "vectorize": cases.NO_FLAG,
}


@pytest.mark.parametrize("name", POSTERIOR)
@given(data=st.data())
def test_an_argument_of_hmc_posterior(name: str, data: st.DataObject) -> None:
    model = avbvi.LogDensity(normal, (2,))
    options = {"chains": 8, "draws": 2, "warmup": 2, "states": STATES, name: data.draw(POSTERIOR[name])}
    check("HMC", lambda: avbvi.hmc_posterior(model, **options), name)


def test_more_draws_than_memory() -> None:
    model = avbvi.LogDensity(normal, (2,))
    check("HMC", lambda: avbvi.hmc_posterior(model, chains=10**7, draws=10**7), "chains * draws", "GiB")


@pytest.mark.parametrize("kind", [np.asarray, Tensor.tolist, Tensor.double, Tensor.clone])
def test_states_of_other_types_are_taken(kind: Any) -> None:
    model = avbvi.LogDensity(normal, (2,))
    options: dict[str, Any] = {"chains": np.int64(8), "draws": 4, "warmup": 5, "seed": np.int32(1)}
    fit = avbvi.hmc_posterior(model, states=kind(STATES), mass=DiagonalMass(), **options)
    plain = avbvi.hmc_posterior(model, states=STATES, mass=DiagonalMass(), **options)
    assert fit.draws["z"].shape == (32, 2)
    if kind is not Tensor.double:
        assert torch.equal(fit.draws["z"], plain.draws["z"])
