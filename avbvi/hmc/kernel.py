"""The transition of Hamiltonian Monte Carlo, for many chains at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .adaptation import Metric

LogDensityFunction = Callable[[Tensor], Tensor]

#: Energy error above which a trajectory counts as divergent (as in Stan).
DIVERGENCE_THRESHOLD = 1000.0


class ChainState(NamedTuple):
    """Where all chains are.

    Attributes:
        z: positions (n, dim).
        log_prob: log-density there (n,), in nats up to a constant.
        gradient: of the log-density there (n, dim).
    """

    z: Tensor
    log_prob: Tensor
    gradient: Tensor


class Transition(NamedTuple):
    """One Metropolis transition of all chains.

    Attributes:
        state: the new state.
        probability: of acceptance (n,).
        accepted: whether the proposal was (n,).
        divergent: whether the trajectory diverged (n,).
        proposed: end of the trajectory (n, dim); the start, if it left the support.
        momentum: whitened momentum there (n, dim).
    """

    state: ChainState
    probability: Tensor
    accepted: Tensor
    divergent: Tensor
    proposed: Tensor
    momentum: Tensor


def evaluate(log_prob: LogDensityFunction, z: Tensor) -> ChainState:
    """A log-density and its gradient at some points; a NaN counts as -inf, a density of zero.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        z: the points (n, dim).

    Returns:
        The points with log-density (n,) and gradient (n, dim).

    Example:
        >>> import torch
        >>> from avbvi.hmc import evaluate
        >>> state = evaluate(lambda z: -0.5 * z.square().sum(-1), torch.tensor([[1.0, 2.0]]))
        >>> state.log_prob, state.gradient
        (tensor([-2.5000]), tensor([[-1., -2.]]))
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = log_prob(leaf)
        gradient = torch.autograd.grad(value.sum(), leaf)[0] if value.requires_grad else torch.zeros_like(leaf)
    return ChainState(z.detach(), value.detach().nan_to_num(-math.inf, math.inf, -math.inf), gradient)


@torch.no_grad()
def leapfrog(
    log_prob: LogDensityFunction,
    state: ChainState,
    momentum: Tensor,
    *,
    step_size: float | Tensor,
    leapfrog_steps: int,
    metric: Metric,
) -> tuple[ChainState, Tensor, Tensor]:
    """Follow Hamilton's equations by the leapfrog method (Neal 2011, section 2.3): reversible, volume preserving.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        state: where the trajectories start.
        momentum: whitened momenta (n, dim), standard normal in stationarity.
        step_size: a number, or one per chain (n, 1).
        leapfrog_steps: number of steps, each of one gradient evaluation.
        metric: inverse mass.

    Returns:
        The end, the momentum there, and whether all points on the way had finite density and gradient (n,). Where
        one had not, the chain waits at its start, so that log_prob is never asked about NaN.
    """
    gradient = torch.where(torch.isfinite(state.gradient), state.gradient, 0.0)
    z, value, finite = state.z, state.log_prob, torch.ones_like(state.log_prob, dtype=torch.bool)
    r = momentum + 0.5 * step_size * metric.pull(gradient)
    for i in range(leapfrog_steps):
        z = z + step_size * metric.scale(r)
        z, value, gradient = evaluate(log_prob, torch.where(finite[:, None], z, state.z))
        finite = finite & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        gradient = torch.where(finite[:, None], gradient, 0.0)
        r = r + (0.5 if i == leapfrog_steps - 1 else 1.0) * step_size * metric.pull(gradient)
    return ChainState(z, value, gradient), r, finite


@torch.no_grad()
def hmc_step(
    log_prob: LogDensityFunction,
    state: ChainState,
    *,
    step_size: float | Tensor,
    leapfrog_steps: int,
    metric: Metric,
    generator: torch.Generator | None = None,
) -> Transition:
    """One HMC transition of all chains, which leaves the density exp(log_prob) invariant.

    A trajectory that passes a point of zero or non-finite density is rejected, and counts as divergent like one
    whose energy error exceeds 1000. A chain that starts at a point of zero density accepts any other.

    Args:
        log_prob: (n, dim) -> (n,), differentiable; -inf outside the support.
        state: the chains, from :func:`evaluate` for the same log_prob.
        step_size: a number, or one per chain (n, 1).
        leapfrog_steps: gradient evaluations, the same for all chains.
        metric: inverse mass.
        generator: of the momenta and acceptances; torch's global one by default.

    Returns:
        The new state, with the probability of acceptance (n,) and what was proposed (n, dim).

    Example:
        >>> import torch
        >>> from avbvi.hmc import DiagonalMetric, evaluate, hmc_step
        >>> _ = torch.manual_seed(0)
        >>> def log_prob(z):
        ...     return -0.5 * z.square().sum(-1)
        >>> state = evaluate(log_prob, torch.randn(100, 2))
        >>> metric = DiagonalMetric(torch.ones(2))
        >>> transition = hmc_step(log_prob, state, step_size=0.5, leapfrog_steps=4, metric=metric)
        >>> transition.state.z.shape, bool(transition.probability.mean() > 0.9)
        (torch.Size([100, 2]), True)

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, chapter 5.
    """
    momentum = _like(torch.randn, state.z, generator)
    end, r, finite = leapfrog(
        log_prob, state, momentum, step_size=step_size, leapfrog_steps=leapfrog_steps, metric=metric
    )
    # The difference of the kinetic energies by products, in float64: two large sums would cancel.
    r64, momentum64 = r.double(), momentum.double()
    kinetic = 0.5 * ((r64 - momentum64) * (r64 + momentum64)).sum(-1)
    error = kinetic - (end.log_prob.double() - state.log_prob.double())
    error = torch.where(finite & ~torch.isnan(error), error, math.inf)
    probability = (-error).clamp_max(0.0).exp().to(state.log_prob)
    new, accepted = accept(state, end, probability, generator)
    proposed = torch.where(finite[:, None], end.z, state.z)
    return Transition(new, probability, accepted, error > DIVERGENCE_THRESHOLD, proposed, r)


def accept(
    state: ChainState, proposal: ChainState, probability: Tensor, generator: torch.Generator | None = None
) -> tuple[ChainState, Tensor]:
    """The proposal where a uniform number is below its probability (n,), the old state elsewhere; and where (n,)."""
    accepted = _like(torch.rand, probability, generator) < probability
    return ChainState(
        torch.where(accepted[:, None], proposal.z, state.z),
        torch.where(accepted, proposal.log_prob, state.log_prob),
        torch.where(accepted[:, None], proposal.gradient, state.gradient),
    ), accepted


def _like(draw: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
    return draw(x.shape, dtype=x.dtype, device=x.device, generator=generator)


class Jump(ABC):
    """A second kind of transition, done after every HMC transition; it may learn from the chains in the warm-up."""

    @abstractmethod
    def step(
        self, log_prob: LogDensityFunction, state: ChainState, generator: torch.Generator | None
    ) -> tuple[ChainState, Tensor]:
        """New states and acceptance probabilities (n,), by one evaluation; leaves exp(log_prob) invariant.

        ``state`` is that of all chains, ``generator`` that of what is random.
        """

    @abstractmethod
    def observe(self, states: Tensor) -> None:
        """Take note of states (n, dim) in the warm-up."""

    @abstractmethod
    def update(self) -> None:
        """Learn from what was observed since the last update."""
