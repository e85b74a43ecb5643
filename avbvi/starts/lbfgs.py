"""L-BFGS from many points at once, with a history and a line search per point, and the paths that it took."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensityFunction = Callable[[Tensor], Tensor]
#: Pairs of steps and changes of the gradient that an inverse Hessian is built from.
HISTORY = 10
#: A path that gets this far, in units of 1 + its start's largest coordinate, has run off.
FAR = 1e8
_SUFFICIENT, _CURVATURE = 1e-4, 0.9
_CONVERGED, _IDLE_STEPS = 1e-5, 3
_MOST_TRIALS = 24


class InverseHessian(NamedTuple):
    """Inverse Hessians diag(alpha) + beta gamma beta^T of L-BFGS, one per row.

    Shapes: alpha (n, dim), beta (n, dim, 2 J), gamma (n, 2 J, 2 J), float64.

    Source: Byrd, Nocedal and Schnabel (1994), Representations of quasi-Newton matrices, Theorem 2.2; in this form
    Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder, JMLR 23(306), Algorithm 3.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def times(self, v: Tensor) -> Tensor:
        """H v for vectors v (n, dim)."""
        low = self.beta @ (self.gamma @ (self.beta.mT @ v[:, :, None]))
        return self.alpha * v + low[:, :, 0]

    def dense(self) -> Tensor:
        """The matrices (n, dim, dim)."""
        return torch.diag_embed(self.alpha) + self.beta @ self.gamma @ self.beta.mT


class Pairs(NamedTuple):
    """The last J pairs of each path, oldest first, and the diagonal that they are added to.

    Shapes: steps and changes (n, J, dim), zero where there is no pair; alpha (n, dim).
    """

    steps: Tensor
    changes: Tensor
    alpha: Tensor

    @classmethod
    def none(cls, alpha: Tensor, history: int = HISTORY) -> Pairs:
        """No pairs: H = diag(alpha) with alpha (n, dim)."""
        shape = (len(alpha), history, alpha.shape[1])
        return cls(alpha.new_zeros(shape), alpha.new_zeros(shape), alpha.clone())

    def rows(self, index: Tensor) -> Pairs:
        """The paths of these indices."""
        return Pairs(self.steps[index], self.changes[index], self.alpha[index])

    def with_pair(self, step: Tensor, change: Tensor) -> Pairs:
        """With a newer pair (n, dim) each, where its curvature is positive, and the diagonal brought up to date.

        The diagonal is that of the BFGS update of diag(alpha)^-1, scaled so that the units of alpha do not matter
        (Gilbert and Lemarechal 1989, Some numerical experiments with variable-storage quasi-Newton algorithms).
        """
        b = (step * change).sum(-1, keepdim=True)
        good = b > 1e-12 * (step.norm(dim=-1, keepdim=True) * change.norm(dim=-1, keepdim=True))
        a = (change.square() * self.alpha).sum(-1, keepdim=True)
        c = (step.square() / self.alpha).sum(-1, keepdim=True)
        inverse = (a / self.alpha - a / c * (step / self.alpha).square()).clamp_min(0.0) + change.square()
        alpha = b / inverse
        good = good & (torch.isfinite(alpha) & (alpha > 0.0)).all(-1, keepdim=True)
        steps = torch.cat([self.steps[:, 1:], step[:, None]], 1)
        changes = torch.cat([self.changes[:, 1:], change[:, None]], 1)
        wide = good[:, :, None]
        return Pairs(
            torch.where(wide, steps, self.steps),
            torch.where(wide, changes, self.changes),
            torch.where(good, alpha, self.alpha),
        )

    def inverse_hessian(self) -> InverseHessian:
        """The BFGS updates of diag(alpha) by the pairs, in factored form."""
        products = self.steps @ self.changes.mT
        curvature = products.diagonal(dim1=1, dim2=2)
        # A missing pair has columns of zeros in beta, so that any invertible entry will do for it.
        diagonal = curvature.where(curvature > 0.0, 1.0)
        upper = products.triu(1) + torch.diag_embed(diagonal)
        eye = torch.eye(products.shape[-1]).to(products).expand_as(products)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        scaled = self.changes * self.alpha[:, None, :]
        middle = inverse.mT @ (torch.diag_embed(curvature) + self.changes @ scaled.mT) @ inverse
        zero = torch.zeros_like(products)
        gamma = torch.cat([torch.cat([zero, -inverse], 2), torch.cat([-inverse.mT, middle], 2)], 1)
        return InverseHessian(self.alpha, torch.cat([scaled.mT, self.steps.mT], 2), gamma)


class Paths(NamedTuple):
    """Ways uphill from n points.

    Shapes: points and gradients (of the log-density) (n, L, dim), values (n, L), lengths (n,): the number of points
    of each path, the rest is padding. ``ran_off`` (n,) tells which were still rising when they had got too far.
    """

    points: Tensor
    gradients: Tensor
    values: Tensor
    lengths: Tensor
    ran_off: Tensor

    def ends(self) -> Tensor:
        """The last points (n, dim)."""
        return self.points[torch.arange(len(self.points)), self.lengths - 1]

    def travelled(self, scale: Tensor) -> Tensor:
        """Distance (n,) from the first to the last point, coordinates in units of ``scale`` (dim,)."""
        return ((self.ends() - self.points[:, 0]) / scale).norm(dim=-1)

    def rows(self, index: Tensor) -> Paths:
        """The paths of these indices, without padding that none of them needs."""
        longest = int(self.lengths[index].max())
        return Paths(
            self.points[index, :longest],
            self.gradients[index, :longest],
            self.values[index, :longest],
            self.lengths[index],
            self.ran_off[index],
        )

    def and_more(self, others: Paths) -> Paths:
        """These paths, then the others."""
        longest = max(self.points.shape[1], others.points.shape[1])

        def padded(part: Tensor, value: float) -> Tensor:
            missing = longest - part.shape[1]
            return torch.cat([part, part.new_full((len(part), missing, *part.shape[2:]), value)], 1)

        return Paths(
            torch.cat([padded(self.points, 0.0), padded(others.points, 0.0)]),
            torch.cat([padded(self.gradients, 0.0), padded(others.gradients, 0.0)]),
            torch.cat([padded(self.values, -math.inf), padded(others.values, -math.inf)]),
            torch.cat([self.lengths, others.lengths]),
            torch.cat([self.ran_off, others.ran_off]),
        )


def value_and_gradient(log_prob: LogDensityFunction, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density (n,), -inf where it or the gradient is not finite, and gradient (n, dim), both float64."""
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        value = log_prob(leaf)
        gradient = torch.zeros_like(z)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.where(torch.isfinite(value), 0.0).sum(), leaf)
    fine = torch.isfinite(value.detach()) & torch.isfinite(gradient).all(-1)
    value = value.detach().double().where(fine, -math.inf)
    return value, gradient.double().where(fine[:, None], 0.0)


def climb_paths(log_prob: LogDensityFunction, z: Tensor, evaluations: int = 200) -> Paths:
    """Maximise from all points z (n, dim), of finite density, at once, and keep the ways.

    Each point has its own history and its own line search for the weak Wolfe conditions by bisection and
    doubling (Lewis and Overton 2013, Nonsmooth optimization via quasi-Newton methods), so that no path waits for
    another. A path ends where three steps in a row gained less than 1e-5 nats and by its own estimate the next will not
    gain more, where rounding stops the line search, or when it has run off.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        z: the starting points.
        evaluations: of the log-density and its gradient, for all points together.
    """
    n, dim = z.shape
    value, gradient = value_and_gradient(log_prob, z)
    limit = FAR * (1.0 + z.abs().amax(-1).double())
    length = (0.1 * (1.0 + z.abs().amax(-1).double()) / gradient.norm(dim=-1).clamp_min(1e-30))[:, None]
    pairs = Pairs.none(length.expand(n, dim))
    direction = length * gradient
    step, low, high = torch.ones_like(value), torch.zeros_like(value), torch.full_like(value, math.inf)
    trials, rounding = torch.zeros_like(value), torch.finfo(z.dtype).eps
    idle = torch.zeros(n, dtype=torch.long, device=z.device)
    ran_off = torch.zeros(n, dtype=torch.bool, device=z.device)
    active = torch.isfinite(value) & (gradient != 0.0).any(-1)
    kept = [(torch.arange(n, device=z.device), z, gradient, value)]
    for _ in range(evaluations):
        rows = active.nonzero().squeeze(-1)
        if len(rows) == 0:
            break
        trial = (z[rows].double() + step[rows, None] * direction[rows]).to(z)
        new_value, new_gradient = value_and_gradient(log_prob, trial)
        slope = (gradient[rows] * direction[rows]).sum(-1)
        enough = new_value > value[rows] + _SUFFICIENT * step[rows] * slope
        steep = (new_gradient * direction[rows]).sum(-1) > _CURVATURE * slope
        far = trial.abs().amax(-1) > limit[rows]
        done = enough & (~steep | far | (trials[rows] >= _MOST_TRIALS))
        # Line searches that go on. One that is still as steep goes further, though rounding may hide what it gained;
        # one that went too far goes back to the middle, and in the end to the last place that was no mistake.
        noise = rounding * value[rows].abs()
        onward = enough | (steep & (new_value >= value[rows] - noise))
        hopeless = ~onward & (step[rows] * slope < noise)
        high[rows] = torch.where(onward, high[rows], step[rows])
        low[rows] = torch.where(onward, step[rows], low[rows])
        middle = 0.5 * (low[rows] + high[rows])
        following = torch.where(torch.isfinite(middle), middle, 4.0 * step[rows])
        last = (trials[rows] == _MOST_TRIALS - 1) & (low[rows] > 0.0)
        step[rows] = torch.where(last, low[rows], following)
        active[rows] &= done | ((trials[rows] < _MOST_TRIALS) & ~hopeless)
        trials[rows] += 1
        ran_off[rows] |= done & far
        if not bool(done.any()):
            continue
        moved = rows[done]
        new_pairs = pairs.rows(moved).with_pair(
            trial[done].double() - z[moved].double(), gradient[moved] - new_gradient[done]
        )
        for held, fresh in zip(pairs, new_pairs, strict=True):
            held[moved] = fresh
        gained = new_value[done] - value[moved]
        z, value, gradient = z.clone(), value.clone(), gradient.clone()
        z[moved], value[moved], gradient[moved] = trial[done], new_value[done], new_gradient[done]
        kept.append((moved, z[moved], gradient[moved], value[moved]))
        ahead = new_pairs.inverse_hessian().times(gradient[moved])
        gain = (ahead * gradient[moved]).sum(-1)
        broken = ~(torch.isfinite(ahead).all(-1) & (gain > 0.0)) & (gradient[moved] != 0.0).any(-1)
        ahead = torch.where(broken[:, None], new_pairs.alpha * gradient[moved], ahead)
        direction[moved] = ahead
        step[moved], low[moved], high[moved], trials[moved] = 1.0, 0.0, math.inf, 0.0
        # The estimate alone may be far too low: it knows little of directions in which it has not gone.
        idle[moved] = torch.where((gain > _CONVERGED) | (gained > _CONVERGED) | broken, 0, idle[moved] + 1)
        active[moved] = (idle[moved] < _IDLE_STEPS) & ~ran_off[moved]
    return _assembled(kept, ran_off)


def _assembled(kept: list[tuple[Tensor, Tensor, Tensor, Tensor]], ran_off: Tensor) -> Paths:
    n, dim = kept[0][1].shape
    lengths = torch.zeros(n, dtype=torch.long, device=ran_off.device)
    for rows, *_ in kept:
        lengths[rows] += 1
    longest = int(lengths.max())
    points = kept[0][1].new_zeros(n, longest, dim)
    gradients = kept[0][2].new_zeros(n, longest, dim)
    values = kept[0][3].new_full((n, longest), -math.inf)
    at = torch.zeros_like(lengths)
    for rows, z, gradient, value in kept:
        points[rows, at[rows]], gradients[rows, at[rows]], values[rows, at[rows]] = z, gradient, value
        at[rows] += 1
    return Paths(points, gradients, values, lengths, ran_off)
