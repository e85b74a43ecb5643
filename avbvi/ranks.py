"""Ranks of simulation-based calibration: are they uniform, what do they cover, what do they say in plain words?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .simulations import Simulation, element_names
from .uniformity import Band, band, binomial_interval, holm, rank_counts, uniformity_p_value

#: A statistic counts as miscalibrated if its adjusted p-value is below this.
ALPHA = 0.05
LEVELS = (0.5, 0.8, 0.95)
#: Regions that one side of a statistic bounds: where a density is high, where a distance is small.
_LARGEST, _SMALLEST = frozenset({"log_joint", "log_q"}), frozenset({"distance", "tarp_distance"})
#: What it means if the truth's value lies too low, or too high, among those of the draws.
_MEANING = {
    "log_joint": ("the draws crowd where the joint density is high: too narrow", "the draws are too wide or misplaced"),
    "log_q": ("the draws crowd where q is high: too narrow", "the truth lies too often near q's peak: too wide"),
    "log_likelihood": (
        "the draws explain the data better than the truth does: overfitted",
        "the draws explain the data worse than the truth does: too wide, or the data are not fully used",
    ),
    "distance": ("the truth lies too close to q's centre: too wide", "the truth lies too far out: too narrow"),
    "tarp_distance": ("the draws keep too far from the prior's", "the draws keep too near to the prior's"),
}
#: One-sided statistics, of which an uneven spread has no plain meaning.
_ONE_SIDED = frozenset({"log_joint", "log_q", "log_likelihood", "distance"})


class Coverage(NamedTuple):
    """How often a region of a posterior probability held the truth.

    ``level`` is what a calibrated posterior covers, exactly (a multiple of 1 / (draws + 1)); ``share`` what was
    found, ``covered`` of ``n`` times, and ``low`` to ``high`` the 95 % interval of its expectation.
    """

    statistic: str
    level: float
    share: float
    covered: int
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among posterior draws, over data sets simulated from the model; see :func:`sbc`.

    Rounds without a rank (see ``failures``) are left out of all figures but counted. ``only("ok")`` keeps the rounds
    whose fit called itself ok: as a verdict depends on the data and not on the truth, ranks of exact
    posteriors are uniform among those too.

    Args:
        simulations: the rounds.
        draws: number of posterior draws that the truth is ranked among; ranks go from 0 to draws.
        sites: latent site -> its shape in unconstrained coordinates.
        seed: that repeats the run.
    """

    simulations: tuple[Simulation, ...]
    draws: int
    sites: Mapping[str, tuple[int, ...]]
    seed: int

    @property
    def completed(self) -> tuple[Simulation, ...]:
        """The rounds that have ranks."""
        return tuple(s for s in self.simulations if s.failure is None)

    @property
    def failures(self) -> dict[int, str]:
        """Round -> why it has no ranks: a fit that failed, draws or densities that are not finite."""
        return {s.index: s.failure for s in self.simulations if s.failure is not None}

    @property
    def verdicts(self) -> dict[str, int]:
        """How many fits gave themselves which verdict."""
        return dict(Counter(s.verdict for s in self.simulations if s.verdict is not None))

    def only(self, *verdicts: str) -> Calibration:
        """The rounds whose fit gave itself one of these verdicts."""
        return replace(self, simulations=tuple(s for s in self.simulations if s.verdict in verdicts))

    @cached_property
    def ranks(self) -> dict[str, Tensor]:
        """Statistic -> ranks (n,), integers, of the completed rounds in order.

        Latents go by their unconstrained coordinates: ``mu``, ``eta[3]``. A statistic that some fit did not allow
        (``log_q``, where it has no ``log_prob``) is left out.
        """
        done = self.completed
        names = [name for name in (done[0].ranks if done else {}) if all(name in s.ranks for s in done)]
        return {name: torch.tensor([s.ranks[name] for s in done]) for name in names}

    @cached_property
    def p_values(self) -> dict[str, float]:
        """Statistic -> exact p-value of uniform ranks, from :func:`~avbvi.uniformity.uniformity_p_value`."""
        return {name: uniformity_p_value(ranks, self.draws) for name, ranks in self.ranks.items()}

    @cached_property
    def adjusted_p_values(self) -> dict[str, float]:
        """The p-values adjusted for the number of statistics, by Holm's method."""
        return holm(self.p_values)

    @property
    def flagged(self) -> list[str]:
        """Statistics whose adjusted p-value is below 0.05, worst first; all right if none, in 95 % of such studies."""
        found = [name for name, p in self.adjusted_p_values.items() if p < ALPHA]
        return sorted(found, key=lambda name: self.p_values[name])

    def band(self, level: float = 0.95) -> Band:
        """Where the distribution function of uniform ranks stays throughout with probability ``level``.

        See :func:`~avbvi.uniformity.band`.
        """
        return band(self._number(), self.draws, level)

    def ecdf_difference(self, name: str) -> np.ndarray:
        """Empirical less uniform distribution function of the statistic ``name`` at ``band().points``, (k,)."""
        return rank_counts(self._ranks(name), self.draws) / self._number() - self.band().points

    def coverage(self, levels: Sequence[float] = LEVELS, names: Sequence[str] | None = None) -> list[Coverage]:
        """Expected coverage of each statistic's region at these levels; of those in ``names``, or all.

        The region is the central interval; for ``log_joint`` and ``log_q`` where they are largest (a region of
        highest density), for distances the ball.

        Raises:
            ValueError: a level is not between 0 and 1, an unknown name, or no completed round.

        Source: Hermans et al. (2022), A crisis in simulation-based inference? Beware, your posterior approximations
        can be unfaithful, TMLR; for ``tarp_distance`` Lemos, Coogan, Hezaveh and Perreault-Levasseur (2023),
        Sampling-based accuracy testing of posterior estimators for general inference, ICML.
        """
        if not all(0.0 < level < 1.0 for level in levels):
            raise ValueError(f"levels must lie between 0 and 1, found {list(levels)}")
        n, rows = self._number(), []
        for name in self.ranks if names is None else names:
            ranks = self._ranks(name)
            for level in levels:
                width = round(level * (self.draws + 1))
                start = self._start(name, width)
                count = int(((ranks >= start) & (ranks < start + width)).sum())
                low, high = binomial_interval(count, n)
                rows.append(Coverage(name, width / (self.draws + 1), count / n, count, n, low, high))
        return rows

    def _start(self, name: str, width: int) -> int:
        """First of the ``width`` ranks that a region contains."""
        rest = self.draws + 1 - width
        return rest if name in _LARGEST else 0 if name in _SMALLEST else rest // 2

    def describe(self, name: str) -> str:
        """What the shape of the ranks of the statistic ``name`` says of the posterior, in words."""
        u = (self._ranks(name).double() + 0.5) / (self.draws + 1)
        # Of normal scores a shift moves the mean alone, and a wrong width the spread alone. Both figures are about
        # standard normal for uniform ranks. Ranks that are all the same show a shift and no spread.
        score = torch.special.ndtri(u)
        deviation = float(score.std()) if len(u) > 1 else math.nan
        shift = (
            float(score.mean()) * math.sqrt(len(u)) / deviation
            if deviation > 1e-6
            else math.copysign(math.inf, score.mean())
        )
        spread = math.log(deviation) * math.sqrt(2.0 * len(u)) if deviation > 1e-6 else 0.0
        said = []
        if abs(shift) > 2.0:
            if name in _MEANING:
                said.append(_MEANING[name][shift > 0.0])
            else:
                side = "low" if shift > 0.0 else "high"
                said.append(f"the draws lie too {side} (the truth exceeds {_percent(float(u.mean()))} of them)")
        if abs(spread) > 2.0 and name not in _ONE_SIDED:
            wrong = "too narrow (overconfident)" if spread > 0.0 else "too wide (underconfident)"
            said.append(f"the draws are {wrong}")
        return "; ".join(said) or "ranks uneven, without a plain shift or wrong spread"

    def __str__(self) -> str:
        lines = [f"Calibration over the prior: {len(self.simulations)} simulations, {self.draws} draws in each"]
        if self.verdicts:
            lines.append("  verdicts: " + ", ".join(f"{n} {status}" for status, n in sorted(self.verdicts.items())))
        if self.failures:
            first, reason = next(iter(self.failures.items()))
            lines.append(f"  {len(self.failures)} without ranks, left out below; number {first}: {reason}")
        if not self.ranks:
            return "\n".join([*lines, "  nothing can be said: no simulation has ranks"])
        if self.flagged:
            lines.append(f"  MISCALIBRATED in {len(self.flagged)} of {len(self.ranks)} statistics:")
            lines += [f"    {n} (p {_p(self.adjusted_p_values[n])}): {self.describe(n)}" for n in self.flagged]
        else:
            name = min(self.p_values, key=lambda name: self.p_values[name])
            lines.append(
                f"  no sign of miscalibration in {len(self.ranks)} statistics (smallest p, adjusted for their number: "
                f"{_p(self.adjusted_p_values[name])}, {name})"
            )
        lines.append("  p-values are exact for each statistic and adjusted for their number (Holm)")
        width = max(map(len, self.ranks))
        lines.append(
            f"  {'statistic':{width}}  {'p':>7}  {'adjusted':>8}  coverage of " + ", ".join(map(_percent, LEVELS))
        )
        for name in self.ranks:
            shares = ", ".join(_percent(c.share) for c in self.coverage(names=[name]))
            p, adjusted = _p(self.p_values[name]), _p(self.adjusted_p_values[name])
            lines.append(f"  {name:{width}}  {p:>7}  {adjusted:>8}  {shares}")
        return "\n".join(lines)

    __repr__ = __str__

    def to_arviz(self) -> Any:
        """The study as ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x), one "draw" per completed round.

        Groups: ``prior``, the true values by site; ``prior_sbc``, the ranks as shares between 0 and 1, by site in
        unconstrained coordinates and by joint statistic, as ``arviz_plots.plot_ecdf_pit`` reads them.

        Raises:
            ValueError: no round was completed.
        """
        from .export import add_group, container

        self._number()
        truth = {n: torch.stack([s.truth[n] for s in self.completed])[None].cpu().numpy() for n in self.sites}
        share = {name: (ranks.double().numpy() + 0.5) / (self.draws + 1) for name, ranks in self.ranks.items()}
        grouped = {}
        for site, shape in self.sites.items():
            elements = np.stack([share.pop(name) for name in element_names(site, shape)], -1)
            grouped[site] = elements.reshape(1, -1, *shape)
        grouped |= {name: value[None] for name, value in share.items()}
        attributes = {"draws": str(self.draws), "failures": str(len(self.failures))}
        result = container({"prior": truth}, {}, {}, {"prior": attributes})
        return add_group(result, "prior_sbc", grouped, attributes)

    def _number(self) -> int:
        if not self.completed:
            raise ValueError("no simulation has ranks; failures says why")
        return len(self.completed)

    def _ranks(self, name: str) -> Tensor:
        self._number()
        if name not in self.ranks:
            raise ValueError(f"there is no statistic {name!r}; there are {list(self.ranks)}")
        return self.ranks[name]


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"
