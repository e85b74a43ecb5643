"""The standard of docstrings of public names, as rules that say what a docstring lacks (tests/test_docstrings.py)."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from avbvi import arguments

from .public_names import public_names

#: What the checks of avbvi.arguments raise.
CHECKS: dict[str, set[str]] = {
    "device_of": {"TypeError", "ValueError"},
    "fits_in_memory": {"MemoryError"},
    "flag": {"TypeError"},
    "function": {"TypeError"},
    "instance": {"TypeError"},
    "integer": {"TypeError", "ValueError"},
    "integers": {"TypeError", "ValueError"},
    "keywords": {"TypeError"},
    "levels": {"TypeError", "ValueError"},
    "number": {"TypeError"},
    "positive_integer": {"TypeError", "ValueError"},
    "positive_number": {"TypeError", "ValueError"},
    "real_tensor": {"TypeError"},
    "seed_number": {"TypeError", "ValueError"},
    "share": {"TypeError", "ValueError"},
}

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
SOURCE = re.compile(r"Source: \S")
ENTRY = re.compile(r"(\\?\*{0,2}[\w, *\\]+?)(?: \([^)]*\))?:(?: |$)")
ARRAYS = re.compile(r"\b(Tensor|Draws|ndarray|ArrayLike)\b")
#: (n, d), (n,), (\\*batch, d), () and the like, but no call f(x, y) and no (Author, 1999); or such words.
SHAPES = re.compile(
    r"(?<![\w`])\((?!eq|[^()]*\b(?:19|20)\d\d\b)(?:\\?\*)?[\w.+*/|{} -]*,[^()]*\)|\((?:\\?\*)\w+\)|(?<![\w`])\(\)"
    r"|(?<![\w`])\(len\(\w+\), "
    r"|\b(scalars?|any shape|of its shape|same shapes?|0-d|each shape|their shapes?|broadcast\w*)\b"
)
UNITS = re.compile(
    r"\b(?:(?:nats?|bits?|seconds?|minutes|bytes|log-density|log [pqrZ]|probabilit(?:y|ies)|p-value|accuracy|ratio"
    r"|factors?|shares?|fractions?|rates?|weights?|temperatures?|dimensionless|correlation|standard deviations?|sds?"
    r"|units? of|coordinates)\b|in \[0, 1[\])]|in \(0, 1[\])])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Docstring:
    """A docstring's first line, its prose and its sections."""

    text: str

    @functools.cached_property
    def summary(self) -> str:
        return self.text.partition("\n")[0]

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """The bodies of sections by name; what belongs to none is "prose"."""
        parts: dict[str, list[str]] = {"prose": []}
        part = "prose"
        for line in self.text.splitlines():
            header = SECTION.match(line)
            if header:
                part = header[1]
                parts[part] = []
                continue
            if line and not line.startswith(" ") and part != "prose":
                part = "prose"
            parts[part].append(line)
        return {name: "\n".join(lines) for name, lines in parts.items()}

    def entries(self, section: str) -> dict[str, str]:
        """The entries of a section: name and text."""
        entries: dict[str, str] = {}
        name = None
        for line in textwrap.dedent(self.parts.get(section, "")).splitlines():
            found = None if line.startswith(" ") else ENTRY.match(line)
            if found:
                name = found[1].replace("\\", "").lstrip("*")
                entries[name] = line[found.end() :]
            elif name is not None:
                entries[name] += "\n" + line
        return entries

    @property
    def has_source(self) -> bool:
        return any(SOURCE.match(line) for line in self.parts["prose"].splitlines())


def described() -> dict[str, Any]:
    """The public classes and functions by their paths; constants and types have no docstring of their own."""
    return {path: v for path, v in public_names().items() if inspect.isclass(v) or inspect.isfunction(v)}


def complaints(value: Any, *, needs_source: bool = True) -> list[str]:
    """What the docstrings of a class with its members, or of a function, lack."""
    if not inspect.isclass(value):
        return list(of_function(value, needs_source=needs_source))
    found = list(of_class(value, needs_source=needs_source))
    for name, member in members(value):
        found += [f"{name}: {complaint}" for complaint in of_member(value, name, member)]
    return found


def of_class(cls: type, *, needs_source: bool) -> Iterator[str]:
    doc = parsed(cls.__dict__.get("__doc__"))
    if doc is None:
        yield "no docstring"
        return
    yield from of_summary(doc)
    made_by = _constructor(cls)
    if made_by is not None:
        parameters = _parameters(made_by)
        fields = {name: text for name, text in doc.entries("Attributes").items() if name in parameters}
        yield from of_parameters(fields | doc.entries("Args"), parameters, "Args")
        yield from of_raises(doc, [m for m in map(cls.__dict__.get, ("__init__", "__post_init__")) if m is not None])
    if needs_source and not doc.has_source:
        yield "no Source:"


def of_function(function: Callable[..., Any], *, needs_source: bool) -> Iterator[str]:
    doc = parsed(function.__doc__)
    if doc is None:
        yield "no docstring"
        return
    yield from of_summary(doc)
    yield from of_parameters(doc.entries("Args"), _parameters(function), "Args")
    yield from of_result(doc, function)
    yield from of_raises(doc, [function])
    if needs_source and not doc.has_source:
        yield "no Source:"


def of_member(cls: type, name: str, member: Any) -> Iterator[str]:
    """Rules of methods and properties: parameters may stand in the prose, by name; the source is that of the class.

    ``*args`` and ``**kwargs``, which are the model's in all methods that take them, need no words of their own there.
    """
    function = _function(member)
    doc = parsed(function.__doc__)
    if doc is None:
        if not any(getattr(base.__dict__.get(name), "__doc__", None) for base in cls.__mro__):
            yield "no docstring, here or in a base class"
        return
    yield from of_summary(doc)
    if doc.entries("Args"):
        yield from of_parameters(doc.entries("Args"), _parameters(function), "Args")
    else:
        for parameter, annotation in _parameters(function, starred=False).items():
            if not re.search(rf"\b{parameter}\b", doc.text):
                yield f"parameter {parameter} is neither in Args: nor named in the text"
            elif ARRAYS.search(annotation) and not SHAPES.search(doc.text):
                yield f"parameter {parameter} has no shape"
    yield from of_result(doc, function)
    yield from of_raises(doc, [function])


def of_summary(doc: Docstring) -> Iterator[str]:
    if not doc.summary.endswith("."):
        yield f"the first line is no sentence: {doc.summary!r}"
    if len(doc.summary) > 116:
        yield "the first line is too long"


def of_parameters(given: dict[str, str], parameters: dict[str, str], section: str) -> Iterator[str]:
    grouped = [name for name in given if "," in name]
    if grouped:
        yield f"{section}: {grouped} needs an entry for each"
    for name in sorted(parameters.keys() - given.keys()):
        yield f"{section}: lacks {name}"
    for name in sorted(given.keys() - parameters.keys() - set(grouped)):
        yield f"{section}: {name} is no parameter"
    for name, annotation in parameters.items():
        if ARRAYS.search(annotation) and not SHAPES.search(given.get(name, "()")):
            yield f"{section}: {name} has no shape"


def of_result(doc: Docstring, function: Callable[..., Any]) -> Iterator[str]:
    annotation = str(inspect.unwrap(function).__annotations__.get("return", ""))
    text = doc.parts.get("Returns", "") + doc.parts.get("Yields", "") or doc.parts["prose"]
    if ARRAYS.search(annotation) and not SHAPES.search(text):
        yield "the result has no shape"
    if annotation in ("float", "Estimate", "avbvi.Estimate") and not UNITS.search(text):
        yield "the result has no unit"


def of_raises(doc: Docstring, functions: list[Any]) -> Iterator[str]:
    said = {word.strip() for name in doc.entries("Raises") for word in name.split(",")}
    lacking = set().union(*map(raised, functions)) - said
    if lacking:
        yield f"Raises: lacks {', '.join(sorted(lacking))}"


def raised(function: Any) -> set[str]:
    """Names of the errors that a function's own statements raise, those of its checks of arguments included."""
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):  # a dataclass's __init__
        return set()
    names: set[str] = set()
    for node in _own_nodes(tree.body[0]):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            names.add(node.exc.func.id)
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if called in CHECKS and function.__globals__.get(called) is getattr(arguments, called):
            names |= CHECKS[called]
    return {name for name in names if name != "NotImplementedError" and name[0].isupper()}


def _own_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions inside it."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.Lambda):
            yield from _own_nodes(child)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class, or a base class of this package without a public name, defines."""
    public = {id(value) for value in public_names().values()}
    done: set[str] = set()
    for base in cls.__mro__:
        if base is not cls and (id(base) in public or not base.__module__.startswith("avbvi")):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or name in done or _function(member) is None:
                continue
            done.add(name)
            yield name, member


def _function(member: Any) -> Any:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    return member if inspect.isfunction(member) else None


def parsed(text: str | None) -> Docstring | None:
    """The docstring, if there is one."""
    return None if not text else Docstring(inspect.cleandoc(text))


def _constructor(cls: type) -> Any:
    """What of this package makes objects of the class; nothing for errors, which users only catch, and protocols."""
    if issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False):
        return None
    for base in cls.__mro__:
        if issubclass(base, tuple) and "_fields" in base.__dict__:
            return base.__new__
        if "__init__" in base.__dict__:
            return base.__dict__["__init__"] if base.__module__.startswith("avbvi") else None
    return None


def _parameters(value: Any, *, starred: bool = True) -> dict[str, str]:
    """Names and annotations of what a caller gives."""
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: "" if p.annotation is p.empty else str(p.annotation)
        for name, p in inspect.signature(value).parameters.items()
        if name not in ("self", "cls") and not name.startswith("_") and (starred or p.kind not in stars)
    }
