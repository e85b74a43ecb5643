"""Which stage is kept: the trunk or the adversarial one, judged by a reference sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..divergences import classifier_two_sample_test
from ..estimates import Estimate
from ..refinement import moved_base
from .weights import K_HAT_LIMIT, pareto_smooth, trunk_log_weight, trunk_weights

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget

BLOCKS = 20
HMC_CHAINS = 4000


@dataclass(frozen=True)
class StageComparison:
    """Trunk against adversarial stage, judged by a reference sample.

    Energy distances are in the trunk's base coordinates, with the standardised log weight as one more coordinate.

    Attributes:
        keep_adversarial: whether the adversarial stage is kept.
        difference: energy distance to the reference of the adversarial stage minus that of the trunk; negative where
            the adversarial stage is better.
        trunk_distance: energy distance of the trunk to the reference.
        k_hat: shape of the tail of the trunk's importance weights.
        reference: where the reference sample is from, in words.
        classifier_excess: accuracy with which a classifier tells the adversarial stage from the reference, less the
            same for the trunk; ``None`` where the energy distance had already decided for the trunk.
    """

    keep_adversarial: bool
    difference: Estimate
    trunk_distance: Estimate
    k_hat: float
    reference: str
    classifier_excess: Estimate | None = None


@torch.no_grad()
def choose_stage(guide: AVBGuide, target: UnconstrainedTarget, n: int = 20_000) -> StageComparison:
    """Judge whether the adversarial stage is closer to the posterior than its trunk.

    The reference sample is the trunk's draws resampled by their exact, Pareto-smoothed importance weights
    where k-hat < 0.7; otherwise draws of both stages in equal numbers, moved by a short batched HMC. The
    adversarial stage is kept only if its energy distance to the reference is smaller by more than two standard
    errors over blocks, and a classifier, sharper on local errors, tells it from the reference no better than the
    trunk, to one standard error. The learned ELBO, biased upward, takes no part.

    Args:
        guide: set up, trained in both stages.
        target: what it approximates.
        n: draws of each stage.

    Returns:
        Which stage to keep, with the figures that say so.

    Source: the rule is this project's; energy distance Szekely and Rizzo (2013), Energy statistics, J. Stat. Plan.
    Inference 143; classifier Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, ICLR.
    """
    trunk, log_weight = trunk_weights(guide, target, n)
    sampler = guide.part("sampler")
    adversarial = sampler(sampler.sample_noise(torch.Size((n,)), like=guide.anchor))
    smoothed, k_hat = pareto_smooth(log_weight) if bool(torch.isfinite(log_weight).any()) else (log_weight, math.inf)
    if not bool(torch.isfinite(adversarial).all()):
        nan = Estimate(math.nan, math.nan)
        return StageComparison(False, nan, nan, k_hat, "none: the sampler's draws are not finite")
    if k_hat < K_HAT_LIMIT:
        reference = trunk[torch.multinomial(smoothed.exp().to(trunk), n, replacement=True)]
        origin = "importance-resampled trunk draws"
    else:
        reference = _moved_by_hmc(guide, target, trunk, adversarial)
        origin = "draws of both stages after a short HMC"
    # Fresh draws: those that made the reference are too close to it.
    n = len(reference)
    trunk, log_weight = trunk_weights(guide, target, n)
    adversarial = sampler(sampler.sample_noise(torch.Size((n,)), like=guide.anchor))
    log_weight = log_weight[torch.isfinite(log_weight)]
    if len(log_weight) < 2:
        log_weight = trunk.new_zeros(2)
    center, scale = log_weight.mean(), log_weight.std().clamp_min(1e-6)

    def augmented(base: Tensor) -> Tensor:
        standard = ((trunk_log_weight(guide, target, base) - center) / scale).clamp(-10.0, 10.0)
        return torch.cat([base, standard[:, None]], -1)

    r, t, a = (augmented(base) for base in (reference, trunk, adversarial))
    of_trunk, of_adversarial = [], []
    for rb, tb, ab in zip(r.chunk(BLOCKS), t.chunk(BLOCKS), a.chunk(BLOCKS), strict=True):
        of_trunk.append(_energy_distance(tb, rb))
        of_adversarial.append(_energy_distance(ab, rb))
    trunk_distance = _block_estimate(torch.stack(of_trunk))
    difference = _block_estimate(torch.stack(of_adversarial) - torch.stack(of_trunk))
    keep = difference.value < -2.0 * difference.stderr
    excess = None
    if keep:
        # Asked only when it can change the answer: it takes as long as all the rest.
        excess = _classifier_excess(a, t, r)
        keep = excess.value <= excess.stderr
    return StageComparison(keep, difference, trunk_distance, k_hat, origin, excess)


def _classifier_excess(adversarial: Tensor, trunk: Tensor, reference: Tensor) -> Estimate:
    """How much better a classifier tells the adversarial stage from the reference than the trunk from it."""
    of_adversarial, of_trunk = (
        classifier_two_sample_test(x, reference, folds=2, max_epochs=20) for x in (adversarial, trunk)
    )
    return Estimate(of_adversarial.value - of_trunk.value, math.hypot(of_adversarial.stderr, of_trunk.stderr))


def _moved_by_hmc(guide: AVBGuide, target: UnconstrainedTarget, trunk: Tensor, adversarial: Tensor) -> Tensor:
    """Draws in base coordinates, half from each stage, moved by a short HMC."""
    half = min(len(trunk) // 2, HMC_CHAINS // 2)
    states = moved_base(guide, target, torch.cat([trunk[:half], adversarial[:half]]))
    return states[torch.randperm(len(states), device=states.device)]


def _energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between samples (n, d) and (m, d)."""
    n, m = len(x), len(y)
    within_x = torch.cdist(x, x).sum() / (n * (n - 1))
    within_y = torch.cdist(y, y).sum() / (m * (m - 1))
    return 2.0 * torch.cdist(x, y).mean() - within_x - within_y


def _block_estimate(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))
