"""Is a file whole, and what it says it is? What torch.load does not ask."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any

from torch import Tensor

from .arguments import found
from .errors import CheckpointError, ModelError

#: What a file of a posterior holds besides its format and version.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("parts", "guide", "model", "buffers", "verdict", "run", "evidence"), dict),
    "sites": list,
    "vectorize": bool,
    "own_context": bool,
    "comparison": (dict, NoneType),
    "report": (dict, NoneType),
}


def check_entries(content: dict[str, Any], path: str | os.PathLike[str], roles: Sequence[str]) -> None:
    """Raise a CheckpointError unless a posterior's file has all entries, each of its kind."""
    for name, kind in ENTRIES.items():
        if name not in content or not isinstance(content[name], kind):
            what = found(content[name]) if name in content else "none"
            raise CheckpointError(f"{str(path)!r} is damaged: its entry {name!r} is of a wrong kind, found {what}")
    for name in ("guide", "model", "buffers"):
        if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content[name].items()):
            raise CheckpointError(f"{str(path)!r} is damaged: its entry {name!r} must hold tensors by name")
    if set(content["parts"]) != set(roles):
        raise CheckpointError(
            f"{str(path)!r} is damaged: its parts must be {list(roles)}, found {sorted(map(str, content['parts']))}"
        )


@contextmanager
def damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """What fails on a file's entries is reported as damage to the file."""
    try:
        yield
    except (CheckpointError, ModelError):
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged or was not written by avbvi: {error}") from error
