"""Tables of the boards of memory, of judges at scale, of several processes, and of the check on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.tables import Row, markdown

#: Heading of a column, key of the record, and how the value is shown.
Column = tuple[str, str, Callable[[Any], str]]


def number(form: str, unit: float = 1.0) -> Callable[[Any], str]:
    """Shows a number in a form, divided by a unit."""
    return lambda value: format(value / unit, form)


MIB = 2.0**20
LEAK: tuple[Column, ...] = (
    ("run", "method", str),
    ("steps", "steps", number(",.0f")),
    ("MiB added after the first tenth", "rss_growth", number(".1f", MIB)),
    ("tensors, look to look", "tensor_trend", number(",.0f")),
    ("objects, look to look", "object_trend", number(",.0f")),
    ("leaks", "leaks", lambda value: "yes" if value else "no"),
    ("peak, MiB", "peak_bytes", number(".0f", MIB)),
)
DATA: tuple[Column, ...] = (
    ("data", "method", str),
    ("MB", "megabytes", number(",.0f")),
    ("steps", "steps", number(",.0f")),
    ("peak, MiB", "peak_bytes", number(".0f", MIB)),
)
THROUGHPUT: tuple[Column, ...] = (
    ("batches from", "method", str),
    ("steps/s", "steps_per_second", number(".1f")),
    ("times the speed on one batch", "ratio", number(".3f")),
    ("by CPU time", "cpu_ratio", number(".3f")),
    ("ms to fetch a batch", "batch_milliseconds", number(".2f")),
)
SCALE: tuple[Column, ...] = (
    ("judge", "target", str),
    ("way", "method", str),
    ("device", "device", str),
    ("seconds", "seconds", number(".1f")),
    ("queries", "queries", number(",.0f")),
    ("pictures", "images", number(",.0f")),
    ("temperatures", "temperatures", number(",.0f")),
    ("peak, MiB", "peak_bytes", number(".0f", MIB)),
    ("10^9 FLOP/s", "flop_per_second", number(".1f", 1e9)),
    ("error of k-th distances", "checked_error", number(".0e")),
    ("error of log Z, nats", "ais_error", number(".3f")),
)
PROCESSES: tuple[Column, ...] = (
    ("fit", "target", lambda value: value.replace("_", " ")),
    ("device", "device", str),
    ("largest relative difference of a loss", "loss_difference", number(".1e")),
    ("largest difference of a parameter", "parameter_difference", number(".1e")),
    ("same bits in both", "same_in_all", lambda value: "yes" if value else "no"),
    ("speed of two over one", "ratio", number(".2f")),
)


def listed(records: Sequence[Row], columns: Sequence[Column]) -> str:
    """A row for each record, without columns of which none has a value."""
    used = [column for column in columns if any(r.get(column[1]) is not None for r in records)]
    rows = [["-" if r.get(key) is None else show(r[key]) for _, key, show in used] for r in records]
    return markdown([heading for heading, _, _ in used], rows)


def memory(records: Sequence[Row]) -> dict[str, str]:
    """The tables of the memory board."""
    parts = {"leak": LEAK, "data": DATA, "throughput": THROUGHPUT}
    return {
        f"memory {part}": listed([r for r in records if r["target"] == part], columns)
        for part, columns in parts.items()
        if any(r["target"] == part for r in records)
    }


def scale(records: Sequence[Row]) -> dict[str, str]:
    """The table of judges at scale."""
    return {"scale": listed(records, SCALE)}


def distributed(records: Sequence[Row]) -> dict[str, str]:
    """The table of two processes against one."""
    return {"distributed": listed([r for r in records if r["processes"] > 1], PROCESSES)}
