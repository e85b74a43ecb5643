"""Markdown tables from records: median (range) over seeds, losses and failures included."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.methods import METHODS

Row = dict[str, Any]

CONTROLS = {
    "floor": "exact draws (noise floor)",
    "control-scaled": "control: mu scaled by 1.1",
    "control-modes": "control: modes 60/40",
}
LABELS = {
    **{name: method.label for name, method in METHODS.items()},
    "hmc-paper": "HMC, 500,000 transitions",
    **CONTROLS,
}
#: key, title, format.
Column = tuple[str, str, str]
EIGHT_SCHOOLS: tuple[Column, ...] = (
    ("knn_kl_qp", "k-NN KL(q, p)", ".3f"),
    ("knn_kl_pq", "k-NN KL(p, q)", ".3f"),
    ("kl_exact", "exact KL", ".3f"),
    ("c2st", "C2ST", ".3f"),
    ("elbo_error", "ELBO - log Z", "+.3f"),
    ("p_tau_positive", "P(tau > 0)", ".2f"),
    ("seconds", "seconds", ".0f"),
)
POSTERIORDB: tuple[Column, ...] = (
    ("mean_error_sd", "largest mean error (sd)", ".3f"),
    ("sd_ratio_min", "least sd ratio", ".2f"),
    ("sd_ratio_max", "largest sd ratio", ".2f"),
    ("knn_kl_qp", "k-NN KL(q, p)", ".3f"),
    ("knn_kl_pq", "k-NN KL(p, q)", ".3f"),
    ("sliced_w2", "sliced W2", ".3f"),
    ("mmd_p_value", "MMD p-value", ".2f"),
    ("c2st", "C2ST", ".3f"),
    ("seconds", "seconds", ".0f"),
)


def spread(values: Sequence[float], form: str) -> str:
    """Median with smallest and largest value; "-" for none."""
    if not values:
        return "-"
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})"


def of(records: Sequence[Row], target: str, method: str) -> list[Row]:
    """The records of a method on a target."""
    return [r for r in records if r["target"] == target and r["method"] == method]


def values(rows: Sequence[Row], key: str) -> list[float]:
    """Figures that there are."""
    return [float(r[key]) for r in rows if r.get(key) is not None]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def by_method(records: Sequence[Row], target: str, columns: Sequence[Column]) -> str:
    """A row per method: figures, verdict and stage kept; a failed run says why."""
    rows = []
    for method, label in LABELS.items():
        mine = of(records, target, method)
        if not mine:
            continue
        good = [r for r in mine if "error" not in r]
        cells = [
            "-" if method in CONTROLS and key == "seconds" else spread(values(good, key), form)
            for key, _, form in columns
        ]
        keys = [key for key, _, _ in columns]
        if "elbo_error" in keys and any(r.get("elbo_is_bound") is False for r in good):
            cells[keys.index("elbo_error")] += " †"
        rows.append([label, *cells, remarks(mine)])
    return markdown(["method", *(title for _, title, _ in columns), "remarks"], rows)


def remarks(rows: Sequence[Row]) -> str:
    """Verdicts other than ok, the stage that the default kept, R-hat above 1.01, failures."""
    said = []
    kept = [r["stage_kept"] for r in rows if "stage_kept" in r and r["method"] == "default"]
    said += [f"{kept.count(stage)} x {stage}" for stage in sorted(set(kept))]
    verdicts = [r["verdict"] for r in rows if r.get("verdict") not in (None, "ok")]
    said += [f"verdict {verdicts.count(v)} x {v}" for v in sorted(set(verdicts))]
    rhat = values(rows, "rhat_max")
    if rhat:
        said.append(f"R-hat {spread(rhat, '.3f')}")
    failed = [r["error"] for r in rows if "error" in r]
    said += [f"failed {failed.count(e)} x: {e}" for e in sorted(set(failed))]
    return "; ".join(said) or "-"


def stages(records: Sequence[Row], target: str) -> str:
    """A row per seed: the default fit and which stage it kept beside the trunk alone."""
    known = {(r["method"], r["seed"]): r for r in records if r["target"] == target}
    rows = []
    for seed in sorted({seed for method, seed in known if method == "default"}):
        if ("trunk-only", seed) not in known:
            continue
        mine, trunk = known["default", seed], known["trunk-only", seed]
        difference = _stage_difference(mine)
        figures = [f"{r[key]:.3f}" for r in (mine, trunk) for key in ("knn_kl_qp", "c2st")]
        cells = [*figures[:2], f"{mine['elbo_error']:+.3f}", *figures[2:], f"{trunk['kl_exact']:.3f}"]
        rows.append([str(seed), mine["stage_kept"], difference, *cells])
    header = ["seed", "stage kept", "energy distance, adversarial minus trunk", "default: k-NN KL", "C2ST"]
    return markdown([*header, "ELBO - log Z", "trunk alone: k-NN KL", "C2ST", "exact KL"], rows)


def _stage_difference(row: Row) -> str:
    if row.get("stage_difference") is None:
        return "not run: the trunk was close"
    return f"{row['stage_difference']:.4f} ± {row['stage_difference_stderr']:.4f}"


def forced_stages(records: Sequence[Row], forced: str, control: str) -> str:
    """A row per target: fits that always run the adversarial stage, beside those that spend its time on the trunk."""
    rows = []
    for target in dict.fromkeys(r["target"] for r in records):
        mine, trunk = of(records, target, forced), of(records, target, control)
        if not mine:
            continue
        kept = ", ".join(r["stage_kept"] for r in mine)
        judged = [spread(values(group, key), ".3f") for key in ("c2st", "knn_kl_qp") for group in (mine, trunk)]
        rows.append([target.replace("_", " "), kept, ", ".join(_stage_difference(r) for r in mine), *judged])
    header = [
        "target",
        "stage kept",
        "energy distance, adversarial minus trunk",
        "both stages: C2ST",
        "trunk alone: C2ST",
    ]
    return markdown([*header, "both stages: k-NN KL", "trunk alone: k-NN KL"], rows)


def across(records: Sequence[Row], key: str, form: str, *, targets: Sequence[str] = ()) -> str:
    """One figure: a row per method, a column per target, median over seeds; "failed" where all runs did."""
    targets = targets or list(dict.fromkeys(r["target"] for r in records))
    rows = []
    for method, label in LABELS.items():
        cells = []
        for target in targets:
            mine = of(records, target, method)
            found = values([r for r in mine if "error" not in r], key)
            failed = bool(mine) and all("error" in r for r in mine)
            cells.append(format(statistics.median(found), form) if found else "failed" if failed else "-")
        if any(cell != "-" for cell in cells):
            rows.append([label, *cells])
    return markdown(["method", *(target.replace("_", " ") for target in targets)], rows)


FLOWS = ("nsf", "iaf-stl")
#: key -> title, perfect reading, format.
RIVAL_JUDGES: dict[str, tuple[str, float, str]] = {
    "knn_kl_qp": ("k-NN KL(q, p)", 0.0, ".3f"),
    "c2st": ("C2ST", 0.5, ".3f"),
}


def against_flows(records: Sequence[Row], key: str) -> str:
    """A row per target: the default beside the better flow by one judge, and how that reads.

    Readings are compared by their distance from the perfect one: k-NN figures below zero are wrong as well. The
    judge's noise is the range of its readings of exact draws. "better": the medians differ by more than the noise and
    every seed of the default is nearer than every seed of the flow; "worse": the medians differ by more than the
    noise the other way; "equal": neither.
    """
    title, perfect, form = RIVAL_JUDGES[key]
    rows = []
    for target in dict.fromkeys(r["target"] for r in records):
        runs = of(records, target, "default")
        if not runs:
            continue
        found = {m: values([r for r in of(records, target, m) if "error" not in r], key) for m in ("default", *FLOWS)}
        far = {m: [abs(v - perfect) for v in found[m]] for m in found if found[m]}
        flows = [m for m in FLOWS if m in far]
        floor = values(of(records, target, "floor"), key)
        noise = max(floor) - min(floor) if len(floor) > 1 else None
        cells = [target.replace("_", " "), spread(found["default"], form), "-", "-", "-"]
        reads = "no flow" if not flows else "no noise floor"
        if flows:
            best = min(flows, key=lambda m: statistics.median(far[m]))
            cells[2:4] = [LABELS[best], spread(found[best], form)]
            if "default" in far:
                difference = statistics.median(far["default"]) - statistics.median(far[best])
                cells[4] = format(difference, "+" + form)
                if noise is not None:
                    apart = max(far["default"]) < min(far[best])
                    reads = "worse" if difference > noise else "better" if difference < -noise and apart else "equal"
        lost = len(runs) - len(found["default"])
        cells += [format(noise, form) if noise is not None else "-", f"failed {lost} x" if lost else reads]
        rows.append(cells)
    return markdown(["target", f"default: {title}", "best flow", title, "difference", "judge's noise", "reads"], rows)


def modes(records: Sequence[Row]) -> str:
    """A row per target with several modes and method: largest error of a weight, modes lost."""
    rows = []
    for target in dict.fromkeys(r["target"] for r in records):
        for method, label in LABELS.items():
            mine = [r for r in of(records, target, method) if r.get("mode_weight_error") is not None]
            if mine:
                error = spread(values(mine, "mode_weight_error"), ".3f")
                rows.append([target.replace("_", " "), label, error, spread(values(mine, "modes_lost"), ".0f")])
    return markdown(["target", "method", "largest relative error of a weight", "modes lost"], rows)


ESTIMATORS = {
    "knn-kl": "k-NN, k = 3",
    "knn-kl-1": "k-NN, k = 1",
    "knn-kl-sqrt-n": "k-NN, k = sqrt(n)",
    "knn-kl-adaptive": "k-NN, adaptive",
    "kl-bound": "held-out bound",
    "kl-bound-score": "held-out bound, log p and score as features",
}


def accuracy(records: Sequence[Row], draws: int) -> str:
    """A row per case and dimension, a column per estimator: mean ± sd over seeds of the estimates."""
    mine = [r for r in records if r.get("draws") == draws and r.get("exact") is not None]
    used = [method for method in ESTIMATORS if any(r["method"] == method for r in mine)]
    rows = []
    for target in dict.fromkeys(r["target"] for r in mine):
        name, dim, _ = target.split("-")
        exact = statistics.mean(r["exact"] for r in mine if r["target"] == target)
        cells = []
        for method in used:
            found = values(of(mine, target, method), "value")
            sd = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.3f}{sd}" if found else "-")
        rows.append([name, dim[1:], f"{exact:.3f}", *cells])
    return markdown(["q", "dimensions", "exact KL", *(ESTIMATORS[method] for method in used)], rows)


def speed(records: Sequence[Row]) -> str:
    """A row per size and device: seconds (and peak MiB) of each backend, and the ratio to the fastest other."""
    mine = [r for r in records if r["target"].startswith("speed") and "error" not in r]
    backends = ("avbvi", "scipy", "scikit-learn", "faiss")
    rows = []
    for target, device in dict.fromkeys((r["target"], r["device"]) for r in mine):
        _, dim, n = target.split("-")
        found = {r["method"]: r for r in mine if r["target"] == target and r["device"] == device}
        cells = [
            f"{found[b]['seconds']:.3g} s ({found[b]['peak_bytes'] / 2**20:.0f} MiB)" if b in found else "-"
            for b in backends
        ]
        others = [found[b]["seconds"] for b in backends[1:] if b in found]
        ratio = found["avbvi"]["seconds"] / min(others) if others and "avbvi" in found else math.nan
        rows.append([f"{int(n[1:]):,}", dim[1:], device, *cells, f"{ratio:.2f}" if others else "-"])
    return markdown(["draws each", "dimensions", "device", *backends, "avbvi / best other"], rows)
