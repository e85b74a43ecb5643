"""Benchmark figures are kept as flat records in a JSON file, with versions, hardware and commit."""

import json
import math
import numbers
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
REQUIRED = ("method", "seed", "device", "seconds")
PACKAGES = (
    *("avbvi", "torch", "pyro-ppl", "arviz", "numpy", "scipy"),
    *("faiss-cpu", "jax", "numpyro", "scikit-learn", "zuko"),
)

Scalar = str | bool | int | float | None
Record = Mapping[str, Any]


def hardware() -> dict[str, Scalar]:
    """The machine: processor, usable cores, memory, PyTorch's threads, and the GPU or None."""
    return {
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "memory_gib": _memory_gib(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of those packages, peers included, that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit that is checked out, with "-dirty" if tracked sources differ; None outside git."""
    commit = _git("rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    sources = (".", f":!{RESULTS.parent.name}/{RESULTS.name}")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *sources)
    return f"{commit}-dirty" if changes else commit


def matmul_seconds(size: int = 512, repeats: int = 7, device: str | torch.device = "cpu") -> float:
    """Median time of one product of two `size` x `size` matrices in single precision.

    It tells how fast the machine is at this moment, so that seconds measured on a busy or a
    slower machine can be compared.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator).to(device)
    on_gpu = a.is_cuda
    times = []
    for _ in range(repeats + 1):
        if on_gpu:
            torch.cuda.synchronize(a.device)
        start = time.perf_counter()
        a @ b
        if on_gpu:
            torch.cuda.synchronize(a.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first product warms up


def save(name: str, records: Sequence[Record], folder: str | Path = RESULTS) -> Path:
    """Write `records` to `folder/name.json` and return the path.

    Each record is flat (its values are strings, numbers, booleans or None; zero-dimensional arrays
    and tensors count as numbers) and has at least the keys "method", "seed", "device" and
    "seconds". NaN and infinities, which JSON does not know, are written as null. The file is
    replaced in one step: a reader finds the old content or the new, never a part.
    """
    content = {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "hardware": hardware(),
        "versions": versions(),
        "records": [_checked(record) for record in records],
    }
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, allow_nan=False)
            file.write("\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(name: str, folder: str | Path = RESULTS) -> dict[str, Any]:
    """Read what `save` wrote."""
    content: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text("utf-8"))
    return content


def format_table(records: Sequence[Record], keys: Sequence[str]) -> str:
    """The columns `keys` of `records` as aligned text; a value that is missing reads "-".

    Floats are shown with four significant digits. A column of text is aligned to the left, one of
    numbers to the right.
    """
    columns = []
    for key in keys:
        values = [record.get(key) for record in records]
        cells = [key, *(_cell(value) for value in values)]
        width = max(map(len, cells))
        is_text = any(isinstance(value, str) for value in values)
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    header, *rows = ("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
    rule = "  ".join("-" * len(column[0]) for column in columns)
    return "\n".join([header, rule, *rows])


def _checked(record: Record) -> dict[str, Scalar]:
    """`record` with plain values, or an error that names the key at fault."""
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise ValueError(f"record lacks {', '.join(missing)}: {dict(record)}")
    return {key: _plain(key, value) for key, value in record.items()}


def _plain(key: str, value: Any) -> Scalar:
    if not isinstance(key, str):
        raise TypeError(f"keys of a record are strings, not {key!r}")
    if getattr(value, "shape", None) == ():  # a zero-dimensional array or tensor
        value = value.item()
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"records are flat: {key!r} is a {type(value).__name__}, not text or a number")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parents[1], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not known on this system
        return None
    return round(total / 2**30, 1)
