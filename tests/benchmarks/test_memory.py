"""The memory board: leaks are seen where there are some, runs have none, and do not grow with their data."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avbvi import fitting
from avbvi.amortised.runs import AmortisedRun
from benchmarks import memory, record
from benchmarks.memory import LIMITS, MIB, Census
from benchmarks.peak_memory import PeakMemory

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")


def growth_of(leaking: str) -> dict[str, Any]:
    census, kept = Census(1000, looks=10), []
    for step in range(1, 1001):
        new = [(torch.zeros(50_000), [step]) for _ in range(200 if (leaking, step) == ("once", 650) else 1)]
        if leaking == "always" or len(new) > 1:
            kept.extend(new)
        census.look(step)
    return {**census.growth(1000), "looks": [look[0] for look in census.looks]}


@pytest.mark.parametrize("leaking", ["nothing", "always", "once"])
def test_a_census_sees_what_is_kept(leaking: str) -> None:
    """Each step makes a tensor and a list; the run keeps none, all, or those of one step and all that it made then."""
    # In a process of its own: memory that other tests have freed would be used first.
    (growth,) = memory.apart(partial(growth_of, leaking))
    assert growth["looks"] == list(range(100, 1000, 100))
    number = {"nothing": 0, "always": 800, "once": 200}[leaking]  # from 100 to 900
    assert abs(growth["tensor_growth"] - number) < 20
    assert abs(growth["rss_growth"] - number * 200_000) < 8 * MIB
    assert growth["object_growth"] > 2 * number - 50
    if leaking == "always":
        assert abs(growth["tensor_trend"] - 800) < 20
        assert growth["object_trend"] > 2 * 800 - 50
    else:
        assert abs(growth["tensor_trend"]) < 20
        assert abs(growth["object_trend"]) < 50


def test_a_fit_is_watched_and_keeps_nothing() -> None:
    """From behind the first look at the run's health, which takes a snapshot, to the end."""
    steps = 200
    census = Census(steps, looks=5)
    memory.amortised(steps, census)
    assert [look[0] for look in census.looks] == [40, 80, 120, 160]
    assert fitting.AmortisedRun is AmortisedRun
    _, rss, tensors, objects = next(look for look in census.looks if look[0] >= 120)
    last = census.looks[-1]
    assert last[1] - rss < LIMITS["rss_growth"]
    assert last[2] - tensors < 20
    assert last[3] - objects < 50


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.LEAKS)
def test_runs_do_not_leak(name: str) -> None:
    (row,) = memory.apart(partial(memory.leak, name, 20_000))
    assert not row["leaks"], row
    assert row["steps"] == 20_000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """200 MiB of zeros, which take no room on the disk."""
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.float32, (200 * MIB // 256, 64))
    return tmp_path / "large.npy"


def peaks_of(kinds: tuple[str, ...], large: Path) -> dict[str, Any]:
    peaks: dict[str, Any] = {}
    next(iter(memory.LOADERS["array-files"](large)))  # libraries are loaded with the first batch
    for kind in kinds:
        with PeakMemory() as measured:
            for i, _ in enumerate(memory.LOADERS[kind](large)):
                if i == 300:
                    break
        assert measured.bytes is not None
        peaks[kind] = measured.bytes / MIB
    return peaks


def test_files_are_not_held_in_memory(large: Path) -> None:
    shuffled = "array-files, torch's shuffle"
    # In a process of its own: memory that other tests have freed would be used first.
    (peaks,) = memory.apart(partial(peaks_of, ("array-files", shuffled, "in memory"), large))
    assert peaks["array-files"] < 8.0
    assert peaks["in memory"] > 200.0
    assert peaks[shuffled] > 30.0  # the order of 800,000 rows as Python's integers


@pytest.mark.slow
def test_memory_of_a_run_does_not_depend_on_the_size_of_its_data(tmp_path: Path) -> None:
    def peak(kind: str, megabytes: int) -> int:
        (row,) = memory.apart(partial(memory.data_size, kind, megabytes, 100, tmp_path))
        assert row["rows"] == megabytes * 4096
        return row["peak_bytes"]

    assert abs(peak("array-files", 1000) - peak("array-files", 10)) < memory.DATA_LIMIT
    assert peak("in memory", 200) - peak("in memory", 10) > 180 * MIB


def test_sources_of_batches(tmp_path: Path) -> None:
    rows = memory.throughput(40, 2, tmp_path, batch_size=8, units=4)
    by_name = {row["method"]: row for row in rows}
    assert list(by_name) == ["one batch", "TensorLoader", "TensorDataset", "array-files", "array-files, one worker"]
    assert (by_name["one batch"]["ratio"], by_name["one batch"]["cpu_ratio"]) == (1.0, 1.0)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["steps_per_second"] / by_name["one batch"]["steps_per_second"])
        # Fetching a batch is a part of the step.
        assert 1e-3 * row["batch_milliseconds"] < 1.5 / row["steps_per_second"]
    # All sources give the pixels of the file, float32.
    pixels = np.load(tmp_path / "pixels.npy")
    for name, fetch in memory.sources(tmp_path / "pixels.npy", 40).items():
        (x,) = fetch()
        assert x.dtype == torch.float32, name
        found, expected = (np.sort(np.packbits(p.astype(np.uint8), axis=1), axis=0) for p in (x.numpy(), pixels))
        np.testing.assert_array_equal(found, expected)


def test_rows_of_other_parts_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(work: Any) -> list[dict[str, Any]]:
        target = {"leak": "leak", "data_size": "data"}.get(work.func.__name__, "throughput")
        return [{"target": target, "method": str(work.args[0]), "seed": 0, "device": "cpu", "seconds": 1.0}]

    monkeypatch.setattr(memory, "apart", fake)
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(memory.record, "save", partial(record.save, folder=tmp_path))
    monkeypatch.setattr(memory.record, "load", partial(record.load, folder=tmp_path))
    assert len(memory.main(["--parts", "leak", "--quick"])) == 4
    assert not list(tmp_path.iterdir())
    for names in (["stages", "svi"], ["amortised"], ["amortised, read every ten steps"], ["svi"]):
        memory.main(["--parts", "leak", "--steps", "7", "--leaks", *names])
    memory.main(["--parts", "data", "--megabytes", "1", "2"])
    memory.main(["--parts", "data", "--megabytes", "3"])
    saved = json.loads((tmp_path / "memory.json").read_text())["records"]
    assert [row["target"] for row in saved] == ["leak"] * 4 + ["data"] * 3


def test_saved_figures() -> None:
    """What the board says of the long runs."""
    if not (record.RESULTS / "memory.json").exists():
        pytest.skip("the board has not been saved")
    rows = record.load("memory")["records"]
    for row in rows:
        if row["target"] == "leak":
            assert not row["leaks"]
            assert row["steps"] >= 100_000
    sizes = [row["peak_bytes"] for row in rows if row["method"] == "array-files" and row["target"] == "data"]
    assert max(sizes) - min(sizes) < memory.DATA_LIMIT
