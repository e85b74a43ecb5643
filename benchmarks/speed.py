"""What a training step costs, where its time goes, and what the machine could do at best.

``python -m benchmarks.speed [--device cuda] [--threads 1 2] [--targets T ...] [--quick]``

Every step of a target is timed in one process, in turn with the others: the executions of ``avbvi.fit`` and, where
there is one, the yardstick (``benchmarks.reference_step``: the same arithmetic in a loop written by hand), whose time
by the execution's is the ``ratio``. ``svi`` is SVI.step, its ``svi_overhead_seconds`` those that it takes more than
``bare``, the same loss, gradient and Adam without Pyro. Each number of threads has its own process. The split is by
PyTorch's profiler (``benchmarks.step_split``), the bound by measured rates (``benchmarks.step_bounds``).

A run replaces the saved rows of its targets on its device and leaves the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyro
import torch

from benchmarks import record
from benchmarks.interleaved import Times, interleaved, paired_difference, paired_ratio
from benchmarks.peak_memory import PeakMemory
from benchmarks.step_bounds import LARGE_COPY, Work, bandwidth, bound, product_rate, product_seconds, work_of
from benchmarks.step_problems import EIGHT_SCHOOLS, REGRESSION, StepProblem
from benchmarks.step_split import Split, split
from benchmarks.steps import EXECUTIONS, TRUNKS, Step, bare_step, fit_step, reference_step, svi_step, vae_step

NAME = "speed"
REFERENCE = "reference_step"
SVI, BARE = "svi", "bare"
UNCAPTURED, CAPTURED = "uncaptured", "captured"
#: Executions whose work is that of another.
TWINS = {CAPTURED: UNCAPTURED, "compiled": "traced"}
BATCHES = (100, 512)
REPEATS, QUICK_REPEATS = 25, 3
SECONDS, QUICK_SECONDS = 0.15, 0.0
KEYS = (
    *("target", "stage", "method", "threads", "step_milliseconds", "ratio", "cpu_ratio", "bound_ratio", "gflops"),
    *("kernels", "svi_overhead_milliseconds", "peak_bytes"),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """What is timed in one process.

    Args:
        target: as it stands in the records.
        stage: trunk stages by their trunk, "adversarial", "amortised".
        problem: of the steps; None for the VAE's.
        batch: data in the VAE's minibatch.
    """

    target: str
    stage: str
    problem: StepProblem | None = None
    batch: int = 0

    def steps(self, device: torch.device) -> dict[str, Step]:
        """All steps by method; executions that this machine lacks are named and left out."""
        made: dict[str, Step] = {}
        for name, execution in EXECUTIONS.items():
            lacking = execution.missing(device)
            if lacking is not None:
                print(f"skipped: {name} on {self.target}, {self.stage}: {lacking}", flush=True)
            elif self.problem is not None:
                made[name] = fit_step(self.problem, self.stage, execution, device)
            elif execution.amortised:
                made[name] = vae_step(self.batch, execution, device)
        if self.problem is not None and self.stage == "adversarial":
            made[REFERENCE] = reference_step(self.problem, device)
            made |= {SVI: svi_step(self.problem, device), BARE: bare_step(self.problem, device)}
        return made


TIMINGS = {
    (timing.target, timing.stage): timing
    for timing in (
        *(Timing(EIGHT_SCHOOLS.name, stage, EIGHT_SCHOOLS) for stage in TRUNKS),
        *(Timing(REGRESSION.name, stage, REGRESSION) for stage in ("flow", "adversarial")),
        *(Timing(f"vae_{batch}", "amortised", batch=batch) for batch in BATCHES),
    )
}
TARGETS = tuple(dict.fromkeys(target for target, _ in TIMINGS))


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    device: str = "cpu"
    threads: tuple[int, ...] = (1, 2)
    targets: tuple[str, ...] = TARGETS
    quick: bool = False


def settings_of(arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2), help="of the CPU, one process each")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, metavar="TARGET")
    parser.add_argument("--quick", action="store_true", help="three repetitions of one step, nothing saved")
    read = parser.parse_args(arguments)
    if min(read.threads) < 1:
        parser.error(f"--threads must be positive, found {read.threads}")
    if read.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here")
    # A GPU's steps are started by one thread.
    threads = (1,) if read.device.startswith("cuda") else tuple(read.threads)
    return Settings(read.device, threads, tuple(read.targets), read.quick)


def measured(timing: Timing, threads: int, device_name: str, quick: bool) -> list[Row]:
    """Records of all steps of one timing, in this process."""
    torch.set_num_threads(threads)
    pyro.clear_param_store()
    device = torch.device(device_name)
    cuda = device.type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if cuda else lambda: None
    began = time.monotonic()
    steps = timing.steps(device)
    times = interleaved(
        {name: step.run for name, step in steps.items()},
        counts={name: step.count for name, step in steps.items()},
        repeats=QUICK_REPEATS if quick else REPEATS,
        seconds=QUICK_SECONDS if quick else SECONDS,
        warm_up=2 if quick else 10,
        wait=wait,
    )
    # One thread's seconds are its core's: those that others took do not count.
    clock = time.process_time if threads == 1 and not cuda else time.perf_counter
    rows = []
    for name, step in steps.items():
        execution = EXECUTIONS.get(name)
        row: Row = {
            "target": timing.target,
            "stage": timing.stage,
            "method": name,
            "seed": 0,
            "device": device_name,
            "threads": threads,
            **time_figures(times[name]),
            **ratio_figures(name, times),
            "peak_bytes": peak_bytes(step, device),
            "execution": step.describe(),
        }
        if execution is None or execution.is_eager:
            row |= work_figures(work_of(step.run, step.count), row["step_seconds"], device, quick)
            run = partial(_and_wait, step.run, wait) if cuda else step.run
            few = 1 if quick or step.count > 1 else 5
            found = split(run, step.marks, blocks=1 if quick else 5, steps=few, clock=clock, cuda=cuda)
            row |= split_figures(found, row["step_seconds"], step.count)
        rows.append(row)
    copy_bounds(rows)
    spent = time.monotonic() - began
    matmul = record.matmul_seconds(device=device)
    return [{**row, "seconds": spent, "matmul_seconds": matmul} for row in rows]


def _and_wait(run: Any, wait: Any) -> None:
    run()
    wait()


def time_figures(times: Times) -> Row:
    """Seconds of a step: median and quartiles over the repetitions."""
    low, middle, high = times.quartiles()
    cpu = sorted(times.cpu)[len(times.cpu) // 2]
    return {
        "step_seconds": middle,
        "step_seconds_low": low,
        "step_seconds_high": high,
        "step_cpu_seconds": cpu,
        "step_milliseconds": 1e3 * middle,
        "steps_per_second": 1.0 / middle,
        "repetitions": len(times.wall),
    }


def ratio_figures(name: str, times: dict[str, Times]) -> Row:
    """How many times as fast as the baseline; for SVI what it takes more than the bare step.

    The baseline of captured steps are the same uncaptured, of all others the yardstick.
    """
    figures: Row = {}
    baseline = UNCAPTURED if name == CAPTURED else REFERENCE
    if name in EXECUTIONS and baseline in times:
        mine, yardstick = times[name], times[baseline]
        figures = {
            "ratio": paired_ratio(yardstick.wall, mine.wall),
            "cpu_ratio": paired_ratio(yardstick.cpu, mine.cpu),
            "baseline": baseline,
        }
    if name == SVI and BARE in times:
        low, middle, high = paired_difference(times[SVI].wall, times[BARE].wall)
        figures = {
            "svi_overhead_seconds": middle,
            "svi_overhead_seconds_low": low,
            "svi_overhead_seconds_high": high,
            "svi_overhead_milliseconds": 1e3 * middle,
            "svi_overhead_cpu_seconds": paired_difference(times[SVI].cpu, times[BARE].cpu)[1],
        }
    return figures


def work_figures(work: Work, seconds: float, device: torch.device, quick: bool) -> Row:
    """A step's work and the bound of its time."""
    mean = work.bytes // max(work.kernels, 1)
    # The bound is to be one: tensors of a small step stay in the caches.
    rate = max(bandwidth(device, size) for size in (mean, LARGE_COPY // (64 if quick else 1)))
    found = bound(work, product_seconds(work, device), product_rate(device), rate)
    return {
        "flops": work.flops,
        "gflops": 1e-9 * work.flops,
        "kernels": work.kernels,
        "bytes": work.bytes,
        "products": sum(work.products.values()),
        "bound_seconds": found.seconds,
        "bound_seconds_large": found.seconds_large,
        "bound_ratio": seconds / found.seconds,
        "flops_per_second_large": found.product_rate,
        "bytes_per_second": found.bandwidth,
    }


def copy_bounds(rows: list[Row]) -> None:
    """Give steps that can't be counted call by call the bound of the same ones run as they are."""
    found = {row["method"]: row for row in rows}
    for name, other in TWINS.items():
        if name in found and other in found:
            bounds = {k: v for k, v in found[other].items() if k.startswith(("bound_seconds", "flops", "gflops"))}
            found[name] |= bounds | {"bound_ratio": found[name]["step_seconds"] / bounds["bound_seconds"]}


def split_figures(found: Split, seconds: float, count: int = 1) -> Row:
    """The parts' seconds, in proportion to the step's as it was timed; they add up to it."""
    scale = seconds / found.total
    return {name: scale * value for name, value in found.figures().items()} | {"profiled_events": found.events // count}


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The most memory that a step takes beyond what its networks and optimisers hold already."""
    with PeakMemory(device) as peak:
        step.run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return peak.bytes


def others(settings: Settings, folder: Path) -> list[Row]:
    """Saved rows that this run does not replace."""
    if not (folder / f"{NAME}.json").exists():
        return []
    return [
        row
        for row in record.load(NAME, folder)["records"]
        if row["target"] not in settings.targets or row["device"] != settings.device
    ]


def main(arguments: Sequence[str] | None = None, folder: Path = record.RESULTS) -> list[Row]:
    """Time all steps, print the table, save."""
    settings = settings_of(arguments)
    wanted = [timing for timing in TIMINGS.values() if timing.target in settings.targets]
    rows: list[Row] = []
    for timing in wanted:
        for threads in settings.threads:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found = pool.submit(measured, timing, threads, settings.device, settings.quick).result()
            commit = record.git_commit()
            found = [{**row, "commit": commit} for row in found]
            print(record.format_table(found, KEYS), flush=True)
            rows += found
    records = [*others(settings, folder), *rows]
    order = {timing: i for i, timing in enumerate(TIMINGS)}
    records.sort(key=lambda r: (r["device"], order[r["target"], r["stage"]], r["threads"]))
    if not settings.quick:
        print(record.save(NAME, records, folder))
    return records


if __name__ == "__main__":
    main()
