"""Eight Schools, in two versions, each with exact draws and an exact log-evidence.

`model` is the problem of the adversarial variational Bayes paper (Mescheder, Nowozin and Geiger
2017, section 6.1). Its data come from the authors' public notebook. The y are Rubin's divided by
ten, but the sigma are *not* Rubin's divided by ten, so results do not compare with those for the
classic data. The scale tau has an N(0, 1) prior and may be negative, which gives the posterior
two mirror modes: (tau, eta) and (-tau, -eta) are equally likely.

`classic_model` is the textbook problem (Rubin 1981), non-centred as in posteriordb's
eight_schools_noncentered, with tau > 0.

Both are y_j ~ N(mu + tau eta_j, sigma_j), eta_j ~ N(0, 1), mu ~ N(0, s). Given tau all else is
Gaussian: y_j ~ N(mu, sigma_j^2 + tau^2), mu given (tau, y) is normal, and so is eta_j given
(mu, tau, y) with precision 1 + tau^2 / sigma_j^2. One-dimensional quadrature over tau therefore
gives evidence, moments and independent draws. The trapezoidal rule on a smooth density that has
died out at both ends is exact to rounding here (about 1e-12). Draws invert the distribution
function of the piecewise linear interpolant of the density of tau, within 1e-6 of the exact law
in total variation, and never repeat; mu and eta are drawn from their exact conditionals.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = [
    "CLASSIC_SIGMA",
    "CLASSIC_Y",
    "SIGMA",
    "Y",
    "classic_data",
    "classic_exact_log_evidence",
    "classic_exact_moments",
    "classic_exact_posterior",
    "classic_log_density",
    "classic_model",
    "classic_reference",
    "exact_log_evidence",
    "exact_moments",
    "exact_posterior",
    "log_density",
    "model",
    "paper_data",
]

_Y = (2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2)
_SIGMA = (0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4)
_CLASSIC_Y = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
_CLASSIC_SIGMA = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
_CLASSIC_SCALE = 5.0  # of mu's normal and of tau's half-Cauchy prior

Y = torch.tensor(_Y)
SIGMA = torch.tensor(_SIGMA)
CLASSIC_Y = torch.tensor(_CLASSIC_Y)
CLASSIC_SIGMA = torch.tensor(_CLASSIC_SIGMA)

_REFERENCE = "eight_schools-eight_schools_noncentered.draws.npz"


def paper_data() -> tuple[Tensor, Tensor]:
    """Observed effects and their standard errors in the paper's problem, shape (8,) each."""
    return Y.clone(), SIGMA.clone()


def classic_data() -> tuple[Tensor, Tensor]:
    """Rubin's observed effects and their standard errors (points of a test), shape (8,) each."""
    return CLASSIC_Y.clone(), CLASSIC_SIGMA.clone()


def model(y: Tensor | None = Y, sigma: Tensor = SIGMA) -> None:
    """Pyro model of the paper's problem: sites mu, tau, eta (plate "schools") and y.

    Args:
        y: observed effects, shape (J,); None draws them from the prior predictive.
        sigma: their standard errors, shape (J,); sets device and dtype of the prior.
    """
    zero = sigma.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, 1.0))
    tau = pyro.sample("tau", dist.Normal(zero, 1.0))
    with pyro.plate("schools", sigma.shape[-1], dim=-1):
        eta = pyro.sample("eta", dist.Normal(zero, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def log_density(z: Tensor, y: Tensor = Y, sigma: Tensor = SIGMA) -> Tensor:
    """Log joint density log p(y, z) of the paper's problem, constants included.

    Args:
        z: (mu, tau, eta_1, ..., eta_J), shape (*batch, J + 2).
        y: observed effects, shape (J,).
        sigma: their standard errors, shape (J,).

    Returns:
        Shape (*batch,); its integral over z is exp(`exact_log_evidence`).

    Raises:
        ValueError: the last dimension of z is not J + 2.
    """
    mu, tau, eta = _split(z, sigma)
    prior = _log_normal(z, 1.0).sum(-1)
    return prior + _log_likelihood(mu, tau, eta, y, sigma)


def exact_posterior(n: int, seed: int, y: Tensor | None = None) -> dict[str, Tensor]:
    """Independent exact draws of the paper's posterior.

    Args:
        n: number of draws.
        seed: of a local generator; the global random state is not touched.
        y: other effects than the paper's, shape (8,), with the same standard errors.

    Returns:
        "mu" (n,), "tau" (n,), "eta" (n, 8), float64 on the CPU; accuracy as in the module's
        docstring.
    """
    problem = _PAPER if y is None else replace(_PAPER, y=tuple(y.tolist()))
    draws = problem.sample(n, seed)
    del draws["theta"]
    return draws


def exact_log_evidence() -> float:
    """Log p(y) of the paper's problem in nats: -12.710812."""
    return _PAPER.log_evidence


def exact_moments() -> dict[str, tuple[Tensor, Tensor]]:
    """Posterior mean and sd of the paper's "mu" (), "tau" (), "eta" (8,), by quadrature."""
    moments = _PAPER.moments()
    del moments["theta"]
    return moments


def classic_model(y: Tensor | None = CLASSIC_Y, sigma: Tensor = CLASSIC_SIGMA) -> None:
    """Pyro model of the classic problem: sites mu, tau > 0, eta, y and deterministic theta.

    mu ~ N(0, 5), tau ~ half-Cauchy(5), eta_j ~ N(0, 1), theta = mu + tau eta.

    Args:
        y: observed effects in points, shape (J,); None draws them from the prior predictive.
        sigma: their standard errors, shape (J,); sets device and dtype of the prior.
    """
    zero = sigma.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, _CLASSIC_SCALE))
    tau = pyro.sample("tau", dist.HalfCauchy(zero + _CLASSIC_SCALE))
    with pyro.plate("schools", sigma.shape[-1], dim=-1):
        eta = pyro.sample("eta", dist.Normal(zero, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def classic_log_density(z: Tensor, y: Tensor = CLASSIC_Y, sigma: Tensor = CLASSIC_SIGMA) -> Tensor:
    """Log joint density of the classic problem on the real line, with the Jacobian of log tau.

    Args:
        z: (mu, log tau, eta_1, ..., eta_J), shape (*batch, J + 2).
        y: observed effects, shape (J,).
        sigma: their standard errors, shape (J,).

    Returns:
        Shape (*batch,); its integral over z is exp(`classic_exact_log_evidence`).

    Raises:
        ValueError: the last dimension of z is not J + 2.
    """
    mu, log_tau, eta = _split(z, sigma)
    prior = _log_normal(mu, _CLASSIC_SCALE) + _log_half_cauchy_of_log(log_tau, _CLASSIC_SCALE)
    prior = prior + _log_normal(eta, 1.0).sum(-1)
    return prior + _log_likelihood(mu, log_tau.exp(), eta, y, sigma)


def classic_exact_posterior(n: int, seed: int) -> dict[str, Tensor]:
    """Independent exact draws of the classic posterior.

    Args:
        n: number of draws.
        seed: of a local generator; the global random state is not touched.

    Returns:
        "mu" (n,), "tau" (n,) positive, "eta" (n, 8), "theta" (n, 8), float64 on the CPU.
    """
    return _CLASSIC.sample(n, seed)


def classic_exact_log_evidence() -> float:
    """Log p(y) of the classic problem in nats: -31.311347."""
    return _CLASSIC.log_evidence


def classic_exact_moments() -> dict[str, tuple[Tensor, Tensor]]:
    """Posterior mean and sd of the classic "mu" (), "tau" (), "eta" (8,), "theta" (8,)."""
    return _CLASSIC.moments()


def classic_reference(folder: str | os.PathLike[str] | None = None) -> dict[str, Tensor]:
    """Pooled reference draws of the classic posterior from posteriordb (Stan NUTS).

    Args:
        folder: where the draws (npz) and the data (json) lie. By default the environment
            variable AVBVI_POSTERIORDB, else ../shared/posteriordb beside the repository.

    Returns:
        "mu" (10000,), "tau" (10000,), "theta" (10000, 8), float64; row order keeps the chains
        of 1000 draws together.

    Raises:
        FileNotFoundError: the folder or its files are not there.
        ValueError: the folder's data are not Rubin's.

    Source: stan-dev/posteriordb, eight_schools-eight_schools_noncentered (BSD-3-Clause).
    """
    if folder is None:
        beside = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
        folder = os.environ.get("AVBVI_POSTERIORDB") or beside
    draws_file = Path(folder) / _REFERENCE
    data_file = Path(folder) / "eight_schools.data.json"
    for file in (draws_file, data_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"No posteriordb reference at {file}. Pass folder=, or set the environment "
                f"variable AVBVI_POSTERIORDB to the folder that holds {file.name}."
            )
    data = json.loads(data_file.read_text(encoding="utf-8"))
    if tuple(data["y"]) != _CLASSIC_Y or tuple(data["sigma"]) != _CLASSIC_SIGMA:
        raise ValueError(f"{data_file} holds other data than the classic problem: {data}.")
    with np.load(draws_file) as arrays:
        # (chain, draw, ...) -> (chain * draw, ...)
        return {
            name: torch.from_numpy(arrays[name].astype(np.float64)).flatten(0, 1) for name in ("mu", "tau", "theta")
        }


@dataclass(frozen=True)
class _NormalHierarchy:
    """Exact inference for y_j ~ N(mu + tau eta_j, sigma_j) by quadrature over one coordinate t.

    Args:
        y, sigma: data.
        mu_scale: sd of mu's centred normal prior.
        lower, upper: range of t; the posterior density of t must vanish at both ends.
        tau: maps t to tau.
        log_prior: normalised log prior density of t.
        points: size of the grid.
    """

    y: tuple[float, ...]
    sigma: tuple[float, ...]
    mu_scale: float
    lower: float
    upper: float
    tau: Callable[[Tensor], Tensor]
    log_prior: Callable[[Tensor], Tensor]
    points: int = 20_001

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        y = torch.tensor(self.y, dtype=torch.float64, device="cpu")
        return y, torch.tensor(self.sigma, dtype=torch.float64, device="cpu")

    @cached_property
    def _grid(self) -> tuple[Tensor, Tensor, float]:
        """t (points,), log p(t, y) less its maximum (points,), and that maximum."""
        t = torch.linspace(self.lower, self.upper, self.points, dtype=torch.float64, device="cpu")
        y, _ = self._data
        tau = self.tau(t)
        mean, variance = self._mu_given(tau)
        # log p(y | tau) = log p(y | mu, tau) + log p(mu) - log p(mu | tau, y), at mu = its mean
        sd = self._marginal_variance(tau).sqrt()
        log_joint = self.log_prior(t) + _log_normal(y - mean.unsqueeze(-1), sd).sum(-1)
        log_joint = log_joint + _log_normal(mean, self.mu_scale)
        log_joint = log_joint + 0.5 * (2.0 * math.pi * variance).log()
        top = float(log_joint.max())
        return t, log_joint - top, top

    def _marginal_variance(self, tau: Tensor) -> Tensor:
        """Var(y_j | mu, tau): (*, J)."""
        _, sigma = self._data
        return sigma.square() + tau.unsqueeze(-1).square()

    def _mu_given(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of mu given tau and y: (*,) each."""
        y, _ = self._data
        weight = self._marginal_variance(tau).reciprocal()
        variance = (weight.sum(-1) + self.mu_scale**-2).reciprocal()
        return variance * (weight * y).sum(-1), variance

    def _eta_given(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Slope a and variance of eta_j given mu, tau, y, whose mean is a (y_j - mu): (*, J)."""
        _, sigma = self._data
        total = self._marginal_variance(tau)
        return tau.unsqueeze(-1) / total, sigma.square() / total

    @cached_property
    def log_evidence(self) -> float:
        t, log_joint, top = self._grid
        return top + math.log(float(torch.trapezoid(log_joint.exp(), t)))

    def moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and sd by name, from conditional moments given tau."""
        t, log_joint, _ = self._grid
        # The ends carry no mass, so that the trapezoidal weights are all alike.
        weight = log_joint.exp() / log_joint.exp().sum()
        y, _ = self._data
        tau = self.tau(t)
        mu, mu_variance = self._mu_given(tau)
        slope, eta_variance = self._eta_given(tau)
        residual = y - mu.unsqueeze(-1)
        pull = slope * tau.unsqueeze(-1)  # theta_j = (1 - pull) mu + pull y_j + tau noise
        spread = mu_variance.unsqueeze(-1)
        conditional = {
            "mu": (mu, mu_variance),
            "tau": (tau, torch.zeros_like(tau)),
            "eta": (slope * residual, slope.square() * spread + eta_variance),
            "theta": (
                mu.unsqueeze(-1) + pull * residual,
                (1.0 - pull).square() * spread + tau.unsqueeze(-1).square() * eta_variance,
            ),
        }
        result = {}
        for name, (mean, variance) in conditional.items():
            first = torch.tensordot(weight, mean, 1)
            second = torch.tensordot(weight, variance + (mean - first).square(), 1)
            result[name] = (first, second.sqrt())
        return result

    def sample(self, n: int, seed: int) -> dict[str, Tensor]:
        """Independent draws of mu (n,), tau (n,), eta (n, J), theta (n, J)."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        generator = torch.Generator("cpu").manual_seed(seed)
        t, log_joint, _ = self._grid
        density = log_joint.exp()
        mass = 0.5 * (density[1:] + density[:-1])  # of a cell, in units of the spacing
        cumulative = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        u = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
        u = u * cumulative[-1]
        cell = torch.searchsorted(cumulative, u, right=True).sub(1).clamp(0, mass.numel() - 1)
        left, right, rest = density[cell], density[cell + 1], u - cumulative[cell]
        # Root of left s + (right - left) s^2 / 2 = rest in [0, 1], in the form that does not
        # cancel where right is near left.
        root = (left.square() + 2.0 * (right - left) * rest).clamp_min(0.0).sqrt()
        inside = (2.0 * rest / (left + root).clamp_min(1e-300)).clamp(0.0, 1.0)
        tau = self.tau(t[cell] + inside * (t[1] - t[0]))
        y, _ = self._data
        mean, variance = self._mu_given(tau)
        mu = mean + variance.sqrt() * _normal_draws(generator, n)
        slope, eta_variance = self._eta_given(tau)
        eta = slope * (y - mu.unsqueeze(-1))
        eta = eta + eta_variance.sqrt() * _normal_draws(generator, n, len(self.y))
        theta = mu.unsqueeze(-1) + tau.unsqueeze(-1) * eta
        return {"mu": mu, "tau": tau, "eta": eta, "theta": theta}


def _normal_draws(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _split(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    schools = sigma.shape[-1]
    if z.shape[-1:] != (schools + 2,):
        raise ValueError(
            f"z must have shape (*batch, {schools + 2}), mu, tau and one eta per school; got {tuple(z.shape)}."
        )
    return z[..., 0], z[..., 1], z[..., 2:]


def _log_likelihood(mu: Tensor, tau: Tensor, eta: Tensor, y: Tensor, sigma: Tensor) -> Tensor:
    mean = mu.unsqueeze(-1) + tau.unsqueeze(-1) * eta
    return _log_normal(y.to(mean) - mean, sigma.to(mean)).sum(-1)


def _log_normal(deviation: Tensor, scale: Tensor | float) -> Tensor:
    """Log density of a centred normal."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * (deviation / scale).square() - log_scale - 0.5 * math.log(2.0 * math.pi)


def _log_half_cauchy_of_log(log_tau: Tensor, scale: float) -> Tensor:
    """Log density of log tau where tau is half-Cauchy(scale)."""
    # 2/pi r / (1 + r^2) with r = tau / scale; softplus keeps large r from overflowing.
    log_ratio = log_tau - math.log(scale)
    return math.log(2.0 / math.pi) + log_ratio - torch.nn.functional.softplus(2.0 * log_ratio)


def _identity(t: Tensor) -> Tensor:
    return t


_PAPER = _NormalHierarchy(
    y=_Y,
    sigma=_SIGMA,
    mu_scale=1.0,
    lower=-12.0,
    upper=12.0,
    tau=_identity,
    log_prior=lambda t: _log_normal(t, 1.0),
)
# The posterior of t = log tau falls like exp(t) on the left and faster than exp(-8 t) on the
# right; less than 1e-14 of it lies outside the range.
_CLASSIC = _NormalHierarchy(
    y=_CLASSIC_Y,
    sigma=_CLASSIC_SIGMA,
    mu_scale=_CLASSIC_SCALE,
    lower=-34.0,
    upper=10.0,
    tau=torch.exp,
    log_prior=lambda t: _log_half_cauchy_of_log(t, _CLASSIC_SCALE),
)
