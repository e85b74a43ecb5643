"""The verdict on a fit, from fresh draws and freshly trained networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from ..estimates import Estimate
from . import limits
from .calibration import calibrate
from .classify import LOG_2, held_out_log_ratio, information
from .evidence import Evidence
from .iterates import agreement
from .modes import mode_shares
from .movement import Movement, moment_shift, move
from .stages import StageComparison
from .stein import stein_matrix
from .weights import K_HAT_LIMIT, summarise_weights, trunk_weights

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget

STATUSES = ("ok", "suspect", "failed")
LONGER = "give it more time: fit(minutes=...)"
REFINE = "look at posterior.refine(), whose draws may serve instead"
MODES = "give it more time, or compare with hmc_posterior"
SUPPORT = "declare a support for constrained latents, and look for overflow in the model"


@dataclass(frozen=True)
class Verdict:
    """Whether a fit is to be trusted, with reasons in words.

    A mode that no start found can't be missed by any of the checks.

    Args:
        status: "ok", "suspect" or "failed".
        reasons: in words: doubts first, then what to try, then what was found in order.
        figures: the numbers behind the reasons, by name.

    Example:
        >>> from avbvi import Verdict
        >>> print(Verdict("ok", ["a short HMC leaves the draws where they are"]))
        verdict: ok
          - a short HMC leaves the draws where they are
    """

    status: str
    reasons: list[str]
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([f"verdict: {self.status}", *(f"  - {reason}" for reason in self.reasons)])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"status": self.status, "reasons": list(self.reasons), "figures": dict(self.figures)}


class Findings:
    """What the checks found: figures, doubts with what to try, remarks."""

    def __init__(self) -> None:
        self.level: int = 0
        self.figures: dict[str, float] = {}
        self.doubts: list[str] = []
        self.remarks: list[str] = []
        self.advice: list[str] = []

    def doubt(self, reason: str, *advice: str, failed: bool = False) -> None:
        """Note a ``reason`` for doubt, or for failure if ``failed``, and what to try (``advice``)."""
        self.level = max(self.level, 2 if failed else 1)
        self.doubts.append(reason)
        self.advice += [tip for tip in advice if tip not in self.advice]

    def figure(self, name: str, estimate: Estimate) -> None:
        """Note the value of ``estimate`` under ``name`` and its standard error under ``name`` with "_stderr"."""
        self.figures[name], self.figures[f"{name}_stderr"] = float(estimate.value), float(estimate.stderr)

    def verdict(self) -> Verdict:
        """The verdict on all that was found."""
        tried = [f"try: {'; or '.join(self.advice)}"] if self.advice else []
        return Verdict(STATUSES[self.level], [*self.doubts, *tried, *self.remarks], self.figures)


@torch.no_grad()
def judge(
    guide: AVBGuide,
    target: UnconstrainedTarget,
    elbo: Estimate,
    *,
    skipped: int,
    steps: int,
    comparison: StageComparison | None,
    n: int = 20_000,
    iterates: Tensor | None = None,
    evidence: Evidence | None = None,
) -> Verdict:
    """The verdict on a trained guide, from fresh draws and freshly trained networks; its limits are in ``limits``.

    Args:
        guide: the guide, in its final stage.
        target: what it approximates.
        elbo: its ELBO, exact density or learned.
        skipped: steps skipped for non-finite gradients.
        steps: steps done.
        comparison: trunk against adversarial stage, where there was a choice.
        n: draws for the support, Stein's identity and the importance weights; a fifth of them for a fresh
            adversary, a tenth for the chains.
        iterates: means and sds of the draws (records, 2, dim) at even times of the last part of the run.
        evidence: where to keep the draws and weights that the verdict is based on.

    Returns:
        The verdict, with its reasons and figures.

    Source: this project's choice of checks; each names its own source.
    """
    found, kept = Findings(), evidence or Evidence()
    found.figures |= {"skipped_steps": float(skipped), "adversarial": float(guide.is_adversarial)}
    with pyro.validation_enabled(False):
        draws = guide.draw(n)
        _check_finite(found, elbo, float(torch.isfinite(target.log_prob(draws.z)).double().mean()))
        _check_run(found, skipped, steps, iterates)
        _check_starts(found, guide)
        _check_modes(found, guide, draws.z)
        _check_movement(found, guide, target, n // 10, kept)
        _check_stein(found, guide, target, n)
        if guide.is_adversarial:
            _check_adversary(found, guide, target, n // 5, kept)
        _check_elbo(found, guide, target, elbo, n, kept)
    if comparison is not None:
        _report_stages(found, comparison)
    return found.verdict()


def _exceeds(estimate: Estimate, limit: float) -> bool:
    """Beyond the limit, and beyond chance; what is not finite is."""
    return not (estimate.value <= limit or estimate.value <= limits.SIGMAS * estimate.stderr)


def _check_finite(found: Findings, elbo: Estimate, share: float) -> None:
    found.figures["finite_share"] = share
    found.figure("elbo", elbo)
    if not math.isfinite(elbo.value) or share < limits.FINITE_SHARE:
        reason = f"the log-density is finite at only {share:.1%} of the draws; ELBO {elbo.value:.4g}"
        found.doubt(reason, SUPPORT, failed=True)
    elif share < 1.0:
        found.doubt(f"{1 - share:.2%} of the draws lie where the log-density is not finite", SUPPORT)


def _check_run(found: Findings, skipped: int, steps: int, iterates: Tensor | None) -> None:
    if not steps:
        reason = "no training step was done: the time given was over before the set-up was"
        found.doubt(reason, LONGER, failed=True)
    if skipped > limits.SKIPPED_SHARE * steps:
        reason = f"{skipped} of {steps} steps were skipped for non-finite gradients"
        found.doubt(reason, "look for overflows in the model, or reparameterise it")
    if iterates is None or not bool(torch.isfinite(iterates).all()):
        return
    halves = agreement(iterates)
    size = halves.drift.abs()
    found.figures["iterates_rhat"] = float(halves.rhat.nan_to_num(1.0).max())
    found.figures["iterates_drift"] = float(size.max())
    moving = (size > limits.DRIFT) & (size > limits.SIGMAS * halves.stderr) & (halves.rhat > limits.DRIFT_RHAT)
    if bool(moving.any()):
        reason = (
            f"the draws' moments were still moving: by {float(size.max()):.2f} sd between halves of the last part "
            f"(R-hat {found.figures['iterates_rhat']:.2f})"
        )
        found.doubt(reason, LONGER)


def _check_starts(found: Findings, guide: AVBGuide) -> None:
    notes: list[str] = list(getattr(guide, "start_notes", []))
    if getattr(guide, "start_suspect", False):
        found.doubt("; ".join(notes) or "the starts cast doubt on the posterior")
    else:
        found.remarks += notes


def _check_modes(found: Findings, guide: AVBGuide, z: Tensor) -> None:
    modes = mode_shares(guide, z)
    if modes is None:
        return
    lost = modes.lost
    found.figures["modes_found"], found.figures["modes_lost"] = float(len(lost)), float(lost.sum())
    found.figures["modes_misplaced"] = modes.total_variation
    if bool(lost.any()):
        worst = int(torch.where(lost, modes.weights, 0.0).argmax())
        reason = (
            f"{int(lost.sum())} of {len(lost)} modes found at the start got hardly any draws: one of weight "
            f"{float(modes.weights[worst]):.2f} has a share of {float(modes.shares[worst]):.3f}"
        )
        found.doubt(reason, MODES)
    elif modes.total_variation > limits.MODE_SHARES:
        reason = (
            f"{modes.total_variation:.0%} of the draws are in another mode than the evidence of the {len(lost)} modes "
            "found at the start says"
        )
        found.doubt(reason, MODES)


def _check_movement(found: Findings, guide: AVBGuide, target: UnconstrainedTarget, chains: int, kept: Evidence) -> None:
    """Fresh draws before and after a short HMC."""
    try:
        movement = move(guide, target, chains=chains)
    except ValueError as error:
        found.doubt(f"the draws can't be moved by HMC: {error}", failed=True)
        return
    kept.note_movement(movement)
    shift = moment_shift(movement.before, movement.after)
    divergence, energy, js = movement.divergence(), movement.energy(), _told_apart(movement)
    for name, estimate in (
        *(("mean_shift", shift.mean), ("sd_ratio_narrow", shift.narrowest), ("sd_ratio_wide", shift.widest)),
        *(("jeffreys", divergence), ("energy_shift", energy), ("jensen_shannon", js)),
    ):
        found.figure(name, estimate)
    found.figures["hmc_chains"], found.figures["hmc_acceptance"] = float(len(movement.before)), movement.acceptance
    doubts = []
    if _exceeds(shift.mean, limits.MEAN_SHIFT):
        doubts.append(f"its mean by {shift.mean.value:.2f} sd")
    low, high = (
        limits.SD_RATIO[0] - shift.narrowest.value,
        shift.widest.value - limits.SD_RATIO[1],
    )
    if not low <= 0.0 and 1.0 - shift.narrowest.value > limits.SIGMAS * shift.narrowest.stderr:
        doubts.append(f"they were too narrow, {shift.narrowest.value:.2f} of the sd in some direction")
    if not high <= 0.0 and shift.widest.value - 1.0 > limits.SIGMAS * shift.widest.stderr:
        doubts.append(f"they were too wide, {shift.widest.value:.2f} times the sd in some direction")
    if _exceeds(js, limits.JENSEN_SHANNON):
        doubts.append(f"a fresh classifier tells before from after ({js.value:.3f} nats)")
    if _exceeds(divergence, limits.JEFFREYS):
        kind = "learned" if guide.is_adversarial else "exact"
        doubts.append(f"the mean log weight (by the {kind} density) rises by {divergence.value:.2f} nats")
    if _exceeds(Estimate(abs(energy.value), energy.stderr), limits.ENERGY):
        doubts.append(f"the mean log-density changes by {energy.value:.2f} nats")
    if doubts:
        found.doubt(f"a short HMC moves the draws: {', '.join(doubts)}", LONGER, REFINE)
    else:
        found.remarks.append(
            f"a short HMC leaves the draws where they are: mean shift {shift.mean.value:.2f} sd, sd ratios "
            f"{shift.narrowest.value:.2f} to {shift.widest.value:.2f} over all directions"
        )


def _told_apart(movement: Movement) -> Estimate:
    """Jensen-Shannon divergence of before and after, by a fresh classifier that also sees log p."""
    if len(movement.before) < 40:
        return Estimate(math.nan, math.inf)
    log_p = torch.stack([movement.log_p_before, movement.log_p_after])
    center, scale = movement.log_p_after.median(), movement.log_p_after.std().clamp_min(1e-6)
    before, after = ((log_p - center) / scale).clamp(-10.0, 10.0)
    return information(
        *held_out_log_ratio(
            torch.cat([movement.before, before[:, None]], -1), torch.cat([movement.after, after[:, None]], -1)
        )
    )


def _check_stein(found: Findings, guide: AVBGuide, target: UnconstrainedTarget, n: int) -> None:
    matrix, noise = stein_matrix(guide, target, n)
    if not bool(torch.isfinite(matrix).all()):
        found.figures["stein_error"] = math.inf
        found.doubt("the gradient of the log-density is not finite at some draws", SUPPORT)
        return
    eigenvalues = torch.linalg.eigvals(matrix).real
    worst = float(eigenvalues[(eigenvalues - 1.0).abs().argmax()])
    found.figure("stein_error", Estimate(abs(worst - 1.0), noise))
    if abs(worst - 1.0) > max(limits.STEIN, 2.0 * noise):
        reason = (
            f"Stein's identity is off by {abs(worst - 1.0):.2f} in some direction (0 if the draws are the "
            f"posterior's): they are too {'narrow' if worst < 1.0 else 'wide'} there"
        )
        found.doubt(reason, LONGER, REFINE)


def judge_calibration(found: Findings, error: float, cross_entropy: Estimate, *remedies: str) -> None:
    """What the adversary's held-out calibration error and cross-entropy (nats per draw) say of its log q."""
    if not error <= limits.CALIBRATION_ERROR:
        found.doubt(f"the adversary is miscalibrated, by {error:.3f} on held-out draws", *remedies)
    elif error > limits.ROUGH_CALIBRATION_ERROR:
        found.remarks.append(
            f"the learned log q is rough (calibration error {error:.3f}): log_prob and ELBO are less reliable than the "
            "draws"
        )
    elif cross_entropy.value < limits.SATURATED_CROSS_ENTROPY:
        # Where the two laws hardly overlap any large T is calibrated: the loss does not ask for its value.
        found.remarks.append(
            f"the adversary is saturated: it nearly always tells draws of q from the contrast's (cross-entropy "
            f"{cross_entropy.value:.3f}, chance {LOG_2:.3f}), so that the values of log q and of the ELBO are hardly "
            "learned; a contrast closer to q mends that"
        )
    else:
        found.remarks.append(
            f"the adversary holds on fresh draws: calibration error {error:.3f}, cross-entropy "
            f"{cross_entropy.value:.3f} (chance {LOG_2:.3f})"
        )


def _check_adversary(found: Findings, guide: AVBGuide, target: UnconstrainedTarget, n: int, kept: Evidence) -> None:
    """Held-out calibration of T, and a fresh adversary beside it."""
    calibration = calibrate(guide, target, n)
    kept.reliability = calibration.reliability
    found.figures["calibration_error"] = calibration.reliability.error
    found.figure("cross_entropy", calibration.cross_entropy)
    found.figure("cross_entropy_excess", calibration.excess)
    if _exceeds(calibration.excess, limits.CROSS_ENTROPY_EXCESS):
        reason = (
            f"a fresh adversary does better than the guide's: held-out cross-entropy "
            f"{calibration.fresh_cross_entropy.value:.3f} against {calibration.cross_entropy.value:.3f}"
        )
        found.doubt(reason, LONGER)
    else:
        judge_calibration(found, calibration.reliability.error, calibration.cross_entropy, LONGER)
    kept.note_weights(calibration.log_weights, "freshly learned density")
    weights = summarise_weights(calibration.log_weights)
    found.figures["learned_k_hat"], found.figures["learned_kl_by_weights"] = weights.k_hat, weights.kl
    if not weights.kl <= limits.LEARNED_KL_BY_WEIGHTS:
        reason = (
            f"importance weights by a freshly learned density put KL(q, posterior) at {weights.kl:.2f} nats "
            f"(k-hat {weights.k_hat:.2f})"
        )
        found.doubt(reason, LONGER)


def _check_elbo(
    found: Findings, guide: AVBGuide, target: UnconstrainedTarget, elbo: Estimate, n: int, kept: Evidence
) -> None:
    """The ELBO, with its direction, beside the log-evidence by the trunk's exact weights."""
    if elbo.stderr > limits.ELBO_STDERR:
        found.doubt(f"the ELBO is known only to {elbo.stderr:.2g}; its terms vary widely", LONGER)
    learned = guide.is_adversarial
    found.remarks.append(
        f"ELBO {elbo}: "
        + (
            "log q is learned, so it is an estimate and not a bound, usually too high"
            if learned
            else "a lower bound of the log-evidence (exact density)"
        )
    )
    if learned and not guide.part("trunk").is_trainable:
        # An affine or identity trunk is no approximation of its own; its weights say little of the sampler.
        return
    _, log_weight = trunk_weights(guide, target, n)
    if not bool(torch.isfinite(log_weight).any()):
        found.figures["k_hat"] = math.inf
        found.doubt("the trunk's importance weights are all zero or not finite", LONGER)
        return
    if not learned:
        kept.note_weights(log_weight, "guide's exact density")
    log_evidence, _, k_hat, effective = summarise_weights(log_weight)
    gap = log_evidence - elbo.value
    found.figures |= {"k_hat": k_hat, "effective_share": effective}
    found.figures |= {"log_evidence": log_evidence, "kl_by_weights": gap}
    whose = "trunk's" if learned else "guide's"
    if not learned and not gap <= limits.KL_BY_WEIGHTS + limits.SIGMAS * elbo.stderr:
        reason = f"importance weights put the log-evidence {gap:.2f} nats above the ELBO (k-hat {k_hat:.2f})"
        found.doubt(reason, LONGER)
    elif learned and k_hat < K_HAT_LIMIT and gap < -limits.SIGMAS * elbo.stderr - limits.ELBO_EXCESS:
        found.doubt("the learned ELBO exceeds the log-evidence: the adversary does not see all of q", LONGER)
    else:
        advice = "below 0.7 is good" if k_hat < K_HAT_LIMIT else "0.7 or more: don't reweight draws, tails may be thin"
        found.remarks.append(
            f"k-hat of the {whose} exact importance weights is {k_hat:.2f} ({advice}); log-evidence {log_evidence:.3f}"
        )


def _report_stages(found: Findings, comparison: StageComparison) -> None:
    found.figure("stage_difference", comparison.difference)
    kept = "adversarial stage" if comparison.keep_adversarial else "trunk"
    excess = comparison.classifier_excess
    by_classifier = "" if excess is None else f", classifier's accuracy {excess}"
    found.remarks.append(
        f"kept: the {kept} (adversarial stage minus trunk: energy distance {comparison.difference}{by_classifier})"
    )
    if excess is not None:
        found.figures["stage_classifier_excess"] = excess.value
