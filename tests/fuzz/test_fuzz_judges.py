"""Judges: two samples and options that can't be judged are refused by name; arrays and lists judge as tensors do."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avbvi import divergences as judges
from avbvi.diagnostics import pareto_smooth
from tests.fuzz import cases
from tests.fuzz.cases import check


def some(strategy: Any) -> Any:
    return strategy.filter(lambda value: value is not None)


GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(80, 2, generator=GENERATOR), torch.randn(90, 2, generator=GENERATOR) + 0.5
COUNT, FROM_0 = cases.no_integer_from(1), cases.no_integer_from(0)
SEED = cases.NO_INTEGER | st.none()
KNN = {"k": COUNT, "chunk_size": some(COUNT), "memory": some(cases.no_number_in(0.0, math.inf))}
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "knn_kl": (judges.knn_kl, KNN),
    "knn_kl_adaptive": (judges.knn_kl_adaptive, KNN),
    "knn_j_divergence": (judges.knn_j_divergence, KNN),
    "knn_js_divergence": (judges.knn_js_divergence, KNN),
    "knn_cross_entropy": (judges.knn_cross_entropy, KNN),
    "knn_alpha_divergence": (
        partial(judges.knn_alpha_divergence, divergence=judges.Renyi()),
        KNN | {"divergence": cases.NO_OBJECT | st.just(judges.Renyi) | st.builds(judges.Renyi, cases.NO_NUMBER)},
    ),
    "mmd2": (
        partial(judges.mmd2, permutations=5),
        {
            "bandwidth": some(cases.no_number_in(0.0, math.inf)),
            "permutations": FROM_0,
            "chunk_size": some(COUNT),
            "seed": SEED,
        },
    ),
    "energy_distance": (judges.energy_distance, {"chunk_size": some(COUNT)}),
    "sliced_wasserstein": (judges.sliced_wasserstein, {"projections": cases.no_integer_from(2), "seed": SEED}),
    "marginal_wasserstein": (judges.marginal_wasserstein, {"order": cases.no_integer_from(1) | st.just(3)}),
    "classifier_two_sample_test": (
        partial(judges.classifier_two_sample_test, max_epochs=1, hidden=(4,), folds=2),
        {
            "folds": cases.no_integer_from(2),
            "hidden": cases.NO_WIDTHS,
            "max_epochs": COUNT,
            "patience": COUNT,
            "batch_size": COUNT,
            "seed": SEED,
        },
    ),
    "kl_lower_bound": (
        partial(judges.kl_lower_bound, passes=1, width=4, folds=2),
        {
            "features": some(cases.NO_OBJECT),
            "folds": cases.no_integer_from(2),
            "width": COUNT,
            "blocks": FROM_0,
            "passes": COUNT,
            "batch_size": cases.no_integer_from(2),
            "seed": SEED,
        },
    ),
}


@pytest.mark.parametrize(("judge", "name"), [(judge, name) for judge, (_, table) in OPTIONS.items() for name in table])
@given(data=st.data())
def test_an_option(judge: str, name: str, data: st.DataObject) -> None:
    call, table = OPTIONS[judge]
    value = data.draw(table[name])
    check("judges", lambda: call(X, Y, **{name: value}), name)


BAD_SAMPLES: dict[str, Any] = {
    "text": "abc",
    "nothing": None,
    "number": 1.0,
    "list of text": [["a", "b"]],
    "ragged": [[1.0, 2.0], [1.0]],
    "object": cases.Thing(),
    "dict": {"z": X},
    "complex": X * 1j,
    "flags": X > 0,
    "vector": X[:, 0],
    "three dimensions": X[None],
    "no draws": X[:0],
    "no coordinates": X[:, :0],
    "another width": torch.cat([X, X], 1),
    "one draw": X[:1],
    "NaN": X.clone().index_fill_(0, torch.tensor([3]), math.nan),
    "infinite": X.clone().index_fill_(0, torch.tensor([3]), -math.inf),
    "array of objects": np.array([[None, 1.0]]),
}


@pytest.mark.parametrize("judge", OPTIONS)
@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_a_sample_that_is_none(judge: str, name: str) -> None:
    call, _ = OPTIONS[judge]
    about_both = name in ("another width", "one draw")
    check("judges", lambda: call(BAD_SAMPLES[name], Y), *(() if about_both else ("x",)))
    check("judges", lambda: call(X, BAD_SAMPLES[name]), *(() if about_both else ("y",)))


@pytest.mark.parametrize("name", [n for n in BAD_SAMPLES if n != "another width"])
def test_entropy_of_a_sample_that_is_none(name: str) -> None:
    check("judges", lambda: judges.knn_entropy(BAD_SAMPLES[name]), "x")


@pytest.mark.parametrize("judge", OPTIONS)
def test_huge_and_tiny_numbers_give_no_nan(judge: str) -> None:
    """Scales of 1e-150 and 1e150 have squares that under- and overflow: a finite figure, or an error that says so."""
    call, _ = OPTIONS[judge]
    for scale in (1e-150, 1e-30, 1e30, 1e150):
        try:
            results = call(scale * X.double(), scale * Y.double())
        except Exception as error:
            cases.assert_clear(error, "x")
            continue
        for result in results if isinstance(results, list) else [results]:
            assert math.isfinite(result.value), f"{judge} at {scale}: {result}"


@pytest.mark.parametrize("judge", OPTIONS)
@pytest.mark.parametrize("kind", [np.asarray, Tensor.tolist, lambda x: np.asarray(x)[::-1][::-1], Tensor.double])
def test_other_types_of_samples_give_the_same(judge: str, kind: Any) -> None:
    call, _ = OPTIONS[judge]
    assert call(kind(X), kind(Y)) == call(X, Y)


def test_whole_numbers_are_numbers() -> None:
    x, y = torch.arange(40)[:, None] ** 2, torch.arange(1, 40)[:, None] ** 2 + 7
    for kind in (torch.int64, torch.float64):
        value = judges.energy_distance(x.to(kind), y.to(kind))
    assert value == judges.energy_distance(x, y)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (lambda z: None, ("features", "NoneType")),
        (lambda z: z.detach().numpy(), ("features", "ndarray")),
        (lambda z: z[:, 0], ("features", "shape")),
        (lambda z: z[:3], ("features", "shape")),
        (lambda z: z * math.nan, ("features", "NaN")),
        (lambda z: z * 1j, ("features", "complex")),
        (judges.density_features(lambda z: -z.square()), ("log_prob", "must map")),
        (judges.density_features(lambda z: -z.detach().square().sum(-1)), ("log_prob", "differentiable")),
        (judges.density_features(lambda z: 1.0), ("log_prob", "float")),  # type: ignore[arg-type,return-value]
    ],
)
def test_features_that_are_none(features: Any, words: tuple[str, ...]) -> None:
    check("judges", lambda: judges.kl_lower_bound(X, Y, features=features, passes=1, folds=2, width=4), *words)


@given(value=cases.NO_OBJECT | st.none())
def test_densities_that_are_no_functions(value: Any) -> None:
    check("judges", lambda: judges.density_features(value), "log_prob", "callable")


@pytest.mark.parametrize(
    "weights",
    [
        torch.zeros(10),
        torch.zeros(30, 2),
        torch.full((30,), math.nan),
        torch.full((30,), math.inf),
        torch.full((30,), -math.inf),
        [0.0] * 30 + ["a"],
        None,
        torch.zeros(30) > 0,
        torch.zeros(30) * 1j,
    ],
)
def test_weights_that_are_none(weights: Any) -> None:
    check("judges", lambda: pareto_smooth(weights), "log_weights")


@given(n=st.integers(25, 60), seed=st.integers(0, 1000), shift=st.sampled_from([0.0, 1e30, -1e30, 700.0]))
def test_smoothed_weights_sum_to_one(n: int, seed: int, shift: float) -> None:
    log_weights = torch.randn(n, generator=torch.Generator().manual_seed(seed)).double() + shift
    smoothed, k_hat = pareto_smooth(log_weights)
    assert float(smoothed.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    assert not math.isnan(k_hat)
