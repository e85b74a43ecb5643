"""Seconds to an accurate posterior of Eight Schools: avbvi's default fit against a hand-written adversarial loop.

``python -m benchmarks.time_to_kl [--seeds 3] [--threads 2] [--methods M ...] [--quick]``

A method whose learning rate decays over the run has no time at which it "reaches" an accuracy: stopped early it is
worse than a run that was planned to be short. So each budget of a fixed ladder is a run of its own, and the time to
an accuracy is the shortest budget at which, and at the next longer one, the k-NN KL(q, p) of 10,000 draws from as many
exact ones is at most 0.05 on every seed. ``seconds`` run from the call to the draws, the verdict apart. Then one
run of that budget is watched: the trajectory.

An interrupted board goes on where it stopped. Methods run one after the other, each run in a process of its own with
all threads to itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import avbvi
from benchmarks import judging, record, runner
from benchmarks.fitting import SNAPSHOT_DRAWS, Method
from benchmarks.methods import METHODS as ALL_METHODS
from benchmarks.peak_memory import PeakMemory
from benchmarks.problems import EIGHT_SCHOOLS_PAPER
from benchmarks.rivals.recipe_b import RECIPE_B
from benchmarks.runner import Job

NAME = "time_to_kl"
TARGET = EIGHT_SCHOOLS_PAPER.name
LADDER = (2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0)
QUICK_LADDER = (1.0, 2.0)
WANTED = 0.05
MARKS = 10
METHODS: dict[str, Method] = {method.name: method for method in (ALL_METHODS["default"], RECIPE_B)}
BASELINE = RECIPE_B.name
KEYS = (
    *("method", "threads", "kind", "budget_seconds", "seed", "seconds", "steps", "knn_kl_qp", "knn_floor"),
    *("p_tau_positive", "time_to_kl_seconds", "ratio"),
)

Row = dict[str, Any]
Measure = Callable[[float, int], Row]


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    seeds: int = 3
    threads: int = 2
    methods: tuple[str, ...] = tuple(METHODS)
    quick: bool = False

    @property
    def ladder(self) -> tuple[float, ...]:
        """Budgets in seconds."""
        return QUICK_LADDER if self.quick else LADDER


def settings_of(arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS), metavar="METHOD")
    parser.add_argument("--quick", action="store_true", help="one seed, two short budgets, nothing saved")
    read = parser.parse_args(arguments)
    for name in ("seeds", "threads"):
        if getattr(read, name) < 1:
            parser.error(f"--{name} must be positive, found {getattr(read, name)}")
    return Settings(1 if read.quick else read.seeds, read.threads, tuple(read.methods), read.quick)


def meets(row: Row) -> bool:
    """Whether a run's draws are accurate; a run that failed is not."""
    return "error" not in row and row["knn_kl_qp"] <= WANTED


def climb(measure: Measure, ladder: Sequence[float], seeds: int) -> list[Row]:
    """Rows of complete runs, budget by budget, until two budgets in a row were enough on all seeds.

    A budget is given up at the first seed on which it is not enough.
    """
    rows: list[Row] = []
    enough = 0
    for budget in ladder:
        met = True
        for seed in range(seeds):
            rows.append(measure(budget, seed))
            met = meets(rows[-1])
            if not met:
                break
        enough = enough + 1 if met else 0
        if enough == 2:
            break
    return rows


def shortest(rows: Sequence[Row], ladder: Sequence[float], seeds: int) -> float | None:
    """The shortest budget that was enough on all seeds and was followed by another; at the ladder's end alone too."""
    found = None
    for budget in ladder:
        mine = [row for row in rows if row["budget_seconds"] == budget]
        met = {row["seed"] for row in mine if meets(row)} == set(range(seeds))
        if met and found is not None:
            return found
        found = budget if met else None
    return found


def run(method: str, budget: float, seed: int, threads: int) -> Row:
    """A complete run of a budget, judged, in this process."""
    torch.set_num_threads(threads)
    matmul = record.matmul_seconds()
    row: Row = {
        "target": TARGET,
        "method": method,
        "kind": "run",
        "seed": seed,
        "device": "cpu",
        "threads": threads,
        "budget_seconds": budget,
        "matmul_seconds": matmul,
    }
    called, cpu = time.monotonic(), time.process_time()
    try:
        with PeakMemory() as peak:
            fitted = METHODS[method](EIGHT_SCHOOLS_PAPER, seed, budget / 60.0)
            returned = time.monotonic()
            draws = EIGHT_SCHOOLS_PAPER.matrix(fitted.sample(SNAPSHOT_DRAWS))
        drawn = time.monotonic() - returned
        cpu = time.process_time() - cpu
        exact = EIGHT_SCHOOLS_PAPER.exact(2 * SNAPSHOT_DRAWS, judging.REFERENCE_SEED + seed)
        found = avbvi.knn_kl(draws, exact[:SNAPSHOT_DRAWS])
        floor = avbvi.knn_kl(exact[SNAPSHOT_DRAWS:], exact[:SNAPSHOT_DRAWS])
    except Exception as error:
        return {**row, "seconds": time.monotonic() - called, "error": judging.described(error)}
    return {
        **row,
        "seconds": fitted.seconds + drawn,
        "fit_seconds": fitted.seconds,
        # With the verdict and the board's own ELBO.
        "call_seconds": returned - called,
        "cpu_seconds_with_verdict": cpu,
        "peak_bytes": peak.bytes,
        "steps": fitted.figures.get("steps"),
        "knn_kl_qp": found.value,
        "knn_kl_qp_stderr": found.stderr,
        "knn_floor": floor.value,
        **EIGHT_SCHOOLS_PAPER.figures(draws),
    }


def trajectory(method: str, budget: float, seed: int, threads: int) -> list[Row]:
    """The k-NN KL along one run of a budget, in this process."""
    torch.set_num_threads(threads)
    marks = np.geomspace(budget / MARKS, budget, MARKS).tolist()
    rows = judging.curve(EIGHT_SCHOOLS_PAPER, METHODS[method], seed, budget / 60.0, marks, TARGET)
    return [{**row, "kind": "trajectory", "threads": threads, "budget_seconds": budget} for row in rows]


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def results(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """A row for each method that was run: its time to the accuracy, and how many times as short as the baseline's.

    Where the baseline was not accurate enough at any budget, the ratio is by its longest and a lower bound.
    """
    times: dict[str, Row] = {}
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method and row["kind"] == "run"]
        if not mine:
            continue
        budget = shortest(mine, settings.ladder, settings.seeds)
        at = [row for row in mine if row["budget_seconds"] == (budget or max(settings.ladder))]
        used = [row["seconds"] for row in at]
        peaks = [row["peak_bytes"] for row in at if row.get("peak_bytes") is not None]
        times[method] = {
            "target": TARGET,
            "method": method,
            "kind": "result",
            "seed": 0,
            "device": "cpu",
            "threads": settings.threads,
            "budget_seconds": budget,
            "seconds": max(used),
            "peak_bytes": max(peaks, default=None),
            "reached": budget is not None,
            "time_to_kl_seconds": max(used) if budget is not None else None,
        }
    if BASELINE in times:
        for row in times.values():
            if row["method"] != BASELINE and row["reached"]:
                row |= {
                    "ratio": times[BASELINE]["seconds"] / row["seconds"],
                    "ratio_is_bound": not times[BASELINE]["reached"],
                    "baseline": BASELINE,
                }
    return list(times.values())


def table(records: Sequence[Row]) -> str:
    """Markdown: each method's time to the accuracy, with the k-NN KL by seed at that budget and at the one before."""
    lines = ["| method | threads | shortest budget | seconds to the draws | k-NN KL by seed | budgets before |"]
    lines.append("|---|---|---|---|---|---|")
    for result in (r for r in records if r["kind"] == "result"):
        runs = [r for r in records if r["kind"] == "run" and r["method"] == result["method"]]
        runs = [r for r in runs if r["threads"] == result["threads"]]
        label = METHODS[result["method"]].label
        budget = result["budget_seconds"]
        at = ", ".join(_kl(r) for r in runs if r["budget_seconds"] == budget) or "-"
        before = [r for r in runs if budget is None or r["budget_seconds"] < budget][-3:]
        failed = "; ".join(f"{r['budget_seconds']:g} s: {_kl(r)}" for r in before) or "-"
        reached = f"{budget:g} s" if budget is not None else f"more than {max(LADDER):g} s"
        lines.append(f"| {label} | {result['threads']} | {reached} | {result['seconds']:.1f} | {at} | {failed} |")
    return "\n".join(lines)


def _kl(row: Row) -> str:
    return f"{row['knn_kl_qp']:.3f}" if row.get("knn_kl_qp") is not None else "failed"


def main(arguments: Sequence[str] | None = None, folder: Path = record.RESULTS) -> list[Row]:
    """Run what is not yet done, print the table, save."""
    settings = settings_of(arguments)
    saved = runner.Results(f"{NAME}_{settings.threads}", folder)
    jobs = [
        Job(f"{TARGET} {budget:g} s", method, seed, budget / 60.0)
        for method in settings.methods
        for budget in settings.ladder
        for seed in range(settings.seeds)
    ]
    known = [] if settings.quick else saved.partial(jobs)
    done = {(row["method"], row["budget_seconds"], row["seed"]): row for row in known}
    commit = record.git_commit()
    rows: list[Row] = []
    for method in settings.methods:

        def measure(budget: float, seed: int, method: str = method) -> Row:
            if (method, budget, seed) in done:
                return done[method, budget, seed]
            row: Row = {**_alone(run, method, budget, seed, settings.threads), "commit": commit}
            print(record.format_table([row], KEYS), flush=True)
            if not settings.quick:
                job = Job(f"{TARGET} {budget:g} s", method, seed, budget / 60.0)
                saved.append(job, [{**row, "target": job.target, "minutes": job.minutes}])
            return row

        mine = [{**row, "target": TARGET} for row in climb(measure, settings.ladder, settings.seeds)]
        budget = shortest(mine, settings.ladder, settings.seeds) or max(settings.ladder)
        watched = _alone(trajectory, method, budget, 0, settings.threads)
        rows += [*mine, *({**row, "commit": commit} for row in watched)]
    records = [*results(rows, settings), *rows]
    print(record.format_table(records, KEYS))
    print(table(records))
    if not settings.quick:
        others = _others(settings, folder)
        print(record.save(NAME, [*others, *records], folder))
        saved.clear()
    return records


def _others(settings: Settings, folder: Path) -> list[Row]:
    """Saved rows of other numbers of threads."""
    if not (folder / f"{NAME}.json").exists():
        return []
    return [row for row in record.load(NAME, folder)["records"] if row["threads"] != settings.threads]


if __name__ == "__main__":
    main()
