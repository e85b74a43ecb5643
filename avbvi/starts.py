"""Where a sampler starts: optimisation from several points, and a Laplace approximation at each optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensityFunction = Callable[[Tensor], Tensor]


class LaplaceModes(NamedTuple):
    """Gaussians at the optima of a log-density, weighted by their Laplace evidence.

    Shapes: locs (M, dim), covariances (M, dim, dim), log_weights (M,), normalised.
    """

    locs: Tensor
    covariances: Tensor
    log_weights: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (dim,) and covariance (dim, dim) of the mixture: between the modes plus within them."""
        w = self.log_weights.exp()
        loc = w @ self.locs
        centred = self.locs - loc
        between = torch.einsum("m,mi,mj->ij", w, centred, centred)
        return loc, between + torch.einsum("m,mij->ij", w, self.covariances)

    def shares(self, z: Tensor) -> Tensor:
        """Share of the points z (n, dim) that belongs to each mode (M,), by the Gaussians' responsibilities."""
        gaussians = torch.distributions.MultivariateNormal(self.locs, self.covariances, validate_args=False)
        return torch.softmax(gaussians.log_prob(z[:, None]) + self.log_weights, -1).mean(0)


def laplace_modes(
    log_prob: LogDensityFunction, points: Tensor, *, adam_steps: int = 200, lbfgs_steps: int = 100
) -> LaplaceModes | None:
    """Optimise from all points at once and approximate the log-density at each distinct optimum.

    Adam brings all starts near optima, L-BFGS converges them; duplicates are merged. Directions in
    which the Hessian is not negative get the curvature of the others' median.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        points: starting points (n, dim).

    Returns:
        The modes, or ``None`` when no start led to a finite optimum.
    """
    finite = torch.isfinite(log_prob(points))
    if not bool(finite.any()):
        return None
    z = _adam(log_prob, points[finite], adam_steps)
    z = _lbfgs(log_prob, z, lbfgs_steps)
    with torch.no_grad():
        value = log_prob(z)
    keep = torch.isfinite(value) & torch.isfinite(z).all(-1)
    if not bool(keep.any()):
        return None
    z, value = z[keep], value[keep]
    order = value.argsort(descending=True)
    return _distinct(log_prob, z[order], value[order])


def _adam(log_prob: LogDensityFunction, z: Tensor, steps: int) -> Tensor:
    """Adam on all points at once, from steps that suit a point's own scale."""
    scale = 0.1 * (1.0 + z.abs().amax(-1, keepdim=True))
    offset = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = -log_prob(z + scale * offset).nan_to_num(0.0, 0.0, 0.0).sum()
        (gradient,) = torch.autograd.grad(loss, offset)
        offset.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimiser.step()
        schedule.step()
    return (z + scale * offset).detach()


def _lbfgs(log_prob: LogDensityFunction, z: Tensor, steps: int) -> Tensor:
    # In units of the optima's scale: else the first step may be too small to change the sum in float32.
    scale = 0.1 * (1.0 + z.abs().max())
    x = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [x], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        loss = -log_prob(z + scale * x).sum()
        (gradient,) = torch.autograd.grad(loss, x)
        x.grad = gradient
        return loss

    optimiser.step(closure)
    result = (z + scale * x).detach()
    # A line search that left the support is undone, point by point.
    with torch.no_grad():
        worse = ~(log_prob(result) >= log_prob(z))
    return torch.where(worse[:, None], z, result)


def _distinct(log_prob: LogDensityFunction, z: Tensor, value: Tensor, most: int = 32) -> LaplaceModes:
    """Merge optima that agree to within half a posterior sd, best first, and weight what is left."""
    dim = z.shape[-1]
    locs: list[Tensor] = []
    covariances: list[Tensor] = []
    log_weights: list[Tensor] = []
    precisions: list[Tensor] = []
    for point, height in zip(z, value, strict=True):
        if len(locs) == most:
            break
        if any(float((point - m) @ p @ (point - m)) < 0.25 * dim for m, p in zip(locs, precisions, strict=True)):
            continue
        precision = _positive(-_hessian(log_prob, point))
        covariance = torch.linalg.inv(precision)
        locs.append(point)
        precisions.append(precision)
        covariances.append(0.5 * (covariance + covariance.mT))
        log_weights.append(height + 0.5 * dim * math.log(2 * math.pi) - 0.5 * torch.logdet(precision))
    weights = torch.log_softmax(torch.stack(log_weights), 0)
    return LaplaceModes(torch.stack(locs), torch.stack(covariances), weights)


def _hessian(log_prob: LogDensityFunction, point: Tensor) -> Tensor:
    hessian = torch.autograd.functional.hessian(lambda x: log_prob(x[None])[0], point)
    return 0.5 * (hessian + hessian.mT)


def _positive(matrix: Tensor) -> Tensor:
    """The matrix with eigenvalues that are not positive beyond rounding replaced by the others' median (1 if none)."""
    values, vectors = torch.linalg.eigh(matrix.nan_to_num(0.0, 0.0, 0.0))
    # Along a ridge the curvature is zero up to rounding, relative to the largest one.
    floor = max(1e-14, torch.finfo(values.dtype).eps ** 0.75 * float(values.abs().max()))
    positive = values[values > floor]
    fallback = positive.median() if len(positive) else values.new_ones(())
    values = torch.where(values > floor, values, fallback)
    return (vectors * values) @ vectors.mT
