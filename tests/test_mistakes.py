"""Each mistake of docs/howto/mistakes.md is made: the page says what the user is told, and the mended code runs."""

import re
import textwrap

import pytest

from tests.mistakes import INTRODUCTION, MISTAKES, PAGE, Mistake, run, section, source

NUMBERED = [pytest.param(i, m, id=m.title) for i, m in enumerate(MISTAKES, 1)]
#: In a verdict the figures depend on the machine's arithmetic, and what they say of a fit as bad as this one does not.
FIGURE = re.compile(r"-?\d+(?:\.\d+)?")


def plain(text: str) -> str:
    """Text without line breaks and without figures of fits."""
    return FIGURE.sub("#", " ".join(text.split()))


@pytest.mark.parametrize(("number", "mistake"), NUMBERED)
def test_page_says_what_is_said(number: int, mistake: Mistake) -> None:
    said, page = run(source(mistake)), PAGE.read_text("utf-8")
    if mistake.mended is None and said.startswith("verdict"):
        assert "verdict: suspect" in said
        assert "try: give it more time" in said
        assert plain(section(number, mistake, said.splitlines()[0])).partition("verdict")[0] in plain(page)
        return
    assert section(number, mistake, said) in page, f"run python -m tests.mistakes; said was: {said}"


def test_page_holds_these_mistakes_and_no_others() -> None:
    page = PAGE.read_text("utf-8")
    assert page.startswith(INTRODUCTION)
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [f"{i}. {m.title}" for i, m in enumerate(MISTAKES, 1)]


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if m.mended is not None], ids=lambda m: m.title)
def test_mended_code_runs(mistake: Mistake) -> None:
    short = source(mistake, mended=True).replace("steps=1000)", "steps=1, progress=False)")
    short = short.replace("AdversarialELBO(steps=1, progress=False)", "AdversarialELBO(steps=1)")
    assert run(short) == ""


def test_what_is_run_is_what_is_shown() -> None:
    page = PAGE.read_text("utf-8")
    for mistake in MISTAKES:
        assert f"```python\n{textwrap.dedent(mistake.code).strip()}\n```" in page
