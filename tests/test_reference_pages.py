"""The reference shows every public name, once."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.public_names import public_names

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs" / "reference").glob("*.md"))


def shown(text: str) -> list[str]:
    """The names that a page takes from docstrings."""
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def resolved(path: str) -> object:
    """What a dotted path names; a value that is no class or function counts as its path."""
    module, name = path.rsplit(".", 1)
    made = getattr(importlib.import_module(module), name)
    return made if callable(made) else path


@pytest.fixture(scope="module")
def paths() -> list[str]:
    return [path for page in PAGES for path in shown(page.read_text("utf-8"))]


def test_every_public_name_is_shown(paths: list[str]) -> None:
    there = {resolved(path) for path in paths}
    missing = [path for path, made in public_names().items() if (made if callable(made) else path) not in there]
    assert not missing, f"give these a place in docs/reference: {missing}"


def test_no_name_is_shown_twice(paths: list[str]) -> None:
    counts = Counter(resolved(path) for path in paths)
    assert not [name for name, count in counts.items() if count > 1]


def test_only_public_names_are_shown(paths: list[str]) -> None:
    public = {made if callable(made) else path for path, made in public_names().items()}
    assert not [path for path in paths if resolved(path) not in public]


def test_names_are_found_in_pages() -> None:
    assert shown("# Title\n\n::: avbvi.fit\n\ntext ::: avbvi.no\n\n::: avbvi.hmc.run_hmc\n") == [
        "avbvi.fit",
        "avbvi.hmc.run_hmc",
    ]
    with pytest.raises(AttributeError):
        resolved("avbvi.no_such_name")
