"""Integrals over the plane by quadrature: evidence, and all of what two latent coordinates have in a posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["LatentPlane", "quadrature_log_evidence"]

#: Share of a posterior's mass that the outermost ring of a grid may hold.
_MOST_AT_THE_EDGE = 1e-6
#: Density values of a grid that are evaluated at once.
_AT_ONCE = 2**20


def quadrature_log_evidence(
    log_prob: Callable[[Tensor], Tensor],
    lo: float | tuple[float, float],
    hi: float | tuple[float, float],
    n: int,
) -> float:
    """Log of the integral of exp(log_prob) over a rectangle, by the trapezoidal rule.

    Args:
        log_prob: maps (*batch, 2) to (*batch,); it receives float64.
        lo: lower corner; one number stands for both coordinates.
        hi: upper corner, likewise.
        n: grid points per axis, at least 2. Where the density has died out at the edges the
            error falls faster than any power of n, once the spacing is below its scales.

    Returns:
        The log-evidence in nats.

    Raises:
        ValueError: n < 2, lo not below hi, or log_prob returned a wrong shape or NaN.
    """
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}.")
    low = (lo, lo) if isinstance(lo, (int, float)) else lo
    high = (hi, hi) if isinstance(hi, (int, float)) else hi
    if not (low[0] < high[0] and low[1] < high[1]):
        raise ValueError(f"lo must lie below hi in both coordinates, got {lo} and {hi}.")
    axes = [torch.linspace(low[i], high[i], n, dtype=torch.float64) for i in range(2)]
    ends = torch.zeros(n, dtype=torch.float64)
    ends[0] = ends[-1] = math.log(0.5)
    rows = []
    for first in axes[0]:  # a row at a time bounds the memory
        points = torch.stack([first.expand(n), axes[1]], -1)
        value = log_prob(points)
        if value.shape != (n,):
            raise ValueError(
                f"log_prob must map (*batch, 2) to (*batch,); it mapped {tuple(points.shape)} to {tuple(value.shape)}."
            )
        if bool(value.isnan().any()):
            raise ValueError(f"log_prob returned NaN on the line z_1 = {float(first):.6g}.")
        rows.append(torch.logsumexp(value + ends, 0))
    spacing = [(high[i] - low[i]) / (n - 1) for i in range(2)]
    total = torch.logsumexp(torch.stack(rows) + ends, 0)
    return float(total) + math.log(spacing[0] * spacing[1])


@dataclass(frozen=True)
class LatentPlane:
    """Evidence and posteriors of data with two latent coordinates, on a grid, by the trapezoidal rule.

    Attributes:
        axis: the n coordinates of the grid along either axis, float64.
        points: all of its points (n * n, 2), float64, the second coordinate running fastest.
        log_weights: logarithms of the trapezoidal weights (n * n,).
        log_joint: log p(x_i, z) at each point for each datum (n * n, B), float64.
    """

    axis: Tensor
    points: Tensor
    log_weights: Tensor
    log_joint: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        log_joint: Callable[[Tensor], Tensor],
        batch: int,
        *,
        reach: float = 6.0,
        n: int = 301,
        like: Tensor | None = None,
    ) -> LatentPlane:
        """Evaluate a model on the square [-reach, reach]^2.

        Args:
            log_joint: z (m, B, 2) to log p(x_i, z_i) (m, B).
            batch: B, the number of data.
            reach: half the side; a standard normal prior has 4e-9 of its mass beyond 6.
            n: points along each axis. Compare with a finer grid: sharp decoders need one.
            like: gives dtype and device that log_joint is evaluated in; float64 on the CPU by default.

        Raises:
            ValueError: n or reach out of range; log_joint returns a wrong shape, NaN, or more than 1e-6 of a posterior
                on the edge of the grid.
        """
        if n < 3:
            raise ValueError(f"n must be at least 3, got {n}.")
        if not 0.0 < reach < math.inf:
            raise ValueError(f"reach must be positive and finite, got {reach}.")
        axis = torch.linspace(-reach, reach, n, dtype=torch.float64)
        ends = torch.zeros(n, dtype=torch.float64)
        ends[0] = ends[-1] = math.log(0.5)
        points = torch.cartesian_prod(axis, axis)
        log_weights = (ends[:, None] + ends).flatten() + 2.0 * math.log(2.0 * reach / (n - 1))
        like = points if like is None else like
        values = []
        for part in points.to(like).split(max(1, _AT_ONCE // batch)):
            value = log_joint(part[:, None].expand(-1, batch, -1))
            if value.shape != (len(part), batch):
                raise ValueError(
                    f"log_joint must map {(len(part), batch, 2)} to {(len(part), batch)}, found {tuple(value.shape)}."
                )
            values.append(value.double().cpu())
        plane = cls(axis, points, log_weights, torch.cat(values))
        if bool(plane.log_joint.isnan().any()):
            raise ValueError("log_joint returned NaN on the grid.")
        edge = (points.abs().amax(-1) >= reach).nonzero().squeeze(-1)
        most = float((plane.log_posterior + log_weights[:, None])[edge].logsumexp(0).exp().max())
        if not most < _MOST_AT_THE_EDGE:
            raise ValueError(f"a posterior has {most:.2g} of its mass on the edge of the grid; raise reach={reach}.")
        return plane

    @cached_property
    def log_evidence(self) -> Tensor:
        """log p(x_i), shape (B,)."""
        return (self.log_joint + self.log_weights[:, None]).logsumexp(0)

    @cached_property
    def log_posterior(self) -> Tensor:
        """log p(z | x_i) at each point, (n * n, B)."""
        return self.log_joint - self.log_evidence

    def density(self, log_density: Tensor) -> Tensor:
        """A log-density on the grid (n * n, B) as pictures of the density (B, n, n), the second coordinate last."""
        n = len(self.axis)
        return log_density.exp().mT.reshape(-1, n, n)

    @cached_property
    def mean(self) -> Tensor:
        """Posterior means (B, 2)."""
        return (self.log_posterior + self.log_weights[:, None]).exp().mT @ self.points

    @cached_property
    def covariance(self) -> Tensor:
        """Posterior covariances (B, 2, 2)."""
        mass = (self.log_posterior + self.log_weights[:, None]).exp()
        centred = self.points[:, None] - self.mean
        return torch.einsum("gb,gbi,gbj->bij", mass, centred, centred)

    def elbo(self, log_q: Tensor) -> Tensor:
        """E_q[log p(x_i, z) - log q(z)] of densities log q on the grid (n * n, B), shape (B,).

        Raises:
            ValueError: q has another shape, or does not integrate to 1 on the grid within 1 %: too narrow for it.
        """
        return self.log_evidence - self.kl(log_q)

    def kl(self, log_q: Tensor) -> Tensor:
        """KL(q, p(z | x_i)) of densities log q on the grid (n * n, B), shape (B,).

        Raises:
            ValueError: as :meth:`elbo`.
        """
        return self._divergence(log_q, self.log_posterior)

    def aggregate_kl(self, log_q: Tensor, log_prior: Callable[[Tensor], Tensor]) -> float:
        """KL(q(z), p(z)) of the aggregate q(z) = mean_i q(z | x_i), of densities log q on the grid (n * n, B).

        Args:
            log_q: as in :meth:`elbo`.
            log_prior: z (m, 2) to log p(z) (m,).

        Raises:
            ValueError: as :meth:`elbo`.
        """
        aggregate = log_q.double().logsumexp(1, keepdim=True) - math.log(log_q.shape[1])
        return float(self._divergence(aggregate, log_prior(self.points)[:, None]))

    def _divergence(self, log_q: Tensor, log_p: Tensor) -> Tensor:
        if log_q.shape != log_p.shape:
            raise ValueError(f"log_q must have shape {tuple(log_p.shape)}, found {tuple(log_q.shape)}.")
        log_q = log_q.double()
        mass = (log_q + self.log_weights[:, None]).exp()
        total = mass.sum(0)
        if not bool(((total - 1.0).abs() < 0.01).all()):
            worst = float(total[(total - 1.0).abs().argmax()])
            raise ValueError(f"log_q integrates to {worst:.4g} on the grid, not to 1: it needs a finer or wider one.")
        # Where q vanishes its logarithm does not count.
        return torch.where(mass > 0.0, mass * (log_q - log_p), 0.0).sum(0)
