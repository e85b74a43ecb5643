"""Hamiltonian Monte Carlo for many chains at once: a run that tunes itself, and a short one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import flag, function, instance, integer, number
from .adaptation import (
    ChEES,
    DiagonalMass,
    DiagonalMetric,
    DualAveraging,
    Mass,
    Metric,
    Moments,
    Proposals,
    harmonic_mean,
    reasonable_step_size,
    van_der_corput,
)
from .diagnostics import bulk_ess, rank_rhat, tail_ess
from .kernel import ChainState, Jump, LogDensityFunction, Transition, evaluate, hmc_step

# Shares of the warm-up after which the mass is estimated anew, from the transitions since the last time: often at
# first, when the chains may still be spreading.
_MASS_UPDATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75)
# A chain is stuck if it stands still for this many transitions: at an acceptance of .8 others do once in 1e7 times.
_STUCK_AFTER = 10
# More chains than this share would hold down the step size until they move, by the harmonic mean.
_STUCK_SHARE = 0.1


@dataclass(frozen=True)
class HMCRun:
    """Draws of a run of HMC and how they came about.

    Attributes:
        draws: kept draws (chains, draws, dim).
        log_prob: log-density there (chains, draws), in nats up to a constant.
        acceptance: mean rate over the transitions between kept draws (chains, draws).
        diverging: whether one of these diverged (chains, draws).
        divergences: divergent transitions of single chains after the warm-up.
        step_size: in units of the metric.
        trajectory_length: step size times leapfrog steps, in units of the metric before jitter.
        leapfrog_steps: their mean number per transition after the warm-up.
        gradient_evaluations: batched ones, warm-up included.
        metric: inverse mass.
        jump_acceptance: share of jumps that were accepted; NaN without a jump.
    """

    draws: Tensor
    log_prob: Tensor
    acceptance: Tensor
    diverging: Tensor
    divergences: int
    step_size: float
    trajectory_length: float
    leapfrog_steps: float
    gradient_evaluations: int
    metric: Metric
    jump_acceptance: float = math.nan

    def rhat(self) -> Tensor:
        """Rank-normalised split R-hat of each coordinate (dim,); see :func:`~avbvi.hmc.diagnostics.rank_rhat`."""
        return rank_rhat(self.draws)

    def ess(self) -> Tensor:
        """Effective number of draws for the centre of each coordinate (dim,), of chains * draws in all."""
        return bulk_ess(self.draws)

    def tail_ess(self) -> Tensor:
        """Effective number of draws for the 5 % and 95 % quantiles of each coordinate (dim,)."""
        return tail_ess(self.draws)


@torch.no_grad()
def run_hmc(
    log_prob: LogDensityFunction,
    states: Tensor,
    *,
    draws: int,
    warmup: int = 200,
    thin: int = 1,
    mass: Mass | None = None,
    target_acceptance: float = 0.8,
    leapfrog_steps: int | None = None,
    max_leapfrog_steps: int = 128,
    jump: Jump | None = None,
    restart_stuck: bool = True,
    generator: torch.Generator | None = None,
) -> HMCRun:
    """Self-tuning HMC with many chains at once.

    The warm-up adapts mass, step size (dual averaging towards the harmonic mean of the chains' acceptance
    probabilities) and trajectory length (ChEES) to the ensemble; all are frozen after it. All chains share them and
    the number of leapfrog steps, ceil(u T / step size) with u from a van der Corput sequence. What is common to all
    chains is known the better the more chains there are: use hundreds, from points spread wider than the target.

    Args:
        log_prob: (n, dim) -> (n,), differentiable; -inf outside the support.
        states: starting points (n, dim), float32 or float64, each of positive density.
        draws: draws kept per chain.
        warmup: transitions before the first of them, not kept; without any, the starting points' own scale serves.
        thin: transitions from one kept draw to the next.
        mass: how the mass is estimated; ``DiagonalMass()`` by default.
        target_acceptance: (harmonic) mean acceptance probability aimed at.
        leapfrog_steps: a fixed number of them for all trajectories, without adaptation or jitter of their length.
        max_leapfrog_steps: the most per trajectory.
        jump: another transition, to be done after each of HMC.
        restart_stuck: put chains that do not move for ten transitions of the warm-up (they started in a corner narrower
            than the common step size) where others are, if they are no more than a tenth.
        generator: of all random numbers; torch's global one by default.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range, a chain that starts where the density is zero or not finite, or a
            log_prob that returns the wrong shape or no gradient.

    Example:
        >>> import torch
        >>> from avbvi.hmc import run_hmc
        >>> _ = torch.manual_seed(0)
        >>> run = run_hmc(lambda z: -0.5 * z.square().sum(-1), 2.0 * torch.randn(200, 2), draws=8, warmup=50)
        >>> run.draws.shape, bool((run.draws.std((0, 1)) - 1.0).abs().max() < 0.1)
        (torch.Size([200, 8, 2]), True)

    Source: Hoffman, Radul and Sountsov (2021), An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
    Monte Carlo, AISTATS; Hoffman and Gelman (2014), The No-U-Turn sampler, JMLR 15.
    """
    function("log_prob", log_prob)
    instance("states", states, Tensor, "a tensor of starting points (n, dim)")
    if states.dim() != 2 or not states.is_floating_point() or 0 in states.shape:
        raise ValueError(f"states must be floating-point of shape (n, dim), found {states.dtype} {tuple(states.shape)}")
    for name, value, least in (
        ("draws", draws, 1), ("warmup", warmup, 0), ("thin", thin, 1), ("max_leapfrog_steps", max_leapfrog_steps, 1),
        ("leapfrog_steps", 1 if leapfrog_steps is None else leapfrog_steps, 1),
    ):  # fmt: skip
        integer(name, value, least)
    if not 0.0 < number("target_acceptance", target_acceptance) < 1.0:
        raise ValueError(f"target_acceptance must lie between 0 and 1, found {target_acceptance}")
    for name, given, kind, what in (
        ("mass", mass, Mass, "a Mass such as DiagonalMass()"), ("jump", jump, Jump, "a Jump such as ModeJump(modes)"),
        ("generator", generator, torch.Generator, "a torch.Generator"),
    ):  # fmt: skip
        if given is not None:
            instance(name, given, kind, what)
    flag("restart_stuck", restart_stuck)
    sampler = _Sampler(log_prob, states, mass or DiagonalMass(), jump, generator)
    sampler.fixed_steps, sampler.max_steps = leapfrog_steps, max_leapfrog_steps
    sampler.warm_up(warmup, target_acceptance, restart_stuck=restart_stuck)
    return sampler.collect(draws, thin)


def _checked(log_prob: LogDensityFunction) -> LogDensityFunction:
    """The same function, which raises if it returns anything but one real number per chain, or cuts the graph."""

    def checked(z: Tensor) -> Tensor:
        value = log_prob(z)
        if not isinstance(value, Tensor):
            raise TypeError(f"log_prob must return a torch.Tensor, found {type(value).__name__}")
        if value.shape != z.shape[:1] or not value.is_floating_point():
            raise ValueError(
                f"log_prob must return a real number per chain, shape ({len(z)},), found {value.dtype} "
                f"{tuple(value.shape)}"
            )
        # A constant density has no gradient either; another one without has been detached, or left torch.
        if not value.requires_grad and not bool((value == value[0]).all()):
            raise ValueError(
                "log_prob must be differentiable, but its values are cut off from its argument; write it in torch "
                "throughout, without detach(), item() or NumPy"
            )
        return value

    return checked


class _Sampler:
    """The chains of one run with what they have learned."""

    fixed_steps: int | None
    max_steps: int

    def __init__(
        self,
        log_prob: LogDensityFunction,
        states: Tensor,
        mass: Mass,
        jump: Jump | None,
        generator: torch.Generator | None,
    ) -> None:
        self.log_prob, self.mass, self.jump, self.generator = log_prob, mass, jump, generator
        self.state = evaluate(_checked(log_prob), states)
        dead = int((~torch.isfinite(self.state.log_prob)).sum())
        if dead:
            raise ValueError(
                f"states: log_prob is -inf, +inf or NaN at {dead} of {len(states)} starting points; start all chains "
                "inside the support, where the density is finite"
            )
        self.evaluations, self.index = 1, 0
        self.metric = mass.metric(self._moments(states), states)
        self.step_size = states.shape[1] ** -0.25
        self.length = 1.0
        self.divergences = self.transitions = self.leapfrogs = 0

    def _moments(self, states: Tensor) -> Moments:
        moments = Moments(states, dense=self.mass.dense)
        moments.add(states)
        return moments

    def _try(self, step_size: float) -> float:
        self.evaluations += 1
        transition = hmc_step(
            self.log_prob, self.state, step_size=step_size, leapfrog_steps=1, metric=self.metric,
            generator=self.generator,
        )  # fmt: skip
        return float(harmonic_mean(transition.probability))

    def advance(self) -> tuple[Transition, ChainState, float, Tensor | None]:
        """One transition (and jump); also the state before it, its jitter, and the jump's acceptance probabilities."""
        self.index += 1
        jitter = van_der_corput(self.index)
        steps = min(max(math.ceil(jitter * self.length / self.step_size), 1), self.max_steps)
        if self.fixed_steps is not None:
            steps = self.fixed_steps
        before = self.state
        transition = hmc_step(
            self.log_prob, before, step_size=self.step_size, leapfrog_steps=steps, metric=self.metric,
            generator=self.generator,
        )  # fmt: skip
        self.state = transition.state
        self.evaluations += steps
        self.leapfrogs += steps
        self.transitions += 1
        jumped = None
        if self.jump is not None:
            self.state, jumped = self.jump.step(self.log_prob, self.state, self.generator)
            self.evaluations += 1
        return transition, before, steps * self.step_size / self.length, jumped

    def warm_up(self, warmup: int, target: float, *, restart_stuck: bool) -> None:
        if not warmup:
            return
        self.step_size = reasonable_step_size(self._try, self.step_size)
        averaging, chees = DualAveraging(self.step_size, target), ChEES(self.length)
        updates = _mass_updates(warmup)
        moments = Moments(self.state.z, dense=self.mass.dense)
        moved, checked = torch.zeros_like(self.state.log_prob, dtype=torch.bool), 0
        for i in range(1, warmup + 1):
            self.step_size = averaging.step_size
            transition, before, jitter, _ = self.advance()
            averaging.update(float(harmonic_mean(transition.probability)))
            if self.fixed_steps is None:
                start, end = self.metric.whiten(before.z), self.metric.whiten(transition.proposed)
                proposals = Proposals(start, end, transition.momentum, transition.probability)
                # Jitter halves the length on average.
                chees.update(proposals, jitter, 2.0 * self.max_steps * self.step_size)
                self.length = chees.length
            moments.add(self.state.z)
            moved |= (self.state.z != before.z).any(-1)
            if self.jump is not None:
                self.jump.observe(self.state.z)
            if i in updates:
                self.metric = self.mass.metric(moments, self.state.z)
                moments = Moments(self.state.z, dense=self.mass.dense)
                if self.jump is not None:
                    self.jump.update()
                if restart_stuck and i - checked >= _STUCK_AFTER:
                    self._restart(~moved)
                    moved, checked = torch.zeros_like(moved), i
                averaging = DualAveraging(averaging.average, target)
        self.step_size = averaging.average
        if self.fixed_steps is None:
            self.length = chees.average

    def _restart(self, stuck: Tensor) -> None:
        """Replace the states of stuck chains (n,) by those of others, if they are few: else a mode could be lost."""
        stuck_index, free = stuck.nonzero().squeeze(1), (~stuck).nonzero().squeeze(1)
        if 0 < len(stuck_index) <= _STUCK_SHARE * len(stuck):
            uniform = torch.rand(len(stuck_index), device=free.device, generator=self.generator)
            source = torch.arange(len(stuck), device=free.device)
            source[stuck_index] = free[(uniform * len(free)).long().clamp_max(len(free) - 1)]
            self.state = ChainState(*(x[source] for x in self.state))

    def collect(self, draws: int, thin: int) -> HMCRun:
        n, dim = self.state.z.shape
        self.transitions = self.leapfrogs = 0
        kept = self.state.z.new_empty(n, draws, dim)
        log_prob, acceptance = self.state.log_prob.new_empty(n, draws), self.state.log_prob.new_zeros(n, draws)
        diverging = torch.zeros(n, draws, dtype=torch.bool, device=kept.device)
        divergences = torch.zeros((), dtype=torch.long, device=kept.device)
        jumps: list[Tensor] = []
        for i in range(draws):
            for _ in range(thin):
                transition, _, _, jumped = self.advance()
                acceptance[:, i] += transition.probability / thin
                diverging[:, i] |= transition.divergent
                divergences += transition.divergent.sum()
                if jumped is not None:
                    jumps.append(jumped.mean())
            kept[:, i], log_prob[:, i] = self.state.z, self.state.log_prob
        return HMCRun(
            kept, log_prob, acceptance, diverging, int(divergences), self.step_size, self.length,
            self.leapfrogs / self.transitions, self.evaluations, self.metric,
            float(torch.stack(jumps).mean()) if jumps else math.nan,
        )  # fmt: skip


def _mass_updates(warmup: int) -> set[int]:
    """After which transitions the mass is estimated anew: five at least apart and from the end, for the step size."""
    updates = [0]
    for share in _MASS_UPDATES:
        i = math.ceil(share * warmup)
        if i - updates[-1] >= 5 and warmup - i >= 5:
            updates.append(i)
    return set(updates[1:])


class Chains(NamedTuple):
    """Where a short run of HMC ended.

    Attributes:
        states: final states of all chains (n, dim).
        acceptance: mean acceptance probability of the last transition.
        step_size: the one reached, in units of the coordinates' standard deviations.
    """

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
    """Move many chains by a few HMC steps each, to remove local errors of a sample.

    The step size is adapted in the first half and fixed in the second, so that the second half leaves the
    target invariant. Chains do not cross between separated modes: their weights stay as they are.

    Args:
        log_prob: (n, dim) -> (n,), differentiable; chains may start where it is -inf.
        states: starting points (n, dim), roughly whitened or at least on a common scale.
        steps: transitions per chain.
        leapfrog_steps: gradient evaluations per transition.
        target_acceptance: mean acceptance probability aimed at.

    Returns:
        The final states (n, dim), with acceptance and step size.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: states of another shape or fewer than two, fewer than one step, or an acceptance outside (0, 1).

    Example:
        Draws that are half as wide as the standard normal, before and after:

        >>> import torch
        >>> from avbvi.hmc import short_hmc
        >>> _ = torch.manual_seed(0)
        >>> states = 0.5 * torch.randn(2000, 2)
        >>> moved = short_hmc(lambda z: -0.5 * z.square().sum(-1), states).states
        >>> round(float(states.std()), 1), round(float(moved.std()), 1)
        (0.5, 1.0)

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, chapter 5.
    """
    function("log_prob", log_prob)
    instance("states", states, Tensor, "a tensor of starting points (n, dim)")
    if states.dim() != 2 or not states.is_floating_point() or len(states) < 2:
        raise ValueError(
            f"states must be floating-point of shape (n, dim), n at least 2, found {states.dtype} {tuple(states.shape)}"
        )
    integer("steps", steps, 1)
    integer("leapfrog_steps", leapfrog_steps, 1)
    if not 0.0 < number("target_acceptance", target_acceptance) < 1.0:
        raise ValueError(f"target_acceptance must lie between 0 and 1, found {target_acceptance}")
    metric = DiagonalMetric(states.std(0).clamp_min(1e-12))
    state = evaluate(_checked(log_prob), states)
    # On the device: nothing is read back before the end.
    step_size = torch.full((), 0.5 * states.shape[1] ** -0.25, dtype=torch.float64, device=states.device)
    accepted = torch.zeros_like(step_size)
    for i in range(steps):
        transition = hmc_step(log_prob, state, step_size=step_size, leapfrog_steps=leapfrog_steps, metric=metric)
        state, accepted = transition.state, transition.probability.mean()
        if i < steps // 2:
            step_size = step_size * (0.5 * (accepted.double() - target_acceptance)).exp()
    return Chains(state.z, float(accepted), float(step_size))
