"""What annealed importance sampling returns: the log-evidence of each datum, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..estimates import Estimate
from .temperatures import Temperatures


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log of the mean of exp(log_weights) over the first dimension, in float64: (n, B) -> (B,)."""
    return log_weights.double().logsumexp(0) - math.log(len(log_weights))


def jackknife_stderr(log_weights: Tensor) -> Tensor:
    """Standard error of :func:`log_mean_exp` over the chains, by leaving out one at a time: (n, B) -> (B,), float64.

    Where one weight outweighs the others by d nats it comes near d; the delta method, which is linear, would say 1.
    NaN for a single chain, infinite where all weights but one are 0.

    Source: Efron and Stein (1981), The jackknife estimate of variance, Annals of Statistics 9(3), 586-596.
    """
    n = len(log_weights)
    if n == 1:
        return torch.full(log_weights.shape[1:], math.nan, dtype=torch.float64, device=log_weights.device)
    without = _without(log_weights.double())
    variance = (n - 1) / n * (without - without.mean(0)).square().sum(0)
    return torch.where(torch.isfinite(variance), variance, math.inf).sqrt()


def _without(x: Tensor) -> Tensor:
    """log-mean-exp of all but one, for each (n, B), by sums from both sides: nothing cancels."""
    n = len(x)
    none = torch.full_like(x[:1], -math.inf)
    below = torch.cat([none, x[:-1].logcumsumexp(0)])
    above = torch.cat([x[1:].flip(0).logcumsumexp(0).flip(0), none])
    return torch.logaddexp(below, above) - math.log(n - 1)


def mean_over_data(value: Tensor, stderr: Tensor) -> Estimate:
    """Mean over data (B,), with the error that the chains leave: the data count as given."""
    return Estimate(float(value.mean()), float(stderr.square().sum().sqrt()) / len(value))


@dataclass(frozen=True)
class AnnealedEvidence:
    """Log-evidence by annealed importance sampling.

    Its expectation is a lower bound of the truth (Jensen's inequality): exp(log weight) is unbiased, its logarithm
    lies too low by about half the variance of the log-weights over the number of chains. Where ``ess`` is near
    1 of many chains, more temperatures are needed, or a better start.

    Attributes:
        log_weights: (chains, B), float64, in nats.
        draws: the chains' last states (chains, B, dim), unconstrained: posterior draws if weighted by ``log_weights``.
        acceptance: mean acceptance probability by temperature (n,).
        temperatures: the schedule.
        leapfrog_steps: by transition.
        seconds: wall time, over all sittings of a resumed run.
    """

    log_weights: Tensor
    draws: Tensor = field(repr=False)
    acceptance: Tensor = field(repr=False)
    temperatures: Temperatures
    leapfrog_steps: int
    seconds: float

    @cached_property
    def log_evidence(self) -> Tensor:
        """Log of the mean weight of each datum (B,), float64."""
        return log_mean_exp(self.log_weights)

    @cached_property
    def stderr(self) -> Tensor:
        """Standard error of ``log_evidence`` over the chains (B,), by the jackknife; NaN for a single chain."""
        return jackknife_stderr(self.log_weights)

    @cached_property
    def ess(self) -> Tensor:
        """Effective number of chains by datum (B,): (sum w)^2 / sum w^2, from 1 to their number."""
        return (2.0 * self.log_weights.logsumexp(0) - (2.0 * self.log_weights).logsumexp(0)).exp()

    @property
    def mean(self) -> Estimate:
        """Mean log-evidence per datum in nats, with the chains' standard error: the data count as given."""
        return mean_over_data(self.log_evidence, self.stderr)

    @property
    def total(self) -> Estimate:
        """Log-evidence of all data together in nats, the sum over them."""
        value, stderr = self.mean
        batch = len(self.log_evidence)
        return Estimate(batch * value, batch * stderr)

    @property
    def data_sd(self) -> float:
        """Standard deviation of ``log_evidence`` between data, in nats; NaN for a single datum.

        Over sqrt(B) it is the error of ``mean`` as that of the population that the data are drawn from.
        """
        return float(self.log_evidence.std()) if len(self.log_evidence) > 1 else math.nan

    def __str__(self) -> str:
        chains, batch = self.log_weights.shape
        data = "1 datum" if batch == 1 else f"{batch} data"
        lines = [
            f"log-evidence {self.mean}" + (" per datum" if batch > 1 else "")
            + f" ({data}, {chains} chains, {self.temperatures}, {self.leapfrog_steps} leapfrog steps, "
            f"{self.seconds:.1f} s)"
        ]  # fmt: skip
        if batch > 1:
            lines.append(f"  between data: standard deviation {self.data_sd:.4g}")
        worst, low, high = float(self.stderr.max()), float(self.acceptance.min()), float(self.acceptance.max())
        lines.append(
            f"  effective chains: median {float(self.ess.median()):.1f}, least {float(self.ess.min()):.1f}; largest "
            f"standard error {worst:.2g}; acceptance {low:.2f} to {high:.2f}"
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Sandwich:
    """Stochastic lower and upper bounds of the log-evidence of simulated data.

    Each bound holds in expectation. The chains of the upper bound share one posterior draw by datum, whose
    part in the error ``upper_stderr`` does not see; that of ``gap`` does, since it is taken between data.

    Attributes:
        forward: the run from the start density.
        backward_log_weights: (chains, B), float64, of the run from the posterior draws.
        seconds: wall time of both.
    """

    forward: AnnealedEvidence
    backward_log_weights: Tensor
    seconds: float

    @property
    def lower(self) -> Tensor:
        """Lower bounds by datum (B,), float64."""
        return self.forward.log_evidence

    @property
    def lower_stderr(self) -> Tensor:
        """Their standard errors over chains (B,)."""
        return self.forward.stderr

    @cached_property
    def upper(self) -> Tensor:
        """Upper bounds by datum (B,), float64."""
        return -log_mean_exp(-self.backward_log_weights)

    @cached_property
    def upper_stderr(self) -> Tensor:
        """Their standard errors over chains, given the posterior draws (B,)."""
        return jackknife_stderr(-self.backward_log_weights)

    @property
    def mean_lower(self) -> Estimate:
        """Mean lower bound per datum in nats, with the chains' standard error."""
        return self.forward.mean

    @property
    def mean_upper(self) -> Estimate:
        """Mean upper bound per datum in nats, with the chains' standard error."""
        return mean_over_data(self.upper, self.upper_stderr)

    @property
    def gap(self) -> Estimate:
        """Mean of upper - lower over the data in nats; its error is between data, or over chains for a single one."""
        difference = self.upper - self.lower
        if len(difference) == 1:
            return Estimate(float(difference), float((self.lower_stderr**2 + self.upper_stderr**2).sqrt()))
        return Estimate(float(difference.mean()), float(difference.std()) / math.sqrt(len(difference)))

    def __str__(self) -> str:
        return (
            f"log-evidence between {self.mean_lower} and {self.mean_upper} per datum, gap {self.gap} "
            f"({len(self.lower)} simulated data, {self.seconds:.1f} s)"
        )
