"""Hamiltonian Monte Carlo for many chains at once, with one step size and a diagonal mass from the ensemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensityFunction = Callable[[Tensor], Tensor]


class Chains(NamedTuple):
    """Final states (n, dim) of all chains, mean acceptance probability and the step size reached."""

    states: Tensor
    acceptance: float
    step_size: float


@torch.no_grad()
def short_hmc(
    log_prob: LogDensityFunction,
    states: Tensor,
    *,
    steps: int = 50,
    leapfrog_steps: int = 8,
    target_acceptance: float = 0.8,
) -> Chains:
    """Move many chains by a few HMC steps each, to remove local errors of a sample (Neal 2011).

    The step size is adapted in the first half and fixed in the second, so that the second half leaves the
    target invariant. Chains do not cross between separated modes: their weights stay as they are.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        states: starting points (n, dim), roughly whitened or at least on a common scale.
        steps: transitions per chain.
        leapfrog_steps: gradient evaluations per transition.
        target_acceptance: mean acceptance probability aimed at.
    """
    scale = states.std(0).clamp_min(1e-12)
    step_size = states.new_tensor(0.5 * states.shape[1] ** -0.25)
    value, gradient = _value_and_gradient(log_prob, states)
    accepted = torch.zeros(())
    for i in range(steps):
        momentum = torch.randn_like(states)
        proposal, velocity, new_gradient, new_value = states, momentum, gradient, value
        for _ in range(leapfrog_steps):
            velocity = velocity + 0.5 * step_size * scale * new_gradient
            proposal = proposal + step_size * scale * velocity
            new_value, new_gradient = _value_and_gradient(log_prob, proposal)
            velocity = velocity + 0.5 * step_size * scale * new_gradient
        log_ratio = new_value - value - 0.5 * (velocity.square() - momentum.square()).sum(-1)
        probability = log_ratio.clamp_max(0.0).exp().nan_to_num(0.0)
        accept = torch.rand_like(probability) < probability
        states = torch.where(accept[:, None], proposal, states)
        gradient = torch.where(accept[:, None], new_gradient, gradient)
        value = torch.where(accept, new_value, value)
        accepted = probability.mean()
        if i < steps // 2:
            step_size = step_size * torch.exp(0.5 * (accepted - target_acceptance))
    return Chains(states, float(accepted), float(step_size))


def _value_and_gradient(log_prob: LogDensityFunction, states: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = states.detach().requires_grad_()
        value = log_prob(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient
