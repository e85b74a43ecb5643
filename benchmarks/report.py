"""Tables and figures of the README, made from ``benchmarks/results/*.json``: ``python -m benchmarks.report``."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import record

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
LABELS = {
    "default": "avbvi default",
    "avb-pure": "pure AVB (no flow)",
    "trunk-only": "trunk alone",
    "iaf": "Pyro AutoIAFNormal [64, 64] x 3",
    "mixture-4": "Gaussian mixture, K = 4",
    "paper": "AVB paper, adaptive contrast",
    "paper-long": "AVB paper, adaptive contrast, 5 minutes",
    "paper-prior-contrast": "AVB paper, prior contrast",
    "advi-fullrank": "ADVI full-rank",
    "advi-meanfield": "ADVI mean-field",
    "floor": "exact draws (noise floor)",
    "control-scaled": "control: mu scaled by 1.1",
    "control-modes": "control: modes 60/40",
}
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("knn_kl_qp", "k-NN KL(q, p)", ".3f"),
    ("knn_kl_pq", "k-NN KL(p, q)", ".3f"),
    ("kl_exact", "exact KL", ".3f"),
    ("c2st", "C2ST", ".3f"),
    ("elbo_error", "ELBO - log Z", "+.3f"),
    ("p_tau_positive", "P(tau > 0)", ".2f"),
    ("seconds", "seconds", ".0f"),
)


def spread(values: list[float], form: str) -> str:
    """Median with smallest and largest value; "-" for none."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})"


def table(records: list[dict[str, Any]], target: str) -> str:
    """A Markdown table: a row per method, median (range) over seeds."""
    header = "| method | " + " | ".join(title for _, title, _ in COLUMNS) + " | stage kept |"
    lines = [header, "|---" * (len(COLUMNS) + 2) + "|"]
    for method, label in LABELS.items():
        mine = [r for r in records if r["target"] == target and r["method"] == method]
        if not mine:
            continue
        control = method == "floor" or method.startswith("control")
        cells = [
            "-" if control and key == "seconds" else spread([r[key] for r in mine if r.get(key) is not None], form)
            for key, _, form in COLUMNS
        ]
        kept = [r["stage_kept"] for r in mine if "stage_kept" in r and method == "default"]
        stages = ", ".join(f"{kept.count(s)} x {s}" for s in sorted(set(kept))) or "-"
        if any(r.get("elbo_is_bound") is False for r in mine):
            cells[[key for key, _, _ in COLUMNS].index("elbo_error")] += " †"
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {stages} |")
    lines += ["", "† With some seed at least, log q is learned by the adversary: an estimate, not a bound."]
    return "\n".join(lines)


def stages(records: list[dict[str, Any]], target: str) -> str:
    """A Markdown table: a row per seed, the default fit and which stage it kept beside the trunk alone."""
    of = {(r["method"], r["seed"]): r for r in records if r["target"] == target}
    lines = [
        "| seed | stage kept | energy distance, adversarial minus trunk | default: k-NN KL | C2ST | ELBO - log Z "
        "| trunk alone: k-NN KL | C2ST | exact KL |",
        "|---" * 9 + "|",
    ]
    for seed in sorted({seed for method, seed in of if method == "default"}):
        mine, trunk = of["default", seed], of["trunk-only", seed]
        difference = f"{mine['stage_difference']:.4f} ± {mine['stage_difference_stderr']:.4f}"
        figures = [f"{r[key]:.3f}" for r in (mine, trunk) for key in ("knn_kl_qp", "c2st")]
        cells = [*figures[:2], f"{mine['elbo_error']:+.3f}", *figures[2:], f"{trunk['kl_exact']:.3f}"]
        lines.append(f"| {seed} | {mine['stage_kept']} | {difference} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(records: list[dict[str, Any]], target: str) -> Figure:
    """One dot per seed: k-NN KL in both directions and the classifier's accuracy, methods as rows."""
    methods = [m for m in LABELS if any(r["method"] == m and r["target"] == target for r in records)]
    shown: tuple[tuple[str, str, Callable[[float], float]], ...] = (
        ("knn_kl_qp", "k-NN KL(q, p), 10,000 draws", lambda v: max(v, 1e-3)),
        ("c2st", "classifier accuracy - 1/2, 50,000 draws", lambda v: max(v - 0.5, 1e-3)),
    )
    fig = Figure(figsize=(9.0, 0.34 * len(methods) + 1.2), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, len(shown), sharey=True)
    for ax, (key, title, position) in zip(axes, shown, strict=True):
        for row, method in enumerate(methods):
            values = [
                r[key] for r in records if r["method"] == method and r["target"] == target and r.get(key) is not None
            ]
            color = "0.55" if method == "floor" or method.startswith("control") else "#0072B2"
            ax.plot([position(v) for v in values], [row] * len(values), "o", color=color, alpha=0.6, markersize=6)
        ax.set_xscale("log")
        ax.set_xlim(8e-4, None)
        ax.set_xlabel(title)
        ax.grid(axis="x", which="major", color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(methods)), [LABELS[m] for m in methods])
    axes[0].invert_yaxis()
    return fig


def insert(text: str, marker: str, content: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and ``<!-- end marker -->``.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {marker} -->", f"<!-- end {marker} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the markers {begin!r} and {end!r} are missing")
    return text[: text.index(begin) + len(begin)] + "\n" + content + "\n" + text[text.index(end) :]


def main() -> None:
    """Rewrite the README's tables and the figures."""
    content = record.load("eight_schools")
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    for target in ("eight_schools_paper", "eight_schools_classic"):
        text = insert(text, f"table {target}", table(content["records"], target))
    text = insert(text, "table stages", stages(content["records"], "eight_schools_paper"))
    readme.write_text(text, "utf-8")
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure(content["records"], "eight_schools_paper").savefig(IMAGES / "benchmark_eight_schools.png", dpi=150)


if __name__ == "__main__":
    main()
