"""The geometric path from a start density to a joint density, and Hamiltonian moves on it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..hmc import Metric
from .densities import DatumDensity, StartDensity


class PathState(NamedTuple):
    """Positions z (chains, B, dim), both ends' log-densities (chains, B) and their gradients (chains, B, dim) there.

    Values of all temperatures follow from these without another evaluation.
    """

    z: Tensor
    log_start: Tensor
    log_joint: Tensor
    start_gradient: Tensor
    joint_gradient: Tensor

    def log_prob(self, beta: float) -> Tensor:
        """(1 - beta) log start + beta log joint: (chains, B)."""
        return _mixed(self.log_start, self.log_joint, beta)

    def gradient(self, beta: float) -> Tensor:
        """Gradient of :meth:`log_prob` in z: (chains, B, dim)."""
        return _mixed(self.start_gradient, self.joint_gradient, beta)

    def log_ratio(self) -> Tensor:
        """log joint - log start in float64: (chains, B)."""
        return self.log_joint.double() - self.log_start.double()


def _mixed(start: Tensor, joint: Tensor, beta: float) -> Tensor:
    # 0 times -inf is NaN.
    if beta == 0.0:
        return start
    return joint if beta == 1.0 else (1.0 - beta) * start + beta * joint


class Path:
    """Evaluates both ends of a path.

    Args:
        density: joint log-densities of B data.
        start: where the path begins, for the same data.
    """

    def __init__(self, density: DatumDensity, start: StartDensity) -> None:
        self.density, self.start = density, start

    def evaluate(self, z: Tensor) -> PathState:
        """The state at z (chains, B, dim); NaN of a log-density counts as -inf, a density of zero."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            joint = self.density.log_joint(leaf)
            gradient = torch.autograd.grad(joint.sum(), leaf)[0]
        log_start, start_gradient = self.start.evaluate(z)
        return PathState(z.detach(), _no_nan(log_start), _no_nan(joint.detach()), start_gradient, gradient)


def _no_nan(x: Tensor) -> Tensor:
    return x.nan_to_num(-math.inf, math.inf, -math.inf)


class Move(NamedTuple):
    """New states, and the probability (chains, B) with which each proposal was accepted."""

    state: PathState
    probability: Tensor


@torch.no_grad()
def hmc_move(
    path: Path,
    state: PathState,
    beta: float,
    *,
    step_size: Tensor,
    leapfrog_steps: int,
    metric: Metric,
    generator: torch.Generator | None = None,
) -> Move:
    """One HMC transition of all chains of all data, which leaves start^(1 - beta) joint^beta invariant.

    Each leapfrog step evaluates both ends once. A trajectory that meets a point of zero or non-finite density
    is rejected; a chain at a point of zero density accepts any other.

    Args:
        path: both ends.
        state: from :meth:`Path.evaluate` of the same path.
        beta: inverse temperature in (0, 1].
        step_size: (chains, B, 1), or what broadcasts to it.
        leapfrog_steps: their number.
        metric: inverse mass.
        generator: of momenta and acceptances.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, chapter 5.
    """
    momentum = torch.randn(state.z.shape, dtype=state.z.dtype, device=state.z.device, generator=generator)
    uniform = torch.rand(state.log_joint.shape, dtype=state.z.dtype, device=state.z.device, generator=generator)
    gradient = _finite(state.gradient(beta))
    alive = torch.ones_like(state.log_joint, dtype=torch.bool)
    r = momentum + 0.5 * step_size * metric.pull(gradient)
    end = state
    for i in range(leapfrog_steps):
        z = end.z + step_size * metric.scale(r)
        # Chains whose trajectory has failed wait at their start, so that the densities are never asked about NaN.
        end = path.evaluate(torch.where(alive[..., None], z, state.z))
        gradient = end.gradient(beta)
        alive = alive & torch.isfinite(end.log_prob(beta)) & torch.isfinite(gradient).all(-1)
        r = r + (0.5 if i == leapfrog_steps - 1 else 1.0) * step_size * metric.pull(_finite(gradient))
    # The difference of the kinetic energies by products, in float64: two large sums would cancel.
    before, after = momentum.double(), r.double()
    kinetic = 0.5 * ((after - before) * (after + before)).sum(-1)
    error = kinetic - (end.log_prob(beta).double() - state.log_prob(beta).double())
    error = torch.where(alive & ~torch.isnan(error), error, math.inf)
    probability = (-error).clamp_max(0.0).exp().to(uniform)
    accepted = uniform < probability
    chosen = (torch.where(accepted.view(*accepted.shape, *(1,) * (new.dim() - 2)), new, old)
              for new, old in zip(end, state, strict=True))  # fmt: skip
    return Move(PathState(*chosen), probability)


def _finite(gradient: Tensor) -> Tensor:
    return torch.where(torch.isfinite(gradient), gradient, 0.0)
