"""The verdict's figures with their limits, in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..amortised import verdict as amortised
from ..diagnostics import K_HAT_LIMIT, Verdict, limits
from .blocks import Table, number, with_error


class Limit(NamedTuple):
    """A figure's meaning, its limit in words, and whether a value with its standard error keeps to it."""

    meaning: str
    limit: str = ""
    keeps: Callable[[float, float], bool] | None = None


def _at_most(limit: float, sigmas: float = limits.SIGMAS) -> Callable[[float, float], bool]:
    """Not beyond the limit, or not beyond chance."""
    return lambda value, stderr: value <= limit or value <= sigmas * stderr


def _below(limit: float) -> Callable[[float, float], bool]:
    return lambda value, stderr: value < limit


LOW, HIGH = limits.SD_RATIO
#: The figures of a fit, in the order of the table.
FIT: dict[str, Limit] = {
    "mean_shift": Limit(
        "largest shift of a mean by a short HMC (sd)", f"≤\u00a0{limits.MEAN_SHIFT}", _at_most(limits.MEAN_SHIFT)
    ),
    "sd_ratio_narrow": Limit(
        "smallest ratio of standard deviations, before over after HMC",
        f"≥\u00a0{LOW}",
        lambda value, stderr: value >= LOW or 1.0 - value <= limits.SIGMAS * stderr,
    ),
    "sd_ratio_wide": Limit(
        "largest ratio of standard deviations, before over after HMC",
        f"≤\u00a0{HIGH}",
        lambda value, stderr: value <= HIGH or value - 1.0 <= limits.SIGMAS * stderr,
    ),
    "jensen_shannon": Limit(
        "Jensen-Shannon divergence before against after HMC, by a classifier (nats)",
        f"≤\u00a0{limits.JENSEN_SHANNON}",
        _at_most(limits.JENSEN_SHANNON),
    ),
    "jeffreys": Limit(
        "rise of the mean log weight by HMC (nats)", f"≤\u00a0{limits.JEFFREYS}", _at_most(limits.JEFFREYS)
    ),
    "energy_shift": Limit(
        "change of the mean log-density by HMC (nats)",
        f"±\u00a0{limits.ENERGY}",
        lambda value, stderr: _at_most(limits.ENERGY)(abs(value), stderr),
    ),
    "stein_error": Limit(
        "error of Stein's identity in the worst direction",
        f"≤\u00a0{limits.STEIN}",
        lambda value, stderr: value <= max(limits.STEIN, 2.0 * stderr),
    ),
    "finite_share": Limit("share of draws at which the log-density is finite", "1", lambda value, stderr: value >= 1.0),
    "elbo": Limit("ELBO (nats)"),
    "log_evidence": Limit("log-evidence by importance weights (nats)"),
    "kl_by_weights": Limit("log-evidence less ELBO: KL(q, p) by importance weights (nats)"),
    "k_hat": Limit("k-hat, shape of the tail of the importance weights", f"<\u00a0{K_HAT_LIMIT}", _below(K_HAT_LIMIT)),
    "effective_share": Limit("effective share of the weighted draws"),
    "calibration_error": Limit(
        "calibration error of the adversary on held-out draws",
        f"≤\u00a0{limits.CALIBRATION_ERROR}",
        lambda value, stderr: value <= limits.CALIBRATION_ERROR,
    ),
    "cross_entropy": Limit("cross-entropy of the adversary on held-out draws (nats; log 2 by chance)"),
    "cross_entropy_excess": Limit(
        "cross-entropy by which a fresh adversary does better (nats)",
        f"≤\u00a0{limits.CROSS_ENTROPY_EXCESS}",
        _at_most(limits.CROSS_ENTROPY_EXCESS),
    ),
    "learned_kl_by_weights": Limit(
        "KL(q, p) by a freshly learned density (nats)",
        f"≤\u00a0{limits.LEARNED_KL_BY_WEIGHTS}",
        _at_most(limits.LEARNED_KL_BY_WEIGHTS),
    ),
    "modes_found": Limit("modes found at the start"),
    "modes_lost": Limit("of these, modes that got hardly any draws", "0", lambda value, stderr: value == 0.0),
    "modes_misplaced": Limit(
        "share of draws in another mode than the evidence says",
        f"≤\u00a0{limits.MODE_SHARES}",
        lambda value, stderr: value <= limits.MODE_SHARES,
    ),
    "iterates_drift": Limit("drift of the draws' moments in the last part of the run (sd)"),
    "iterates_rhat": Limit("R-hat of the two halves of that part"),
    "skipped_steps": Limit("steps skipped for non-finite gradients"),
    "rollbacks": Limit("returns to an earlier state"),
}
#: Those of an amortised fit that differ.
AMORTISED: dict[str, Limit] = {
    "elbo": Limit("ELBO per datum (nats), learned and no bound"),
    "log_likelihood": Limit("log-likelihood per datum by annealed importance sampling (nats)"),
    "gap": Limit("log-likelihood less ELBO (nats per datum)"),
    "missed_nats": Limit(
        "nats per datum that moments prove and the adversary misses",
        f"≤\u00a0{amortised.MISSED}",
        lambda value, stderr: value - limits.SIGMAS * stderr <= amortised.MISSED,
    ),
    "entropy_excess": Limit(
        "nats per datum by which the learned log q is too low, by nearest neighbours",
        f"≤\u00a0{amortised.MISSED}",
        lambda value, stderr: value - limits.SIGMAS * stderr <= amortised.MISSED,
    ),
    "calibration_error": FIT["calibration_error"],
    "cross_entropy": FIT["cross_entropy"],
    "active_units": Limit("latent coordinates that carry something of the data"),
    "data_above_zero": Limit("data with an ELBO above what is possible", "0", lambda value, stderr: value == 0.0),
    "finite_share": FIT["finite_share"],
    "data": Limit("data that the verdict looked at"),
    "skipped_steps": FIT["skipped_steps"],
    "rollbacks": FIT["rollbacks"],
}


def figures_table(verdict: Verdict, *, is_amortised: bool, exact: bool) -> Table | None:
    """The verdict's figures, their limits, and whether they keep to them; ``None`` where it has none."""
    known = AMORTISED if is_amortised else FIT
    rows, marks = [], []
    for name, limit in known.items():
        value = verdict.figures.get(name)
        if value is None:
            continue
        stderr = verdict.figures.get(f"{name}_stderr", math.nan)
        meaning = limit.meaning
        if name == "elbo" and not is_amortised:
            meaning += ": a lower bound of the log-evidence" if exact else ": learned, no bound"
        keeps, mark = "", ""
        if limit.keeps is not None:
            good = limit.keeps(value, stderr if math.isfinite(stderr) else 0.0)
            keeps, mark = ("within", "good") if good else ("beyond", "bad")
        shown = (
            with_error(value, stderr) if math.isfinite(stderr) else number(value, 5 if name == "log_evidence" else 3)
        )
        rows.append([meaning, shown, limit.limit, keeps])
        marks.append(mark)
    if not rows:
        return None
    return Table("Figures of the verdict", ["figure", "value", "limit", ""], rows, marks, narrow=True, hidden=True)
