"""Formulas as MathML: every browser shows it by itself, so that pages need no script and work offline."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[2] == "[" else "inline"
    return convert(html.unescape(found[3]).strip(), display=display)


def on_page_content(content: str, **_: Any) -> str:
    """The page with its formulas as MathML."""
    return FORMULA.sub(_mathml, content)
