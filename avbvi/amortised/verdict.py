"""The verdict on an amortised fit: what can be known of a learned density that no exact one stands beside."""

from __future__ import annotations

import math
from typing import Protocol

import pyro
import torch
from torch import Tensor

from ..diagnostics import Findings, Verdict, limits, reliability
from ..diagnostics.classify import cross_entropies
from ..diagnostics.verdict import judge_calibration
from ..estimates import Estimate
from ..targets import Model
from .evaluation import (
    DrawTerms,
    activity,
    draw_terms,
    entropy_excess,
    held_out_logits,
    likelihood_is_discrete,
    mean_over_data,
    moment_bound,
    moment_draws,
)
from .guide import AmortisedAVBGuide
from .minibatch import Minibatch

#: Nats per datum that moments prove beyond what the adversary claims: above the second the density is worthless.
MISSED, MISSED_BY_FAR = 0.1, 2.0
#: Excess of the ELBO over the log-likelihood by annealed importance sampling (nats per datum).
EXCESS = 0.05
#: A latent coordinate with a smaller share of its variance between data carries nothing of them.
ACTIVE = 0.01
#: A datum's ELBO is above 0 if it is by so many standard errors, with many data to choose from.
DATUM_SIGMAS = 6.0
#: Draws for each datum: the most, and the least of many data, of which all together get so many draws.
MOST_DRAWS, LEAST_DRAWS, ALL_DRAWS = 400, 8, 2**18
#: Fewer tell too little of the error of a single datum's mean.
DATUM_DRAWS = 50

RICHER = (
    "use ConditionalGaussianContrast(full=True) or a larger adversary, more adversary_steps or a higher adversary_lr"
)
LONGER = "train longer"
COLLAPSE = "begin with Schedule(kl_warm_up=0.25), or take fewer latents or a weaker decoder"


class LogLikelihood(Protocol):
    """What annealed importance sampling tells of some data."""

    @property
    def log_evidence(self) -> Tensor:
        """log p(x) of each datum (B,)."""

    @property
    def mean(self) -> Estimate:
        """Its mean over the data."""


@torch.no_grad()
def judge(
    guide: AmortisedAVBGuide,
    model: Model,
    data: Minibatch,
    *,
    skipped: int,
    steps: int,
    ais: LogLikelihood | None = None,
    n: int | None = None,
) -> Verdict:
    """The verdict on an amortised guide, from fresh draws for a minibatch.

    It does not see how far q(z | x) is from the posterior; with ``ais`` it does.

    Args:
        guide: the trained guide.
        model: the model beside it.
        data: the minibatch.
        skipped: steps skipped for non-finite gradients.
        steps: steps done.
        ais: log-likelihoods of the same data by annealed importance sampling.
        n: draws for each datum; by default 400, and fewer of more than 655 data.

    Raises:
        ValueError: ``ais`` is about another number of data.
    """
    batch = data.frame.size
    if ais is not None and tuple(ais.log_evidence.shape) != (batch,):
        raise ValueError(
            f"ais must be about the same data: it has log_evidence of shape {tuple(ais.log_evidence.shape)}, the data "
            f"are {batch}; give judge(*args, ais=...) the minibatch that it was computed for"
        )
    if n is None:
        n = min(max(ALL_DRAWS // batch, LEAST_DRAWS), MOST_DRAWS)
    found = Findings()
    found.figures |= {"skipped_steps": float(skipped), "adversarial": 1.0, "data": float(batch)}
    with pyro.validation_enabled(False):
        terms = draw_terms(guide, data, n)
        _check_run(found, skipped, steps)
        if _is_finite(found, terms):
            _check_moments(found, terms, moment_draws(guide, data))
            _check_entropy(found, entropy_excess(guide, data))
            _check_calibration(found, guide, data, n)
            _check_elbo(found, model, data, terms)
            if ais is not None:
                _check_ais(found, mean_over_data(terms.elbo), ais.mean)
            _check_activity(found, terms)
    return found.verdict()


def _check_run(found: Findings, skipped: int, steps: int) -> None:
    if not steps:
        found.doubt("no training step was done: the time given was over before the set-up was", LONGER, failed=True)
    if skipped > limits.SKIPPED_SHARE * steps:
        reason = f"{skipped} of {steps} steps were skipped for non-finite gradients"
        found.doubt(reason, "look for overflows in the model, or lower the learning rates")


def _is_finite(found: Findings, terms: DrawTerms) -> bool:
    """Whether all draws and their terms are finite."""
    share = float(torch.isfinite(terms.elbo).double().mean()) if bool(torch.isfinite(terms.z).all()) else 0.0
    found.figures["finite_share"] = share
    if share == 1.0:
        return True
    found.figure("elbo", Estimate(-math.inf, math.nan))
    reason = f"log p(x, z) - log q(z | x) is finite at only {share:.1%} of the draws"
    found.doubt(reason, "look for overflows in the model, or lower the learning rates", failed=True)
    return False


def _check_moments(found: Findings, terms: DrawTerms, fitted: Tensor) -> None:
    bound = moment_bound(terms, fitted)
    found.figure("kl_contrast_proved", bound.proved)
    found.figure("kl_contrast_claimed", bound.claimed)
    found.figure("missed_nats", bound.missed)
    missed = bound.missed
    if not missed.value - limits.SIGMAS * missed.stderr <= MISSED:
        reason = (
            f"the adversary misses at least {missed.value:.3g} nats per datum: the moments of the draws alone put "
            f"KL(q, r) at {bound.proved.value:.4g} or more, the adversary at {bound.claimed.value:.4g}; log q is too "
            "low and the ELBO's estimate too high by as much"
        )
        found.doubt(reason, RICHER, failed=missed.value > MISSED_BY_FAR)
    else:
        found.remarks.append(
            f"moments prove a KL(q, r) of {bound.proved.value:.3g} nats per datum, the adversary says "
            f"{bound.claimed.value:.3g}"
        )


def _check_entropy(found: Findings, excess: Estimate | None) -> None:
    """In few dimensions neighbours know the entropy of q, folds and edges that no moment shows included."""
    if excess is None:
        return
    found.figure("entropy_excess", excess)
    if not excess.value - limits.SIGMAS * excess.stderr <= MISSED:
        reason = (
            f"the learned log q is {excess.value:.3g} nats per datum too low on average, by the entropy of nearest "
            "neighbours: the ELBO's estimate is too high by as much"
        )
        found.doubt(reason, RICHER, "a lower learning rate of the sampler", failed=excess.value > MISSED_BY_FAR)


def _check_calibration(found: Findings, guide: AmortisedAVBGuide, data: Minibatch, n: int) -> None:
    """Held-out calibration of T, at draws of q and r that no step has seen."""
    log_ratio = guide.part("adversary").objective.log_ratio
    t_q, t_r = (log_ratio(t.double()) for t in held_out_logits(guide, data, max(n // 4, 32)))
    error = reliability(t_q, t_r).error
    entropy = cross_entropies(t_q, t_r)
    mean = Estimate(float(entropy.mean()), float(entropy.std()) / math.sqrt(len(entropy)))
    found.figures["calibration_error"] = error
    found.figure("cross_entropy", mean)
    judge_calibration(found, error, mean, RICHER, LONGER)


def _check_elbo(found: Findings, model: Model, data: Minibatch, terms: DrawTerms) -> None:
    elbo = mean_over_data(terms.elbo)
    found.figure("elbo", elbo)
    found.remarks.append(
        f"ELBO {elbo} per datum, of {data.frame.size} data: log q is learned, so it is an estimate and not a bound, "
        "usually too high"
    )
    if elbo.stderr > limits.ELBO_STDERR * max(1.0, terms.z.shape[-1] / 10.0):
        found.doubt(f"the ELBO is known only to {elbo.stderr:.2g}; its terms vary widely", LONGER)
    if not likelihood_is_discrete(model, data):
        return
    n, batch = terms.elbo.shape
    each, noise = terms.elbo.mean(0), terms.elbo.std(0) / math.sqrt(n)
    above = int((each > DATUM_SIGMAS * noise).sum())
    what = f"for {above} of {batch} data, by up to {float(each.max()):.3g}"
    if n < DATUM_DRAWS:
        above = batch * int(elbo.value > DATUM_SIGMAS * elbo.stderr)
        what = f"on average, {elbo}"
    found.figures["data_above_zero"] = float(above)
    if above:
        reason = (
            f"the ELBO's estimate is positive {what}: impossible, as no discrete datum has a probability above 1; "
            "log q is too low"
        )
        found.doubt(reason, RICHER, failed=True)


def _check_ais(found: Findings, elbo: Estimate, ais: Estimate) -> None:
    gap = Estimate(ais.value - elbo.value, math.hypot(elbo.stderr, ais.stderr))
    found.figure("log_likelihood", ais)
    found.figure("gap", gap)
    if not gap.value >= -EXCESS - limits.SIGMAS * gap.stderr:
        reason = (
            f"the ELBO's estimate {elbo} is {-gap.value:.3g} nats per datum above the log-likelihood {ais} by annealed "
            "importance sampling, which it can't be: log q is too low, or the annealing too short"
        )
        found.doubt(reason, RICHER, "more temperatures")
    else:
        found.remarks.append(
            f"log-likelihood {ais} by annealed importance sampling: q(z | x) is {gap} nats from the posterior, if both "
            "are right"
        )


def _check_activity(found: Findings, terms: DrawTerms) -> None:
    dim = terms.z.shape[-1]
    if terms.z.shape[1] < 2:
        return
    active = int((activity(terms.z) > ACTIVE).sum())
    found.figures["active_units"] = float(active)
    if not active:
        reason = "posterior collapse: q(z | x) is the same for all data, and the latents carry nothing of them"
        found.doubt(reason, COLLAPSE)
    elif active < dim:
        found.remarks.append(
            f"posterior collapse of {dim - active} of {dim} latent coordinates: they carry nothing of the data (less "
            f"than {ACTIVE:.0%} of their variance lies between data)"
        )
    else:
        found.remarks.append(f"all {dim} latent coordinates carry something of the data")
