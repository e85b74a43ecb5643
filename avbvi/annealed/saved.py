"""The file of a run of annealed chains: what has been done, enough to go on as if nothing had happened."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import StrPath, check_path, read_file, write_atomically
from ..errors import CheckpointError
from .densities import DatumDensity

FORMAT, VERSION = "avbvi annealed chains", 2
#: Seconds between two writes.
SAVE_EVERY = 30.0


@dataclass
class Record:
    """The parts of the data that are done, and the one under way.

    Attributes:
        settings: plain data that a run must share with the file that it resumes.
        seed: of all random numbers.
        done: by finished part its tensors.
        current: what the chains of the next part had saved, or ``None``.
        seconds: wall time of earlier sittings.
    """

    settings: dict[str, Any]
    seed: int
    done: list[dict[str, Any]] = field(default_factory=list)
    current: dict[str, Any] | None = None
    seconds: float = 0.0


class RecordFile:
    """Keeps a :class:`Record` on disk, if there is a path.

    Args:
        path: of the file, or ``None``.
    """

    def __init__(self, path: StrPath | None) -> None:
        self.path: Path | None = None if path is None else check_path(path, "checkpoint")
        self._began = self._saved = time.perf_counter()
        self._earlier = 0.0

    def load(self, settings: dict[str, Any], seed: int | None) -> Record | None:
        """The record of a run that is to be resumed; ``None`` where there is no file yet.

        Raises:
            CheckpointError: the file is damaged, or belongs to a run with other settings or another seed.
        """
        if self.path is None or not self.path.exists():
            return None
        content = read_file(self.path, FORMAT, VERSION, frozenset({"settings", "seed", "done", "current", "seconds"}))
        changed = [k for k, v in settings.items() if content["settings"].get(k) != v]
        if seed is not None and seed != content["seed"]:
            changed.append("seed")
        if changed:
            raise CheckpointError(
                f"checkpoint: {str(self.path)!r} belongs to a run with another {changed[0]}; give each run a file of "
                "its own, or remove this one"
            )
        self._earlier = content["seconds"]
        return Record(settings, content["seed"], content["done"], content["current"], content["seconds"])

    @property
    def seconds(self) -> float:
        """Wall time so far, earlier sittings included."""
        return self._earlier + time.perf_counter() - self._began

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.perf_counter() - self._saved > SAVE_EVERY

    def save(self, record: Record) -> None:
        """Write the record, whole or not at all."""
        if self.path is None:
            return
        content = {"format": FORMAT, "version": VERSION, **vars(record), "seconds": self.seconds}
        write_atomically(self.path, content)
        self._saved = time.perf_counter()


def check_same_density(density: DatumDensity, z: Tensor, saved: Tensor, where: Path | None) -> None:
    """Raise a CheckpointError unless log_joint at z (n, B, dim) is what was saved (n, B), to rounding."""
    matches = z.shape[-2:] == (density.batch, density.dim)
    if matches:
        with torch.no_grad():
            now = density.log_joint(z).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        matches = torch.allclose(now.double(), saved.to(now.device).double(), rtol=1e-4, atol=1e-2)
    if not matches:
        raise CheckpointError(
            f"checkpoint: {str(where)!r} belongs to another model or other data: the densities that it holds are not "
            "theirs; give each run a file of its own, or remove this one"
        )
