"""Tables of the boards of speed: every figure in its place."""

from typing import Any

from benchmarks import speed_tables
from benchmarks.speed_tables import PARTS

PLACE = {"target": "eight_schools", "stage": "adversarial", "device": "cpu"}
SPLIT = {key: 0.001 * (i + 1) for i, key in enumerate(PARTS)}
RECORDS: list[dict[str, Any]] = [
    {**PLACE, "method": "eager", "threads": 1, "step_milliseconds": 21.0, "ratio": 0.7, "kernels": 9, **SPLIT},
    {**PLACE, "method": "eager", "threads": 2, "step_milliseconds": 15.0, "ratio": 0.8},
    {**PLACE, "method": "compiled", "threads": 1, "step_milliseconds": 10.0, "ratio": 1.5, "bound_ratio": 3.0},
    {**PLACE, "method": "reference_step", "threads": 1, "step_milliseconds": 14.0, "gflops": 0.25},
    {
        **PLACE,
        "method": "svi",
        "threads": 1,
        "step_milliseconds": 22.0,
        "svi_overhead_seconds": 0.0012,
        "svi_overhead_seconds_low": 0.001,
        "svi_overhead_seconds_high": 0.0015,
    },
    {
        "target": "vae_512",
        "stage": "amortised",
        "device": "cuda",
        "method": "captured",
        "threads": 1,
        "step_milliseconds": 0.5,
        "ratio": 9.0,
    },
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_steps_by_threads() -> None:
    header, _, *rows = speed_tables.steps(RECORDS, "cpu").splitlines()
    assert cells(header)[2:6] == [
        "ms, 1 thread",
        "ms, 2 threads",
        "times as fast, 1 thread",
        "times as fast, 2 threads",
    ]
    place = "Eight Schools, 10-d, adversarial"
    assert [cells(row) for row in rows] == [
        [place, "loop written by hand (reference)", "14.00", "-", "-", "-", "-", "0.250", "-"],
        [place, "avbvi, the model run at every step", "21.00", "15.00", "0.70", "0.80", "-", "-", "9"],
        [place, "avbvi, pieces compiled", "10.00", "-", "1.50", "-", "3.0", "-", "-"],
    ]


def test_splits_add_up() -> None:
    (row,) = speed_tables.splits(RECORDS, "cpu").splitlines()[2:]
    *parts, whole = map(float, cells(row)[2:])
    assert parts == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert sum(parts) == whole == 21.0


def test_overhead_with_its_quartiles() -> None:
    (row,) = speed_tables.svi(RECORDS).splitlines()[2:]
    assert cells(row)[2:] == ["22.00", "1.20 (1.00 to 1.50)"]


def test_all_tables_by_device() -> None:
    found = speed_tables.table(RECORDS)
    assert set(found) == {f"speed {t} {d}" for t in ("steps", "splits") for d in ("cpu", "cuda")} | {"speed svi"}
    assert "VAE 784-300-300-32, batch 512" in found["speed steps cuda"]
    assert "Eight Schools" not in found["speed steps cuda"]
