"""Running boards: what is resumed, kept, repeated, reported as failed."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import avbvi
from benchmarks import record, runner
from benchmarks.fitting import Fitted, Method
from benchmarks.judging import Row
from benchmarks.problems import Problem, stacked
from benchmarks.runner import Job, Options, Results

KEYS = ("target", "method", "seed", "value")
OPTIONS = Options(seeds=2, minutes=1.0, workers=1)


def _row(method: str, seed: int, **more: Any) -> Row:
    return {"target": "t", "method": method, "seed": seed, "device": "cpu", "seconds": 1.0, **more}


def worker(job: Job) -> list[Row]:
    """What a board's worker does, for the processes of the pool; the method's name says how it ends."""
    if job.method == "raises":
        raise ValueError("no such\nthing")
    if job.method == "dies":
        os._exit(1)
    if job.method == "disturbed":
        return [_row("disturbed", job.seed, cpu_seconds_with_verdict=0.5)]
    if job.method == "hungry":
        np.ones(100 * 2**20, dtype=np.uint8)  # too much for memory that was freed before and is used again
    if job.method == "own peak":
        return [_row("own peak", job.seed, peak_bytes=7)]
    if job.method == "curve":
        return [_row("curve", job.seed, value=i) for i in range(3)]
    return [_row(job.method, job.seed, value=10 * job.seed)]


class InProcess(ThreadPoolExecutor):
    """In place of the pool of processes, where these take no part in what is tested."""

    def __init__(self, workers: int, mp_context: object) -> None:
        super().__init__(workers)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ProcessPoolExecutor", InProcess)


def _jobs(*methods: str) -> list[Job]:
    return [Job("t", method, seed, 1.0) for method in methods for seed in range(2)]


def _run(folder: Path, *methods: str, settings: Options = OPTIONS, **options: Any) -> list[Row]:
    return runner.run_jobs("board", _jobs(*methods), worker, settings, keys=KEYS, folder=folder, **options)


def test_results_are_saved_with_commit_and_minutes(tmp_path: Path) -> None:
    rows = _run(tmp_path, "good", "curve", finish=lambda rows: sorted(rows, key=lambda r: (r["method"], r["seed"])))
    assert [(r["method"], r["seed"], r["value"]) for r in rows] == [
        *(("curve", seed, i) for seed in range(2) for i in range(3)),
        ("good", 0, 0),
        ("good", 1, 10),
    ]
    saved = record.load("board", tmp_path)["records"]
    assert saved == rows
    assert {(r["commit"], r["minutes"]) for r in saved} == {(record.git_commit(), 1.0)}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("in_process")
def test_rows_tell_the_peak_of_memory(tmp_path: Path) -> None:
    rows = _run(tmp_path, "good", "hungry", "own peak", "raises")
    peaks = {method: [r["peak_bytes"] for r in rows if r["method"] == method] for method in ("good", "hungry")}
    assert all(peak < 10 * 2**20 for peak in peaks["good"])
    assert all(abs(peak - 100 * 2**20) < 10 * 2**20 for peak in peaks["hungry"])
    assert [r["peak_bytes"] for r in rows if r["method"] == "own peak"] == [7, 7]
    assert all("peak_bytes" in row for row in rows)


@pytest.mark.usefixtures("in_process")
def test_a_method_that_raises_is_a_record_and_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = _run(tmp_path, "raises", "good")
    failed = [r for r in rows if r["method"] == "raises"]
    assert [r["error"] for r in failed] == ["ValueError: no such thing"] * 2
    assert len(rows) == 4
    header, _, *lines = capsys.readouterr().out.splitlines()[-7:-1]
    assert header.split() == ["target", "method", "seed", "value", "failed"]
    assert any("ValueError: no such thing" in line for line in lines)


@pytest.mark.usefixtures("in_process")
def test_lost_and_disturbed_runs_are_repeated_and_the_others_not(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2 runs are to be repeated"):
        _run(tmp_path, "good", "disturbed")
    assert not (tmp_path / "board.json").exists()
    done = [json.loads(line) for line in (tmp_path / ".board.partial.jsonl").read_text().splitlines()]
    assert [(r["method"], r["seed"]) for rows in done for r in rows] == [("good", 0), ("good", 1)]
    done[0][0]["value"] = 77  # the mark of a row that was not run again
    (tmp_path / ".board.partial.jsonl").write_text("".join(json.dumps(rows) + "\n" for rows in done))
    assert sorted(r["value"] for r in _run(tmp_path, "good")) == [10, 77]
    assert not (tmp_path / ".board.partial.jsonl").exists()


def test_a_process_that_dies_is_no_property_of_the_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2 runs are to be repeated"):
        _run(tmp_path, "dies")
    assert "lost: ('t', 'dies', 0): BrokenProcessPool" in capsys.readouterr().out


def test_partial_rows_of_other_lengths_and_failed_ones_are_not_taken(tmp_path: Path) -> None:
    results = Results("board", tmp_path)
    jobs = _jobs("a", "b", "c")
    results.append(jobs[0], [_row("a", 0, minutes=1.0)])
    results.append(jobs[1], [_row("a", 1, minutes=0.5)])
    results.append(jobs[2], [_row("b", 0, minutes=1.0, error="ValueError: x")])
    results.append(jobs[3], [_row("b", 1, minutes=1.0, cpu_seconds_with_verdict=0.1)])
    results.append(jobs[4], [_row("c", 0, minutes=1.0, value=i) for i in range(2)])
    results.append(jobs[4], [_row("d", 0, minutes=1.0)])
    assert [(r["method"], r["seed"], r.get("value")) for r in results.partial(jobs)] == [
        ("a", 0, None),
        ("c", 0, 0),
        ("c", 0, 1),
    ]


@pytest.mark.usefixtures("in_process")
def test_methods_that_were_not_chosen_stay_in_the_file(tmp_path: Path) -> None:
    record.save("board", [_row("good", 0, value=5), _row("old", 0, value=6)], tmp_path)
    rows = _run(tmp_path, "good", settings=Options(seeds=2, minutes=1.0, workers=1, methods=("good",)))
    assert {(r["method"], r["seed"]): r["value"] for r in rows} == {("good", 0): 0, ("good", 1): 10, ("old", 0): 6}
    # Without a choice the file is what this run found.
    assert {r["method"] for r in _run(tmp_path, "good")} == {"good"}


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit, in the place of this one."""
    (tmp_path / "fast.py").write_text("1\n")
    (tmp_path / "slow.py").write_text("1\n")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    runner.changed_since.cache_clear()
    yield tmp_path
    runner.changed_since.cache_clear()


def test_rows_are_kept_while_their_sources_do_not_change(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = _git(repository, "rev-parse", "HEAD")
    rows = [
        _row("a", 0, commit=commit),
        _row("b", 0, commit=commit),
        _row("c", 0, commit=f"{commit}-dirty"),
        _row("d", 0, commit=commit, minutes=3.0),
        _row("e", 0, commit=commit, error="x"),
        _row("f", 0, commit="0" * 40),
        _row("g", 0, commit=commit),
    ]
    folder = tmp_path / "results"
    record.save("board", rows, folder)
    (repository / "slow.py").write_text("2\n")
    sources = {"b": ("slow.py", "fast.py"), "g": ()}
    jobs = [Job("t", row["method"], 0, 1.0) for row in rows]
    kept = Results("board", folder).kept(jobs, {("t", "g", 0)}, lambda job: sources.get(job.method, ("fast.py",)))
    assert [row["method"] for row in kept] == ["a"]
    trusted = Results("board", folder).kept(jobs[:2], set(), lambda job: sources.get(job.method, ()), ("b",))
    assert [row["method"] for row in trusted] == ["a", "b"]
    said = capsys.readouterr().out
    assert "again: ('t', 'b', 0): slow.py changed since its run" in said
    assert "again: ('t', 'c', 0): uncommitted sources changed since its run" in said
    assert "unknown to git" in said


def test_rows_without_a_commit_have_that_of_their_file(tmp_path: Path) -> None:
    path = record.save("board", [_row("a", 0)], tmp_path)
    content = json.loads(path.read_text())
    content["commit"] = "abc"
    path.write_text(json.dumps(content))
    (row,) = Results("board", tmp_path).kept(_jobs("a"), set(), None)
    assert row["commit"] == "abc"


@pytest.mark.usefixtures("in_process")
def test_quick_neither_reads_nor_writes(tmp_path: Path) -> None:
    record.save("board", [_row("good", 0, value=5)], tmp_path)
    before = (tmp_path / "board.json").read_text()
    rows = _run(tmp_path, "good", "disturbed", settings=Options(seeds=2, minutes=1.0, workers=1, quick=True))
    assert len(rows) == 4
    assert (tmp_path / "board.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["board.json"]


@pytest.mark.usefixtures("in_process")
def test_what_lacks_something_is_named_once_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem(
        "t",
        avbvi.LogDensity(lambda z: z, event_shape=()),
        exact=lambda n, seed: stacked({}),
        matrix=lambda draws: stacked(draws),
    )
    optional = Method("good", "G", lambda *_: Fitted(lambda n: {}, 0.0), missing=lambda p: f"no {p.name}")
    missing = runner.missing_for({"good": optional}, {"t": problem})
    rows = _run(tmp_path, "good", "floor", missing=missing)
    assert {r["method"] for r in rows} == {"floor"}
    assert capsys.readouterr().out.count("skipped: good on t: no t") == 1


def test_sources_are_the_methods_and_the_problems() -> None:
    problem = Problem(
        "t", lambda: None, exact=lambda n, s: stacked({}), matrix=lambda d: stacked(d), sources=("models/p.py",)
    )
    method = Method("m", "M", lambda *_: Fitted(lambda n: {}, 0.0), sources=("avbvi/m.py",))
    sources = runner.sources_for({"m": method}, {"t": problem})
    assert set(sources(Job("t", "m", 0, 1.0))) == {"avbvi/m.py", "models/p.py"}
    assert set(sources(Job("t", "floor", 0, 1.0))) == {"models/p.py"}


def test_a_run_without_its_core_is_disturbed() -> None:
    assert runner.disturbed({"seconds": 60.0, "cpu_seconds_with_verdict": 31.0})
    assert not runner.disturbed({"seconds": 60.0, "cpu_seconds_with_verdict": 59.0})
    assert not runner.disturbed({"seconds": 7.0})


def _options(*arguments: str) -> Options:
    return runner.options("d", methods=("a", "b"), targets=("t", "u"), seeds=5, minutes=1.0, arguments=arguments)


def test_command_line() -> None:
    assert _options() == Options(seeds=5, minutes=1.0, workers=2)
    chosen = _options("--methods", "a", "--targets", "t", "--seeds", "2", "--minutes", "0.5", "--keep", "--trust", "b")
    assert chosen == Options(seeds=2, minutes=0.5, workers=2, keep=True, trust=("b",), methods=("a",), targets=("t",))
    assert chosen.wants("t", "a")
    assert not chosen.wants("u", "a")
    assert not chosen.wants("t", "b")
    quick = _options("--quick", "--seeds", "3")
    assert (quick.seeds, quick.minutes, quick.quick) == (1, runner.QUICK_MINUTES, True)


@pytest.mark.parametrize("wrong", [("--methods", "c"), ("--targets", "v"), ("--seeds", "0"), ("--minutes", "-1")])
def test_a_wrong_command_line_ends_the_program(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options(*wrong)
    assert wrong[1] in capsys.readouterr().err


def test_isolated_times_a_failure() -> None:
    started = time.monotonic()
    (row,) = runner.isolated(worker, Job("t", "raises", 4, 1.0))
    assert 0.0 <= row["seconds"] <= time.monotonic() - started
    assert (row["target"], row["method"], row["seed"], row["device"]) == ("t", "raises", 4, "cpu")
