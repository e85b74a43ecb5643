"""Tables of memory, scale and processes: what stands in the records, in the right column and unit."""

from __future__ import annotations

from benchmarks import scale_tables
from benchmarks.scale_tables import MIB


def test_columns_without_values_are_left_out_and_gaps_are_told() -> None:
    records = [
        {"target": "knn-d10-n100000", "method": "tiles", "device": "cpu", "seconds": 12.34, "queries": 20_000},
        {"target": "ais-mnist", "method": "full", "device": "cpu", "seconds": 5.0, "images": 64, "peak_bytes": 3 * MIB},
    ]
    assert scale_tables.scale(records)["scale"].splitlines() == [
        "| judge | way | device | seconds | queries | pictures | peak, MiB |",
        "|---|---|---|---|---|---|---|",
        "| knn-d10-n100000 | tiles | cpu | 12.3 | 20,000 | - | - |",
        "| ais-mnist | full | cpu | 5.0 | - | 64 | 3 |",
    ]


def test_memory_has_a_table_for_each_part_that_was_run() -> None:
    leak = {"target": "leak", "method": "stages", "steps": 100_000, "rss_growth": 2.5 * MIB, "leaks": False}
    row = {"target": "throughput", "method": "array-files", "ratio": 0.9876, "steps_per_second": 123.4}
    tables = scale_tables.memory([leak, row])
    assert list(tables) == ["memory leak", "memory throughput"]
    assert tables["memory leak"].splitlines()[-1] == "| stages | 100,000 | 2.5 | no |"
    assert tables["memory throughput"].splitlines()[-1] == "| array-files | 123.4 | 0.988 |"


def test_rows_of_one_process_are_not_compared_with_themselves() -> None:
    one = {"target": "digits_wide", "device": "cpu", "processes": 1, "loss_difference": 0.0}
    two = {
        **one,
        "processes": 2,
        "loss_difference": 2.34e-15,
        "parameter_difference": 5e-15,
        "same_in_all": True,
        "ratio": 1.5,
    }
    (table,) = scale_tables.distributed([one, two]).values()
    assert table.splitlines()[2:] == ["| digits wide | cpu | 2.3e-15 | 5.0e-15 | yes | 1.50 |"]
