"""The check of everything that needs a GPU: ``make gpu``, or ``python -m benchmarks.gpu [--quick]``.

Prints PASS or FAIL for each check and a table of times. Checks: that captured steps give the losses of the same steps
uncaptured; that nothing in them waits for the device; that replaying is at least LEAST_RATIO times as fast (if not, the
kernels of a step are listed); that bfloat16 and TF32 change losses by no more than PRECISION; that nearest neighbours
are those of the CPU; and the tests that need CUDA.

The exit status is 0 if all passed, 1 if a check failed, and 2 where there is no CUDA device. With ``--quick`` small
cases are run on whatever there is: on a CPU the same steps uncaptured, against steps that are taken one by one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from avbvi.capture.running import Straight
from avbvi.divergences import knn_kl
from avbvi.precision import Precision
from benchmarks import record
from benchmarks.gpu_courses import CASES, course, relative_difference, wait
from benchmarks.peak_memory import PeakMemory

NAME = "gpu"
NO_DEVICE = 2
#: Steps whose losses are compared: rounding grows from step to step. Later ones are timed.
COMPARED, TIMED = 50, 300
QUICK_STEPS = 10
#: Relative difference of losses: of the same kernels in another order of memory, and in lower precision.
SAME, PRECISION = 1e-3, 3e-2
#: Losses of the first steps alone are compared across precisions.
PRECISION_STEPS = 10
LEAST_RATIO = 3.0
NEIGHBOURS, QUICK_NEIGHBOURS = 20_000, 500
KEYS = ("method", "execution", "step_microseconds", "ratio", "kernels", "kernel_microseconds", "peak_bytes")

Row = dict[str, Any]


class Check(NamedTuple):
    """One check: what was looked at, whether it passed, what was found."""

    name: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.name}: {self.found}"


def same_losses(case: str, device: torch.device, quick: bool) -> Iterator[Check]:
    """Captured against uncaptured from the same seed; without CUDA, uncaptured against step by step."""
    ways = ("captured", "uncaptured") if device.type == "cuda" else ("uncaptured", "step by step")
    steps = QUICK_STEPS if quick else COMPARED
    losses, told = [], []
    for how in ways:
        with course(case, how, device, quick=quick) as run:
            losses.append(run.losses(steps))
            told.append(run.execution.describe())
    difference = relative_difference(*losses)
    yield Check(
        f"{case}: losses {ways[0]} and {ways[1]} are the same",
        difference <= SAME,
        f"largest relative difference {difference:.2g} in {steps} steps (at most {SAME:g})",
    )
    if device.type == "cuda":
        replayed = " replayed" in told[0] and ";" not in told[0]
        yield Check(f"{case}: steps are captured", replayed, told[0])


def nothing_waits(case: str, device: torch.device, quick: bool) -> Iterator[Check]:
    """Steps, captured and not, under CUDA's mode that makes an error of each operation that waits."""
    for how in ("captured", "uncaptured"):
        with course(case, how, device, quick=quick) as run:
            run.losses(QUICK_STEPS)
            assert isinstance(run.execution, Straight)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for row in range(QUICK_STEPS):
                    run.execution.take(row)
                found = "no operation waited"
            except RuntimeError as error:
                found = str(error).splitlines()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        yield Check(f"{case}: nothing waits in {how} steps", found == "no operation waited", found)


def times(case: str, device: torch.device, quick: bool) -> tuple[list[Row], list[Check]]:
    """Seconds of a step by execution, and the ratio that capturing has to reach."""
    ways = ("step by step", "uncaptured", "captured")
    rows: list[Row] = []
    for how in ways if device.type == "cuda" else ways[:2]:
        with PeakMemory(device) as peak, course(case, how, device, quick=quick) as run:
            run.losses(QUICK_STEPS if quick else COMPARED)
            seconds = run.seconds(QUICK_STEPS if quick else TIMED)
            kernels = kernels_of(run.losses, device) if how == "captured" else {}
        rows.append(
            {"method": case, "execution": how, "seed": 0, "device": str(device), "seconds": seconds}
            | {"peak_bytes": peak.bytes}
            | {"step_microseconds": 1e6 * seconds, "ratio": rows[-1]["seconds"] / seconds if rows else None}
            | kernels
        )
    if device.type != "cuda":
        return rows, []
    row, ratio = rows[-1], rows[-1]["ratio"]
    share = row["kernel_microseconds"] / row["step_microseconds"]
    told = f"{ratio:.2f} (at least {LEAST_RATIO:g}); {row['kernels']:.0f} kernels are busy for {share:.0%} of it"
    return rows, [Check(f"{case}: uncaptured by captured time of a step", ratio >= LEAST_RATIO, told)]


def kernels_of(losses: Any, device: torch.device) -> Row:
    """Number of kernels in a step, and the time in them, by PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        taken = len(losses(QUICK_STEPS))
        wait(device)
    kernels = [e for e in profile.events() or () if e.device_type.name == "CUDA"]
    busy = sum(e.time_range.elapsed_us() for e in kernels)
    by_name: dict[str, float] = {}
    for e in kernels:
        by_name[e.name] = by_name.get(e.name, 0.0) + e.time_range.elapsed_us()
    longest = sorted(by_name, key=by_name.__getitem__, reverse=True)[:5]
    return {
        "kernels": len(kernels) / taken,
        "kernel_microseconds": busy / taken,
        "longest_kernels": "; ".join(f"{name[:60]} {by_name[name] / taken:.1f}" for name in longest),
    }


def precisions(case: str, device: torch.device, quick: bool) -> Iterator[Check]:
    """Losses in lower precision against float32's, from the same seed."""
    found = {}
    for name, precision in (
        ("float32", None),
        ("bfloat16", Precision(torch.bfloat16)),
        ("TF32", Precision(tf32=True)),
    ):
        with course(case, "uncaptured", device, quick=quick, precision=precision) as run:
            found[name] = run.losses(PRECISION_STEPS)[:PRECISION_STEPS]
    for name in ("bfloat16", "TF32"):
        difference = relative_difference(found[name], found["float32"])
        told = f"largest relative difference {difference:.2g} in {PRECISION_STEPS} steps (at most {PRECISION:g})"
        yield Check(f"{case}: losses in {name} are near those in float32", difference <= PRECISION, told)


def neighbours(device: torch.device, quick: bool) -> Check:
    """KL(x, y) by nearest neighbours on the device and on the CPU, which is exact but for rounding on both."""
    n = QUICK_NEIGHBOURS if quick else NEIGHBOURS
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 10, generator=generator), 1.1 * torch.randn(n, 10, generator=generator)
    here, there = (knn_kl(x.to(where), y.to(where)).value for where in (device, "cpu"))
    return Check("nearest neighbours are those of the CPU", abs(here - there) <= 1e-6, f"KL {here:.8f} and {there:.8f}")


def marked_tests() -> Check:
    """The tests that need CUDA."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda and not slow", "-p", "no:cacheprovider"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (result.stdout.strip().splitlines() or [result.stderr.strip()])[-1]
    return Check("tests that need CUDA", result.returncode == 0, last)


def checks(device: torch.device, quick: bool) -> tuple[list[Check], list[Row]]:
    """All checks, each printed when it is done, and the rows of the table."""
    done: list[Check] = []
    rows: list[Row] = []

    def told(some: Iterator[Check] | Sequence[Check]) -> None:
        for check in some:
            print(check, flush=True)
            done.append(check)

    for case in CASES:
        told(same_losses(case, device, quick))
        if device.type == "cuda":
            told(nothing_waits(case, device, quick))
        told(precisions(case, device, quick))
        found, ratios = times(case, device, quick)
        rows += found
        told(ratios)
        for row in found:
            if not all(check.passed for check in ratios) and "longest_kernels" in row:
                print(f"      microseconds a step in the longest kernels: {row['longest_kernels']}")
    told([neighbours(device, quick)])
    if device.type == "cuda" and not quick:
        told([marked_tests()])
    return done, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, on a CPU too; nothing is saved")
    quick = parser.parse_args(arguments).quick
    if not torch.cuda.is_available() and not quick:
        print("no CUDA device here: nothing was checked (python -m benchmarks.gpu --quick tries the checks on a CPU)")
        return NO_DEVICE
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # the steps are small, or started by one thread
    began = time.monotonic()
    done, rows = checks(device, quick)
    print(record.format_table(rows, KEYS))
    if not quick:
        verdicts = [
            {"method": c.name, "seed": 0, "device": str(device), "seconds": 0.0, "passed": c.passed, "found": c.found}
            for c in done
        ]
        print(record.save(NAME, [*rows, *verdicts]))
    failed = sum(not check.passed for check in done)
    print(f"{len(done) - failed} of {len(done)} checks passed in {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
