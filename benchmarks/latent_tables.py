"""Markdown tables of latent-variable models: a row per method, median (range) over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.tables import Column, Row, markdown, spread, values

LABELS = {"vae": "Gaussian VAE", "avb": "AVB", "avb+ac": "AVB, adaptive contrast"}
SYNTHETIC: tuple[Column, ...] = (
    ("log_likelihood", "log-likelihood", ".4f"),
    ("elbo_exact", "exact ELBO", ".4f"),
    ("elbo_error", "estimated - exact ELBO", "+.4f"),
    ("reconstruction_error", "reconstruction error", ".5f"),
    ("kl_aggregate", "KL(q(z), p(z))", ".4f"),
    ("cpu_seconds_with_verdict", "CPU seconds", ".0f"),
)
#: The paper's Table 1; its ELBO of AVB is the adversary's estimate.
SYNTHETIC_PAPER: dict[str, dict[str, str]] = {
    "VAE, as published": {
        "log_likelihood": "-1.568",
        "elbo_exact": "-1.697",
        "reconstruction_error": "0.0885",
        "kl_aggregate": "0.165",
    },
    "AVB, as published": {
        "log_likelihood": "-1.403",
        "elbo_exact": "-1.421",
        "reconstruction_error": "0.00577",
        "kl_aggregate": "0.026",
    },
}
#: The family's board, in its order.
FAMILY_LABELS = {
    "vae": "Gaussian VAE",
    "iaf-vae": "VAE with IAF",
    "avb": "AVB, prior contrast",
    "avb+ac": "AVB, adaptive contrast",
    "as-vae-r": "AS-VAE-r, IAF",
    "as-vae-r-implicit": "AS-VAE-r, implicit",
    "as-vae-g": "AS-VAE-g, IAF",
    "as-vae": "AS-VAE, IAF",
    "aae": "AAE, implicit",
    "ali": "ALI / BiGAN, implicit",
    "gan": "GAN",
}
FAMILY: tuple[Column, ...] = (
    ("log_likelihood", "log-likelihood", ".4f"),
    ("elbo_exact", "exact ELBO", ".4f"),
    ("gap", "KL(q(z given x), p(z given x))", ".4f"),
    ("kl_aggregate", "KL(q(z), p(z))", ".4f"),
    ("reconstruction_error", "reconstruction error", ".5f"),
    ("share_of_data", "samples that are images of the data", ".4f"),
    ("js_data", "JS(q(x), p(x))", ".5f"),
    ("cpu_seconds_with_verdict", "CPU seconds", ".0f"),
)


def by_method(records: Sequence[Row], columns: Sequence[Column], labels: Mapping[str, str] = LABELS) -> list[list[str]]:
    """Rows of a table: median and range of each column over a method's seeds, and how many of them failed."""
    rows = []
    for method, label in labels.items():
        mine = [r for r in records if r["method"] == method]
        if not mine:
            continue
        sound = [r for r in mine if "error" not in r]
        lost = f" ({len(mine) - len(sound)} of {len(mine)} failed)" if len(sound) < len(mine) else ""
        rows.append([label + lost, *(spread(values(sound, key), form) for key, _, form in columns)])
    return rows


def family(records: Sequence[Row], target: str) -> str:
    """The family's table on one target."""
    mine = [r for r in records if r["target"] == target]
    return markdown(["method", *(title for _, title, _ in FAMILY)], by_method(mine, FAMILY, FAMILY_LABELS))


def synthetic(records: Sequence[Row]) -> str:
    """The synthetic example's table, the paper's figures last."""
    rows = by_method(records, SYNTHETIC)
    rows += [[label, *(known.get(key, "-") for key, _, _ in SYNTHETIC)] for label, known in SYNTHETIC_PAPER.items()]
    return markdown(["method", *(title for _, title, _ in SYNTHETIC)], rows)


LINEAR_LABELS = {
    "vae": "VAE",
    "as-vae-r": "AS-VAE-r (eq. 8)",
    "as-vae-g": "AS-VAE-g (eq. 9)",
    "as-vae": "AS-VAE (eq. 11)",
}
LINEAR: tuple[Column, ...] = (
    ("kl_data", "KL(q(x), p(x))", ".4f"),
    ("kl_posterior", "E KL(q(z given x), p(z given x))", ".4f"),
    ("kl_aggregate", "KL(q(z), p(z))", ".4f"),
    ("error_f1_joint", "f1, on q(x, z)", ".3f"),
    ("error_f1_product", "f1, on p(x) p(z)", ".3f"),
    ("error_f2_joint", "f2, on p(x, z)", ".3f"),
    ("error_f2_product", "f2, on q(x) q(z)", ".3f"),
    ("cpu_seconds_with_verdict", "CPU seconds", ".0f"),
)


def linear_gaussian(records: Sequence[Row]) -> str:
    """What is left on linear-Gaussian data: divergences, and mean errors of adversaries under their two laws."""
    return markdown(["method", *(title for _, title, _ in LINEAR)], by_method(records, LINEAR, LINEAR_LABELS))
