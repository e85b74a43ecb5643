"""Formulas as MathML: every browser shows it by itself, so that pages need no script and work offline."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
TAG = re.compile(r"\\tag\{([^}]*)\}")
#: A formula within a line, with the punctuation that follows it.
PUNCTUATED = re.compile(r'(<math[^>]*display="inline"(?:(?!</math>).)*</math>[.,;:)\]!?]+)', re.DOTALL)
#: What the converter does not know, and what stands for it.
KNOWN_AS = ((r"\{aligned\}", "{split}"), (r"\\sim\b", r"\\thicksim"), (r"\\[lr]Vert\b", r"\\|"))
#: Where a formula has a line of its own, what belongs to a sum or a maximum stands below and above it.
LIMITS = re.compile(r"\\(sum|max|min|sup|inf)(?=[_^])")
#: A command or an ampersand that the converter left as it was: it would be shown.
LEFT = re.compile(r"<m[io][^>]*>(\\\w*|&(?!#)[^<]*)</m[io]>")
#: Names of functions; as operators they would get wide spaces on both sides, those of limits excepted.
NAME = re.compile(r"<mo>((?!max|min|sup|inf)[A-Za-z]{2,})</mo>")
#: A function's name, what stands before it, and its argument, if it has no parentheses: they are a thin space apart.
SPACE = '<mspace width="0.167em" />'
FUNCTION = r"<mi>[A-Za-z]{2,}</mi>"
BEFORE = re.compile(rf"(</m(?:i|n|sub|sup|munder|frac)>)(?={FUNCTION})")
AFTER = re.compile(rf"({FUNCTION})(?=<m(?!o))")


def mathml(formula: str, display: str) -> str:
    """A formula of LaTeX as MathML; ``display`` is "block" or "inline".

    Raises:
        ValueError: it has a command that would be shown as it is written.
    """
    for pattern, known in KNOWN_AS:
        formula = re.sub(pattern, known, formula)
    if display == "block":
        formula = LIMITS.sub(r"\\\1\\limits", formula)
    converted = convert(formula, display=display)
    if left := LEFT.search(converted):
        raise ValueError(f"the formula {formula!r} has {left[1]!r}, which has no MathML")
    named = NAME.sub(r"<mi>\1</mi>", converted)
    return AFTER.sub(rf"\1{SPACE}", BEFORE.sub(rf"\1{SPACE}", named))


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """The page with its formulas as MathML; those on lines of their own can be scrolled where they are too wide.

    ``\\tag{...}`` is the number of a formula on a line of its own; it stands at the right, in parentheses.
    """

    def replaced(found: re.Match[str]) -> str:
        own_line, formula = found[2] == "[", html.unescape(found[3]).strip()
        numbers = TAG.findall(formula)
        try:
            converted = mathml(TAG.sub("", formula).strip(), "block" if own_line else "inline")
        except ValueError as error:
            raise PluginError(f"{page.file.src_path}: {error}") from error
        if not own_line:
            return converted
        number = "".join(f'<span class="formula-number">({html.escape(tag)})</span>' for tag in numbers)
        return f'<div class="formula">{converted}{number}</div>'

    return PUNCTUATED.sub(r'<span class="formula-inline">\1</span>', FORMULA.sub(replaced, content))
