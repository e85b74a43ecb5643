"""Docstrings as Markdown: cross-references of Sphinx become those of mkdocstrings, and asterisks of shapes stay.

What a role names must exist, or the build warns; where it has no place in the reference it is shown without a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`(~?)([^`<]+)`")
STARRED = re.compile(r"(?<![\\`*])\*(?=[a-zA-Z])")
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
CODE = re.compile(r" *(>>>|\.\.\.) ")

_log = griffe.get_logger(__name__)


def _reference(text: re.Match[str], owner: griffe.Object) -> str:
    tilde, path = text.groups()
    shown = path.rsplit(".", 1)[-1] if tilde else path
    return f'<autoref optional identifier="{_full(path, owner)}"><code>{shown}</code></autoref>'


def _starred(line: str) -> str:
    """The line with the asterisks of shapes escaped, unless it is code."""
    return line if CODE.match(line) else STARRED.sub(r"\\*", line)


def _full(path: str, owner: griffe.Object) -> str:
    """The dotted path of what a role names: a path of its own, a member of the class, or a name of the module."""
    if path.startswith("avbvi"):
        found = _found(owner.modules_collection, path)
    else:
        found, scope = None, owner
        while found is None and scope is not None:
            found = _found(scope, path)
            scope = scope.parent  # type: ignore[assignment]
    if found is None:
        _log.warning(f"{owner.filepath}: {owner.path}: the docstring refers to {path!r}, which does not exist")
        return path
    return found


def _found(scope: Any, path: str) -> str | None:
    """The path of the object itself, whatever name it was imported under; members of base classes count."""
    try:
        for name in path.split("."):
            scope = scope.all_members[name] if isinstance(scope, griffe.Object | griffe.Alias) else scope[name]
            if scope.is_alias:
                scope = scope.final_target
        return str(scope.canonical_path)
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


class Docstrings(griffe.Extension):
    """Rewrite each docstring once its package is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda found: _reference(found, obj), obj.docstring.value)
        text = EXAMPLE.sub(r"\1Examples:", text)  # the only word by which griffe knows code
        obj.docstring.value = "\n".join(map(_starred, text.split("\n")))
