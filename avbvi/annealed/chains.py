"""Annealed chains of one batch of data, forward from the start density or backward from posterior draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..hmc import Metric
from .path import Move, Path, PathState, hmc_move

#: Acceptances that the common step size is read off at a time, at least, where the data are few.
_LEAST_PILOTS = 32
#: The pilots of a long schedule stop at so many temperatures from its beginning on, where step sizes change fast, and
#: then in strides that make for as many again.
_PILOT_STOPS = 100
#: Gains of the logarithm of the step size: what all data have in common, and what a datum has of its own.
_COMMON_GAIN, _OWN_GAIN = 0.6, 0.05
_SMALLEST_LOG_STEP, _LARGEST_LOG_STEP = -15.0, 3.0
#: Step sizes are multiplied by uniform numbers from here to 1, lest a trajectory close to a period go nowhere.
_LEAST_JITTER = 0.7


def pilots_for(batch: int) -> int:
    """How many pilot chains a datum has: one, or more where the data are few."""
    return max(1, math.ceil(_LEAST_PILOTS / batch))


class StepSizes:
    """Step sizes by temperature and datum, learned from pilot chains alone.

    The pilots' weights are not used, and no other chain tells the pilots anything: given the step sizes, the others'
    transitions are fixed beforehand, and their weights are unbiased as if the step sizes had been chosen by hand.

    Args:
        count: number of temperatures.
        state: gives the number of data, dimension, dtype and device.
        target: acceptance probability aimed at.
    """

    def __init__(self, count: int, state: PathState, target: float) -> None:
        self.target = target
        _, batch, dim = state.z.shape
        # For a Gaussian in its own units, .65 are accepted at about dim^(-1/4).
        self.log_step = torch.full((batch,), -0.25 * math.log(dim), dtype=torch.float64, device=state.z.device)
        self.by_temperature = self.log_step.new_zeros(count, batch)

    def at(self, index: int) -> Tensor:
        """Step sizes (B,) to be used at a temperature, which are kept."""
        self.by_temperature[index] = self.log_step.exp()
        return self.by_temperature[index]

    def learn(self, probability: Tensor) -> None:
        """Take note of the pilots' acceptance probabilities (pilots, B)."""
        own = probability.double().mean(0)
        common = own.mean()
        self.log_step += _COMMON_GAIN * (common - self.target) + _OWN_GAIN * (own - common)
        self.log_step.clamp_(_SMALLEST_LOG_STEP, _LARGEST_LOG_STEP)


class Annealing(ABC):
    """Chains under way: what they have done so far, and where they are.

    ``log_weights`` (chains, B), float64, are sums of log-ratios so far; ``acceptance`` (n,) is the mean acceptance
    probability by temperature, NaN where none has been.
    """

    state: PathState
    log_weights: Tensor
    acceptance: Tensor
    done: int

    def __init__(
        self, path: Path, betas: Tensor, metric: Metric, leapfrog_steps: int, generator: torch.Generator
    ) -> None:
        self.path, self.betas, self.metric = path, betas.tolist(), metric
        self.leapfrog_steps, self.generator = leapfrog_steps, generator
        self.done = 0
        self.acceptance = torch.full((self.count,), math.nan, dtype=torch.float64)

    @property
    def count(self) -> int:
        """Number of temperatures n."""
        return len(self.betas) - 1

    @property
    def finished(self) -> bool:
        """Whether all temperatures are done."""
        return self.done >= self.count

    @abstractmethod
    def advance(self) -> None:
        """Do the next temperature."""

    def _weigh(self, index: int, log_ratio: Tensor) -> None:
        """Add the interval from beta_index to beta_(index + 1)."""
        self.log_weights += (self.betas[index + 1] - self.betas[index]) * log_ratio

    def _move(self, state: PathState, index: int, step_size: Tensor) -> Move:
        """Move chains (n, B, dim) at beta_(index + 1) with step sizes (B,)."""
        z = state.z
        jitter = torch.rand(*z.shape[:2], 1, dtype=z.dtype, device=z.device, generator=self.generator)
        jitter = _LEAST_JITTER + (1.0 - _LEAST_JITTER) * jitter
        return hmc_move(
            self.path, state, self.betas[index + 1], step_size=jitter * step_size.to(z)[:, None],
            leapfrog_steps=self.leapfrog_steps, metric=self.metric, generator=self.generator,
        )  # fmt: skip

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, as plain data."""
        return {
            "done": self.done,
            "state": [x.cpu() for x in self.state],
            "log_weights": self.log_weights.cpu(),
            "acceptance": self.acceptance,
            "generator": self.generator.get_state(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where :meth:`saved` was called."""
        like = self.state.z
        self.done = saved["done"]
        self.state = PathState(*(x.to(like) for x in saved["state"]))
        self.log_weights = saved["log_weights"].to(like.device)
        self.acceptance = saved["acceptance"]
        self.generator.set_state(saved["generator"])


class ForwardAnnealing(Annealing):
    """From draws of the start to the joint density; exp(log_weights) has the evidence as its expectation.

    Weights are taken before the move at each temperature, and the last move, at the joint density itself, changes
    no weight: ``state`` ends as posterior draws, if they are weighted.

    Args:
        path: both ends.
        betas: inverse temperatures (n + 1,).
        chains: how many by datum.
        leapfrog_steps: by transition.
        target_acceptance: of the pilots.
        generator: of all that is random but draws of a prior, which come from torch's global generator.

    Raises:
        NonFiniteError: a log-density is +inf or NaN at a start, or -inf at all starts of a datum.
    """

    def __init__(
        self,
        path: Path,
        betas: Tensor,
        *,
        chains: int,
        leapfrog_steps: int,
        target_acceptance: float,
        generator: torch.Generator,
    ) -> None:
        pilots, z = pilots_for(path.density.batch), path.start.sample(chains, generator)
        pilot_z = path.start.sample(pilots, generator)
        super().__init__(path, betas, path.start.metric(pilot_z), leapfrog_steps, generator)
        self.state, self.pilots = path.evaluate(z), path.evaluate(pilot_z)
        check_start(self.state, self.pilots)
        self.log_weights = torch.zeros(chains, z.shape[1], dtype=torch.float64, device=z.device)
        self.step_sizes = StepSizes(self.count, self.state, target_acceptance)
        self.stride = max(1, self.count // _PILOT_STOPS)

    def advance(self) -> None:
        index = self.done
        if index < _PILOT_STOPS or index % self.stride == 0:
            move = self._move(self.pilots, index, self.step_sizes.log_step.exp())
            self.pilots = move.state
            self.step_sizes.learn(move.probability)
        self._weigh(index, self.state.log_ratio())
        move = self._move(self.state, index, self.step_sizes.at(index))
        self.state = move.state
        self.acceptance[index] = float(move.probability.double().mean())
        self.done += 1

    def saved(self) -> dict[str, Any]:
        steps = self.step_sizes
        return {
            **super().saved(),
            "pilots": [x.cpu() for x in self.pilots],
            "log_step": steps.log_step.cpu(),
            "by_temperature": steps.by_temperature.cpu(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        super().restore(saved)
        self.pilots = PathState(*(x.to(self.state.z) for x in saved["pilots"]))
        self.step_sizes.log_step = saved["log_step"].to(self.state.z.device)
        self.step_sizes.by_temperature = saved["by_temperature"].to(self.state.z.device)


class BackwardAnnealing(Annealing):
    """From one exact posterior draw by datum to the start; exp(-log_weights) has 1 / evidence as its expectation.

    The chains of a datum share the draw that they set out from, and part in their first move.

    Args:
        forward: a finished run on the same data, whose metric and step sizes serve again.
        posterior_draws: (B, dim), one exact draw of each datum's posterior.
        generator: of all that is random.

    Source: Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
    """

    def __init__(self, forward: ForwardAnnealing, posterior_draws: Tensor, generator: torch.Generator) -> None:
        betas = torch.tensor(forward.betas, dtype=torch.float64)
        super().__init__(forward.path, betas, forward.metric, forward.leapfrog_steps, generator)
        self.step_sizes = forward.step_sizes.by_temperature
        self.state = self.path.evaluate(posterior_draws.expand(len(forward.log_weights), *posterior_draws.shape))
        check_start(self.state)
        self.log_weights = torch.zeros_like(forward.log_weights)

    def advance(self) -> None:
        index = self.count - 1 - self.done
        move = self._move(self.state, index, self.step_sizes[index])
        self.state = move.state
        self.acceptance[index] = float(move.probability.double().mean())
        self._weigh(index, self.state.log_ratio())
        self.done += 1


def check_start(state: PathState, *others: PathState) -> None:
    """Raise unless both densities can be used where the chains set out."""
    for name in ("start", "joint"):
        for chains in (state, *others):
            value: Tensor = getattr(chains, f"log_{name}")
            if value.shape != chains.z.shape[:2]:
                raise ValueError(
                    f"the {name} log-density must map {tuple(chains.z.shape)} to {tuple(chains.z.shape[:2])}, one "
                    f"number by chain and datum, found {tuple(value.shape)}"
                )
        value = torch.cat([getattr(chains, f"log_{name}") for chains in (state, *others)])
        if bool((value == math.inf).any()):
            data = (value == math.inf).any(0).nonzero().flatten()
            raise NonFiniteError(f"the {name} log-density is +inf at starting points of data {_few(data)}")
        dead = (value == -math.inf).all(0).nonzero().flatten()
        if len(dead):
            raise NonFiniteError(
                f"the {name} log-density is -inf or NaN at all {len(value)} starting points of data {_few(dead)}: "
                "these data are impossible there; look at them, or give a start that is nearer"
            )


def _few(index: Tensor) -> str:
    shown = ", ".join(map(str, index[:5].tolist()))
    return shown if len(index) <= 5 else f"{shown} and {len(index) - 5} more"
