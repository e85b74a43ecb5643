"""What a file of a fit holds: its format and version, and its entries as plain data."""

from __future__ import annotations

import os
from typing import Any

from .amortised.guide import AmortisedAVBGuide
from .checkpoints import read_file, with_keys
from .diagnostics import StageComparison
from .estimates import Estimate
from .guides import AVBGuide
from .parts import Plain

FORMAT = "avbvi-posterior"
VERSION = 4
#: The older version that is still read: it has no ``evidence`` and no ``report``.
OLDER = 3
#: What a file of a fit has beside format and version.
KEYS = frozenset(
    {
        *("parts", "own_context", "guide", "sites", "needs_model", "vectorize", "model", "buffers"),
        *("verdict", "comparison", "hmc_steps", "run"),
    }
)
NEWER_KEYS = frozenset({"evidence", "report"})
ROLES = ("trunk", "sampler", "contrast", "adversary")


def part_configurations(guide: AVBGuide) -> dict[str, Plain | None]:
    """The parts' configurations by role; ``None`` for a part that can't be rebuilt from plain data."""
    parts = {role: guide.part(role) for role in ROLES}
    return {role: part.configuration() if part.is_rebuildable else None for role, part in parts.items()}


def site_table(guide: AVBGuide) -> list[list[Any]]:
    """Names, shapes and widths of the latent sites (one datum's), to tell whether a file belongs to a model."""
    layout = guide.plate_layout if isinstance(guide, AmortisedAVBGuide) else guide.layout
    assert layout is not None
    return [[s.name, list(s.shape), s.stop - s.start] for s in layout.sites]


def read_content(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file of a fit, that of an older version with what it lacks left empty.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, foreign, or of a version that is not read.
    """
    content = read_file(path, FORMAT, VERSION, KEYS, older={OLDER})
    if content["version"] == VERSION:
        return with_keys(content, path, NEWER_KEYS)
    return {**content, "evidence": {}, "report": None}


def plain_comparison(comparison: StageComparison | None) -> dict[str, Any] | None:
    """A comparison of the stages as plain data, for a file."""
    if comparison is None:
        return None
    return {name: list(v) if isinstance(v, Estimate) else v for name, v in vars(comparison).items()}


def read_comparison(plain: dict[str, Any] | None) -> StageComparison | None:
    """What :func:`plain_comparison` was given."""
    if plain is None:
        return None
    arguments: dict[str, Any] = {name: Estimate(*v) if isinstance(v, list) else v for name, v in plain.items()}
    return StageComparison(**arguments)
