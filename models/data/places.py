"""Where data sets lie on this machine: named by the caller, by an environment variable, or beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["StrPath", "default_place"]

StrPath = str | os.PathLike[str]


def default_place(name: str, variable: str, source: str) -> Path:
    """Where a data set lies by default; it may not be there.

    Args:
        name: of the data set's folder.
        variable: the environment variable that names the place itself; then AVBVI_DATA is asked, which names it or
            the folder above it.
        source: path of a source file three folders below the one that holds both the repository and `shared`.
    """
    value = os.environ.get(variable)
    if value:
        return Path(value)
    value = os.environ.get("AVBVI_DATA")
    if value:
        inner = Path(value) / name
        return inner if inner.is_dir() else Path(value)
    return Path(source).resolve().parents[3] / "shared" / "data" / name
