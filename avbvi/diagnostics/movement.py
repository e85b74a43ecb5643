"""Moment shift: a fit's draws before and after a short batched HMC, which needs no density of q."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..distributions import Draw
from ..estimates import Estimate
from ..hmc.adaptation import DiagonalMetric, van_der_corput
from ..hmc.kernel import evaluate, hmc_step
from ..paired import paired_changes

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget

LogDensityFunction = Callable[[Tensor], Tensor]

CHAINS, LEAST_CHAINS = 2000, 200
TRANSITIONS = 24
#: Chains of a model that is run draw by draw.
CHAINS_ONE_BY_ONE = 100
#: Seconds for one gradient of all chains above which there are fewer.
SLOW_GRADIENT = 0.15
MOST_LEAPFROG_STEPS = 12
#: Mean length of a trajectory in units of the draws' standard deviations: a quarter of a Gaussian's period.
TRAJECTORY = 0.5 * math.pi


@dataclass(frozen=True)
class Movement:
    """Draws in the coordinates of the chains, before and after HMC, and what can be said of both.

    Attributes:
        before: the draws (n, dim).
        after: the same chains moved (n, dim).
        log_p_before: log p (n,) in nats, up to a constant.
        log_p_after: the same of the moved draws (n,).
        log_weight_before: log p - log q (n,) in nats, exact or learned; NaN where log q is not known.
        log_weight_after: the same of the moved draws (n,).
        acceptance: mean rate of acceptance over the second half.
        z_before: ``before`` in the model's unconstrained coordinates (n, dim); ``None`` where not kept.
        z_after: ``after`` in the same (n, dim).
    """

    before: Tensor
    after: Tensor
    log_p_before: Tensor
    log_p_after: Tensor
    log_weight_before: Tensor
    log_weight_after: Tensor
    acceptance: float
    z_before: Tensor | None = None
    z_after: Tensor | None = None

    def divergence(self) -> Estimate:
        """Mean log weight after less before (nats), with the standard error of the pairs.

        For an exact log q it is KL(q, p) + KL(q', q) - KL(q', p), with q' the law of the moved draws:
        Jeffreys' divergence of q and p if these have reached p, and 0 if q is p. No evidence is needed.
        """
        return _paired_mean(self.log_weight_after - self.log_weight_before)

    def energy(self) -> Estimate:
        """Mean of log p after less before (nats), with the standard error of the pairs; 0 if q is p."""
        return _paired_mean(self.log_p_after - self.log_p_before)


@dataclass(frozen=True)
class MomentShift:
    """The largest changes of moments over all directions, found on one half of the chains and measured on the other.

    Attributes:
        mean: shift of the mean, in standard deviations of the moved draws.
        narrowest: the smallest ratio of standard deviations, before over after: below 1 the fit is too narrow.
        widest: the largest such ratio.
        shifts: of each coordinate's mean (dim,), in its standard deviations.
        shift_errors: their standard errors (dim,).
        ratios: of each coordinate's standard deviations (dim,).
        ratio_errors: their standard errors (dim,).
    """

    mean: Estimate
    narrowest: Estimate
    widest: Estimate
    shifts: Tensor
    shift_errors: Tensor
    ratios: Tensor
    ratio_errors: Tensor


@torch.no_grad()
def move(
    guide: AVBGuide,
    target: UnconstrainedTarget,
    *,
    chains: int = CHAINS,
    transitions: int = TRANSITIONS,
) -> Movement:
    """Move fresh draws of a guide by a short HMC in its trunk's base coordinates, which precondition the chains.

    A trunk that is no bijection is replaced by whitening.

    Args:
        guide: set up, in its final stage.
        target: what it approximates.
        chains: number of draws; fewer where one gradient of all of them takes more than 0.15 s.
        transitions: HMC transitions per chain; the step size is adapted in the first half.

    Returns:
        The draws before and after (n, dim), with their log-densities (n,) in nats.

    Raises:
        ValueError: fewer than 10 draws of finite density.
    """
    coordinates = _Coordinates(guide, target, guide.draw(chains))
    if not target.vectorize:
        chains = min(chains, CHAINS_ONE_BY_ONE)
    else:
        probe = coordinates.encode(guide.draw(chains))
        started = time.monotonic()
        evaluate(coordinates.log_prob, probe)
        seconds = time.monotonic() - started
        if seconds > SLOW_GRADIENT:
            chains = max(int(chains * SLOW_GRADIENT / seconds), min(LEAST_CHAINS, chains))
    before = coordinates.encode(guide.draw(chains))
    log_p = coordinates.log_prob(before)
    inside = torch.isfinite(log_p) & torch.isfinite(before).all(-1)
    before, log_p = before[inside], log_p[inside]
    if len(before) < 10:
        raise ValueError(f"only {len(before)} of {chains} draws have a finite density; 10 are needed")
    after, log_p_after, acceptance = move_chains(coordinates.log_prob, before, transitions)
    return Movement(
        before,
        after,
        log_p,
        log_p_after,
        log_p - coordinates.log_q(before),
        log_p_after - coordinates.log_q(after),
        acceptance,
        coordinates.decode(before).z,
        coordinates.decode(after).z,
    )


def move_chains(log_prob: LogDensityFunction, states: Tensor, transitions: int) -> tuple[Tensor, Tensor, float]:
    """Moved states (n, dim), their log-density (n,) and the mean acceptance of the second half.

    Trajectories have jittered lengths, so that none comes back to its start, and each chain a step size of its own, so
    that those in a narrow place move as well. Neither depends on the state: the second half leaves p invariant.

    Args:
        log_prob: (n, dim) -> (n,), differentiable.
        states: starting points (n, dim) of finite density.
        transitions: HMC transitions, adapted in the first half.
    """
    metric = DiagonalMetric(states.std(0).clamp_min(1e-12))
    step_size = 0.5 * states.shape[1] ** -0.25
    state, accepted = evaluate(log_prob, states), []
    for i in range(transitions):
        jitter = 0.25 ** torch.rand(len(states), 1, dtype=states.dtype, device=states.device)
        length = 2.0 * TRAJECTORY * van_der_corput(i + 1)
        # The jitter's mean is about 0.54.
        steps = min(max(math.ceil(length / (0.54 * step_size)), 1), MOST_LEAPFROG_STEPS)
        transition = hmc_step(log_prob, state, step_size=step_size * jitter, leapfrog_steps=steps, metric=metric)
        state = transition.state
        accepted.append(float(transition.probability.mean()))
        if i < transitions // 2:
            step_size = min(step_size * math.exp(0.8 * (accepted[-1] - 0.8)), 2.0)
    late = accepted[transitions // 2 :]
    return state.z, state.log_prob, sum(late) / max(len(late), 1)


def moment_shift(before: Tensor, after: Tensor) -> MomentShift:
    """Changes of the moments of paired draws (n, dim), over all directions and by coordinate.

    The directions of extreme change are found on each half of the pairs and measured on the other, so that the figures
    are not selected on their own noise. Standard errors are those of the pairs (delta method for the ratios).

    Args:
        before: the chains (n, dim), n >= 20.
        after: the same chains, moved (n, dim).

    Returns:
        Shifts in standard deviations and ratios of standard deviations, with their errors.

    Example:
        Draws of half the standard deviation, and the same after they have been widened and shifted:

        >>> import torch
        >>> from avbvi.diagnostics import moment_shift
        >>> _ = torch.manual_seed(0)
        >>> z = torch.randn(1000, 2)
        >>> found = moment_shift(0.5 * z, z + torch.tensor([1.0, 0.0]))
        >>> round(float(found.shifts[0]), 1), round(float(found.ratios[0]), 1)
        (1.0, 0.5)
    """
    x, y = before.double(), after.double()
    halves = (slice(0, None, 2), slice(1, None, 2))
    means, narrow, wide = [], [], []
    for found, measured in (halves, halves[::-1]):
        directions = _directions(x[found], y[found])
        shift, shift_error, ratio, ratio_error = _changes(x[measured] @ directions, y[measured] @ directions)
        means.append(Estimate(abs(float(shift[0])), float(shift_error[0])))
        narrow.append(Estimate(float(ratio[1]), float(ratio_error[1])))
        wide.append(Estimate(float(ratio[2]), float(ratio_error[2])))
    return MomentShift(_average(means), _average(narrow), _average(wide), *_changes(x, y))


def _directions(x: Tensor, y: Tensor) -> Tensor:
    """Columns (dim, 3): of the largest shift of the mean, and of the smallest and largest ratio of sds, x over y."""
    dim = x.shape[1]
    cov_x, cov_y = torch.cov(x.mT).reshape(dim, dim), torch.cov(y.mT).reshape(dim, dim)
    ridge = 1e-10 * torch.eye(dim, dtype=y.dtype, device=y.device) * cov_y.diagonal().mean().clamp_min(1e-300)
    factor = torch.linalg.cholesky_ex(cov_y + ridge)[0]
    half = torch.linalg.solve_triangular(factor, cov_x, upper=False)
    both = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    _, vectors = torch.linalg.eigh(0.5 * (both + both.mT).nan_to_num())
    delta = torch.linalg.solve_triangular(factor, (y.mean(0) - x.mean(0))[:, None], upper=False)
    columns = torch.cat([delta, vectors[:, :1], vectors[:, -1:]], -1)
    return torch.linalg.solve_triangular(factor.mT, columns, upper=True)


def _changes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shift of the means in sds of y, ratio of the sds x over y, each (dim,) followed by its standard error."""
    changes = paired_changes(x, y)
    ratio = 1.0 / changes.ratio
    return changes.shift, changes.shift_stderr, ratio, ratio.square() * changes.ratio_stderr


def _average(estimates: list[Estimate]) -> Estimate:
    n = len(estimates)
    return Estimate(sum(e.value for e in estimates) / n, math.sqrt(sum(e.stderr**2 for e in estimates)) / n)


def _paired_mean(difference: Tensor) -> Estimate:
    difference = difference.double()
    difference = difference[torch.isfinite(difference)]
    if len(difference) < 2:
        return Estimate(math.nan, math.nan)
    return Estimate(float(difference.mean()), float(difference.std() / math.sqrt(len(difference))))


class _Coordinates:
    """Where the chains move: the trunk's base coordinates, or latent ones whitened by draws of q."""

    def __init__(self, guide: AVBGuide, target: UnconstrainedTarget, draws: Draw) -> None:
        self.guide, self.target = guide, target
        trunk = guide.part("trunk")
        dim = draws.z.shape[1]
        self.base = trunk.base_dim == dim and getattr(trunk, "is_bijection", True)
        self.loc = draws.z.mean(0)
        covariance = torch.cov(draws.z.double().mT).reshape(dim, dim)
        factor, info = torch.linalg.cholesky_ex(covariance)
        good = int(info) == 0 and bool(torch.isfinite(factor).all())
        self.factor = (factor if good else torch.diag(covariance.diagonal().clamp_min(1e-30).sqrt())).to(draws.z)

    def encode(self, draw: Draw) -> Tensor:
        if self.base:
            return draw.base
        return torch.linalg.solve_triangular(self.factor, (draw.z - self.loc).mT, upper=False).mT

    def decode(self, e: Tensor) -> Draw:
        if self.base:
            z, log_det = self.guide.part("trunk")(e)
            return Draw(z, e, log_det)
        return Draw(self.loc + e @ self.factor.mT, e, self.factor.diagonal().log().sum().expand(len(e)))

    def log_prob(self, e: Tensor) -> Tensor:
        draw = self.decode(e)
        return self.target.log_prob(draw.z) + draw.log_det

    @torch.no_grad()
    def log_q(self, e: Tensor) -> Tensor:
        """log q in these coordinates (n,)."""
        draw = self.decode(e)
        if self.base:
            log_q: Tensor = self.guide.base_log_prob(draw, self.target.args, self.target.kwargs)
            return log_q
        posterior = self.guide.get_posterior(*self.target.args, **self.target.kwargs)
        result: Tensor = posterior.log_prob(draw.z) + draw.log_det
        return result
