"""Docstrings as Markdown: cross-references of Sphinx become those of mkdocstrings, and asterisks of shapes stay."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`(~?)([^`<]+)`")
STARRED = re.compile(r"(?<![\\`*])\*(?=[a-z])")


def _reference(text: re.Match[str], owner: griffe.Object) -> str:
    tilde, path = text.groups()
    shown = path.rsplit(".", 1)[-1] if tilde else path
    return f"[`{shown}`][{_full(path, owner)}]"


def _full(path: str, owner: griffe.Object) -> str:
    """The dotted path of what a role names: a path of its own, a member of the class, or a name of the module."""
    if path.startswith("avbvi"):
        return path
    scope: griffe.Object | None = owner
    while scope is not None:
        try:
            return str(scope[path].canonical_path)
        except KeyError:
            scope = scope.parent
    return path


class Docstrings(griffe.Extension):
    """Rewrite each docstring once its package is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda found: _reference(found, obj), obj.docstring.value)
        obj.docstring.value = STARRED.sub(r"\\*", text)
