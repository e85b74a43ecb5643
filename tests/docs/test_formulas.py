"""Formulas of the documentation become MathML, or the build says which one does not."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

from tests.docs.scripts import DOCS, loaded

pytest.importorskip("latex2mathml", reason="needs the extra docs")
exceptions = pytest.importorskip("mkdocs.exceptions", reason="needs the extra docs")

PAGE = SimpleNamespace(file=SimpleNamespace(src_path="theory/avb.md"))


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    return loaded("hooks/formulas.py")


def shown(mathml: str) -> str:
    """What a browser would write of it, one after the other."""
    return "".join(ElementTree.fromstring(mathml).itertext())


def formulas(page: Path) -> list[tuple[str, str]]:
    """The formulas of a page as they are written, each with its display."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    own_line = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
    inline = re.findall(r"\$([^$\n]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL))
    return [(formula, "block") for formula in own_line] + [(formula, "inline") for formula in inline]


def test_a_formula_shows_no_commands(hook: ModuleType) -> None:
    mathml = hook.mathml(r"\mathbb{E}_{q(z)}\left[\log p(x, z)\right] \leq \log p(x)", "block")
    assert shown(mathml) == "𝔼q(z)[logp(x,z)]≤logp(x)"
    # A browser puts no space between two identifiers by itself.
    assert mathml.count('<mi>log</mi><mspace width="0.167em" />') == 2
    assert '<mi>a</mi><mspace width="0.167em" /><mi>log</mi>' in hook.mathml(r"a\log(b)", "inline")


@pytest.mark.parametrize(
    ("formula", "said"), [(r"\nocommand{x} + 1", "nocommand"), ("a & b", "&"), (r"\arg\max_T", "arg")]
)
def test_what_has_no_mathml_stops_the_build(hook: ModuleType, formula: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hook.mathml(formula, "inline")
    content = rf'<p><span class="arithmatex">\({formula.replace("&", "&amp;")}\)</span></p>'
    with pytest.raises(exceptions.PluginError, match=rf"theory/avb\.md: .*{said}"):
        hook.on_page_content(content, page=PAGE)


def test_lines_of_an_equation_are_aligned(hook: ModuleType) -> None:
    mathml = hook.mathml(r"\begin{aligned} a &= b \\ &= c \end{aligned}", "block")
    assert shown(mathml) == "a=b=c"
    assert mathml.count("<mtr>") == 2


def test_limits_stand_below_on_a_line_of_their_own_alone(hook: ModuleType) -> None:
    assert "<munder><mo>max</mo>" in hook.mathml(r"\max_T L", "block")
    assert "<msub><mo>max</mo>" in hook.mathml(r"\max_T L", "inline")


def test_names_are_no_operators(hook: ModuleType) -> None:
    assert "<mi>KL</mi>" in hook.mathml(r"\operatorname{KL}(q, p)", "inline")
    assert "<mo>&#x0223C;</mo>" in hook.mathml(r"z \sim q", "inline")


def test_wide_formulas_can_be_scrolled(hook: ModuleType) -> None:
    content = r'<div class="arithmatex">\[a &lt; b\]</div><p><span class="arithmatex">\(c\)</span></p>'
    page = hook.on_page_content(content, page=PAGE)
    assert page.startswith('<div class="formula"><math')
    assert page.count('class="formula"') == 1
    assert "arithmatex" not in page
    assert "&#x0003C;" in page
    assert ".formula" in (DOCS / "stylesheets" / "extra.css").read_text("utf-8")


def test_punctuation_stays_with_its_formula(hook: ModuleType) -> None:
    content = r'<p>of <span class="arithmatex">\(q\)</span>, and <span class="arithmatex">\(p\)</span> are'
    page = hook.on_page_content(content, page=PAGE)
    assert page.count('<span class="formula-inline"><math') == 1
    assert "</math>,</span> and <math" in page


def test_a_number_stands_beside_its_formula(hook: ModuleType) -> None:
    content = r'<div class="arithmatex">\[a = b \tag{AVB 3.3}\]</div>'
    page = hook.on_page_content(content, page=PAGE)
    assert page.endswith('</math><span class="formula-number">(AVB 3.3)</span></div>')
    assert shown(re.sub("<(div|span).*?>|</(div|span)>", "", page).split("(")[0]) == "a=b"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_formula_of_the_documentation_is_known(hook: ModuleType, page: Path) -> None:
    for formula, display in formulas(page):
        mathml = hook.mathml(hook.TAG.sub("", formula).strip(), display)
        assert "\\" not in shown(mathml)
