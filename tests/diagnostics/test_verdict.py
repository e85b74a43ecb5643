"""Verdicts on posteriors known exactly: figures in closed form, and fits that are broken in a known way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avbvi.diagnostics import Findings, StageComparison, Verdict, judge, mode_shares, reliability, stein_matrix
from avbvi.diagnostics.verdict import judge_calibration
from avbvi.estimates import Estimate
from avbvi.guides import ADVERSARIAL, AVBGuide
from avbvi.log_density import LogDensity
from avbvi.starts import LaplaceModes
from avbvi.targets import UnconstrainedTarget
from avbvi.trunks import AffineTrunk, FlowTrunk
from tests.diagnostics.known import LOC, LOG_Z, SCALE_TRIL, guide_at, log_density, set_sampler

EXACT_ELBO = Estimate(LOG_Z, 0.001)


def verdict_on(
    guide: AVBGuide,
    target: UnconstrainedTarget,
    elbo: Estimate = EXACT_ELBO,
    *,
    skipped: int = 0,
    comparison: StageComparison | None = None,
) -> Verdict:
    return judge(guide, target, elbo, skipped=skipped, steps=1000, comparison=comparison, n=5000)


def test_an_exact_fit_is_ok() -> None:
    verdict = verdict_on(*guide_at(LOC, SCALE_TRIL))
    assert verdict.status == "ok", str(verdict)
    assert verdict.figures["log_evidence"] == pytest.approx(LOG_Z, abs=1e-5)
    assert verdict.figures["effective_share"] == pytest.approx(1.0, abs=1e-5)
    assert verdict.figures["finite_share"] == 1.0


def test_figures_of_a_wide_trunk_are_the_closed_forms() -> None:
    s = 1.2
    guide, target = guide_at(LOC, s * SCALE_TRIL)
    kl = 2.0 * (0.5 * s**2 - 0.5 - math.log(s))
    verdict = verdict_on(guide, target, Estimate(LOG_Z - kl, 0.0))
    # Stein's identity: E_q[s (e - E e)] = -s^2 in the trunk's base coordinates.
    assert abs(verdict.figures["stein_error"] - (s**2 - 1.0)) < 5.0 * verdict.figures["stein_error_stderr"]
    assert verdict.status == "suspect"
    assert any("too wide" in reason for reason in verdict.reasons)
    # E_q[w^2] = (s^2 / sqrt(2 s^2 - 1))^2 in two dimensions; its inverse is the share of effective draws.
    share = (2.0 * s**2 - 1.0) / s**4
    stderr = math.sqrt((1.0 / share - 1.0) / 5000)  # of the mean weight
    assert abs(verdict.figures["log_evidence"] - LOG_Z) < 4.0 * stderr
    assert abs(verdict.figures["kl_by_weights"] - kl) < 4.0 * stderr
    assert verdict.figures["effective_share"] == pytest.approx(share, abs=0.02)


def test_reasons_for_suspicion() -> None:
    exact = guide_at(LOC, SCALE_TRIL)
    assert verdict_on(*exact, Estimate(LOG_Z, 0.2)).status == "suspect"
    assert verdict_on(*exact, Estimate(LOG_Z, 0.2)).reasons[0].startswith("the ELBO is known only to 0.2")
    assert verdict_on(*exact, Estimate(LOG_Z - 0.25, 0.01)).status == "suspect"  # a gap of .25 nats
    assert verdict_on(*exact, Estimate(LOG_Z - 0.15, 0.01)).status == "ok"
    skipping = verdict_on(*exact, skipped=11)
    assert skipping.status == "suspect"
    assert skipping.reasons[0] == "11 of 1000 steps were skipped for non-finite gradients"
    assert verdict_on(*exact, skipped=10).status == "ok"


def test_a_trunk_that_is_too_thin_is_suspect() -> None:
    verdict = verdict_on(*guide_at(LOC, 0.3 * SCALE_TRIL))
    assert verdict.status == "suspect"
    assert verdict.figures["k_hat"] > 0.7
    assert any("too narrow" in reason for reason in verdict.reasons)


def test_a_learned_elbo_above_the_evidence_is_suspect() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL, FlowTrunk(layers=1, hidden=(4,)))
    guide.stage.fill_(ADVERSARIAL)
    guide.part("adversary").observe(torch.tensor([LOG_Z]))  # T = 0, exactly
    honest, optimistic = (verdict_on(guide, target, Estimate(LOG_Z + gain, 0.01)) for gain in (0.0, 0.5))
    assert honest.status == "ok", str(honest)
    assert optimistic.status == "suspect"
    assert any("exceeds the log-evidence" in reason for reason in optimistic.reasons)
    assert any("log q is learned" in reason for reason in honest.reasons)


def cut(z: Tensor, share: float) -> Tensor:
    """The Gaussian, but -inf on a half-plane that holds this share of it."""
    limit = math.sqrt(2.0) * torch.erfinv(torch.tensor(1.0 - 2.0 * share))
    return torch.where((z[..., 0] - LOC[0]) / SCALE_TRIL[0, 0] > limit, -math.inf, log_density(z))


@pytest.mark.parametrize(("share", "status"), [(0.05, "failed"), (0.004, "suspect")])
def test_draws_outside_the_support_count(share: float, status: str) -> None:
    verdict = verdict_on(*guide_at(LOC, SCALE_TRIL, log_prob=lambda z: cut(z, share)))
    assert verdict.status == status, str(verdict)
    error = 4.0 * math.sqrt(share * (1.0 - share) / 5000)
    assert abs(verdict.figures["finite_share"] - (1.0 - share)) < error


def test_an_elbo_that_is_not_finite_has_failed() -> None:
    verdict = verdict_on(*guide_at(LOC, SCALE_TRIL), Estimate(math.nan, math.nan))
    assert verdict.status == "failed"
    assert str(verdict).splitlines()[0] == "verdict: failed"


def test_the_choice_of_stage_is_reported() -> None:
    comparison = StageComparison(False, Estimate(0.3, 0.01), Estimate(0.0, 0.01), 0.1, "reference")
    verdict = verdict_on(*guide_at(LOC, SCALE_TRIL), comparison=comparison)
    assert any(reason.startswith("kept: the trunk") for reason in verdict.reasons)
    assert verdict.figures["stage_difference"] == 0.3
    assert verdict.to_dict()["figures"] == verdict.figures


def test_verdict_tells_of_a_mode_that_the_start_found_and_the_draws_lost() -> None:
    def two_modes(z: torch.Tensor) -> torch.Tensor:
        left, right = ((z - c).square().sum(-1) for c in (-8.0, 8.0))
        return torch.logaddexp(-0.5 * left, -0.5 * right)

    guide = AVBGuide(LogDensity(two_modes, (2,)), trunk=AffineTrunk()).setup()
    target = guide.target()
    guide.start(target)
    assert guide.modes is not None
    assert len(guide.modes.locs) == 2
    loc, covariance = guide.modes.locs[0], guide.modes.covariances[0]
    assert guide.modes.shares(loc + torch.randn(500, 2)) == pytest.approx(torch.tensor([1.0, 0.0]), abs=1e-6)
    guide.part("trunk").start(loc, torch.linalg.cholesky(covariance))
    verdict = judge(guide, target, Estimate(0.0, 0.01), skipped=0, steps=10, comparison=None, n=2000)
    assert verdict.status == "suspect"
    assert any("1 of 2 modes found at the start" in reason for reason in verdict.reasons)
    # Draws that visit both modes are not blamed for it.
    guide.start(target)
    verdict = judge(guide, target, Estimate(0.0, 0.01), skipped=0, steps=10, comparison=None, n=2000)
    assert verdict.figures["modes_lost"] == 0.0


def test_steins_identity_sees_all_directions() -> None:
    """For Gaussians the matrix is S^-1 C; a fit that is right in each coordinate can be wrong between them."""
    precision = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    density = LogDensity(lambda z: -0.5 * (z @ precision * z).sum(-1), (2,))
    guide = AVBGuide(density, trunk=AffineTrunk()).setup()
    target = guide.target()
    correlated = torch.tensor([[1.0, 0.7], [0.7, 1.0]])  # the coordinates' own sds are right
    guide.part("trunk").start(torch.zeros(2), torch.linalg.cholesky(correlated))
    matrix, noise = stein_matrix(guide, target, 20_000)
    eigenvalues = torch.linalg.eigvals(matrix).real.sort().values
    assert eigenvalues.tolist() == pytest.approx([0.3, 1.7], abs=3.0 * noise)
    assert noise < 0.1
    verdict = judge(guide, target, Estimate(0.0, 0.01), skipped=0, steps=10, comparison=None, n=5000)
    assert verdict.status == "suspect"
    assert any("Stein's identity is off by" in reason for reason in verdict.reasons)
    assert abs(verdict.figures["stein_error"] - 0.7) < 3.0 * verdict.figures["stein_error_stderr"]


@pytest.mark.parametrize(
    ("shift", "scale", "reason"),
    [
        (0.4, 1.0, "its mean by"),
        (0.0, 0.65, "too narrow,"),
        (0.0, 1.45, "too wide,"),
    ],
)
@pytest.mark.parametrize("adversarial", [False, True])
def test_draws_that_are_off_are_suspect(shift: float, scale: float, reason: str, adversarial: bool) -> None:
    """By HMC alone: in the adversarial stage without a density of q, and no weights are given a chance to tell."""
    base = torch.tensor([0.6, -0.8]) * shift
    if adversarial:
        guide, target = guide_at(LOC, SCALE_TRIL)
        guide.stage.fill_(ADVERSARIAL)
        set_sampler(guide, base, scale)
    else:
        guide, target = guide_at(LOC + SCALE_TRIL @ base, scale * SCALE_TRIL)
    verdict = verdict_on(guide, target)
    assert verdict.status == "suspect"
    assert any("a short HMC moves the draws" in line and reason in line for line in verdict.reasons), str(verdict)
    assert any(line.startswith("try: give it more time") for line in verdict.reasons)
    figures = verdict.figures
    assert abs(figures["mean_shift"] - shift) < 4.0 * figures["mean_shift_stderr"]
    assert abs(figures["sd_ratio_narrow"] - scale) < 4.0 * figures["sd_ratio_narrow_stderr"]


def test_reasons_of_a_good_verdict_are_few() -> None:
    verdict = verdict_on(*guide_at(LOC, SCALE_TRIL))
    assert 2 <= len(verdict.reasons) <= 4
    assert any("a lower bound of the log-evidence" in reason for reason in verdict.reasons)


def test_moments_that_still_move_are_suspect() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    sds = torch.linalg.vector_norm(SCALE_TRIL, dim=1)

    def iterates(trend: float) -> Tensor:
        means = LOC + 0.01 * torch.randn(32, 2) + trend * torch.linspace(-1.0, 1.0, 32)[:, None] * sds
        return torch.stack([means, sds.expand(32, 2)], 1)

    still, moving = (
        judge(guide, target, EXACT_ELBO, skipped=0, steps=9, comparison=None, n=5000, iterates=iterates(trend))
        for trend in (0.1, 1.0)
    )
    assert still.status == "ok", str(still)
    assert still.figures["iterates_drift"] == pytest.approx(0.1, abs=0.03)
    assert moving.status == "suspect"
    assert "still moving: by 1.0" in moving.reasons[0]


def test_what_the_starts_say_is_passed_on() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    guide.start_notes = ["an optimum lies at infinity"]
    noted = verdict_on(guide, target)
    assert noted.status == "ok"
    assert "an optimum lies at infinity" in noted.reasons
    guide.start_suspect = True
    assert verdict_on(guide, target).reasons[0] == "an optimum lies at infinity"
    assert verdict_on(guide, target).status == "suspect"


def test_a_fit_without_a_step_has_failed() -> None:
    verdict = judge(*guide_at(LOC, SCALE_TRIL), EXACT_ELBO, skipped=0, steps=0, comparison=None, n=5000)
    assert verdict.status == "failed"
    assert verdict.reasons[0].startswith("no training step")


def test_a_miscalibrated_adversary_is_suspect() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    guide.stage.fill_(ADVERSARIAL)
    adversary = guide.part("adversary")
    adversary.observe(torch.tensor([LOG_Z]))  # T = 0, exactly
    assert verdict_on(guide, target).status == "ok", str(verdict_on(guide, target))
    adversary.center.fill_(LOG_Z - 1.0)
    verdict = verdict_on(guide, target)
    assert verdict.status == "suspect"
    assert "a fresh adversary does better" in verdict.reasons[0]
    adversary.center.fill_(LOG_Z - 0.4)  # off by less than the limits: worth a remark
    verdict = verdict_on(guide, target)
    assert verdict.status == "ok"
    assert any("log q is rough" in reason for reason in verdict.reasons)


@pytest.mark.parametrize(("apart", "words"), [(1.0, "holds on fresh draws"), (8.0, "is saturated")])
def test_a_saturated_adversary_is_named(apart: float, words: str) -> None:
    # T = apart * z is exact for unit normals at +-apart / 2: calibrated either way, its size arbitrary far apart.
    t_q, t_r = apart * (torch.randn(2, 20_000) + 0.5 * apart * torch.tensor([[1.0], [-1.0]]))
    entropy = torch.nn.functional.softplus(torch.cat([-t_q, t_r]))
    found = Findings()
    judge_calibration(found, reliability(t_q, t_r).error, Estimate(float(entropy.mean()), 0.0))
    verdict = found.verdict()
    assert verdict.status == "ok"
    assert any(f"the adversary {words}" in reason for reason in verdict.reasons)


def test_shares_of_modes() -> None:
    """Draws of two separated modes in shares .9 and .1, where the evidence says half and half."""
    guide, _ = guide_at(LOC, SCALE_TRIL)
    draws = torch.randn(1000, 2) + torch.tensor([8.0, 0.0])
    draws[:100, 0] -= 16.0
    draws[0] = math.nan
    assert mode_shares(guide, draws) is None
    locs = torch.tensor([[8.0, 0.0], [-8.0, 0.0]])
    guide.modes = LaplaceModes(locs, torch.eye(2).expand(2, 2, 2), torch.full((2,), math.log(0.5)))
    shares = mode_shares(guide, draws)
    assert shares is not None
    assert shares.shares.tolist() == pytest.approx([900 / 999, 99 / 999], abs=1e-5)
    assert shares.total_variation == pytest.approx(900 / 999 - 0.5, abs=1e-5)
    assert shares.lost.tolist() == [False, False]
    only = mode_shares(guide, draws[100:])
    assert only is not None
    assert only.lost.tolist() == [False, True]
