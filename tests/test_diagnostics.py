"""Diagnostics: smoothing against ArviZ, energy distances, stages and verdicts on posteriors known exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.diagnostics import (
    StageComparison,
    Verdict,
    _energy_distance,
    choose_stage,
    fit_generalised_pareto,
    judge,
    pareto_smooth,
    stein_matrix,
    trunk_weights,
)
from avbvi.estimates import Estimate
from avbvi.guides import ADVERSARIAL, AVBGuide
from avbvi.samplers import ResidualSampler
from avbvi.targets import LogDensity, UnconstrainedTarget
from avbvi.trunks import AffineTrunk, FlowTrunk, Trunk

# -- Pareto smoothing --------------------------------------------------------------------------------


def weights_of(kind: str, n: int) -> Tensor:
    x = torch.randn(n, dtype=torch.float64)
    if kind == "light":
        return -0.1 * x.square() + 100.0
    if kind == "heavy":
        return 2.5 * x - 1000.0
    if kind == "infinite variance":
        return 0.45 * x.square()
    if kind == "some zero":
        return torch.where(x > 0.5, -math.inf, x)
    assert kind == "ties"
    return x.round(decimals=1)


@pytest.mark.parametrize("kind", ["light", "heavy", "infinite variance", "some zero", "ties"])
@pytest.mark.parametrize("n", [25, 200, 5000])
def test_pareto_smoothing_is_that_of_arviz(kind: str, n: int) -> None:
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has no psislw")
    log_weights = weights_of(kind, n)
    smoothed, k_hat = pareto_smooth(log_weights)
    with np.errstate(all="ignore"):
        expected, k_expected = arviz.psislw(log_weights.numpy().copy())
    assert k_hat == pytest.approx(float(k_expected), abs=1e-6)
    # Among equal weights the order is arbitrary, so that they may change places.
    np.testing.assert_allclose(smoothed.exp().sort().values.numpy(), np.sort(np.exp(expected)), atol=1e-9, rtol=1e-6)
    if kind != "ties":
        np.testing.assert_allclose(smoothed.exp().numpy(), np.exp(expected), atol=1e-9, rtol=1e-6)
    assert float(smoothed.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.6, 1.0])
def test_generalised_pareto_shape_is_found(shape: float) -> None:
    n, scale = 20_000, 3.0
    u = torch.rand(n, dtype=torch.float64)
    x = scale * torch.expm1(-shape * torch.log1p(-u)) / shape
    k, sigma = fit_generalised_pareto(x.sort().values)
    # Asymptotic standard errors of maximum likelihood: (1 + k) / sqrt(n) and sigma sqrt(2 (1 + k) / n);
    # the prior, worth ten observations, adds a bias.
    assert abs(k - shape) < 4.0 * (1.0 + shape) / math.sqrt(n) + 10.0 / n
    assert abs(sigma / scale - 1.0) < 4.0 * math.sqrt(2.0 * (1.0 + shape) / n)


def test_equal_weights_are_trusted() -> None:
    smoothed, k_hat = pareto_smooth(torch.full((100,), -7.0))
    assert k_hat == -math.inf
    torch.testing.assert_close(smoothed, torch.full((100,), -math.log(100.0), dtype=torch.float64))
    # The same up to the rounding of float32.
    noisy = -7.0 + torch.randint(-4, 5, (20_000,)) * torch.finfo(torch.float32).eps
    assert pareto_smooth(noisy)[1] == -math.inf


def test_a_single_weight_is_not_trusted() -> None:
    log_weights = torch.full((100,), -math.inf)
    log_weights[3] = 5.0
    smoothed, k_hat = pareto_smooth(log_weights)
    assert k_hat == math.inf
    assert float(smoothed[3]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(24), r"n >= 25, found \(24,\)"),
        (torch.zeros(5, 30), r"found \(5, 30\)"),
        (torch.zeros(30).index_fill(0, torch.tensor([3]), math.nan), "found NaN"),
        (torch.zeros(30).index_fill(0, torch.tensor([3]), math.inf), r"or \+inf"),
        (torch.full((30,), -math.inf), "all -inf"),
    ],
)
def test_unusable_weights_are_refused(log_weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pareto_smooth(log_weights)


# -- energy distance ---------------------------------------------------------------------------------


def test_energy_distance_is_the_formula() -> None:
    x, y = torch.randn(40, 3, dtype=torch.float64), 2.0 * torch.randn(30, 3, dtype=torch.float64) + 1.0
    a, b = x.numpy(), y.numpy()
    within = [cdist(s, s)[~np.eye(len(s), dtype=bool)].mean() for s in (a, b)]
    assert float(_energy_distance(x, y)) == pytest.approx(2.0 * cdist(a, b).mean() - sum(within), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_energy_distance_is_unbiased(shift: float) -> None:
    values = torch.stack(
        [_energy_distance(torch.randn(60, 1).double(), torch.randn(60, 1).double() + shift) for _ in range(500)]
    )

    # E|X - Y| for X - Y ~ N(m, 2) is the mean of a folded normal; 0 in all for equal laws.
    def folded(m: float) -> float:
        s = math.sqrt(2.0)
        return s * math.sqrt(2.0 / math.pi) * math.exp(-0.25 * m * m) + m * math.erf(m / (s * math.sqrt(2.0)))

    exact = 2.0 * folded(shift) - 2.0 * folded(0.0)
    assert abs(float(values.mean()) - exact) < 4.0 * float(values.std()) / math.sqrt(500)


# -- a posterior known exactly -----------------------------------------------------------------------

LOC = torch.tensor([1.0, -2.0])
SCALE_TRIL = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
LOG_Z = -3.7


def log_density(z: Tensor) -> Tensor:
    return MultivariateNormal(LOC, scale_tril=SCALE_TRIL).log_prob(z) + LOG_Z


def guide_at(
    loc: Tensor, scale_tril: Tensor, trunk: Trunk | None = None, log_prob: object = log_density
) -> tuple[AVBGuide, UnconstrainedTarget]:
    """A guide whose trunk is the Gaussian N(loc, L L^T), exactly for an affine one."""
    guide = AVBGuide(LogDensity(log_prob, event_shape=(2,)), trunk=trunk or AffineTrunk(), sampler=ResidualSampler())
    guide.setup()
    guide.part("trunk").start(loc, scale_tril)
    target = guide.target()
    assert target is not None
    return guide, target


def set_sampler(guide: AVBGuide, shift: Tensor, scale: float) -> None:
    """Make the sampler's base draws exactly N(shift, scale^2 I)."""
    sampler = guide.part("sampler")
    with torch.no_grad():
        sampler.linear.weight.mul_(scale)
        sampler.network.leave[-1].bias.copy_(torch.cat([shift, torch.full((2,), math.log(scale))]))


def test_trunk_weights_are_the_exact_log_ratios() -> None:
    guide, target = guide_at(LOC + 0.5, 1.3 * SCALE_TRIL)
    base, log_weight = trunk_weights(guide, target, 50)
    z = LOC + 0.5 + 1.3 * base @ SCALE_TRIL.mT
    expected = log_density(z) - MultivariateNormal(LOC + 0.5, scale_tril=1.3 * SCALE_TRIL).log_prob(z)
    torch.testing.assert_close(log_weight, expected, atol=1e-5, rtol=1e-5)


def test_the_trunk_is_kept_where_the_sampler_is_damaged() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    set_sampler(guide, torch.zeros(2), 0.7)
    comparison = choose_stage(guide, target, n=4000)
    assert not comparison.keep_adversarial
    assert comparison.difference.value > 4.0 * comparison.difference.stderr
    assert abs(comparison.trunk_distance.value) < 4.0 * comparison.trunk_distance.stderr  # the trunk is exact


def test_the_adversarial_stage_is_kept_where_the_trunk_is_damaged() -> None:
    loc = LOC + SCALE_TRIL @ torch.tensor([0.6, -0.3])
    guide, target = guide_at(loc, 1.3 * SCALE_TRIL)
    set_sampler(guide, torch.tensor([-0.6, 0.3]) / 1.3, 1.0 / 1.3)
    comparison = choose_stage(guide, target, n=4000)
    assert comparison.k_hat < 0.7
    assert comparison.keep_adversarial
    assert comparison.difference.value < -4.0 * comparison.difference.stderr
    assert comparison.difference.value == pytest.approx(-comparison.trunk_distance.value, abs=0.05)


def test_the_trunk_is_kept_where_both_are_exact() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    comparison = choose_stage(guide, target, n=4000)
    assert abs(comparison.difference.value) < 4.0 * comparison.difference.stderr
    assert comparison.keep_adversarial is (comparison.difference.value < -2.0 * comparison.difference.stderr)


def test_the_trunk_is_kept_where_the_sampler_gives_nan() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL)
    set_sampler(guide, torch.tensor([0.0, math.nan]), 1.0)
    comparison = choose_stage(guide, target, n=2000)
    assert not comparison.keep_adversarial
    assert comparison.reference.startswith("none")


# -- verdicts ----------------------------------------------------------------------------------------


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
    assert verdict_on(*exact, Estimate(LOG_Z - 0.6, 0.01)).status == "suspect"  # a gap of .6 nats
    assert verdict_on(*exact, Estimate(LOG_Z - 0.4, 0.01)).status == "ok"
    skipping = verdict_on(*exact, skipped=11)
    assert skipping.status == "suspect"
    assert skipping.reasons[0] == "11 of 1000 steps were skipped for non-finite gradients"
    assert verdict_on(*exact, skipped=10).status == "ok"


def test_a_trunk_that_is_too_thin_is_suspect() -> None:
    verdict = verdict_on(*guide_at(LOC, 0.3 * SCALE_TRIL))
    assert verdict.status == "suspect"
    assert verdict.figures["k_hat"] > 0.7
    assert any("too thin" in reason for reason in verdict.reasons)


def test_a_learned_elbo_above_the_evidence_is_suspect() -> None:
    guide, target = guide_at(LOC, SCALE_TRIL, FlowTrunk(layers=1, hidden=(4,)))
    guide.stage.fill_(ADVERSARIAL)
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
    assert any("Stein's identity is off by 0.7" in reason for reason in verdict.reasons)
