"""Amortised fits and what they return: bad loaders, data, draws and numbers are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.samplers import ConditionalGaussianSampler
from tests.fuzz import cases
from tests.fuzz.cases import check

X = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)


def model(x: Tensor) -> None:
    """Two sites for each datum, one of them positive."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        pyro.sample("x", dist.Normal(z[..., :1], scale[..., None]).expand_by([]).to_event(1), obs=x[..., :1])


def guide() -> avbvi.AVBGuide:
    return avbvi.AVBGuide(
        model,
        sampler=ConditionalGaussianSampler(3, context_hidden=(4,)),
        adversary=InnerProductAdversary((4,)),
    )


def fit(*args: Any, **options: Any) -> avbvi.Posterior:
    elbo = avbvi.AdversarialELBO(pretrain_steps=1)
    return avbvi.fit(model, *args, **{"guide": guide(), "elbo": elbo, "steps": 2, "progress": False, **options})


@pytest.fixture(scope="module")
def posterior() -> avbvi.AmortisedPosterior:
    """A fit of a few steps; nothing is asked about its quality."""
    pyro.clear_param_store()
    found = fit(X, seed=0)
    assert isinstance(found, avbvi.AmortisedPosterior)
    return found


def loader(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, **{"batch_size": 2, **options})


LOADERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no data": (lambda: loader(TensorDataset(X[:0])), ("DataLoader", "no batch")),
    "all dropped": (lambda: loader(TensorDataset(X), batch_size=9, drop_last=True), ("DataLoader", "no batch")),
    "dicts": (lambda: loader([{"x": row} for row in X]), ("DataLoader", "collate_fn", "dict")),
    "texts": (lambda: loader(["a", "b"], batch_size=None), ("DataLoader", "collate_fn", "str")),
    "numbers": (lambda: loader([1.0, 2.0], batch_size=None), ("DataLoader", "collate_fn", "float")),
    "too wide": (lambda: loader(TensorDataset(torch.ones(4, 5))), ("context", "3", "5")),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader(name: str) -> None:
    make, words = LOADERS[name]
    check("amortised", lambda: fit(make()), *words)
    check("amortised", lambda: fit(make(), steps=None, minutes=1.0), *words)


def test_where_a_loader_can_not_be() -> None:
    rows = loader(TensorDataset(X))
    check("amortised", lambda: fit(rows, guide=None), "DataLoader", "guide")
    check("amortised", lambda: fit(rows, guide=avbvi.AVBGuide(model)), "DataLoader", "amortised")
    check("amortised", lambda: fit(rows, X), "DataLoader", "model_kwargs")
    check("amortised", lambda: fit(X, rows), "DataLoader", "model_kwargs")
    check("amortised", lambda: fit(X, steps=None, epochs=2), "epochs", "DataLoader")
    check("amortised", lambda: fit(rows, epochs=2), "steps", "epochs")
    check("amortised", lambda: fit(rows, stopping=avbvi.Stopping()), "stopping")


@pytest.mark.parametrize("method", ["sample", "elbo", "predict", "reconstruct", "to_arviz", "judge"])
@given(n=cases.no_integer_from(1).filter(lambda n: n is not None) | st.just(10**13))
def test_a_number_of_draws(posterior: avbvi.AmortisedPosterior, method: str, n: Any) -> None:
    check("amortised", lambda: getattr(posterior, method)(n=n), "n")


@pytest.mark.parametrize("method", ["sample", "elbo", "predict", "reconstruct", "to_arviz", "judge"])
@pytest.mark.parametrize("data", [torch.ones(4, 5), torch.ones(4), torch.ones(4, 3, 3)], ids=["wide", "flat", "deep"])
def test_data_of_another_width(posterior: avbvi.AmortisedPosterior, method: str, data: Tensor) -> None:
    first = (2,) if method in ("sample", "to_arviz") else ()
    check("amortised", lambda: getattr(posterior, method)(*first, data), "context", "3")


ONES = {"z": torch.zeros(3, 4, 2), "scale": torch.ones(3, 4)}
BAD_DRAWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no dict": (torch.zeros(3, 4, 2), ("draws", "dict")),
    "None": (None, ("draws", "dict")),
    "empty": ({}, ("draws", "'z'")),
    "missing": ({"z": ONES["z"]}, ("draws", "'scale'")),
    "no data": ({"z": torch.zeros(4, 2), "scale": torch.ones(4)}, ("draws", "(n, 4")),
    "other data": ({"z": torch.zeros(3, 5, 2), "scale": torch.ones(3, 5)}, ("draws", "4 data")),
    "scalar": ({**ONES, "scale": 1.0}, ("draws['scale']",)),
    "too wide": ({**ONES, "z": torch.zeros(3, 4, 3)}, ("draws['z']", "(3, 4, 3)")),
    "unlike numbers": ({**ONES, "scale": torch.ones(2, 4)}, ("draws['scale']", "draws['z']")),
    "NaN": ({**ONES, "z": torch.full((3, 4, 2), math.nan)}, ("draws['z']",)),
    "infinite": ({**ONES, "z": torch.full((3, 4, 2), math.inf)}, ("draws['z']", "finite")),
    "outside": ({**ONES, "scale": -torch.ones(3, 4)}, ("draws['scale']", "support")),
    "complex": ({**ONES, "z": torch.zeros(3, 4, 2) * 1j}, ("draws['z']", "complex64")),
    "text": ({**ONES, "z": "abc"}, ("draws['z']", "str")),
    "no draws": ({"z": torch.zeros(0, 4, 2), "scale": torch.zeros(0, 4)}, ("draws", "at least one")),
}


@pytest.mark.parametrize("name", BAD_DRAWS)
def test_draws_that_have_no_density(posterior: avbvi.AmortisedPosterior, name: str) -> None:
    draws, words = BAD_DRAWS[name]
    check("amortised", lambda: posterior.log_prob(draws), *words)


def test_draws_of_any_type_have_the_same_density(posterior: avbvi.AmortisedPosterior) -> None:
    expected = posterior.log_prob(ONES)
    for kind in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.double):
        assert torch.equal(posterior.log_prob({name: kind(value) for name, value in ONES.items()}), expected)


@given(ais=cases.NO_OBJECT.filter(lambda v: v is not None))
def test_what_is_no_result_of_annealing(posterior: avbvi.AmortisedPosterior, ais: Any) -> None:
    check("amortised", lambda: posterior.judge(ais=ais), "ais")


@given(device=cases.NO_OBJECT | st.sampled_from(["cup", "cuda:99", ""]))
def test_devices(posterior: avbvi.AmortisedPosterior, device: Any) -> None:
    check("amortised", lambda: posterior.to(device), "device")
