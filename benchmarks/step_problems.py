"""Targets whose training steps are timed: as Pyro models, and their log-densities written by hand in torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models import eight_schools
from models.regressions import logistic_model

__all__ = ["EIGHT_SCHOOLS", "REGRESSION", "StepProblem", "regression_data", "regression_log_density"]

REGRESSION_DIM, REGRESSION_ROWS, REGRESSION_SEED = 50, 200, 7


@dataclass(frozen=True)
class StepProblem:
    """A target of which steps are timed.

    Args:
        name: as it stands in the records' ``target``.
        label: as it reads in tables.
        dim: number of latent coordinates.
        model: the Pyro model.
        arguments: (dtype) -> its arguments.
        log_density: (z (n, dim), *arguments) -> log p (n,), on the unconstrained scale, by hand.
    """

    name: str
    label: str
    dim: int
    model: Callable[..., None]
    arguments: Callable[[torch.dtype], tuple[Tensor, ...]]
    log_density: Callable[..., Tensor]

    def by_hand(self, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor]:
        """log p as a function of z alone."""
        arguments = self.arguments(dtype)
        return lambda z: self.log_density(z, *arguments)


def _eight_schools_arguments(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(data.to(dtype) for data in eight_schools.paper_data())


def regression_data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Made data of a logistic regression: x (200, 50) with a column of ones, outcomes y (200,)."""
    generator = torch.Generator().manual_seed(REGRESSION_SEED)
    double: Any = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(REGRESSION_ROWS, REGRESSION_DIM, **double)
    x[:, 0] = 1.0
    w = 0.5 * torch.randn(REGRESSION_DIM, **double)
    y = (torch.rand(REGRESSION_ROWS, **double) < torch.sigmoid(x @ w)).to(dtype)
    return x.to(dtype), y


def regression_log_density(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Log joint density of :func:`models.regressions.logistic_model`, constants included: z (n, d) -> (n,)."""
    logits = z @ x.mT
    prior = -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))
    return prior - functional.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").sum(-1)


EIGHT_SCHOOLS = StepProblem(
    "eight_schools",
    "Eight Schools, 10-d",
    10,
    eight_schools.model,
    _eight_schools_arguments,
    eight_schools.log_density,
)

REGRESSION = StepProblem(
    "regression", "logistic regression, 50-d", REGRESSION_DIM, logistic_model, regression_data, regression_log_density
)
