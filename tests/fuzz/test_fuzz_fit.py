"""fit and what it returns: bad arguments are refused before any work is done, good ones are taken in any type."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal

import avbvi
from tests.fuzz import cases
from tests.fuzz.cases import check


def model(shift: Any = 0.0) -> None:
    """Two sites, one of them positive, and one observation."""
    x = pyro.sample("x", dist.Normal(shift * torch.ones(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Normal(x[..., 0], scale), obs=torch.tensor(0.3))


@pytest.fixture(scope="module")
def posterior() -> avbvi.Posterior:
    """A fit of a few steps; nothing is asked about its quality."""
    pyro.clear_param_store()
    elbo = avbvi.AdversarialELBO(num_particles=16, pretrain_steps=1)
    return avbvi.fit(model, seed=0, steps=3, elbo=elbo, progress=False)


def some(strategy: Any) -> Any:
    return strategy.filter(lambda value: value is not None)


COUNT = some(cases.no_integer_from(1))
FIT: dict[str, Any] = {
    "model_kwargs": some(cases.NO_OBJECT.filter(lambda v: not isinstance(v, dict))) | st.just({1: 2}),
    "guide": some(cases.NO_OBJECT) | st.just(avbvi.AVBGuide) | st.builds(lambda: AutoNormal(model)),
    "seed": some(cases.NO_INTEGER) | cases.NEGATIVE | st.just(2**32),
    "steps": COUNT,
    "minutes": some(cases.no_number_in(0.0, math.inf)),
    "device": some(cases.NO_OBJECT) | st.sampled_from(["cup", "cuda:99", "", "meta"]),
    "progress": cases.NO_FLAG,
    "checkpoint": some(cases.NO_PATH),
    "elbo": some(cases.NO_OBJECT) | st.builds(Trace_ELBO),
    "lr": cases.no_number_in(0.0, math.inf),
    "model_lr": some(cases.no_number_in(0.0, math.inf)),
    "epochs": COUNT | st.just(3),
}


@pytest.mark.parametrize("name", FIT)
@given(data=st.data())
def test_an_argument_of_fit(name: str, data: st.DataObject) -> None:
    options = {"steps": 1, "progress": False} if name not in ("minutes", "steps", "epochs") else {"progress": False}
    value = data.draw(FIT[name])
    check("fit", lambda: avbvi.fit(model, **{**options, name: value}), name)


def test_places_where_no_checkpoint_can_be(tmp_path: Path) -> None:
    """They used to be found out at the end of the run."""
    check("fit", lambda: avbvi.fit(model, steps=1, checkpoint=tmp_path / "none" / "c.pt"), "checkpoint", "folder")
    check("fit", lambda: avbvi.fit(model, steps=1, checkpoint=tmp_path), "checkpoint", "folder")
    check("fit", lambda: avbvi.fit(model, steps=1, minutes=1.0), "steps", "minutes")


def test_a_guide_that_was_trained(posterior: avbvi.Posterior) -> None:
    check("fit", lambda: avbvi.fit(model, guide=posterior.guide, steps=1), "guide", "trained before")


def test_numbers_of_other_types_are_taken() -> None:
    elbo = avbvi.AdversarialELBO(num_particles=16, pretrain_steps=1)
    options: dict[str, Any] = {"seed": np.int64(1), "steps": np.int32(2), "lr": np.float32(1e-3), "elbo": elbo}
    first = avbvi.fit(model, model_kwargs={"shift": 1}, progress=False, device="cpu", **options)
    options = {"seed": 1, "steps": 2, "lr": float(np.float32(1e-3)), "elbo": elbo}
    second = avbvi.fit(model, 1, progress=False, **options)
    assert first.run.steps == second.run.steps == 2
    assert first.run.history == second.run.history
    for p, q in zip(first.guide.parameters(), second.guide.parameters(), strict=True):
        assert torch.equal(p, q)


# -- posterior ----------------------------------------------------------------------------------------------

NUMBERS = ("sample", "elbo", "refine", "predict", "to_arviz")


@pytest.mark.parametrize("method", NUMBERS)
@given(n=COUNT | st.just(10**12))
def test_a_number_of_draws(posterior: avbvi.Posterior, method: str, n: Any) -> None:
    check("posterior", lambda: getattr(posterior, method)(n=n), "n")


@given(steps=COUNT | st.just(1))
def test_steps_of_a_refinement(posterior: avbvi.Posterior, steps: Any) -> None:
    check("posterior", lambda: posterior.refine(steps=steps, n=20), "steps")


def test_numbers_too_small_for_what_is_asked(posterior: avbvi.Posterior) -> None:
    check("posterior", lambda: posterior.elbo(1), "n must be at least 2")
    check("posterior", lambda: posterior.refine(n=3), "n: only 3")


BAD_DRAWS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no dict": (torch.zeros(3, 2), ("draws", "dict")),
    "list": ([1.0], ("draws", "dict")),
    "None": (None, ("draws", "dict")),
    "empty": ({}, ("draws", "'x'")),
    "missing": ({"x": torch.zeros(3, 2)}, ("draws", "'scale'")),
    "single draw": ({"x": torch.zeros(2), "scale": torch.tensor(1.0)}, ("draws['x']", "(n, 2)")),
    "scalar": ({"x": torch.zeros(3, 2), "scale": 1.0}, ("draws['scale']", "(n, )")),
    "too wide": ({"x": torch.zeros(3, 3), "scale": torch.ones(3)}, ("draws['x']", "(n, 2)", "(3, 3)")),
    "unlike numbers": ({"x": torch.zeros(3, 2), "scale": torch.ones(4)}, ("draws['scale']", "draws['x']", "3", "4")),
    "NaN": ({"x": torch.full((3, 2), math.nan), "scale": torch.ones(3)}, ("draws['x']",)),
    "infinite": ({"x": torch.full((3, 2), math.inf), "scale": torch.ones(3)}, ("draws['x']", "finite")),
    "outside": ({"x": torch.zeros(3, 2), "scale": -torch.ones(3)}, ("draws['scale']", "support")),
    "infinite scale": ({"x": torch.zeros(3, 2), "scale": torch.full((3,), math.inf)}, ("draws['scale']", "finite")),
    "complex": ({"x": torch.zeros(3, 2) * 1j, "scale": torch.ones(3)}, ("draws['x']", "complex64")),
    "text": ({"x": "abc", "scale": torch.ones(3)}, ("draws['x']", "str")),
    "flags": ({"x": torch.zeros(3, 2) > 0, "scale": torch.ones(3)}, ("draws['x']", "bool")),
    "no draws": ({"x": torch.zeros(0, 2), "scale": torch.zeros(0)}, ("draws['x']", "at least one")),
    "ragged": ({"x": [[1.0, 2.0], [1.0]], "scale": torch.ones(2)}, ("draws['x']",)),
}


@pytest.mark.parametrize("name", BAD_DRAWS)
def test_draws_that_have_no_density(posterior: avbvi.Posterior, name: str) -> None:
    draws, words = BAD_DRAWS[name]
    check("posterior", lambda: posterior.log_prob(draws), *words)


def test_draws_of_any_type_have_the_same_density(posterior: avbvi.Posterior) -> None:
    x, scale = [[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]], [1.0, 2.0, 0.5]
    expected = posterior.log_prob({"x": torch.tensor(x), "scale": torch.tensor(scale)})
    assert bool(torch.isfinite(expected).all())
    for kind in (list, np.array, lambda v: np.array(v, dtype=np.float32), lambda v: torch.tensor(v).double()):
        assert torch.equal(posterior.log_prob({"x": kind(x), "scale": kind(scale), "y": "ignored"}), expected)


def test_options_of_to_arviz(posterior: avbvi.Posterior) -> None:
    for name in ("log_likelihood", "posterior_predictive", "prior"):
        check("posterior", lambda name=name: posterior.to_arviz(n=10, **{name: "yes"}), name, "True")
    for name in ("coords", "dims"):
        for value in ("x", 3, [("x", ["a", "b"])]):
            check("posterior", lambda name=name, v=value: posterior.to_arviz(n=10, **{name: v}), name)
    check("posterior", lambda: posterior.to_arviz(n=10, dims={"x": 3}), "dims", "'x'")
    check("posterior", lambda: posterior.to_arviz(n=10, dims={"nothing": ["a"]}), "dims", "nothing")


@given(
    quantiles=cases.USELESS.filter(lambda q: not isinstance(q, torch.Tensor | np.ndarray))
    | st.sampled_from(
        [
            [1.5],
            [-0.1, 0.5],
            [math.nan],
            [],
            [[0.1, 0.2]],
            [True],
            "ab",
            [None],
            torch.tensor(0.5),
            torch.tensor([2.0]),
            np.array("a"),
        ]
    )
)
def test_quantiles_that_are_none(posterior: avbvi.Posterior, quantiles: Any) -> None:
    check("posterior", lambda: posterior.guide.quantiles(quantiles), "quantiles")
