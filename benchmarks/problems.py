"""Problems: a target, its reference draws and the coordinates in which draws of it are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from avbvi.targets import Model
from models import eight_schools

#: Site name -> values (n, *shape) on the constrained scale, deterministic sites included.
Draws = dict[str, Tensor]


def no_figures(matrix: Tensor) -> dict[str, float]:
    """No further figures."""
    return {}


@dataclass(frozen=True)
class Problem:
    """A target that methods are run on, with what their draws are judged against.

    Args:
        name: as it stands in the records' ``target``.
        model: a Pyro model or a :class:`~avbvi.LogDensity`.
        exact: (n, seed) -> reference draws (n, d) in float64, in judging coordinates; fewer than n rows, in random
            order, where no more exist.
        matrix: draws by site -> (n, d) in float64, in judging coordinates.
        args: the model's arguments.
        log_z: log-evidence, where it is known: methods with an exact density then get their exact KL divergence.
        figures: further figures of a sample (n, d) in judging coordinates, for the record.
        columns: names of the d judging coordinates.
        whitened: whether nearest neighbours, MMD and the sliced distance are taken after the reference draws have
            been whitened, for targets whose coordinates differ much in scale or are strongly correlated.
        numpyro_model: the same model for NumPyro, without arguments; methods that need it are left out otherwise.
        sources: files that define the problem, relative to the repository's root.
    """

    name: str
    model: Model
    _: KW_ONLY
    exact: Callable[[int, int], Tensor]
    matrix: Callable[[Draws], Tensor]
    args: tuple[Any, ...] = ()
    log_z: float | None = None
    figures: Callable[[Tensor], dict[str, float]] = no_figures
    columns: tuple[str, ...] = ()
    whitened: bool = False
    numpyro_model: Callable[[], None] | None = None
    sources: tuple[str, ...] = ()


def stacked(draws: Draws, *names: str) -> Tensor:
    """The sites side by side as one matrix (n, d) in float64."""
    return torch.cat([draws[name].reshape(len(draws[name]), -1) for name in names], -1).double()


# -- Eight Schools ----------------------------------------------------------------------------------------

_COLUMNS = ("mu", "tau", *(f"eta[{j}]" for j in range(8)))


def _paper_matrix(draws: Draws) -> Tensor:
    return stacked(draws, "mu", "tau", "eta")


def _classic_matrix(draws: Draws) -> Tensor:
    matrix = stacked(draws, "mu", "tau", "eta")
    matrix[:, 1] = matrix[:, 1].log()
    return matrix


def _share_of_positive_tau(matrix: Tensor) -> dict[str, float]:
    return {"p_tau_positive": float((matrix[:, 1] > 0).double().mean())}


def _against_posteriordb(matrix: Tensor) -> dict[str, float]:
    """Largest error of mean and sd over theta, mu, tau against posteriordb's reference draws, if present."""
    try:
        reference = eight_schools.classic_reference()
    except FileNotFoundError:
        return {}
    mu, tau = matrix[:, :1], matrix[:, 1:2].exp()
    q = torch.cat([mu + tau * matrix[:, 2:], mu, tau], -1)
    p = stacked(reference, "theta", "mu", "tau")
    ratio = q.std(0) / p.std(0)
    return {
        "reference_mean_error_sd": float(((q.mean(0) - p.mean(0)) / p.std(0)).abs().max()),
        "reference_sd_ratio_min": float(ratio.min()),
        "reference_sd_ratio_max": float(ratio.max()),
    }


def _numpyro_paper() -> None:
    import numpyro
    import numpyro.distributions as dist

    y, sigma = (data.numpy() for data in eight_schools.paper_data())
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.Normal(0.0, 1.0))
    with numpyro.plate("schools", len(y)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def _numpyro_classic() -> None:
    import numpyro
    import numpyro.distributions as dist

    y, sigma = (data.numpy() for data in eight_schools.classic_data())
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


#: The problem of the AVB paper: two mirror modes in tau.
EIGHT_SCHOOLS_PAPER = Problem(
    "eight_schools_paper",
    eight_schools.model,
    exact=lambda n, seed: _paper_matrix(eight_schools.exact_posterior(n, seed)),
    matrix=_paper_matrix,
    log_z=eight_schools.exact_log_evidence(),
    figures=_share_of_positive_tau,
    columns=_COLUMNS,
    numpyro_model=_numpyro_paper,
    sources=("models/eight_schools.py",),
)

#: Rubin's problem, tau > 0; judged in log tau.
EIGHT_SCHOOLS_CLASSIC = Problem(
    "eight_schools_classic",
    eight_schools.classic_model,
    exact=lambda n, seed: _classic_matrix(eight_schools.classic_exact_posterior(n, seed)),
    matrix=_classic_matrix,
    log_z=eight_schools.classic_exact_log_evidence(),
    figures=_against_posteriordb,
    columns=("mu", "log tau", *_COLUMNS[2:]),
    numpyro_model=_numpyro_classic,
    sources=("models/eight_schools.py",),
)
