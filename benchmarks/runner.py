"""Running a board: jobs in parallel processes of one thread each, resumable, with failures in the table.

A job is one method on one target with one seed. What it finds is appended to a partial file, so that an interrupted
benchmark goes on where it stopped; when all jobs are done the results are saved and the partial file goes.

- A method that raises gives a record with ``error`` instead of figures: the table shows it, the others go on.
- A run that got too little of its core is discarded and has to be repeated: its wall time says nothing.
- ``--keep`` takes over the rows of the saved file whose method has not changed since, and runs only the rest. Each
  row has the commit that it was run at. Changes of the judges do not count: after one, run without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import record
from benchmarks.fitting import Method
from benchmarks.judging import Row, described
from benchmarks.peak_memory import PeakMemory
from benchmarks.problems import Problem

#: A fit that got less of its core than this is measured again.
LEAST_CPU_SHARE = 0.9
QUICK_MINUTES = 0.05


class Job(NamedTuple):
    """One method on one target with one seed, for so many minutes."""

    target: str
    method: str
    seed: int
    minutes: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies the job within a board."""
        return self.target, self.method, self.seed


Worker = Callable[[Job], list[Row]]
#: job -> files that its figures depend on, relative to the repository's root.
Sources = Callable[[Job], Iterable[str]]


@dataclass(frozen=True)
class Options:
    """What the command line of every board offers."""

    seeds: int
    minutes: float
    workers: int
    quick: bool = False
    keep: bool = False
    trust: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    minutes_by_target: Mapping[str, float] = field(default_factory=dict)

    def minutes_for(self, target: str) -> float:
        """Wall time of a fit of this target."""
        return self.minutes_by_target.get(target, self.minutes)

    def wants(self, target: str, method: str) -> bool:
        """Whether a method on a target was chosen; without a choice all are."""
        return (not self.methods or method in self.methods) and (not self.targets or target in self.targets)

    def jobs(
        self, targets: Iterable[str], methods: Iterable[str], most_seeds: Mapping[str, int] | None = None
    ) -> list[Job]:
        """Every wanted method on every wanted target, seed by seed; ``most_seeds`` has the methods that get fewer."""
        most = most_seeds or {}
        methods = tuple(methods)
        grid = itertools.product(range(self.seeds), targets, methods)
        return [
            Job(target, method, seed, self.minutes_for(target))
            for seed, target, method in grid
            if self.wants(target, method) and seed < most.get(method, self.seeds)
        ]


def options(
    description: str | None,
    *,
    methods: Sequence[str],
    targets: Sequence[str],
    seeds: int = 5,
    minutes: float = 1.0,
    minutes_by_target: Mapping[str, float] | None = None,
    arguments: Sequence[str] | None = None,
) -> Options:
    """Read the command line (or ``arguments``); an unknown method or target ends the program with the known ones.

    ``minutes_by_target`` has the targets whose fits take other than ``minutes``; ``--minutes`` and ``--quick`` set the
    time of all targets.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--minutes", type=float, help="wall time of each fit")
    parser.add_argument("--methods", nargs="+", default=(), choices=methods, metavar="METHOD", help="only these")
    parser.add_argument("--targets", nargs="+", default=(), choices=targets, metavar="TARGET", help="only these")
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, three seconds a fit, nothing saved")
    parser.add_argument("--keep", action="store_true", help="keep saved rows of methods that have not changed since")
    parser.add_argument(
        "--trust",
        nargs="+",
        default=(),
        choices=methods,
        metavar="METHOD",
        help="with --keep: keep these methods' rows although files changed that they depend on",
    )
    read = parser.parse_args(arguments)
    apart = {} if read.quick or read.minutes is not None else dict(minutes_by_target or {})
    read.minutes = minutes if read.minutes is None else read.minutes
    for name in ("seeds", "minutes", "workers"):
        if not getattr(read, name) > 0:
            parser.error(f"--{name} must be positive, found {getattr(read, name)}")
    return Options(
        seeds=1 if read.quick else read.seeds,
        minutes=QUICK_MINUTES if read.quick else read.minutes,
        workers=read.workers,
        quick=read.quick,
        keep=read.keep,
        trust=tuple(read.trust),
        methods=tuple(read.methods),
        targets=tuple(read.targets),
        minutes_by_target=apart,
    )


def missing_for(methods: Mapping[str, Method], problems: Mapping[str, Problem]) -> Callable[[Job], str | None]:
    """What a job lacks here, for :func:`run_jobs`; nothing for controls and the like, in neither mapping."""

    def missing(job: Job) -> str | None:
        method, problem = methods.get(job.method), problems.get(job.target)
        return None if method is None or problem is None else method.missing(problem)

    return missing


def sources_for(methods: Mapping[str, Method], problems: Mapping[str, Problem]) -> Sources:
    """The files that a job's fit depends on: its method's and its problem's."""

    def sources(job: Job) -> tuple[str, ...]:
        method, problem = methods.get(job.method), problems.get(job.target)
        return (method.sources if method else ()) + (problem.sources if problem else ())

    return sources


def run_jobs(
    name: str,
    jobs: Sequence[Job],
    worker: Worker,
    settings: Options,
    *,
    keys: Sequence[str],
    finish: Callable[[list[Row]], list[Row]] = list,
    missing: Callable[[Job], str | None] | None = None,
    sources: Sources | None = None,
    folder: Path = record.RESULTS,
) -> list[Row]:
    """Run what is not yet done, print the table, save.

    Where the command line chose methods or targets, the saved rows of all others stay in the file as they are.

    Args:
        name: of the results file, without ``.json``.
        jobs: the board's jobs that ``settings`` wants, long ones first so that no worker idles at the end.
        worker: job -> its records; a function of a module, for the other processes to find.
        settings: the command line's; with ``quick`` nothing is read or written.
        keys: columns of the printed table.
        finish: orders all records and adds what needs all of them (noise floors).
        missing: what a job lacks here (an optional package); such jobs are named and left out.
        sources: files that a job depends on, for ``settings.keep``; without it every saved row is kept.
        folder: where results and partial file lie.

    Returns:
        All records as saved.

    Raises:
        SystemExit: runs were disturbed or lost and have to be repeated: nothing is saved, call again.
    """
    results = Results(name, folder)
    done: list[Row] = []
    if not settings.quick:
        done = results.partial(jobs)
        done += results.others(jobs, settings)
        if settings.keep:
            done += results.kept(jobs, {_key(row) for row in done}, sources, settings.trust)
    commit = record.git_commit()
    known = {_key(row) for row in done}
    waiting = _possible([job for job in jobs if job.key not in known], missing)
    repeat: list[str] = []
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(isolated, worker, job): job for job in waiting}
        for future in as_completed(futures):
            job = futures[future]
            error = future.exception()
            if error is not None:  # the process died: out of memory, say, which is no property of the method
                repeat.append(str(job.key))
                print(f"lost: {job.key}: {described(error)}", flush=True)
                continue
            rows = [{**row, "minutes": job.minutes, "commit": commit} for row in future.result()]
            if not settings.quick and any(disturbed(row) for row in rows):
                repeat.append(str(job.key))
                print(f"discarded: {job.key} got less than {LEAST_CPU_SHARE:.0%} of a core", flush=True)
                continue
            done += rows
            print(table(rows, keys), flush=True)
            if not settings.quick:
                results.append(job, rows)
    if repeat and not settings.quick:
        raise SystemExit(f"{len(repeat)} runs are to be repeated, nothing saved yet; call again for them: {repeat}")
    records = finish(done)
    print(table(records, keys))
    if not settings.quick:
        print(record.save(name, records, folder))
        results.clear()
    return records


def _possible(jobs: list[Job], missing: Callable[[Job], str | None] | None) -> list[Job]:
    if missing is None:
        return jobs
    lacking = {job: missing(job) for job in jobs}
    for target, method, reason in dict.fromkeys((j.target, j.method, why) for j, why in lacking.items() if why):
        print(f"skipped: {method} on {target}: {reason}", flush=True)
    return [job for job, reason in lacking.items() if reason is None]


def isolated(worker: Worker, job: Job) -> list[Row]:
    """Run a job on one thread; an exception becomes a record with ``error``.

    Rows that do not tell their peak of memory get that of the whole job.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    with PeakMemory() as peak:
        try:
            rows = worker(job)
        except Exception as error:
            rows = [
                {
                    "target": job.target,
                    "method": job.method,
                    "seed": job.seed,
                    "device": "cpu",
                    "seconds": time.monotonic() - started,
                    "error": described(error),
                }
            ]
    return [{"peak_bytes": peak.bytes, **row} for row in rows]


def disturbed(row: Row) -> bool:
    """Whether other work on the machine took so much of a fit's core that its wall time says nothing."""
    return bool(row.get("cpu_seconds_with_verdict", math.inf) < LEAST_CPU_SHARE * row["seconds"])


def table(rows: Sequence[Row], keys: Sequence[str]) -> str:
    """The columns ``keys`` that some row has, and ``failed`` with the reason where a row has an error."""
    shown = [key for key in keys if any(key in row for row in rows)]
    if any("error" in row for row in rows):
        shown.append("failed")
    return record.format_table([{**row, "failed": row["error"]} if "error" in row else row for row in rows], shown)


@dataclass(frozen=True)
class Results:
    """The saved and the partial file of a board."""

    name: str
    folder: Path = record.RESULTS

    @property
    def _path(self) -> Path:
        return self.folder / f".{self.name}.partial.jsonl"

    def partial(self, jobs: Sequence[Job]) -> list[Row]:
        """Rows of an interrupted run that belong to these jobs; failed and disturbed ones are run again."""
        if not self._path.exists():
            return []
        wanted = {(*job.key, job.minutes) for job in jobs}
        # One line is one job, so that a job with several rows is there as a whole or not at all.
        groups = [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]
        return [
            row
            for rows in groups
            if all((*_key(row), row["minutes"]) in wanted for row in rows) and _sound(rows)
            for row in rows
        ]

    def append(self, job: Job, rows: list[Row]) -> None:
        """Keep a job's rows for the case of an interruption."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows) + "\n")

    def clear(self) -> None:
        """Remove the partial file."""
        self._path.unlink(missing_ok=True)

    def others(self, jobs: Sequence[Job], settings: Options) -> list[Row]:
        """Saved rows of methods and targets that were not chosen."""
        mine = {job.key for job in jobs}
        return [
            row
            for key, rows in self._saved().items()
            if key not in mine and not settings.wants(*key[:2])
            for row in rows
        ]

    def kept(
        self,
        jobs: Sequence[Job],
        known: set[tuple[str, str, int]],
        sources: Sources | None,
        trust: Sequence[str] = (),
    ) -> list[Row]:
        """Saved rows of jobs that are not yet ``known`` and whose sources have not changed since they were run.

        The sources of methods in ``trust`` are not looked at: somebody has, and found the changes without effect.
        """
        saved, kept = self._saved(), list[Row]()
        for job in jobs:
            rows = saved.get(job.key, [])
            if not rows or job.key in known or not _sound(rows):
                continue
            if any(not math.isclose(row.get("minutes", job.minutes), job.minutes) for row in rows):
                continue
            paths = () if sources is None or job.method in trust else tuple(sorted(sources(job)))
            since = {changed_since(str(row["commit"]), paths) for row in rows}
            if since == {""}:
                kept += rows
            else:
                print(f"again: {job.key}: {', '.join(sorted(since))} changed since its run", flush=True)
        return kept

    def _saved(self) -> dict[tuple[str, str, int], list[Row]]:
        if not (self.folder / f"{self.name}.json").exists():
            return {}
        content = record.load(self.name, self.folder)
        saved: dict[tuple[str, str, int], list[Row]] = {}
        for row in content["records"]:
            # Rows from before commits were kept by row have that of their file.
            saved.setdefault(_key(row), []).append({"commit": content["commit"], **row})
        return saved


@cache
def changed_since(commit: str, paths: tuple[str, ...]) -> str:
    """Which of the paths differ from what they were at a commit, in words; "" if none does.

    A commit that git does not know, or sources that were not committed then ("-dirty"), count as changed.
    """
    if not paths:
        return ""
    if commit.endswith("-dirty"):
        return "uncommitted sources"
    command = ["git", "diff", "--name-only", commit, "--", *paths]
    done = subprocess.run(command, cwd=record.RESULTS.parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"commit {commit}, unknown to git, or what"
    return " ".join(done.stdout.split())


def _sound(rows: Sequence[Mapping[str, Any]]) -> bool:
    return not any("error" in row or disturbed(dict(row)) for row in rows)


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["target"], row["method"], row["seed"]
