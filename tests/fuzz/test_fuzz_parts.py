"""Constructors: each argument refuses what it can't use, by name, and takes what it can."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import avbvi
from avbvi.amortised import adversaries, contrasts, convolutional, samplers, semi_implicit
from avbvi.early_stopping import EarlyStopping
from avbvi.objectives import AlphaDivergence, Logistic, SquaredHellinger
from tests.fuzz import cases
from tests.fuzz.cases import check

COUNT = cases.no_integer_from(1)
FROM_0 = cases.no_integer_from(0)
POSITIVE = cases.no_number_in(0.0, math.inf)
JITTER = cases.no_number_in(0.0, math.inf, low_included=True)
SHARE = cases.no_number_in(0.0, 1.0, low_included=True)
LINEAR = nn.Linear(4, 3)
OBJECTIVE = {"objective": cases.NO_OBJECT | st.sampled_from([Logistic, AlphaDivergence])}


def optional(strategy: Any) -> Any:
    """The same without ``None``, which such an argument takes."""
    return strategy.filter(lambda value: value is not None)


CONSTRUCTORS: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    # constructor, good arguments (two, to be accepted together), bad values by argument
    (
        avbvi.ResidualSampler,
        {"hidden": np.int64(8), "blocks": 0, "noise_factor": torch.tensor(3), "smoothing": np.float32(0.25)},
        {"hidden": COUNT, "blocks": FROM_0, "noise_factor": COUNT, "smoothing": cases.no_number_in(0.0, 1.0)},
    ),
    (
        avbvi.MLPSampler,
        {"hidden": [8, np.int32(4)], "noise_dim": 3},
        {"hidden": cases.NO_WIDTHS, "noise_dim": optional(COUNT)},
    ),
    (
        lambda module=LINEAR, noise_dim=4: avbvi.ModuleSampler(module, noise_dim),
        {"noise_dim": np.int64(4)},
        {"module": cases.NO_OBJECT, "noise_dim": optional(COUNT)},
    ),
    (
        avbvi.FlowTrunk,
        {"layers": 1, "hidden": (4,)},
        {"layers": COUNT, "hidden": cases.NO_WIDTHS, "transforms": optional(cases.NO_OBJECT)},
    ),
    (
        avbvi.GaussianContrast,
        {"full": np.bool_(True), "momentum": 0, "jitter": 0},
        {"full": cases.NO_FLAG, "momentum": SHARE, "jitter": JITTER},
    ),
    (
        avbvi.MixtureContrast,
        {"components": 1, "rate": 1, "jitter": 1e-3},
        {"components": COUNT, "rate": cases.no_number_in(0.0, 1.0, high_included=True), "jitter": JITTER},
    ),
    (
        avbvi.ResidualAdversary,
        {"hidden": 4, "blocks": 0, "target_hint": False, "score": True, "slope": 0.2},
        {
            "hidden": COUNT,
            "blocks": FROM_0,
            "target_hint": cases.NO_FLAG,
            "score": cases.NO_FLAG,
            "slope": optional(cases.no_number_in(-1.0, 1.0)),
            **OBJECTIVE,
        },
    ),
    (avbvi.MLPAdversary, {"hidden": (), "objective": SquaredHellinger()}, {"hidden": cases.NO_WIDTHS, **OBJECTIVE}),
    (AlphaDivergence, {"alpha": np.float64(0.5)}, {"alpha": cases.no_number_in(-math.inf, math.inf)}),
    (
        avbvi.Schedule,
        {"trunk": 1, "anneal": np.float64(0.1), "decay": False},
        {
            "trunk": cases.no_number_in(0.0, 1.0, low_included=True, high_included=True),
            "beta_start": cases.no_number_in(0.0, 1.0, high_included=True),
            "decay": cases.NO_FLAG,
            **dict.fromkeys(("anneal", "polish", "average", "adversary_floor"), SHARE),
        },
    ),
    (
        avbvi.AdversarialELBO,
        {"steps": np.int64(3), "num_particles": 4, "vectorize_particles": False, "pretrain_steps": 0},
        {
            "elbo": optional(cases.NO_OBJECT),
            "steps": optional(COUNT),
            "num_particles": optional(COUNT),
            "vectorize_particles": optional(cases.NO_FLAG),
            "adversary_steps": COUNT,
            "adversary_batch": optional(COUNT),
            "adversary_lr": POSITIVE,
            "pretrain_steps": FROM_0,
            "schedule": optional(cases.NO_OBJECT),
        },
    ),
    (
        lambda modules=LINEAR, **options: EarlyStopping(modules, **options),
        {"modules": [LINEAR], "patience": np.int64(3), "seed": torch.tensor(4)},
        {"modules": cases.NO_OBJECT, "patience": COUNT, "seed": FROM_0},
    ),
    (
        lambda **options: avbvi.AVBGuide(lambda: None, **options),
        {"name": "mine"},
        {
            **dict.fromkeys(("sampler", "trunk", "contrast", "adversary"), optional(cases.NO_OBJECT)),
            "name": optional(cases.NO_OBJECT.filter(lambda value: not isinstance(value, str))),
        },
    ),
]
WIDTH = optional(COUNT)
SLOPE = {"slope": optional(cases.no_number_in(-1.0, 1.0))}
BODY = {"body": optional(cases.NO_OBJECT), **SLOPE}
NO_FLAGS = dict.fromkeys(("squares", "log_prior"), cases.NO_FLAG)


def of_six(make: Any) -> Any:
    """An amortised part with a context of six numbers unless another is given."""

    def made(context_dim: Any = 6, **options: Any) -> Any:
        return make(context_dim, **options)

    made.__name__ = make.__name__
    return made


def of_images(make: Any) -> Any:
    """A convolutional part of small images unless others are given."""

    def made(image_shape: Any = (1, 2, 3), **options: Any) -> Any:
        return make(image_shape, **options)

    made.__name__ = make.__name__
    return made


CONSTRUCTORS += [
    (
        of_six(samplers.ConditionalSampler),
        {"context_dim": np.int64(4), "hidden": [3], "network_noise": 2, "context_hidden": (), "smoothing": 0},
        {
            "context_dim": COUNT,
            "network_noise": WIDTH,
            "start_scale": POSITIVE,
            "smoothing": SHARE,
            **dict.fromkeys(("hidden", "context_hidden"), cases.NO_WIDTHS),
            **BODY,
        },
    ),
    (
        of_six(samplers.NoiseBasisSampler),
        {"bases": 2, "basis_noise": np.int32(3), "basis_hidden": (), "moment_draws": 10, "offset": 0},
        {
            **dict.fromkeys(("context_dim", "bases", "basis_noise"), COUNT),
            **dict.fromkeys(("basis_hidden", "context_hidden"), cases.NO_WIDTHS),
            "moment_draws": cases.no_integer_from(2),
            "offset": cases.no_number_in(-50.0, 50.0),
            **BODY,
        },
    ),
    (
        of_six(samplers.ConditionalGaussianSampler),
        {"context_hidden": [4], "full": np.bool_(True), "start_scale": 1, "slope": 0},
        {
            "context_dim": COUNT,
            "context_hidden": cases.NO_WIDTHS,
            "full": cases.NO_FLAG,
            "start_scale": POSITIVE,
            **BODY,
        },
    ),
    (
        of_six(semi_implicit.SemiImplicitSampler),
        {"hidden": (4,), "extra_noise": 3, "full": True, "limit": np.float32(0.25), "moment_draws": 2},
        {
            "context_dim": COUNT,
            "extra_noise": WIDTH,
            "full": cases.NO_FLAG,
            "moment_draws": cases.no_integer_from(2),
            **dict.fromkeys(("start_scale", "limit"), POSITIVE),
            **dict.fromkeys(("hidden", "context_hidden"), cases.NO_WIDTHS),
            **BODY,
        },
    ),
    (
        of_images(convolutional.ConvolutionalSampler),
        {"image_shape": [3, 4, 5], "channels": [2], "blocks": 1, "network_noise": 3},
        {
            **dict.fromkeys(("image_shape", "channels"), cases.NO_WIDTHS),
            "blocks": FROM_0,
            "network_noise": WIDTH,
            "start_scale": POSITIVE,
            "smoothing": SHARE,
            **SLOPE,
        },
    ),
    (
        of_images(convolutional.ConvolutionalAdversary),
        {"image_shape": (1, 8, 8), "channels": (2,), "blocks": 0, "squares": False},
        {
            **dict.fromkeys(("image_shape", "channels"), cases.NO_WIDTHS),
            "blocks": FROM_0,
            **SLOPE,
            **NO_FLAGS,
            **OBJECTIVE,
        },
    ),
    (
        adversaries.InnerProductAdversary,
        {"hidden": [3, 4], "slope": 0.2, "log_prior": True},
        {"hidden": cases.NO_WIDTHS, **BODY, **NO_FLAGS, **OBJECTIVE},
    ),
    (
        adversaries.JointAdversary,
        {"hidden": (3,), "alone": (), "squares": np.bool_(False)},
        {**dict.fromkeys(("hidden", "alone"), cases.NO_WIDTHS), **BODY, **NO_FLAGS, **OBJECTIVE},
    ),
    (
        contrasts.ConditionalGaussianContrast,
        {"full": False, "draws": np.int64(5), "jitter": 0},
        {"full": cases.NO_FLAG, "draws": optional(cases.no_integer_from(2)), "jitter": SHARE},
    ),
    (
        contrasts.LearnedGaussianContrast,
        {"hidden": (), "full": False, "start_scale": 2},
        {"hidden": cases.NO_WIDTHS, "full": cases.NO_FLAG, "start_scale": POSITIVE, **BODY},
    ),
]
ARGUMENTS = [
    pytest.param(make, name, bad, id=f"{getattr(make, '__name__', 'make')}-{name}")
    for make, _, table in CONSTRUCTORS
    for name, bad in table.items()
]


@pytest.mark.parametrize(("make", "name", "bad"), ARGUMENTS)
@given(data=st.data())
def test_a_bad_argument_is_named(make: Any, name: str, bad: Any, data: st.DataObject) -> None:
    value = data.draw(bad)
    check("parts", lambda: make(**{name: value}), name)


@pytest.mark.parametrize(("make", "good"), [(make, good) for make, good, _ in CONSTRUCTORS])
def test_good_arguments_are_taken(make: Any, good: dict[str, Any]) -> None:
    made = make(**good)
    for name, value in good.items():
        if hasattr(made, name) and not isinstance(value, str):
            kept = getattr(made, name)
            assert kept == (tuple(value) if isinstance(value, list) else value), name


class Sampler(nn.Module):
    """A linear sampler whose draws pass through ``spoil``."""

    def __init__(self, spoil: Any, noise_dim: Any = 3) -> None:
        super().__init__()
        self.linear, self.spoil, self.noise_dim = nn.Linear(3, 2), spoil, noise_dim

    def forward(self, noise: torch.Tensor) -> Any:
        return self.spoil(self.linear(noise))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: e.detach(), ("sampler", "no gradient", "detach()")),
        (lambda e: torch.as_tensor(e.detach().numpy()), ("sampler", "no gradient")),
        (lambda e: torch.zeros_like(e), ("sampler", "no gradient")),
        (lambda e: e * math.nan, ("sampler", "finite", "NaN")),
        (lambda e: e / 0.0, ("sampler", "finite")),
        (lambda e: e.double(), ("sampler", "torch.float64", "dtype=like.dtype")),
        (lambda e: e.long(), ("sampler", "torch.int64")),
        (lambda e: e.sum(-1), ("sampler", "(2, 2)", "(2,)")),
        (lambda e: e[None], ("sampler", "(2, 2)", "(1, 2, 2)")),
        (lambda e: e[:, :1], ("sampler", "(2, 2)", "(2, 1)")),
        (lambda e: e[:0], ("sampler", "(2, 2)", "(0, 2)")),
        (lambda e: (e, e), ("sampler", "Tensor", "tuple")),
        (lambda e: e.tolist(), ("sampler", "Tensor", "list")),
        (lambda e: None, ("sampler", "Tensor", "NoneType")),
        (lambda e: e + e.shape[7], ("sampler failed", "(2, 3)")),
    ],
)
def test_a_sampler_that_could_not_be_trained(spoil: Any, words: tuple[str, ...]) -> None:
    model = avbvi.LogDensity(lambda z: -z.square().sum(-1), (2,))
    avbvi.AVBGuide(model, sampler=Sampler(lambda e: e)).setup()
    check("samplers", lambda: avbvi.AVBGuide(model, sampler=Sampler(spoil)).setup(), *words)


@given(width=cases.no_integer_from(1).filter(lambda width: width is not None))
def test_a_sampler_whose_noise_has_no_width(width: Any) -> None:
    model = avbvi.LogDensity(lambda z: -z.square().sum(-1), (2,))
    check("samplers", lambda: avbvi.AVBGuide(model, sampler=Sampler(lambda e: e, width)), "noise_dim")
