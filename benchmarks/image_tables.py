"""Markdown tables of latent-variable models of pictures: a row per method, median (range) over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.image_models import AVB
from benchmarks.rivals.latent import RIVALS
from benchmarks.tables import Column, Row, markdown, of, spread, values

LABELS = {**{name: rival.label for name, rival in RIVALS.items()}, AVB: "AVB, adaptive contrast"}
COLUMNS: tuple[Column, ...] = (
    ("ais", "log p(x), AIS", ".2f"),
    ("log_likelihood", "log p(x), quadrature", ".2f"),
    ("elbo_exact", "ELBO", ".2f"),
    ("reconstruction_error", "reconstruction, nats per pixel", ".4f"),
    ("active_units", "active latents", ".0f"),
    ("parameters", "encoder parameters", ".0f"),
    ("seconds", "seconds", ".0f"),
)
CLEAR = 2.0  # standard errors of a paired difference


def evidence(records: Sequence[Row], target: str, published: Mapping[str, str] | None = None) -> str:
    """The table of a target.

    Args:
        records: of the board.
        target: whose methods are shown.
        published: figures of the paper by method, as text, for a column of their own.
    """
    mine = [r for r in records if r["target"] == target]
    columns = [c for c in COLUMNS if values(mine, c[0])]
    rows = []
    for method, label in LABELS.items():
        runs = of(records, target, method)
        if not runs:
            continue
        sound = [r for r in runs if "error" not in r]
        cells = [spread(values(sound, key), form) for key, _, form in columns]
        paper = [] if published is None else [published.get(method, "-")]
        rows.append([label, *cells, *paper, by_seed(sound), remarks(runs)])
    header = ["method", *(title for _, title, _ in columns), *([] if published is None else ["published"])]
    return markdown([*header, "ahead of the VAE, by seed", "remarks"], rows)


def by_seed(rows: Sequence[Row]) -> str:
    """Each seed's paired difference from the Gaussian VAE in log p(x), with its standard error."""
    return ", ".join(
        f"{r['ahead_of_vae']:+.2f} ± {r['ahead_of_vae_stderr']:.2f}" for r in rows if r.get("ahead_of_vae") is not None
    ) or "-"  # fmt: skip


def order(records: Sequence[Row], target: str, method: str) -> str:
    """Whether a method is "ahead" of the Gaussian VAE, "behind" it, or it is a "tie".

    The mean over seeds of the differences in log p(x) is compared with twice its error: the larger of that over
    seeds and that over pictures.
    """
    rows = [r for r in of(records, target, method) if r.get("ahead_of_vae") is not None]
    if not rows:
        return "-"
    differences = [float(r["ahead_of_vae"]) for r in rows]
    n, mean = len(rows), sum(differences) / len(rows)
    over_pictures = max(float(r["ahead_of_vae_stderr"]) for r in rows)
    over_seeds = (sum((d - mean) ** 2 for d in differences) / (n - 1) / n) ** 0.5 if n > 1 else 0.0
    if abs(mean) <= CLEAR * max(over_pictures, over_seeds):
        return "tie"
    return "ahead" if mean > 0.0 else "behind"


def remarks(rows: Sequence[Row]) -> str:
    """How far off AVB's own ELBO is, verdicts other than ok, failures."""
    said = []
    known = [float(r["elbo"]) - float(r["elbo_exact"]) for r in rows if "elbo_exact_upper" in r]
    if known:
        said.append(f"its own ELBO is off by {spread(known, '+.2f')}")
    verdicts = [r["verdict"] for r in rows if r.get("verdict") not in (None, "ok")]
    said += [f"verdict {verdicts.count(v)} x {v}" for v in sorted(set(verdicts))]
    failed = [r["error"] for r in rows if "error" in r]
    said += [f"failed {failed.count(e)} x: {e}" for e in sorted(set(failed))]
    return "; ".join(said) or "-"
