"""The built site in a headless browser: pages that need no other server, make no error and fit a phone.

The site is the folder named by ``AVBVI_SITE`` (``make docs`` gives its own), or built for the test. Skipped where
Playwright or Chromium is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium

ROOT = Path(__file__).resolve().parents[2]
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

pytestmark = pytest.mark.slow


class Silent(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Reader:
    """A browser's tab that notes what a page should not do."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.wrong: list[str] = []
        page.on("request", self._note_request)
        page.on("requestfailed", self._note_failure)
        page.on("response", lambda answer: answer.status < 400 or self.wrong.append(f"{answer.status}: {answer.url}"))
        page.on("console", lambda message: message.type != "error" or self.wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.wrong.append(f"left the site: {request.url}")

    def _note_failure(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # left behind when the tab went to the next page
            self.wrong.append(f"failed: {request.url}: {request.failure}")

    def open(self, path: str) -> list[str]:
        """What is wrong with a page: requests, errors, a width beyond the screen, pictures that do not show."""
        self.wrong = []
        self.page.goto(f"{self.address}/{path}", wait_until="networkidle")
        width, screen = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        if width > screen:
            self.wrong.append(f"{width} pixels wide on a screen of {screen}")
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        self.wrong += [f"no picture: {source}" for source in self.page.evaluate(broken)]
        return [f"{path or 'index'}: {what}" for what in self.wrong]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("AVBVI_SITE")
    if given is not None:
        return Path(given)
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install -e .[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as there:
        yield there


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def reader(browser: Any, address: str, screen: dict[str, int], scheme: str) -> Reader:
    """A tab of a fresh context."""
    context = browser.new_context(viewport=screen, color_scheme=scheme)
    return Reader(context.new_page(), address)


def pages(site: Path) -> list[str]:
    """Paths of all pages, that of a missing page apart."""
    found = sorted(site.rglob("*.html"))
    return [str(page.relative_to(site)).removesuffix("index.html") for page in found if page.name != "404.html"]


@pytest.mark.parametrize(("screen", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone", "desktop"])
def test_every_page_stays_on_the_site_and_on_the_screen(
    site: Path, address: str, browser: Any, screen: dict[str, int], scheme: str
) -> None:
    paths = pages(site)
    assert len(paths) > 20
    tab = reader(browser, address, screen, scheme)
    assert not [what for path in paths for what in tab.open(path)]


def test_the_scheme_follows_the_reader(address: str, browser: Any) -> None:
    luminance = {}
    for scheme in ("light", "dark"):
        tab = reader(browser, address, DESKTOP, scheme)
        tab.open("")
        colour = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        luminance[scheme] = sum(int(part) for part in colour.strip("rgb()").split(",")[:3])
    assert luminance["light"] > 600 > 200 > luminance["dark"]


def test_formulas_are_mathml_and_are_drawn(address: str, browser: Any) -> None:
    tab = reader(browser, address, DESKTOP, "light")
    tab.open("theory/avb/")
    sizes = tab.page.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)")
    assert len(sizes) > 10
    assert min(sizes) > 5.0
    assert not tab.page.evaluate("[...document.querySelectorAll('.arithmatex')].length")


def test_search_finds_a_name(address: str, browser: Any) -> None:
    tab = reader(browser, address, DESKTOP, "light")
    assert not tab.open("")
    tab.page.click(".md-search__input")
    tab.page.keyboard.type("importance sampling")
    tab.page.wait_for_selector(".md-search-result__item a", timeout=60_000)
    assert "annealed importance sampling" in tab.page.inner_text(".md-search-result__list").lower()
    assert not tab.wrong


def test_a_faulty_page_is_noticed(tmp_path: Path, browser: Any) -> None:
    wide = "<div style='width:3000px'>wide</div><img src='none.png'><script>undefined_name()</script>"
    (tmp_path / "index.html").write_text(f"<!doctype html>{wide}<img src='http://localhost:9/picture.png'>")
    with served(tmp_path) as there:
        said = "\n".join(reader(browser, there, PHONE, "light").open(""))
    for part in ("pixels wide", "404", "left the site", "undefined_name", "no picture"):
        assert part in said
