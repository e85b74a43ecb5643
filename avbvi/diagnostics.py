"""Is this fit to be trusted? Importance weights of the trunk, the choice of stage, the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .divergences import classifier_two_sample_test
from .estimates import Estimate
from .hmc import short_hmc

if TYPE_CHECKING:
    from .guides import AVBGuide
    from .targets import UnconstrainedTarget

K_HAT_LIMIT = 0.7
BLOCKS = 20
HMC_CHAINS = 4000
STEIN_LIMIT = 0.25
LEAST_MODE_WEIGHT, LEAST_MODE_SHARE = 0.05, 0.1


def pareto_smooth(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao, Gabry 2024).

    The largest weights are replaced by expected order statistics of a generalised Pareto distribution
    fitted to them (Zhang and Stephens 2009, with the prior of Vehtari et al., appendix C).

    Args:
        log_weights: unnormalised log importance weights (n,); -inf is a weight of zero.

    Returns:
        Smoothed log weights (n,), normalised to sum to one, and the shape k-hat: below 0.7 estimates by
        these weights can be trusted, ``inf`` where a tail can't be fitted, ``-inf`` where all are equal.

    Raises:
        ValueError: NaN or +inf among the weights, all of them zero, or fewer than 25.
    """
    if log_weights.dim() != 1 or log_weights.numel() < 25:
        raise ValueError(f"log_weights must have shape (n,) with n >= 25, found {tuple(log_weights.shape)}")
    if bool((torch.isnan(log_weights) | (log_weights == math.inf)).any()):
        raise ValueError("log_weights must be finite or -inf; found NaN or +inf")
    if bool((log_weights == -math.inf).all()):
        raise ValueError("log_weights are all -inf: no draw has any weight")
    lw = log_weights.double() - log_weights.double().max()
    n = lw.numel()
    tail = math.ceil(min(0.2 * n, 3.0 * math.sqrt(n)))
    ordered, index = lw.sort()
    cutoff = ordered[-tail - 1].clamp_min(math.log(torch.finfo(torch.float64).tiny))
    tail = int((ordered > cutoff).sum())  # what ties with the cutoff is no part of the tail
    if float(ordered[-1] - ordered[0]) < 1e-3:
        k_hat = -math.inf  # as good as equal: what differs may be rounding alone
    elif tail <= 4:
        k_hat = math.inf
    else:
        k_hat, sigma = fit_generalised_pareto(ordered[-tail:].exp() - cutoff.exp())
        probability = (torch.arange(tail, dtype=lw.dtype, device=lw.device) + 0.5) / tail
        smooth = sigma * torch.expm1(-k_hat * torch.log1p(-probability)) / k_hat
        lw = lw.clone()
        lw[index[-tail:]] = (smooth + cutoff.exp()).log().clamp_max(0.0)
    return lw - torch.logsumexp(lw, 0), k_hat


def fit_generalised_pareto(exceedance: Tensor) -> tuple[float, float]:
    """Shape k and scale sigma of a generalised Pareto distribution, from sorted positive values (n,)."""
    x = exceedance.double()
    n = x.numel()
    grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = 1.0 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=x.dtype, device=x.device) - 0.5))
    b = b / (3.0 * quartile) + 1.0 / x[-1]
    k = torch.log1p(-b[:, None] * x).mean(1)
    profile = n * (torch.log(-b / k) - k - 1.0)
    weights = torch.softmax(profile, 0)
    b_mean = (weights * b).sum()
    k_mean = torch.log1p(-b_mean * x).mean()
    sigma = float(-k_mean / b_mean)
    # A weak prior that draws the shape towards 1/2, worth ten observations.
    return float((n * k_mean + 10.0 * 0.5) / (n + 10.0)), sigma


@dataclass(frozen=True)
class StageComparison:
    """Trunk against adversarial stage, judged by a reference sample.

    ``difference`` is the energy distance to the reference of the adversarial stage minus that of the
    trunk (negative: the adversarial stage is better), in the trunk's base coordinates with the
    standardised log weight as one more coordinate. ``classifier_excess`` is the accuracy with which a
    classifier tells the adversarial stage from the reference, less the same for the trunk; ``None`` where the
    energy distance had already decided for the trunk.
    """

    keep_adversarial: bool
    difference: Estimate
    trunk_distance: Estimate
    k_hat: float
    reference: str
    classifier_excess: Estimate | None = None


@torch.no_grad()
def trunk_weights(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> tuple[Tensor, Tensor]:
    """n base draws of the trunk (n, dim) and their exact log importance weights log p - log q_trunk (n,)."""
    base = guide.trunk_base(torch.Size((n,)))
    return base, trunk_log_weight(guide, target, base)


@torch.no_grad()
def trunk_log_weight(guide: AVBGuide, target: UnconstrainedTarget, base: Tensor) -> Tensor:
    """log p(G(e)) + log|det dG/de| - log q_base(e) at base coordinates (n, dim) -> (n,)."""
    trunk = guide.part("trunk")
    z, log_det = trunk(base)
    return (target.log_prob(z) + log_det - trunk.base_log_prob(base)).nan_to_num(-math.inf, -math.inf, -math.inf)


@torch.no_grad()
def choose_stage(guide: AVBGuide, target: UnconstrainedTarget, n: int = 20_000) -> StageComparison:
    """Judge whether the adversarial stage is closer to the posterior than its trunk.

    The reference sample is the trunk's draws resampled by their exact, Pareto-smoothed importance weights
    where k-hat < 0.7; otherwise draws of both stages in equal numbers, moved by a short batched HMC. The
    adversarial stage is kept only if its energy distance to the reference (Szekely and Rizzo 2013) is smaller
    by more than two standard errors over blocks, and a classifier (Lopez-Paz and Oquab 2017), sharper on local
    errors, tells it from the reference no better than the trunk, to one standard error. The learned ELBO,
    biased upward, takes no part.
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
    base = torch.cat([trunk[:half], adversarial[:half]])

    def log_prob(e: Tensor) -> Tensor:
        z, log_det = guide.part("trunk")(e)
        return target.log_prob(z) + log_det

    states = short_hmc(log_prob, base).states
    return states[torch.randperm(len(states), device=states.device)]


def _energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between samples (n, d) and (m, d)."""
    n, m = len(x), len(y)
    within_x = torch.cdist(x, x).sum() / (n * (n - 1))
    within_y = torch.cdist(y, y).sum() / (m * (m - 1))
    return 2.0 * torch.cdist(x, y).mean() - within_x - within_y


def _block_estimate(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))


@dataclass(frozen=True)
class Verdict:
    """Whether a fit is to be trusted: ``status`` is "ok", "suspect" or "failed", with reasons in words.

    ``figures`` holds the numbers behind the reasons.
    """

    status: str
    reasons: list[str]
    figures: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([f"verdict: {self.status}", *(f"  - {reason}" for reason in self.reasons)])

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"status": self.status, "reasons": list(self.reasons), "figures": dict(self.figures)}


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
) -> Verdict:
    """The verdict on a trained guide.

    Args:
        guide: the guide, in its final stage.
        target: what it approximates.
        elbo: its ELBO, exact density or learned.
        skipped: steps skipped for non-finite gradients.
        steps: steps done.
        comparison: trunk against adversarial stage, where there was a choice.
        n: draws for the trunk's importance weights.
    """
    reasons: list[str] = []
    failed = suspect = False
    figures: dict[str, float] = {
        "elbo": elbo.value,
        "elbo_stderr": elbo.stderr,
        "skipped_steps": float(skipped),
        "adversarial": float(guide.is_adversarial),
    }
    draws = guide.draw(n)
    finite = float(torch.isfinite(target.log_prob(draws.z)).double().mean())
    figures["finite_share"] = finite
    if not math.isfinite(elbo.value) or finite < 0.99:
        failed = True
        reasons.append(f"the log-density is finite at only {finite:.1%} of the draws; ELBO {elbo.value:.4g}")
    elif finite < 1.0:
        suspect = True
        reasons.append(f"{1 - finite:.2%} of the draws lie where the log-density is not finite")
    if not steps:
        failed = True
        reasons.append("no training step was done: the time given was over before the set-up was")
    if elbo.stderr > 0.1:
        suspect = True
        reasons.append(f"the ELBO is known only to {elbo.stderr:.2g}; its terms vary widely")
    if skipped > 0.01 * steps:
        suspect = True
        reasons.append(f"{skipped} of {steps} steps were skipped for non-finite gradients")
    modes_suspect = _judge_modes(guide, draws.z, figures, reasons)
    stein_suspect = _judge_stein(guide, target, figures, reasons, n)
    trunk_suspect = _judge_trunk(guide, target, elbo, figures, reasons, n)
    if comparison is not None:
        figures["stage_difference"] = comparison.difference.value
        figures["stage_difference_stderr"] = comparison.difference.stderr
        kept = "adversarial stage" if comparison.keep_adversarial else "trunk"
        excess = comparison.classifier_excess
        by_classifier = "" if excess is None else f", classifier's accuracy {excess}"
        reasons.append(
            f"kept: the {kept} (adversarial stage minus trunk: energy distance {comparison.difference}{by_classifier})"
        )
        if excess is not None:
            figures["stage_classifier_excess"] = excess.value
    if guide.is_adversarial:
        reasons.append("log q is learned: the ELBO is an estimate and not a bound, usually too high")
    status = "failed" if failed else "suspect" if suspect or modes_suspect or stein_suspect or trunk_suspect else "ok"
    return Verdict(status, reasons, figures)


def _judge_modes(guide: AVBGuide, z: Tensor, figures: dict[str, float], reasons: list[str]) -> bool:
    """Compare the optima found at the start with where the draws went; True if one that matters was lost."""
    if guide.modes is None or len(guide.modes.locs) < 2:
        return False
    weight, share = guide.modes.log_weights.exp(), guide.modes.shares(z[torch.isfinite(z).all(-1)])
    lost = (weight > LEAST_MODE_WEIGHT) & (share < LEAST_MODE_SHARE * weight)
    figures["modes_found"], figures["modes_lost"] = float(len(weight)), float(lost.sum())
    if not bool(lost.any()):
        return False
    worst = int(torch.where(lost, weight, 0.0).argmax())
    reasons.append(
        f"{int(lost.sum())} of {len(weight)} modes found at the start got hardly any draws: one with Laplace weight "
        f"{float(weight[worst]):.2f} has a share of {float(share[worst]):.3f}"
    )
    return True


def stein_matrix(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> tuple[Tensor, float]:
    """-E_q[s (e - E e)^T] (dim, dim), and the size of its sampling noise in spectral norm; I if q is the posterior.

    s is the gradient of log p in base coordinates. Integration by parts gives the identity for any density
    that vanishes at infinity (Stein's identity). For Gaussians of covariances S (posterior) and C (q) it is
    S^-1 C, whose eigenvalues are the squared ratios of standard deviations over all directions. It needs no
    density of q, and can't see a mode that q lacks.
    """
    base = guide.draw_base(n)
    with torch.enable_grad():
        leaf = base.detach().requires_grad_()
        z, log_det = guide.part("trunk")(leaf)
        (score,) = torch.autograd.grad((target.log_prob(z) + log_det).sum(), leaf)
    score, centred = score.double(), (base - base.mean(0)).double()
    matrix = -score.mT @ centred / n
    variance = (score.square().mT @ centred.square() / n - matrix.square()) / n
    # The spectral norm of a d x d matrix of independent noise is about 2 sqrt(d) of its entries' sd.
    noise = 2.0 * math.sqrt(len(matrix)) * float(variance.mean().clamp_min(0.0).sqrt())
    return matrix, noise


def _judge_stein(
    guide: AVBGuide, target: UnconstrainedTarget, figures: dict[str, float], reasons: list[str], n: int
) -> bool:
    """Add Stein's identity; True if it fails by more than chance and by more than STEIN_LIMIT in some direction."""
    matrix, noise = stein_matrix(guide, target, n)
    if not bool(torch.isfinite(matrix).all()):
        figures["stein_error"] = math.inf
        reasons.append("the gradient of the log-density is not finite at some draws")
        return True
    eigenvalues = torch.linalg.eigvals(matrix).real
    worst = float(eigenvalues[(eigenvalues - 1.0).abs().argmax()])
    figures["stein_error"], figures["stein_error_stderr"] = abs(worst - 1.0), noise
    if abs(worst - 1.0) > max(STEIN_LIMIT, 2.0 * noise):
        reasons.append(
            f"Stein's identity is off by {abs(worst - 1.0):.2f} in some direction (0 if the draws are the "
            f"posterior's): they are too {'narrow' if worst < 1.0 else 'wide'} there"
        )
        return True
    return False


def _judge_trunk(
    guide: AVBGuide,
    target: UnconstrainedTarget,
    elbo: Estimate,
    figures: dict[str, float],
    reasons: list[str],
    n: int,
) -> bool:
    """Add k-hat, effective sample size and log-evidence by the trunk's exact weights; True if they cast doubt."""
    _, log_weight = trunk_weights(guide, target, n)
    if not bool(torch.isfinite(log_weight).any()):
        figures["k_hat"] = math.inf
        reasons.append("the trunk's importance weights are all zero or not finite")
        return True
    smoothed, k_hat = pareto_smooth(log_weight)
    log_z = float(torch.logsumexp(log_weight.double(), 0) - math.log(n))
    figures["k_hat"] = k_hat
    figures["effective_share"] = float(1.0 / (n * smoothed.exp().square().sum()))
    figures["log_evidence"] = log_z
    whose = "trunk's" if guide.is_adversarial else "guide's"
    if guide.is_adversarial and not guide.part("trunk").is_trainable:
        # An affine or identity trunk is no approximation of its own; its weights say little of the sampler.
        reasons.append("the guide has no exact density: nothing but Stein's identity checks it")
        return False
    if k_hat >= K_HAT_LIMIT:
        reasons.append(
            f"k-hat of the {whose} importance weights is {k_hat:.2f} (0.7 or more): part of the posterior is "
            "missed or too thin there"
        )
        return True
    gap = log_z - elbo.value
    figures["kl_by_weights"] = gap
    reasons.append(
        f"k-hat of the {whose} importance weights is {k_hat:.2f} (below 0.7 is good); they put the log-evidence "
        f"at {log_z:.3f}, the ELBO {gap:.3f} below"
    )
    if guide.is_adversarial and gap < -3.0 * elbo.stderr - 0.05:
        reasons.append("the learned ELBO exceeds the log-evidence: the adversary does not see all of q")
        return True
    return gap > 0.5
