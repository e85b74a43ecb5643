"""Markdown tables of AVB and its relatives: a row per method, median (range) over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks import image_tables
from benchmarks.rivals.relatives import RELATIVES
from benchmarks.tables import Column, Row, markdown, of, spread, values

LABELS = {
    "data": "held-out pictures",
    **{name: image_tables.LABELS[name] for name in ("vae", "iaf-vae")},
    "avb": "AVB, contrast: prior",
    "avb+ac": image_tables.LABELS["avb+ac"],
    **{name: relative.label for name, relative in RELATIVES.items()},
}
COLUMNS: tuple[Column, ...] = (
    ("ais", "log p(x), AIS", ".2f"),
    ("elbo_exact", "ELBO", ".2f"),
    ("bits_per_dim", "bits per dimension", ".2f"),
    ("rmse", "RMSE", ".3f"),
    ("inception_score", "score of draws", ".2f"),
    ("inception_score_means", "score of means", ".2f"),
    ("seconds", "seconds", ".0f"),
)
#: AS-VAE, Tables 1 and 2: bounds of the negative log-likelihood in nats, bits, RMSE of 0 .. 255, inception score.
PUBLISHED: dict[str, dict[str, str]] = {
    "mnist": {"iaf-vae": "80.9", "avb": "79.5", "as-vae-r": "81.14", "as-vae-g": "146.32", "as-vae": "82.51"},
    "cifar10": {
        "as-vae-r": "3.09 bits, RMSE 3.17, score 2.91",
        "as-vae-g": "93.12 bits, RMSE 13.12, score 6.89",
        "as-vae": "3.32 bits, RMSE 3.36, score 6.34",
        "ali": "RMSE 14.53, score 4.79",
        "dcgan": "score 4.89",
    },
}
#: By likelihood, best first, and by samples: the paper's.
BY_LIKELIHOOD, BY_SAMPLES = ("as-vae-r", "as-vae", "as-vae-g"), ("as-vae-g", "as-vae", "as-vae-r")


def table(records: Sequence[Row], target: str, published: Mapping[str, Mapping[str, str]] = PUBLISHED) -> str:
    """The table of a target, AS-VAE's own figures beside it where it has some."""
    mine = [r for r in records if r["target"] == target]
    columns = [c for c in COLUMNS if values(mine, c[0])]
    paper = published.get(target)
    rows = []
    for method, label in LABELS.items():
        runs = of(records, target, method)
        if not runs:
            continue
        sound = [r for r in runs if "error" not in r]
        cells = [spread(values(sound, key), form) for key, _, form in columns]
        rows.append([label, *cells, *([] if paper is None else [paper.get(method, "-")]), image_tables.remarks(runs)])
    titles = [title for _, title, _ in columns]
    return markdown(["method", *titles, *([] if paper is None else ["published"]), "remarks"], rows)


def order(records: Sequence[Row], target: str) -> str:
    """In words, how AS-VAE and its halves are ordered by likelihood and by their samples, beside the paper's order.

    Likelihood is that of annealed importance sampling, else the ELBO; medians over seeds are compared.
    """
    said = []
    likelihood = "ais" if values([r for r in records if r["target"] == target], "ais") else "elbo_exact"
    for title, key, paper in (
        ("likelihood", likelihood, BY_LIKELIHOOD),
        ("score of draws", "inception_score", BY_SAMPLES),
    ):
        medians = {
            method: statistics.median(found) for method in paper if (found := values(of(records, target, method), key))
        }
        if len(medians) < len(paper):
            continue
        ours = sorted(medians, key=lambda method: -medians[method])
        figures = ", ".join(f"{LABELS[method]} {medians[method]:.2f}" for method in ours)
        verdict = "the paper's order" if tuple(ours) == paper else "not the paper's order"
        said.append(f"By {title}, best first: {figures}: {verdict}.")
    return "\n".join(said)
