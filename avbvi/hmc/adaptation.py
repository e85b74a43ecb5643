"""What batched HMC learns in its warm-up: mass, step size and trajectory length, from all chains at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Chains that never accept would hold the harmonic mean at 0; with this floor one in ten of them halves it.
_ACCEPTANCE_FLOOR = 0.1


class Metric(ABC):
    """Inverse mass matrix S = L L^T, used through its factor L: momenta are standard normal in units of L^-T.

    In these units the leapfrog is r += eps/2 L^T g, z += eps L r (Neal 2011, section 4.1): that of a target
    whitened by L.
    """

    @abstractmethod
    def scale(self, r: Tensor) -> Tensor:
        """L r for each row: (n, dim) -> (n, dim)."""

    @abstractmethod
    def pull(self, gradient: Tensor) -> Tensor:
        """L^T g for each row g of ``gradient``: (n, dim) -> (n, dim)."""

    @abstractmethod
    def whiten(self, z: Tensor) -> Tensor:
        """L^-1 z for each row: (n, dim) -> (n, dim)."""


class DiagonalMetric(Metric):
    """A diagonal L.

    Args:
        scales: its diagonal (dim,), in the units of the coordinates.
    """

    def __init__(self, scales: Tensor) -> None:
        self.scales = scales

    def scale(self, r: Tensor) -> Tensor:
        return r * self.scales

    def pull(self, gradient: Tensor) -> Tensor:
        return gradient * self.scales

    def whiten(self, z: Tensor) -> Tensor:
        return z / self.scales


class DenseMetric(Metric):
    """A lower-triangular L.

    Args:
        factor: L (dim, dim), its rows in the units of the coordinates.
    """

    def __init__(self, factor: Tensor) -> None:
        self.factor = factor

    def scale(self, r: Tensor) -> Tensor:
        return r @ self.factor.mT

    def pull(self, gradient: Tensor) -> Tensor:
        return gradient @ self.factor

    def whiten(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, z.mT, upper=False).mT


class Moments:
    """Running mean and covariance of states, pooled over chains and transitions, in float64.

    Args:
        like: states (n, dim) whose mean is subtracted from all, so that the sums do not cancel.
        dense: keep the whole covariance, not only its diagonal.
    """

    def __init__(self, like: Tensor, *, dense: bool) -> None:
        self.center: Tensor = like.double().mean(0)
        # Their own scale too, so that the squares of very small or large states do not under- or overflow.
        self.scale: Tensor = _scales(like.double().var(0, correction=0))
        self.count: int = 0
        self.sum: Tensor = torch.zeros_like(self.center)
        dim = len(self.center)
        self.square: Tensor = self.sum.new_zeros((dim, dim) if dense else (dim,))

    def add(self, states: Tensor) -> None:
        """Count states (n, dim)."""
        x = (states.double() - self.center) / self.scale
        self.count += len(x)
        self.sum += x.sum(0)
        self.square += x.mT @ x if self.square.dim() == 2 else x.square().sum(0)

    def variance(self) -> Tensor:
        """Covariance (dim, dim), or variances (dim,), in the units of the states."""
        mean = self.sum / self.count
        if self.square.dim() == 2:
            return (self.square / self.count - torch.outer(mean, mean)) * torch.outer(self.scale, self.scale)
        return (self.square / self.count - mean.square()).clamp_min(0.0) * self.scale.square()


class Mass(ABC):
    """How the mass is estimated from the chains: the inverse mass is the ensemble's (co)variance."""

    #: Whether the estimate needs the whole covariance.
    dense: bool = False

    @abstractmethod
    def metric(self, moments: Moments, like: Tensor) -> Metric:
        """The metric for these moments, with dtype and device of ``like``, of any shape."""


class DiagonalMass(Mass):
    """Inverse mass: the variances of the coordinates. Cheap, and all that few chains can tell.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, section 5.4.1.
    """

    def metric(self, moments: Moments, like: Tensor) -> Metric:
        return DiagonalMetric(_scales(moments.variance()).to(like))


class DenseMass(Mass):
    """Inverse mass: the covariance, which removes linear correlation; asks for more chains than dimensions.

    The correlations are multiplied by count / (count + dim / 10), so that few states give a proper matrix.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, Handbook of MCMC, section 5.4.1; the factor is this project's.
    """

    dense = True

    def metric(self, moments: Moments, like: Tensor) -> Metric:
        covariance = moments.variance()
        scales = _scales(covariance.diagonal())
        keep = moments.count / (moments.count + 0.1 * len(scales))
        correlation = keep * covariance / torch.outer(scales, scales)
        # Also for a coordinate that does not vary.
        factor, info = torch.linalg.cholesky_ex(correlation.fill_diagonal_(1.0))
        if int(info) != 0 or not bool(torch.isfinite(factor).all()):
            return DiagonalMetric(scales.to(like))
        return DenseMetric((scales[:, None] * factor).to(like))


def _scales(variance: Tensor) -> Tensor:
    """Standard deviations (dim,); where all chains agree the median of the others, 1 if there is none."""
    scales = variance.clamp_min(0.0).sqrt()
    varied = scales > 0.0
    fallback = scales[varied].median() if bool(varied.any()) else scales.new_ones(())
    return torch.where(varied, scales, fallback)


def harmonic_mean(probability: Tensor) -> Tensor:
    """Harmonic mean of the chains' acceptance probabilities (n,), each taken for at least 0.1.

    It follows the chains that move least (Hoffman, Radul and Sountsov 2021, section 4).
    """
    return probability.clamp_min(_ACCEPTANCE_FLOOR).reciprocal().mean().reciprocal()


class DualAveraging:
    """Step size by dual averaging (Hoffman and Gelman 2014, section 3.2.1, with their t_0 = 10 and kappa = 0.75).

    Their gamma of 0.05 lets the step size swing with every trajectory's length and ends with too short a step (0.93
    accepted for 0.75 asked); the mean over many chains is precise enough for 0.2.

    Args:
        step_size: where to start; the search is drawn towards it, as it was found by doubling.
        target: acceptance probability aimed at.
    """

    def __init__(self, step_size: float, target: float) -> None:
        self.target = target
        self._mu = math.log(step_size)
        self._log_step = math.log(step_size)
        self._log_average = 0.0
        self._error = 0.0
        self._count = 0

    def update(self, acceptance: float) -> None:
        """Count the mean acceptance probability of one transition."""
        self._count += 1
        weight = 1.0 / (self._count + 10.0)
        self._error = (1.0 - weight) * self._error + weight * (self.target - acceptance)
        self._log_step = self._mu - math.sqrt(self._count) / 0.2 * self._error
        forget = self._count**-0.75
        self._log_average = forget * self._log_step + (1.0 - forget) * self._log_average

    @property
    def step_size(self) -> float:
        """The step size to try next."""
        return math.exp(self._log_step)

    @property
    def average(self) -> float:
        """The averaged step size, for use after the warm-up."""
        return math.exp(self._log_average) if self._count else self.step_size


class Proposals(NamedTuple):
    """What ChEES reads off a transition, in whitened coordinates: states before and proposed, its velocity (n, dim),
    and the acceptance probability (n,)."""

    before: Tensor
    proposed: Tensor
    velocity: Tensor
    probability: Tensor


class ChEES:
    """Trajectory length that maximises the change in the estimator of the expected square (ChEES).

    The criterion is 1/4 E[(|z' - E z|^2 - |z - E z|^2)^2]; its gradient in the length is averaged over chains by their
    acceptance probabilities and followed by Adam (Hoffman, Radul and Sountsov 2021, algorithm 1). Here it is
    taken in whitened coordinates: in others the widest of them would count alone.

    Args:
        length: where to start, in units of the step size times leapfrog steps.
        learning_rate: of Adam, on the logarithm of the length.
    """

    def __init__(self, length: float, learning_rate: float = 0.05) -> None:
        self._log_length = math.log(length)
        self._learning_rate = learning_rate
        self._second, self._count = 0.0, 0
        self._log_average = self._log_length

    def update(self, proposals: Proposals, jitter: float, longest: float) -> None:
        """Follow the gradient by one transition whose length was ``jitter`` times the current one.

        ``longest`` is the largest length allowed.
        """
        before, proposed, velocity, probability = proposals
        centred = proposed - _weighted_mean(proposed, probability)
        change = centred.square().sum(-1) - (before - before.mean(0)).square().sum(-1)
        gradient = jitter * self.length * change * (centred * velocity).sum(-1)
        usable = torch.isfinite(gradient) & (probability > 1e-4)
        weight = torch.where(usable, probability, 0.0)
        total = float(weight.sum())
        if total == 0.0:
            return
        mean = float((weight * torch.where(usable, gradient, 0.0)).sum()) / total
        self._count += 1
        # Adam without momentum, beta_2 = .95, as in the paper.
        self._second = 0.95 * self._second + 0.05 * mean**2
        step = mean / (math.sqrt(self._second / (1.0 - 0.95**self._count)) + 1e-12)
        self._log_length = min(self._log_length + self._learning_rate * step, math.log(longest))
        self._log_average = 0.9 * self._log_average + 0.1 * self._log_length

    @property
    def length(self) -> float:
        """Current length."""
        return math.exp(self._log_length)

    @property
    def average(self) -> float:
        """Mean length of the last steps, for use after the warm-up."""
        return math.exp(self._log_average)


def _weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    weight = torch.where(torch.isfinite(x).all(-1), weight, 0.0)
    return (weight[:, None] * torch.where(weight[:, None] > 0, x, 0.0)).sum(0) / weight.sum().clamp_min(1e-12)


def van_der_corput(index: int) -> float:
    """The index-th term, counted from 1, of the base-2 van der Corput sequence in (0, 1)."""
    result, digit = 0.0, 0.5
    while index:
        result += digit * (index & 1)
        index >>= 1
        digit *= 0.5
    return result


def reasonable_step_size(accepted: Callable[[float], float], start: float, *, tries: int = 40) -> float:
    """Double or halve a step size until one leapfrog step's acceptance crosses 0.5 (Hoffman and Gelman 2014, alg. 4).

    Args:
        accepted: step size to the mean acceptance probability of one leapfrog step.
        start: first step size.
        tries: how often at most.
    """
    step_size = start
    grows = accepted(step_size) > 0.5
    for _ in range(tries):
        other = step_size * (2.0 if grows else 0.5)
        if (accepted(other) > 0.5) != grows:
            return step_size if grows else other
        step_size = other
    return step_size
