"""Annealed chains of one batch of data, forward from the start density or backward from posterior draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..hmc import Metric
from .densities import StartDensity
from .noise import ChainNoise, Keys, Role
from .path import Move, Path, PathState, hmc_move
from .replay import Repeated, repeated

#: Data that learn a common step size together; where there are fewer, so many acceptances of several pilots each.
GROUP = 32
#: The pilots of a long schedule stop at so many temperatures from its beginning on, where step sizes change fast, and
#: then in strides that make for as many again.
_PILOT_STOPS = 100
#: Gains of the logarithm of the step size: what all data have in common, and what a datum has of its own.
_COMMON_GAIN, _OWN_GAIN = 0.6, 0.05
_SMALLEST_LOG_STEP, _LARGEST_LOG_STEP = -15.0, 3.0
#: Step sizes are multiplied by uniform numbers from here to 1, lest a trajectory close to a period go nowhere.
_LEAST_JITTER = 0.7


def pilots_for(batch: int, total: int | None = None) -> int:
    """How many pilot chains a datum has, in a part of ``batch`` of ``total`` data: one, or more where all are few."""
    return 1 if (total or batch) >= GROUP else math.ceil(GROUP / batch)


class StepSizes:
    """Step sizes by temperature and datum, learned from pilot chains alone.

    The pilots' weights are not used, and no other chain tells the pilots anything: given the step sizes, the others'
    transitions are fixed beforehand, and their weights are unbiased as if the step sizes had been chosen by hand.

    Data share what they learn within groups of 32, by their number: which other data are there makes no difference.

    Args:
        count: number of temperatures.
        state: gives the number of data, dimension, dtype and device.
        target: acceptance probability aimed at.
        first: number of the first datum.
    """

    def __init__(self, count: int, state: PathState, target: float, first: int = 0) -> None:
        self.target = target
        pilots, batch, dim = state.z.shape
        # For a Gaussian in its own units, .65 are accepted at about dim^(-1/4).
        self.log_step: Tensor = torch.full((batch,), -0.25 * math.log(dim), dtype=torch.float64, device=state.z.device)
        self.by_temperature: Tensor = self.log_step.new_zeros(count, batch)
        lead = first % GROUP
        self._pad = (lead, -(lead + batch) % GROUP)
        self._sizes = self._grouped(torch.ones_like(self.log_step)).sum(1)
        # A mean over few acceptances is followed more slowly.
        self._gain = _COMMON_GAIN * (pilots * self._sizes / GROUP).sqrt().clamp_max(1.0)

    def at(self, index: Tensor) -> Tensor:
        """Step sizes (B,) to be used at a temperature (1,), which are kept."""
        step = self.log_step.exp()
        self.by_temperature.index_copy_(0, index, step[None])
        return step

    def learn(self, probability: Tensor) -> None:
        """Take note of the pilots' acceptance probabilities (pilots, B)."""
        own = probability.double().mean(0)
        mean = self._grouped(own).sum(1) / self._sizes
        common, gain = self._by_datum(mean), self._by_datum(self._gain)
        self.log_step += gain * (common - self.target) + _OWN_GAIN * (own - common)
        self.log_step.clamp_(_SMALLEST_LOG_STEP, _LARGEST_LOG_STEP)

    def _grouped(self, x: Tensor) -> Tensor:
        """(B,) as (groups, 32), with zeros where a group lacks data."""
        return torch.nn.functional.pad(x, self._pad).view(-1, GROUP)

    def _by_datum(self, x: Tensor) -> Tensor:
        """(groups,) as (B,)."""
        return x[:, None].expand(-1, GROUP).flatten()[self._pad[0] :][: len(self.log_step)]


class Annealing(ABC):
    """Chains under way: what they have done so far, and where they are.

    ``log_weights`` (chains, B), float64, are sums of log-ratios so far; ``acceptance`` (n,) is the mean acceptance
    probability by temperature, NaN where none has been; ``step`` (1,) counts on the device. All of them stay in their
    tensors, and nothing is read back from the device at a temperature, so that it can be captured.
    """

    state: PathState
    log_weights: Tensor
    acceptance: Tensor
    done: int

    def __init__(self, path: Path, betas: Tensor, metric: Metric, leapfrog_steps: int, keys: Keys) -> None:
        self.path: Path = path
        self.metric: Metric = metric
        self.leapfrog_steps: int = leapfrog_steps
        self.keys: Keys = keys
        self.count: int = len(betas) - 1
        self.done = 0
        self._temperatures: dict[bool, Repeated] = {}

    def _place(self, state: PathState, betas: Tensor) -> None:
        """Where everything is kept."""
        device = state.z.device
        # Of densities that return their argument, or one number for all chains, what is kept may be theirs.
        self.state = PathState(*(x.clone() for x in state))
        self.betas: Tensor = betas.to(device)
        self.step: Tensor = torch.zeros(1, dtype=torch.int64, device=device)
        self.log_weights = torch.zeros(state.z.shape[:2], dtype=torch.float64, device=device)
        self.acceptance = torch.full((self.count,), math.nan, dtype=torch.float64, device=device)

    @property
    def finished(self) -> bool:
        """Whether all temperatures are done."""
        return self.done >= self.count

    def advance(self) -> None:
        """Do the next temperature."""
        pilots = self._with_pilots(self.done)
        if pilots not in self._temperatures:
            self._temperatures[pilots] = repeated(partial(self._temperature, pilots=pilots), self.state.z.device)
        self._temperatures[pilots].run()
        self.done += 1

    def _with_pilots(self, index: int) -> bool:
        return False

    @abstractmethod
    def _temperature(self, *, pilots: bool) -> None:
        """What is done at a temperature, in place: a function of the tensors alone."""

    def _weigh(self, index: Tensor, log_ratio: Tensor) -> None:
        """Add the interval from beta_index to beta_(index + 1)."""
        self.log_weights += (self._beta(index + 1) - self._beta(index)) * log_ratio

    def _beta(self, index: Tensor) -> Tensor:
        # Of no dimension, so that it does not make float64 of what it is multiplied with.
        return self.betas.index_select(0, index)[0]

    def _move(self, state: PathState, index: Tensor, step_size: Tensor, noise: ChainNoise) -> Move:
        """Move chains (n, B, dim) at beta_(index + 1) with step sizes (B,)."""
        drawn = noise.move(self.step)
        jitter = (_LEAST_JITTER + (1.0 - _LEAST_JITTER) * drawn.jitter)[..., None]
        return hmc_move(
            self.path, state, self._beta(index + 1), step_size=jitter * step_size.to(state.z)[:, None],
            leapfrog_steps=self.leapfrog_steps, metric=self.metric, noise=drawn,
        )  # fmt: skip

    def _note(self, index: Tensor, move: Move) -> None:
        _keep(self.state, move.state)
        self.acceptance.index_copy_(0, index, move.probability.double().mean()[None])
        self.step += 1

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs, as plain data."""
        return {
            "done": self.done,
            "state": [x.cpu() for x in self.state],
            "log_weights": self.log_weights.cpu(),
            "acceptance": self.acceptance.cpu(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to where :meth:`saved` was called."""
        self.done = saved["done"]
        self.step.fill_(self.done)
        _keep(self.state, saved["state"])
        self.log_weights.copy_(saved["log_weights"])
        self.acceptance.copy_(saved["acceptance"])


def _keep(place: PathState, state: Iterable[Tensor]) -> None:
    for old, new in zip(place, state, strict=True):
        old.copy_(new)


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
        keys: what random numbers are keyed by. A start that can't be made of given noise is drawn from a generator
            with their seed, or from torch's global one where it is a model's prior.

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
        keys: Keys,
    ) -> None:
        pilots, like = (
            pilots_for(path.density.batch, keys.total or keys.first + path.density.batch),
            path.start.sample(1),
        )
        generator = torch.Generator(like.device).manual_seed(keys.seed)
        z, pilot_z = (
            _drawn(path.start, ChainNoise(keys, role, (n, *like.shape[1:]), like), n, generator)
            for role, n in ((Role.START, chains), (Role.PILOT_START, pilots))
        )
        super().__init__(path, betas, path.start.metric(pilot_z), leapfrog_steps, keys)
        state, at_pilots = path.evaluate(z), path.evaluate(pilot_z)
        check_start(state, at_pilots)
        self._place(state, betas)
        self.pilots: PathState = PathState(*(x.clone() for x in at_pilots))
        self.noise: ChainNoise = ChainNoise(keys, Role.FORWARD, z.shape, z)
        self.pilot_noise: ChainNoise = ChainNoise(keys, Role.PILOT, pilot_z.shape, z)
        self.step_sizes: StepSizes = StepSizes(self.count, self.pilots, target_acceptance, keys.first)
        self.stride: int = max(1, self.count // _PILOT_STOPS)

    def _with_pilots(self, index: int) -> bool:
        return index < _PILOT_STOPS or index % self.stride == 0

    def _temperature(self, *, pilots: bool) -> None:
        index, steps = self.step, self.step_sizes
        if pilots:
            move = self._move(self.pilots, index, steps.log_step.exp(), self.pilot_noise)
            _keep(self.pilots, move.state)
            steps.learn(move.probability)
        self._weigh(index, self.state.log_ratio())
        self._note(index, self._move(self.state, index, steps.at(index), self.noise))

    def advance(self) -> None:
        super().advance()
        if self.finished:
            state, change = self.path.exact(self.state)
            _keep(self.state, state)
            self.log_weights.add_(change)

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
        _keep(self.pilots, saved["pilots"])
        self.step_sizes.log_step.copy_(saved["log_step"])
        self.step_sizes.by_temperature.copy_(saved["by_temperature"])


def _drawn(start: StartDensity, noise: ChainNoise, n: int, generator: torch.Generator) -> Tensor:
    z = start.at(noise.normal(0))
    return start.sample(n, generator) if z is None else z


class BackwardAnnealing(Annealing):
    """From one exact posterior draw by datum to the start; exp(-log_weights) has 1 / evidence as its expectation.

    The chains of a datum share the draw that they set out from, and part in their first move.

    Args:
        forward: a finished run on the same data, whose metric, step sizes and keys serve again.
        posterior_draws: (B, dim), one exact draw of each datum's posterior.

    Source: Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo.
    """

    def __init__(self, forward: ForwardAnnealing, posterior_draws: Tensor) -> None:
        super().__init__(forward.path, forward.betas, forward.metric, forward.leapfrog_steps, forward.keys)
        self.step_sizes: Tensor = forward.step_sizes.by_temperature
        state = self.path.evaluate(posterior_draws.expand(len(forward.log_weights), *posterior_draws.shape))
        check_start(state)
        self._place(state, forward.betas)
        # From the exact density to the one that the chains see.
        self.log_weights.add_(self.path.exact(state)[1])
        self.noise: ChainNoise = ChainNoise(forward.keys, Role.BACKWARD, state.z.shape, state.z)

    def _temperature(self, *, pilots: bool) -> None:
        index = self.count - 1 - self.step
        move = self._move(self.state, index, self.step_sizes.index_select(0, index)[0], self.noise)
        self._note(index, move)
        self._weigh(index, self.state.log_ratio())


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
