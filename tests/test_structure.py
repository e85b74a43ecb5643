"""The structure that CONTRIBUTING describes: all modules in its table, imports in its order, none in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "avbvi"
#: Packages with modules at several heights, as the text below the table says.
AT_SEVERAL_HEIGHTS = {"amortised", "divided"}


def table() -> dict[str, int]:
    """Row of each module or package in CONTRIBUTING's table."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Structure")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name: i for i, row in enumerate(rows) for name in re.findall(r"`(\w+)/?`", row)}


def imports() -> dict[str, set[str]]:
    """What each module of the package imports of it when it is itself imported."""
    paths = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sources()}
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        found[module] = set()
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join([*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])])
                inner = {f"{base}.{alias.name}" for alias in node.names}
                found[module] |= {name if name in paths else base for name in inner}
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def height(module: str) -> str:
    """The entry of the table that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def check_no_circle(graph: dict[str, set[str]]) -> None:
    TopologicalSorter(graph).prepare()


def test_the_table_has_every_module() -> None:
    there = {height(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in sources()}
    assert set(table()) == {name for name in there if not name.startswith("__")}


def test_imports_keep_the_order_of_the_table() -> None:
    rows = table()
    upwards = {
        (importer, imported)
        for importer, names in imports().items()
        for imported in names
        if height(importer) in rows and height(imported) in rows and height(importer) not in AT_SEVERAL_HEIGHTS
        if rows[height(imported)] > rows[height(importer)]
    }
    assert not upwards


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = imports()
    assert "avbvi.guides" in graph["avbvi"]
    assert "avbvi.diagnostics.limits" in graph["avbvi.diagnostics.verdict"]
    check_no_circle(graph)


def test_a_circle_is_noticed() -> None:
    with pytest.raises(CycleError):
        check_no_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
