"""The geometric path from a start density to a joint density, and Hamiltonian moves on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..hmc import Metric
from .densities import DatumDensity, StartDensity
from .evaluation import Evaluation
from .noise import MoveNoise


class PathState(NamedTuple):
    """Positions z (chains, B, dim), both ends' log-densities (chains, B) and their gradients (chains, B, dim) there.

    Values of all temperatures follow from these without another evaluation.
    """

    z: Tensor
    log_start: Tensor
    log_joint: Tensor
    start_gradient: Tensor
    joint_gradient: Tensor

    def log_prob(self, beta: float | Tensor) -> Tensor:
        """(1 - beta) log start + beta log joint: (chains, B)."""
        return _mixed(self.log_start, self.log_joint, beta)

    def gradient(self, beta: float | Tensor) -> Tensor:
        """Gradient of :meth:`log_prob` in z: (chains, B, dim)."""
        return _mixed(self.start_gradient, self.joint_gradient, beta)

    def log_ratio(self) -> Tensor:
        """log joint - log start in float64: (chains, B)."""
        return self.log_joint.double() - self.log_start.double()


def _mixed(start: Tensor, joint: Tensor, beta: float | Tensor) -> Tensor:
    # 0 times -inf is NaN.
    if isinstance(beta, Tensor):
        between = (1.0 - beta) * start + beta * joint
        return torch.where(beta == 0.0, start, torch.where(beta == 1.0, joint, between))
    if beta == 0.0:
        return start
    return joint if beta == 1.0 else (1.0 - beta) * start + beta * joint


class Path:
    """Evaluates both ends of a path.

    Args:
        density: joint log-densities of B data.
        start: where the path begins, for the same data.
        exact: the joint log-densities that weights are for, where ``density`` is a less precise one.
        chains_at_once: the most chains that are evaluated together.
        recorded: whether the density may be recorded; see :class:`~avbvi.annealed.evaluation.Evaluation`.
    """

    def __init__(
        self,
        density: DatumDensity,
        start: StartDensity,
        *,
        exact: DatumDensity | None = None,
        chains_at_once: int | None = None,
        recorded: bool = False,
    ) -> None:
        self.density: DatumDensity = density
        self.start: StartDensity = start
        #: What the chains' last states are weighted for.
        self.target: DatumDensity = density if exact is None else exact
        self._joint = Evaluation(density.log_joint, chains_at_once, recorded=recorded)
        # A start with a closed form of its own needs no recording.
        own = type(start).evaluate is not StartDensity.evaluate
        evaluation = Evaluation(start.log_prob, chains_at_once, recorded=recorded)
        self._start: Callable[[Tensor], tuple[Tensor, Tensor]] = start.evaluate if own else evaluation
        self._exact = None if exact is None else Evaluation(exact.log_joint, chains_at_once)

    def evaluate(self, z: Tensor) -> PathState:
        """The state at z (chains, B, dim); NaN of a log-density counts as -inf, a density of zero."""
        joint, gradient = self._joint(z)
        log_start, start_gradient = self._start(z)
        return PathState(z.detach(), _no_nan(log_start), _no_nan(joint), start_gradient, gradient)

    def exact(self, state: PathState) -> tuple[PathState, Tensor]:
        """The state with the exact joint density, and by how much that is larger in logarithms (chains, B), float64."""
        if self._exact is None:
            return state, torch.zeros_like(state.log_joint, dtype=torch.float64)
        joint, gradient = self._exact(state.z)
        joint = _no_nan(joint)
        change = joint.double() - state.log_joint.double()
        # Where both are zero, so is the weight already.
        change = torch.where(state.log_joint == -math.inf, 0.0, change)
        return state._replace(log_joint=joint, joint_gradient=gradient), change


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
    beta: float | Tensor,
    *,
    step_size: Tensor,
    leapfrog_steps: int,
    metric: Metric,
    noise: MoveNoise | None = None,
) -> Move:
    """One HMC transition of all chains of all data, which leaves start^(1 - beta) joint^beta invariant.

    Each leapfrog step evaluates both ends once. A trajectory that meets a point of zero or non-finite density
    is rejected; a chain at a point of zero density accepts any other.

    Args:
        path: both ends.
        state: from :meth:`Path.evaluate` of the same path.
        beta: inverse temperature in (0, 1], a number or a tensor of one: nothing is read back from the device.
        step_size: (chains, B, 1), or what broadcasts to it.
        leapfrog_steps: their number.
        metric: inverse mass.
        noise: momenta and what decides on acceptance; from torch's global generator by default.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, chapter 5.
    """
    if noise is None:
        noise = MoveNoise(torch.randn_like(state.z), *(torch.rand_like(state.z[..., 0]) for _ in range(2)))
    momentum, uniform = noise.momentum, noise.uniform
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
