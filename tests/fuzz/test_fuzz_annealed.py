"""Annealed importance sampling and figures of latent-variable models: options that can't be are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import avbvi
from avbvi import latent_figures as figures
from avbvi.annealed import GaussianStart, LinearTemperatures, SigmoidTemperatures
from tests.annealed.known import LinearGaussian
from tests.fuzz import cases
from tests.fuzz.cases import check

DENSITY = LinearGaussian.simulated(3, 4, 2)
COUNT = cases.no_integer_from(1)
NOT_NONE_COUNT = COUNT.filter(lambda value: value is not None)
OPTIONS: dict[str, Any] = {
    "temperatures": cases.NO_OBJECT | st.just(SigmoidTemperatures),
    "chains": COUNT,
    "leapfrog_steps": COUNT,
    "target_acceptance": cases.no_number_in(0.0, 1.0),
    "batch_size": NOT_NONE_COUNT,
    "chains_at_once": NOT_NONE_COUNT,
    "precision": cases.NO_OBJECT,
    "first_datum": cases.no_integer_from(0),
    "seed": cases.no_integer_from(0),
    "progress": cases.NO_FLAG,
    "vectorize": cases.NO_FLAG,
    "start": cases.NO_OBJECT,
    "guide": cases.NO_OBJECT,
    "checkpoint": cases.NO_PATH,
}


@pytest.mark.parametrize("run", [avbvi.annealed_importance_sampling, avbvi.bidirectional_sandwich])
@pytest.mark.parametrize("name", sorted(OPTIONS))
@given(data=st.data())
def test_options(run: Any, name: str, data: st.DataObject) -> None:
    value = data.draw(OPTIONS[name].filter(lambda v: v is not None))
    options = {"temperatures": LinearTemperatures(2), "progress": False, name: value}
    check("annealed importance sampling", lambda: run(DENSITY, **options), name)


@given(count=COUNT, rate=cases.no_number_in(0.0, 30.0, high_included=True))
def test_schedules(count: Any, rate: Any) -> None:
    check("schedules", lambda: LinearTemperatures(count), "count")
    check("schedules", lambda: SigmoidTemperatures(10, rate), "rate")


@given(value=cases.NO_OBJECT, inflation=cases.no_number_in(0.0, math.inf))
def test_gaussian_starts(value: Any, inflation: Any) -> None:
    loc, variance = torch.zeros(2, 3), torch.ones(2, 3)
    check("starts", lambda: GaussianStart(value, variance), "loc")
    check("starts", lambda: GaussianStart(loc, value), "covariance")
    check("starts", lambda: GaussianStart(loc, variance, inflation=inflation), "inflation")


@given(count=COUNT, threshold=cases.no_number_in(0.0, math.inf), value=cases.NO_OBJECT)
def test_figures(count: Any, threshold: Any, value: Any) -> None:
    draws = torch.zeros(5, 3, 2)

    def propose(n: int) -> Any:
        return torch.zeros(n, 3, 2), torch.zeros(n, 3)

    family = "latent figures"
    check(family, lambda: figures.importance_weighted_bound(DENSITY.log_joint, propose, count), "draws")
    check(family, lambda: figures.importance_weighted_bound(DENSITY.log_joint, value), "propose")
    check(family, lambda: figures.reconstruction_error(DENSITY, draws, count), "pixels")
    check(family, lambda: figures.reconstruction_error(DENSITY, value, 4), "draws")
    check(family, lambda: figures.active_units(draws[0], threshold), "threshold")
    check(family, lambda: figures.active_units(value), "means")
    check(family, lambda: figures.mixture_kl(draws, value, DENSITY.log_prior), "log_q")
