"""What a page consists of: sections of paragraphs, lists, tables, pictures and code, as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; ``quiet`` ones are notes."""

    kind: ClassVar[str] = "paragraph"
    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Listing:
    """A list with a heading."""

    kind: ClassVar[str] = "listing"
    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table: its first column holds the rows' names, all others are set flush right unless ``words``.

    ``marks`` has for each row "", "good" or "bad"; these colour its last cell, which says the same in words. Cells of
    ``words`` may take several lines, those of ``narrow`` on a phone; a caption that says no more than the section's
    title is ``hidden`` from the eye.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Sequence[str] = ()
    words: bool = False
    narrow: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture as data URIs for light and for dark pages, with a description for those who can't see it."""

    kind: ClassVar[str] = "picture"
    light: str
    dark: str
    alt: str
    caption: str
    width: int


@dataclass(frozen=True)
class Code:
    """Code, as it is."""

    kind: ClassVar[str] = "code"
    text: str


Block = Paragraph | Listing | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """A section with its anchor."""

    anchor: str
    title: str
    blocks: Sequence[Block]


def number(value: float, digits: int = 3) -> str:
    """A figure with so many significant digits, without needless zeros; a true minus sign."""
    if value != value:
        return "not known"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.0f}" if 10.0**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"
    return text.replace("-", "−")


def with_error(value: float, stderr: float) -> str:
    """A figure with its standard error, rounded to the error's two leading digits: 1.234 ± 0.012."""
    if not (stderr == stderr and 0.0 < stderr < float("inf")) or value != value or abs(value) == float("inf"):
        return number(value)
    places = max(0, min(6, 1 - int(f"{stderr:e}".split("e")[1])))
    # A line may break before the sign, not after it.
    return f"{value:.{places}f} ±\u00a0{stderr:.{places}f}".replace("-", "−")
