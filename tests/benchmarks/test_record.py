"""The file format of benchmark results."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import record


def make_record(**figures: Any) -> dict[str, Any]:
    return {"method": "iaf", "seed": 0, "device": "cpu", "seconds": 1.5, **figures}


def test_round_trip(tmp_path: Path) -> None:
    records = [make_record(elbo=-12.75, verdict="ok", stage_kept=None, done=True)]
    path = record.save("eight_schools", records, tmp_path / "results")
    assert path == tmp_path / "results" / "eight_schools.json"
    content = record.load("eight_schools", tmp_path / "results")
    assert set(content) == {"name", "created", "commit", "hardware", "versions", "records"}
    assert content["name"] == "eight_schools"
    assert content["records"] == records
    assert content["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_numbers_of_other_libraries_become_plain(tmp_path: Path) -> None:
    figures = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.5), "d": np.bool_(True)}
    record.save("speed", [make_record(**figures)], tmp_path)
    (saved,) = record.load("speed", tmp_path)["records"]
    assert [saved[key] for key in "abcd"] == [0.5, 3, 2.5, True]
    assert [type(saved[key]) for key in "abcd"] == [float, int, float, bool]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf)])
def test_what_is_not_finite_becomes_null(tmp_path: Path, value: Any) -> None:
    path = record.save("speed", [make_record(elbo=value)], tmp_path)
    assert json.loads(path.read_text())["records"][0]["elbo"] is None


@pytest.mark.parametrize("value", [[1.0], (1.0, 2.0), {"value": 1.0}, np.zeros(2), torch.zeros(1)])
def test_nested_values_are_refused_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="flat: 'elbo'"):
        record.save("speed", [make_record(elbo=value)], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", record.REQUIRED)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    incomplete = make_record()
    del incomplete[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        record.save("speed", [incomplete], tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record.save("speed", [make_record()], tmp_path)
    before = path.read_bytes()

    def interrupted(source: Path, target: Path) -> None:
        assert json.loads(Path(source).read_text())["records"]  # complete before it is moved
        raise OSError("interrupted")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(OSError, match="interrupted"):
        record.save("speed", [make_record(seed=1)], tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_hardware_versions_and_speed() -> None:
    machine = record.hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert {"python", "torch", "pyro-ppl", "arviz", "numpy", "scipy"} <= set(record.versions())
    assert 0 < record.matmul_seconds(size=16, repeats=3) < 1


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that `record` takes for the project's root, apart from any repository."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks" / "results")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("GIT_DIR", raising=False)
    record.RESULTS.mkdir(parents=True)
    return tmp_path


def test_commit_is_none_outside_git(project: Path) -> None:
    assert record.git_commit() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_tells_changed_sources_from_new_results(project: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
        command = ["git", *identity, *arguments]
        return subprocess.check_output(command, cwd=project, text=True).strip()

    source, result = project / "source.py", record.RESULTS / "speed.json"
    git("init", "--quiet")
    assert record.git_commit() is None
    for path in (source, result):
        path.write_text("old")
    git("add", ".")
    git("-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "--message", "First")
    commit = git("rev-parse", "HEAD")
    assert record.git_commit() == commit
    result.write_text("new")
    assert record.git_commit() == commit
    source.write_text("new")
    assert record.git_commit() == f"{commit}-dirty"


def test_table_is_aligned() -> None:
    records = [
        make_record(elbo=-12.712345),
        make_record(method="advi-fullrank", seed=10, elbo=None),
    ]
    assert record.format_table(records, ["method", "seed", "elbo", "c2st"]) == "\n".join(
        [
            "method         seed    elbo  c2st",
            "-------------  ----  ------  ----",
            "iaf               0  -12.71     -",
            "advi-fullrank    10       -     -",
        ]
    )


def test_table_without_records_is_its_header() -> None:
    assert record.format_table([], ["method", "elbo"]) == "method  elbo\n------  ----"
