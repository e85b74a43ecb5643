"""Markdown tables of the adversary's objectives: a row per objective."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import latent_tables
from benchmarks.tables import Column, Row, markdown, of, spread, values

LABELS = {
    "logistic": "logistic (Jensen-Shannon)",
    "triangular": "triangular discrimination",
    "hellinger": "squared Hellinger",
    "kl": "KL(q, r), eq. (6.10)",
    "reverse-kl": "KL(r, q)",
    "pearson": "Pearson's chi^2(q, r)",
    "neyman": "Neyman's chi^2(r, q)",
}
AVB: tuple[Column, ...] = (
    ("log_likelihood", "log-likelihood", ".4f"),
    ("elbo_exact", "exact ELBO", ".4f"),
    ("gap", "gap", ".4f"),
    ("elbo_error", "estimated - exact ELBO", "+.4f"),
    ("gradient_spread", "longest gradient / median", ".3g"),
    ("gradient_shortened", "shortened", ".2%"),
    ("skipped_steps", "skipped steps", ".0f"),
    ("rollbacks", "rollbacks", ".0f"),
)


def avb(records: Sequence[Row], target: str) -> str:
    """AVB with each objective on one target: median (range) over seeds, and each seed's verdict."""
    rows = []
    for method, label in LABELS.items():
        mine = of(records, target, method)
        if mine:
            (row,) = latent_tables.by_method(mine, AVB, {method: label})
            rows.append([*row, ", ".join(r.get("verdict", "failed") for r in mine)])
    return markdown(["objective", *(title for _, title, _ in AVB), "verdict by seed"], rows)


def gaussians(records: Sequence[Row], target: str) -> str:
    """The log-ratio of two normals: its mean absolute error at draws of q, median (range) over seeds."""
    mine = [r for r in records if r["target"] == target]
    pairs = sorted({(r["dim"], r["kl"]) for r in mine if "error" not in r})
    rows = []
    for method, label in LABELS.items():
        own = of(mine, target, method)
        if own:
            rows.append([label, *(_errors([r for r in own if (r.get("dim"), r.get("kl")) == at]) for at in pairs)])
    return markdown(["objective", *(f"{dim}-d, {kl:g} nats" for dim, kl in pairs)], rows)


def _errors(rows: Sequence[Row]) -> str:
    known = values(rows, "error_q")
    # What is not finite is saved as null: with such a seed there is no error to speak of.
    return spread(known, ".2g") if len(known) == len(rows) else "not finite"
