"""Posteriors with trusted reference draws from posteriordb, read from a folder on disk.

`load` gives a posterior's model with its data and its reference draws. A folder holds, for each
posterior, `<data>-<model>.draws.npz` (arrays by parameter, axes chain, draw, then the
parameter's own, on the constrained scale) and `<data>.data.json`. `MODELS` says how each model
is built from its data; an entry for another posterior is added with

    posteriordb.MODELS["<data>-<model>"] = builder

where builder(data, dtype) returns a `Built`. Models with proper priors are Pyro models; those
with flat priors, which have nothing to draw from, are `avbvi.LogDensity` targets. Both broadcast
over leading dimensions.

Source: Magnusson et al., stan-dev/posteriordb (data and draws BSD-3-Clause). The regressions and
the autoregression follow the Stan programs' densities, half-Cauchy constants included.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from avbvi import LogDensity

from .constants import Constant
from .eight_schools import classic_model

__all__ = ["MODELS", "Built", "Entry", "autoregression", "folder", "linear_regression", "load", "names"]

_DRAWS = ".draws.npz"
_SIGMA_SCALE = 2.5  # of sigma's half-Cauchy prior in arK and kidiq
_COEFFICIENT_SCALE = 10.0  # of the normal priors in arK

Sites = dict[str, tuple[constraints.Constraint, tuple[int, ...]]]


@dataclass(frozen=True)
class Built:
    """A model with its data.

    Args:
        model: Pyro model or `avbvi.LogDensity`.
        args: its arguments.
        sites: name -> (support, shape) of each parameter that the reference draws hold; latent or
            deterministic in the model.
    """

    model: Callable[..., Any]
    args: tuple[Tensor, ...]
    sites: Sites


@dataclass(frozen=True)
class Entry:
    """One posterior: model, data and reference draws.

    Args:
        name: posteriordb's name, "<data>-<model>".
        model: Pyro model or `avbvi.LogDensity`.
        args: its arguments.
        sites: name -> (support, shape) of the parameters that are compared.
        reference: name -> (chains * draws, *shape), float64; row order keeps a chain together.
        draws_per_chain: rows of `reference` that a chain has.
    """

    name: str
    model: Callable[..., Any]
    args: tuple[Tensor, ...]
    sites: Sites
    reference: dict[str, Tensor]
    draws_per_chain: int

    @property
    def chains(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The reference draws of the first and of the last half of the chains, for a judge's noise floor."""
        total = next(iter(self.reference.values())).shape[0] // self.draws_per_chain
        middle = total // 2 * self.draws_per_chain
        first = {name: value[:middle] for name, value in self.reference.items()}
        return first, {name: value[-middle:] for name, value in self.reference.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of `matrix`'s columns: "mu", "log tau", "theta[1]", ..."""
        result: list[str] = []
        for name, (support, shape) in self.sites.items():
            prefix = "log " if support is constraints.positive else ""
            size = biject_to(support).inverse_shape(torch.Size(shape)).numel()
            result += [f"{prefix}{name}[{i + 1}]" for i in range(size)] if shape else [prefix + name]
        return tuple(result)

    def matrix(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Draws as points of the unconstrained space in which they are judged.

        Args:
            draws: site name -> (n, *shape) on the constrained scale; other sites are ignored.

        Returns:
            Shape (n, d), float64, columns as in `columns`: positive parameters as logarithms.

        Raises:
            ValueError: a site is missing, misshapen or has values outside its support.
        """
        parts = []
        rows: int | None = None
        for name, (support, shape) in self.sites.items():
            if name not in draws:
                raise ValueError(f"draws lack the site {name!r} of {self.name}; found {sorted(draws)}.")
            value = draws[name].double()
            rows = value.shape[0] if rows is None and value.dim() else rows
            if value.dim() == 0 or tuple(value.shape) != (rows, *shape):
                raise ValueError(
                    f"draws[{name!r}] must have shape (n, {', '.join(map(str, shape))}) with the same n for all "
                    f"sites, got {tuple(value.shape)}."
                )
            if not bool(support.check(value).all()):
                raise ValueError(f"draws[{name!r}] has values outside its support {support}.")
            parts.append(biject_to(support).inv(value).reshape(len(value), -1))
        return torch.cat(parts, -1)


def autoregression(lags: Tensor, y: Tensor | None) -> None:
    """Autoregression with normal priors: sites alpha, beta (K,), sigma > 0 and y.

    alpha, beta_k ~ N(0, 10), sigma ~ half-Cauchy(2.5), y_t ~ N(alpha + lags_t beta, sigma).

    Args:
        lags: the K values before each y_t, most recent first, shape (T, K); sets device and dtype.
        y: series, shape (T,); None draws it from the prior predictive (given these lags).
    """
    zero = lags.new_zeros(())
    alpha = pyro.sample("alpha", dist.Normal(zero, _COEFFICIENT_SCALE))
    order = lags.shape[-1]
    beta = pyro.sample("beta", dist.Normal(zero.expand(order), _COEFFICIENT_SCALE).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(zero + _SIGMA_SCALE))
    mean = alpha.unsqueeze(-1) + beta @ lags.mT
    pyro.sample("y", dist.Normal(mean, sigma.unsqueeze(-1)).to_event(1), obs=y)


def linear_regression(x: Tensor, y: Tensor, *, sigma_scale: float | None = None) -> LogDensity:
    """Regression on one covariate with flat coefficients: sites beta (2,) and sigma > 0.

    y_i ~ N(beta_1 + beta_2 x_i, sigma), beta flat on the plane.

    Args:
        x: covariate, shape (n,).
        y: response, shape (n,).
        sigma_scale: sigma ~ half-Cauchy(sigma_scale); None for a prior that is flat in sigma.

    Returns:
        The log density with respect to (beta, sigma), likelihood and half-Cauchy with their
        constants. It follows the device and dtype of the values.

    Raises:
        ValueError: x and y are not vectors of one length, or sigma_scale is not positive.
    """
    if x.dim() != 1 or x.shape != y.shape:
        raise ValueError(f"x and y must be vectors of one length, got shapes {tuple(x.shape)} and {tuple(y.shape)}.")
    if sigma_scale is not None and not sigma_scale > 0:
        raise ValueError(f"sigma_scale must be positive, got {sigma_scale}.")
    density = _Regression(Constant(x), Constant(y), sigma_scale)
    return LogDensity(density, sites={"beta": (constraints.real, (2,)), "sigma": (constraints.positive, ())})


def folder(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder with reference posteriors.

    Args:
        path: where to look; by default the environment variable AVBVI_POSTERIORDB, else
            ../shared/posteriordb beside the repository.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    beside = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
    found = Path(path if path is not None else os.environ.get("AVBVI_POSTERIORDB") or beside)
    if not found.is_dir():
        raise FileNotFoundError(
            f"No folder of reference posteriors at {found}. Pass folder=, or set AVBVI_POSTERIORDB to a folder that "
            f"holds <data>-<model>{_DRAWS} and <data>.data.json of posteriors of stan-dev/posteriordb."
        )
    return found


def names(folder: str | os.PathLike[str] | None = None) -> list[str]:
    """Names of all posteriors whose draws lie in the folder, sorted; not all need have a model in `MODELS`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return sorted(file.name.removesuffix(_DRAWS) for file in _folder(folder).glob(f"*{_DRAWS}"))


def load(name: str, folder: str | os.PathLike[str] | None = None, *, dtype: torch.dtype | None = None) -> Entry:
    """A posterior's model, data and reference draws.

    Args:
        name: posteriordb's name, one of `names`.
        folder: as for `folder`.
        dtype: of the model's arguments; by default torch's default dtype.

    Raises:
        FileNotFoundError: the folder, the draws or the data are not there.
        LookupError: `MODELS` has no model of that name.
        ValueError: a file can't be read, or holds other arrays, shapes or values than the model needs.
    """
    place = _folder(folder)
    draws_file = place / f"{name}{_DRAWS}"
    if not draws_file.is_file():
        raise FileNotFoundError(f"No draws of {name!r} at {draws_file}. The folder holds {names(place)}.")
    if name not in MODELS:
        raise LookupError(
            f"No model for the posterior {name!r}; there are {sorted(MODELS)}. Add models.posteriordb.MODELS[{name!r}] "
            "= builder, where builder(data, dtype) returns a Built(model, args, sites)."
        )
    data_file = place / f"{name.split('-')[0]}.data.json"
    if not data_file.is_file():
        raise FileNotFoundError(f"No data of {name!r} at {data_file}. Put posteriordb's data file there.")
    try:
        data = json.loads(data_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{data_file} is no JSON ({error}). Copy it again from posteriordb.") from error
    try:
        built = MODELS[name](data, torch.get_default_dtype() if dtype is None else dtype)
    except (KeyError, TypeError, ValueError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{data_file} does not fit the model {name!r}: {what}") from error
    reference, length = _read_draws(draws_file, built.sites)
    return Entry(name, built.model, built.args, built.sites, reference, length)


_folder = folder  # the functions above have an argument of that name


def _read_draws(file: Path, sites: Sites) -> tuple[dict[str, Tensor], int]:
    """Reference draws by site, (chains * draws, *shape), and the draws of one chain."""
    try:
        with file.open("rb") as stream, np.load(stream) as content:  # np.load leaves a damaged file open
            arrays = {name: np.asarray(content[name]) for name in content.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} can't be read as npz ({error}). Copy it again: it may be truncated.") from error
    result: dict[str, Tensor] = {}
    grid: tuple[int, ...] | None = None
    for name, (support, shape) in sites.items():
        if name not in arrays:
            raise ValueError(f"{file} lacks the array {name!r}; it holds {sorted(arrays)}.")
        array = arrays[name]
        grid = array.shape[:2] if grid is None else grid
        if array.shape != (*grid, *shape) or len(grid) != 2 or grid[0] < 2 or grid[1] < 1:
            trailing = "".join(f", {size}" for size in shape)
            raise ValueError(
                f"{file}: {name!r} must have shape (chains, draws{trailing}) with at least two chains and the same "
                f"chains and draws for all arrays, found {array.shape}."
            )
        value = torch.from_numpy(array.astype(np.float64)).flatten(0, 1)
        if not bool(value.isfinite().all()) or not bool(support.check(value).all()):
            raise ValueError(f"{file}: {name!r} has values outside its support {support}.")
        result[name] = value
    assert grid is not None
    return result, grid[1]


@dataclass(frozen=True)
class _Regression:
    """log p(y, beta, sigma) of `linear_regression`."""

    x: Constant
    y: Constant
    sigma_scale: float | None

    def __call__(self, values: dict[str, Tensor]) -> Tensor:
        beta, sigma = values["beta"], values["sigma"]
        mean = beta[..., :1] + beta[..., 1:] * self.x.like(beta)
        # Not validated: a search that wanders off is judged by its log density.
        likelihood = dist.Normal(mean, sigma.unsqueeze(-1), validate_args=False)
        log_p = likelihood.log_prob(self.y.like(beta)).sum(-1)
        if self.sigma_scale is not None:
            log_p = log_p + math.log(2.0 / (math.pi * self.sigma_scale)) - (sigma / self.sigma_scale).square().log1p()
        return log_p


def _vector(data: Mapping[str, Any], key: str, size: int) -> Tensor:
    value = torch.tensor(data[key], dtype=torch.float64)
    if value.shape != (size,):
        raise ValueError(f"{key} must hold {size} numbers, found shape {tuple(value.shape)}.")
    return value


def _eight_schools(data: Mapping[str, Any], dtype: torch.dtype) -> Built:
    y, sigma = (_vector(data, key, data["J"]) for key in ("y", "sigma"))
    sites: Sites = {
        "theta": (constraints.real, (data["J"],)),
        "mu": (constraints.real, ()),
        "tau": (constraints.positive, ()),
    }
    return Built(classic_model, (y.to(dtype), sigma.to(dtype)), sites)


def _ark(data: Mapping[str, Any], dtype: torch.dtype) -> Built:
    order, y = data["K"], _vector(data, "y", data["T"])
    # Row t of unfold is y_t, ..., y_{t+K}: the lags in order of time, then the value.
    windows = y.unfold(0, order + 1, 1)
    lags, values = windows[:, :order].flip(-1), windows[:, order]
    sites: Sites = {
        "alpha": (constraints.real, ()),
        "beta": (constraints.real, (order,)),
        "sigma": (constraints.positive, ()),
    }
    return Built(autoregression, (lags.to(dtype), values.to(dtype)), sites)


def _density(model: LogDensity) -> Built:
    return Built(model, (), model.sites)


def _kidiq(data: Mapping[str, Any], dtype: torch.dtype) -> Built:
    x, y = (_vector(data, key, data["N"]) for key in ("mom_iq", "kid_score"))
    return _density(linear_regression(x, y, sigma_scale=_SIGMA_SCALE))


def _earnings(data: Mapping[str, Any], dtype: torch.dtype) -> Built:
    x, y = (_vector(data, key, data["N"]) for key in ("height", "earn"))
    return _density(linear_regression(x, y.log10()))


MODELS: dict[str, Callable[[Mapping[str, Any], torch.dtype], Built]] = {
    "arK-arK": _ark,
    "earnings-log10earn_height": _earnings,
    "eight_schools-eight_schools_noncentered": _eight_schools,
    "kidiq-kidscore_momiq": _kidiq,
}
