"""Posterior predictive checks: observations against replications of them, in a bounded number of figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Elements of an observed site of which quantiles are kept, and replications that are kept of them.
MOST_ELEMENTS, REPLICATIONS = 400, 30
#: Quantiles of the replications of each element.
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
STATISTICS = ("mean", "sd", "smallest", "largest")


@dataclass(frozen=True)
class PredictiveCheck:
    """One observed site beside its posterior predictive.

    ``observed`` (k,) are some of its elements, evenly spaced; ``quantiles`` (k, 5) those of their replications at 5,
    25, 50, 75 and 95 %; ``replications`` (r, k) some of them. ``statistics`` has for the mean, standard deviation and
    extremes of the whole site: observed value, 5 %, 50 % and 95 % of the replications', and the share of replications
    at or above the observed value. ``size`` counts all its elements.
    """

    name: str
    size: int
    discrete: bool
    observed: Tensor
    quantiles: Tensor
    replications: Tensor
    statistics: dict[str, list[float]]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return dict(vars(self))


def predictive_check(name: str, observed: Tensor, replications: Tensor) -> PredictiveCheck:
    """The check of a site.

    Args:
        name: of the site.
        observed: its value (*shape).
        replications: draws from its posterior predictive (n, *shape).
    """
    y = observed.detach().reshape(-1).double().cpu()
    replicated = replications.detach().reshape(len(replications), -1).double().cpu()
    step = max(1, -(-len(y) // MOST_ELEMENTS))
    quantiles = torch.quantile(replicated[:, ::step], torch.tensor(LEVELS, dtype=torch.float64), dim=0).mT
    statistics = {}
    for which, (value, values) in zip(
        STATISTICS, zip(_moments(y[None]), _moments(replicated), strict=True), strict=True
    ):
        low, middle, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        # Half of the ties, so that a discrete statistic that always agrees reads 0.5.
        above = (values > value).double().mean() + 0.5 * (values == value).double().mean()
        statistics[which] = [float(value), low, middle, high, float(above)]
    return PredictiveCheck(
        name,
        len(y),
        bool((y == y.round()).all()) and len(y.unique()) <= 12,
        y[::step].float(),
        quantiles.float(),
        replicated[:REPLICATIONS, ::step].float(),
        statistics,
    )


def _moments(x: Tensor) -> tuple[Tensor, ...]:
    """Mean, standard deviation (0 of a single element) and extremes of the rows of (n, k)."""
    spread = x.std(1) if x.shape[1] > 1 else torch.zeros(len(x), dtype=x.dtype)
    return x.mean(1), spread, x.amin(1), x.amax(1)


def read_check(plain: dict[str, Any]) -> PredictiveCheck:
    """What :meth:`PredictiveCheck.to_dict` gave.

    Raises:
        TypeError, ValueError: the data are none of a check.
    """
    made = PredictiveCheck(**plain)
    k = len(made.observed)
    if made.quantiles.shape != (k, len(LEVELS)) or made.replications.shape[1:] != (k,):
        raise ValueError("a predictive check's quantiles and replications must be of its observations")
    if set(made.statistics) != set(STATISTICS) or any(len(v) != 5 for v in made.statistics.values()):
        raise ValueError("a predictive check must have five figures for each of its statistics")
    return made
