"""Tables of the boards of speed, from their records."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.step_problems import EIGHT_SCHOOLS, REGRESSION
from benchmarks.tables import Row, markdown

__all__ = ["splits", "steps", "svi", "table"]

TARGETS = {problem.name: problem.label for problem in (EIGHT_SCHOOLS, REGRESSION)}
METHODS = {
    "reference_step": "loop written by hand (reference)",
    "eager": "avbvi, the model run at every step",
    "traced": "avbvi, log-density recorded once",
    "compiled": "avbvi, pieces compiled",
    "uncaptured": "avbvi, nothing read back",
    "captured": "avbvi, CUDA graph",
}
PARTS = {
    "sampler_seconds": "sampler",
    "contrast_seconds": "contrast",
    "adversary_seconds": "adversary",
    "log_p_seconds": "log p",
    "optimiser_seconds": "optimiser",
    "python_seconds": "Python and rest",
}


def _target(row: Row) -> str:
    name = str(row["target"])
    label = TARGETS.get(name, f"VAE 784-300-300-32, batch {name.removeprefix('vae_')}")
    return label if row["stage"] == "amortised" else f"{label}, {row['stage']}"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def steps(records: Sequence[Row], device: str) -> str:
    """Milliseconds of a step by number of threads, its ratio to the baseline and its multiple of the bound."""
    mine = [r for r in records if r["device"] == device and r["method"] in METHODS]
    threads = sorted({r["threads"] for r in mine})
    several = [f"{n} thread{'s' if n > 1 else ''}" for n in threads] if device == "cpu" else [device]
    header = ["step", "execution", *(f"ms, {t}" for t in several), *(f"times as fast, {t}" for t in several)]
    header += ["times the bound", "GFLOP", "kernels"]
    rows = []
    for place in dict.fromkeys((r["target"], r["stage"]) for r in mine):
        here = [r for r in mine if (r["target"], r["stage"]) == place]
        for method in METHODS:
            by_threads = {r["threads"]: r for r in here if r["method"] == method}
            if not by_threads:
                continue
            first = by_threads[min(by_threads)]
            times = [_shown(by_threads.get(n, {}).get("step_milliseconds"), ".2f") for n in threads]
            ratios = [_shown(by_threads.get(n, {}).get("ratio"), ".2f") for n in threads]
            work = [_shown(first.get("bound_ratio"), ".1f"), _shown(first.get("gflops"), ".3f")]
            rows.append([_target(first), METHODS[method], *times, *ratios, *work, _shown(first.get("kernels"), "d")])
    return markdown(header, rows)


def splits(records: Sequence[Row], device: str) -> str:
    """Milliseconds of the parts of a step on one thread; they add up to the step."""
    mine = [r for r in records if r["device"] == device and r["method"] in METHODS and "sampler_seconds" in r]
    mine = [r for r in mine if r["threads"] == min(other["threads"] for other in mine)]
    rows = [
        [
            _target(r),
            METHODS[r["method"]],
            *(f"{ms:.2f}" for ms in (*(1e3 * r[k] for k in PARTS), r["step_milliseconds"])),
        ]
        for r in mine
    ]
    return markdown(["step", "execution", *PARTS.values(), "all"], rows)


def svi(records: Sequence[Row]) -> str:
    """What ``SVI.step`` takes more than the same loss, gradients and Adam without Pyro, in milliseconds."""
    rows = []
    for r in records:
        if "svi_overhead_seconds" not in r:
            continue
        low, high = 1e3 * r["svi_overhead_seconds_low"], 1e3 * r["svi_overhead_seconds_high"]
        overhead = f"{1e3 * r['svi_overhead_seconds']:.2f} ({low:.2f} to {high:.2f})"
        step = _shown(r["step_milliseconds"], ".2f")
        rows.append([_target(r), f"{r['device']}, {r['threads']}", step, overhead])
    return markdown(["step", "device, threads", "ms of SVI.step", "more than the bare step, ms (quartiles)"], rows)


def table(records: Sequence[Row]) -> dict[str, str]:
    """All tables by name: of the steps and of their split, for each device, and of SVI's overhead."""
    found: dict[str, str] = {}
    for device in dict.fromkeys(str(r["device"]) for r in records):
        kind = device.partition(":")[0]
        found |= {f"speed steps {kind}": steps(records, device), f"speed splits {kind}": splits(records, device)}
    return found | {"speed svi": svi(records)}
