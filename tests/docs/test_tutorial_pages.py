"""Pages of notebooks link to pages of the site, and load nothing from elsewhere."""

from __future__ import annotations

import logging
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.docs.scripts import loaded

pytest.importorskip("mkdocs", reason="needs the extra docs")

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/one.ipynb"), url="tutorials/one/")
URLS = {"tutorials/two.ipynb": "tutorials/two/", "howto/verdict.md": "howto/verdict/"}


class Files:
    def get_file_from_path(self, path: str) -> Any:
        return SimpleNamespace(url=URLS[path]) if path in URLS else None


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    return loaded("hooks/tutorials.py")


@pytest.mark.parametrize(
    ("written", "led_to"),
    [
        ("two.ipynb", "../two/"),
        ("two.ipynb#the-fit", "../two/#the-fit"),
        ("../howto/verdict.md", "../../howto/verdict/"),
        ("https://arxiv.org/abs/1701.04722", "https://arxiv.org/abs/1701.04722"),
        ("#the-fit", "#the-fit"),
    ],
)
def test_links_lead_to_pages(hook: ModuleType, written: str, led_to: str) -> None:
    page = hook.on_page_content(f'<a href="{written}">there</a>', page=PAGE, files=Files(), config=None)
    assert f'<a href="{led_to}">there</a>' in page


def test_a_link_to_nothing_is_a_warning(hook: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        hook.on_page_content('<a href="three.ipynb">there</a>', page=PAGE, files=Files(), config=None)
    assert "tutorials/one.ipynb links to three.ipynb" in caplog.text
    assert caplog.records[0].name.startswith("mkdocs.")


def test_scripts_of_other_servers_go_and_others_stay(hook: ModuleType) -> None:
    mathjax = '<!-- Load mathjax --><script src=""></script><!-- End of mathjax configuration -->'
    own = '<script type="module">own()</script>'
    mermaid = '<script type="module">import("https://cdn.example/mermaid.mjs")</script>'
    page = hook.on_page_content(f"<p>a</p>{mathjax}{own}{mermaid}<p>b</p>", page=PAGE, files=Files(), config=None)
    assert page.endswith(f"<p>a</p>{own}<p>b</p>")
    assert 'href="one.ipynb"' in page


def test_other_pages_stay_as_they_are(hook: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"), url="")
    assert hook.on_page_content('<a href="x.md">', page=page, files=Files(), config=None) == '<a href="x.md">'
