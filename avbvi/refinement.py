"""Refinement: move an approximation's draws by HMC, and see whether they stay where they were."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from .arguments import integer
from .estimates import Estimate
from .hmc import run_hmc, short_hmc
from .hmc.adaptation import DenseMass, DiagonalMass
from .paired import paired_changes
from .reference import constrained
from .targets import UnconstrainedTarget

if TYPE_CHECKING:
    from .guides import AVBGuide

_DENSE_UP_TO = 200
_MAX_LEAPFROG_STEPS = 64
_LEAST_AT_ONCE, _MOST_AT_ONCE = 500, 20_000
_LEAPFROG_STEPS = 5
# Share of draws without density above which q is at fault whatever the others do.
_OUTSIDE_LIMIT = 0.01
# Correlation of a coordinate before and after, above which the chains are too slow to show much.
_SLOW = 0.7
_LISTED = 12


@dataclass(frozen=True)
class Refinement:
    """What a few HMC steps from an approximation's draws did to them: nothing, if they are the posterior's.

    Figures are by unconstrained coordinate; their standard errors use that each chain is seen before and after. A
    change is at least the error that there was: short chains may not have gone all the way. They do not cross between
    separated modes, so a lost mode or a wrong share of one is not seen.

    Attributes:
        names: of the coordinates (dim of them), in the order of all figures.
        mean_shift: change of the mean (dim,), in standard deviations of the refined draws.
        mean_shift_stderr: its standard error (dim,).
        sd_ratio: refined over original standard deviation (dim,); above 1 the approximation is too narrow.
        sd_ratio_stderr: its standard error (dim,).
        correlation: of each coordinate before and after (dim,); near 1 the chains were too slow to show much.
        draws: the refined draws {site: (n, *shape)} on the constrained scale, deterministic sites included.
        acceptance: mean rate of acceptance.
        divergences: divergent transitions of single chains.
        outside: draws where the density is zero or not finite; they were left out.
        steps: HMC transitions of each chain.
        n: number of chains.
        tolerance: change, in standard deviations or of their ratio, that does not count.
        sigmas: standard errors that a change must exceed to count.
    """

    names: list[str]
    mean_shift: Tensor
    mean_shift_stderr: Tensor
    sd_ratio: Tensor
    sd_ratio_stderr: Tensor
    correlation: Tensor
    draws: dict[str, Tensor] = field(repr=False)
    acceptance: float
    divergences: int
    outside: int
    steps: int
    n: int
    tolerance: float
    sigmas: float

    @property
    def changed(self) -> list[str]:
        """Names of the coordinates whose mean or standard deviation moved by more than chance and tolerance."""
        shift = self.mean_shift.abs() > torch.clamp(self.sigmas * self.mean_shift_stderr, min=self.tolerance)
        scale = (self.sd_ratio - 1.0).abs() > torch.clamp(self.sigmas * self.sd_ratio_stderr, min=self.tolerance)
        # What can't be compared is no evidence of a fit.
        bad = shift | scale | ~torch.isfinite(self.mean_shift + self.sd_ratio)
        return [name for name, flag in zip(self.names, bad.tolist(), strict=True) if flag]

    @property
    def moved(self) -> bool:
        """Whether the approximation failed: a coordinate changed, or over 1 % of the draws lie outside the support."""
        return bool(self.changed) or self.outside > _OUTSIDE_LIMIT * self.n

    @property
    def largest_mean_shift(self) -> tuple[str, Estimate]:
        """The coordinate whose mean moved most, and by how many standard deviations."""
        i = int(self.mean_shift.abs().nan_to_num(math.inf).argmax())
        return self.names[i], Estimate(float(self.mean_shift[i]), float(self.mean_shift_stderr[i]))

    @property
    def largest_sd_change(self) -> tuple[str, Estimate]:
        """The coordinate whose standard deviation changed by the largest factor, and that factor."""
        i = int(self.sd_ratio.log().abs().nan_to_num(math.inf).argmax())
        return self.names[i], Estimate(float(self.sd_ratio[i]), float(self.sd_ratio_stderr[i]))

    def __str__(self) -> str:
        verdict = "the draws moved: the approximation is off" if self.moved else "the draws stayed where they were"
        lines = [
            f"{verdict} ({self.n} chains, {self.steps} HMC steps, acceptance {self.acceptance:.2f}, "
            f"{self.divergences} divergences)"
        ]
        size = torch.maximum(self.mean_shift.abs(), self.sd_ratio.log().abs()).nan_to_num(math.inf)
        order = size.argsort(descending=True).tolist()[:_LISTED]
        changed = set(self.changed)
        width = max(len("coordinate"), *(len(self.names[i]) for i in order))
        lines.append(f"  {'coordinate':<{width}}  {'mean shift (sd)':>18}  {'sd ratio':>18}  correlation")
        for i in order:
            shift = Estimate(float(self.mean_shift[i]), float(self.mean_shift_stderr[i]))
            ratio = Estimate(float(self.sd_ratio[i]), float(self.sd_ratio_stderr[i]))
            mark = "  changed" if self.names[i] in changed else ""
            lines.append(
                f"  {self.names[i]:<{width}}  {shift!s:>18}  {ratio!s:>18}  {float(self.correlation[i]):>11.2f}{mark}"
            )
        if len(self.names) > len(order):
            lines.append(f"  ({len(self.names) - len(order)} coordinates that changed less are not listed)")
        if self.outside:
            lines.append(f"  {self.outside} of {self.n} draws lie where the density is zero or not finite")
        slow = int(self.correlation.nan_to_num(1.0).argmax())
        if float(self.correlation[slow]) > _SLOW:
            lines.append(
                f"  {self.names[slow]} has hardly been renewed (correlation {float(self.correlation[slow]):.2f}): "
                "errors may be larger than shown; take more steps"
            )
        lines.append("  A lost mode, or a wrong share of one, can't be seen in this way.")
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def moved_draws(guide: AVBGuide, target: UnconstrainedTarget, n: int, steps: int) -> Tensor:
    """n draws of the guide (n, dim), unconstrained, each moved by HMC transitions that leave the target invariant.

    The chains run in the trunk's base coordinates, where the target is simpler (Hoffman et al. 2019, NeuTra-lizing bad
    geometry in Hamiltonian Monte Carlo). The step size is adapted in the first half, by at least 500 chains: one draw
    is moved as well as a thousand.
    """
    base = guide.draw_base(max(n, _LEAST_AT_ONCE))
    # Equal parts: a last one of few chains could not tell its own scale.
    parts = base.chunk(math.ceil(len(base) / _MOST_AT_ONCE))
    with pyro.validation_enabled(False):
        moved = [moved_base(guide, target, p, steps=steps, leapfrog_steps=_LEAPFROG_STEPS) for p in parts]
    z: Tensor = guide.part("trunk")(torch.cat(moved)[:n])[0]
    return z


def moved_base(
    guide: AVBGuide, target: UnconstrainedTarget, base: Tensor, *, steps: int = 50, leapfrog_steps: int = 8
) -> Tensor:
    """Points in base coordinates (n, base_dim) moved by a short HMC towards the target."""
    return short_hmc(
        lambda e: guide.log_p_at(target, e).nan_to_num(-math.inf, -math.inf, -math.inf),
        base,
        steps=steps,
        leapfrog_steps=leapfrog_steps,
    ).states


@torch.no_grad()
def refinement(
    target: UnconstrainedTarget, z: Tensor, *, steps: int, tolerance: float = 0.1, sigmas: float = 4.0
) -> Refinement:
    """Move draws by HMC towards the target, adapting in the first half of the steps, and compare.

    Args:
        target: the posterior's log-density.
        z: independent draws of the approximation (n, dim), unconstrained.
        steps: HMC transitions per chain, at least 2.
        tolerance: changes below this (of a mean in standard deviations, of a ratio from 1) do not count as moved.
        sigmas: nor do changes below this many standard errors.

    Raises:
        ValueError: fewer than 2 steps or fewer than 10 draws of positive density.

    Source: Wang, Kasprzak and Huggins (2023), A targeted accuracy diagnostic for variational approximations, AISTATS:
    short chains from q, whose change in means and standard deviations bounds q's errors from below.
    """
    if integer("steps", steps) < 2:
        raise ValueError(f"steps must be at least 2 (the first half adapts the step size), found {steps}")
    n = len(z)
    with pyro.validation_enabled(False):
        inside = torch.isfinite(target.log_prob(z)) & torch.isfinite(z).all(-1)
        before = z[inside]
        if len(before) < 10:
            raise ValueError(
                f"n: only {len(before)} of {n} draws have positive, finite density and 10 are needed; draw more"
            )
        run = run_hmc(
            target.log_prob,
            before,
            draws=1,
            warmup=steps // 2,
            thin=steps - steps // 2,
            mass=DenseMass() if z.shape[1] <= min(_DENSE_UP_TO, len(before) // 10) else DiagonalMass(),
            max_leapfrog_steps=_MAX_LEAPFROG_STEPS,
            restart_stuck=False,
        )
        after = run.draws[:, 0]
        draws = constrained(target, after)
    changes = paired_changes(before.double(), after.double())
    return Refinement(
        names=target.layout.coordinate_names,
        mean_shift=changes.shift,
        mean_shift_stderr=changes.shift_stderr,
        sd_ratio=changes.ratio,
        sd_ratio_stderr=changes.ratio_stderr,
        correlation=changes.correlation,
        draws=draws,
        acceptance=float(run.acceptance.mean()),
        divergences=run.divergences,
        outside=n - len(before),
        steps=steps,
        n=n,
        tolerance=tolerance,
        sigmas=sigmas,
    )
