"""The page: complete in itself, every section there or its reason, every name escaped, readable in a browser."""

from __future__ import annotations

import base64
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import avbvi
from avbvi import CheckpointError
from avbvi.reports import collect, from_file, render
from avbvi.reports.material import LEFT_OUT, OLDER
from tests.browser import chromium
from tests.plots import colours
from tests.reports.fits import DATA, NAME, model, quick_fit
from tests.reports.html import Page

SECTIONS = [
    *("Reasons", "Figures and limits", "Posterior summary", "Marginals and pairs", "Posterior predictive", "Training"),
    *("Density: weights and adversary", "How the fit came about", "Versions and seed"),
]


def check_complete(text: str) -> Page:
    """What is true of every page; returns its structure."""
    page = Page(text)
    assert not page.all("script")
    assert page.all("html") == [{"lang": "en"}]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"url\(|@import", text)
    pictures, sources = page.all("img"), page.all("source")
    assert len(pictures) == len(sources)
    assert all(len(attributes["alt"] or "") > 20 for attributes in pictures)
    assert all("dark" in (attributes["media"] or "") for attributes in sources)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    anchors = {a["id"] for _, a in page.elements if a.get("id")}
    assert {str(a["href"])[1:] for a in page.all("a")} <= anchors
    return page


def svg(uri: str | None) -> str:
    """The source of a picture."""
    assert uri is not None
    kind, _, content = uri.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(content).decode("utf-8")


def test_all_sections_of_a_fit_are_there(page: Path, adversarial: avbvi.Posterior) -> None:
    text = page.read_text(encoding="utf-8")
    found = check_complete(text)
    assert [title for level, title in found.headings if level == 2] == SECTIONS
    assert len(found.all("img")) == 7  # marginals, pairs, changes, predictive, training, weights, reliability
    assert "Not shown" not in found.text
    for words in (
        f"Verdict: {adversarial.verdict.status}",
        *adversarial.verdict.reasons[:1],
        "say nothing about the quality of a fit",
        "MLPSampler",
        "seed=0, steps=40",
        torch.__version__,
        "the adversarial stage, whose density is learned",
        "twice",  # a deterministic site
    ):
        assert words in found.text, words
    assert len(text.encode()) < 3 * 2**20


def test_pictures_differ_by_scheme_and_hold_no_links(page: Path) -> None:
    found = Page(page.read_text(encoding="utf-8"))
    for light, dark in zip(found.all("img"), found.all("source"), strict=True):
        sources = [svg(light["src"]), svg(dark["srcset"])]
        assert sources[0] != sources[1]
        for source in sources:
            assert "<script" not in source
            assert not re.search(r'href="(?!#)', source)


def test_names_are_text_whatever_they_hold(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert NAME not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    found = Page(text)
    assert NAME in found.text
    assert "y & z" in found.text


def test_a_title_and_reasons_are_text(adversarial: avbvi.Posterior) -> None:
    material = collect(adversarial)
    hostile = replace(material.verdict, reasons=["</style><img src=x onerror=alert(1)>", 'try: <b>; or "this"'])
    text = render(replace(material, verdict=hostile), title="<h1>&'\"")
    found = check_complete(text)
    assert found.headings[0] == (1, "<h1>&'\"")
    assert not found.all("b")
    assert "</style><img src=x onerror=alert(1)>" in found.text


def test_a_report_by_the_posterior_is_that_by_its_file(
    adversarial: avbvi.Posterior, saved: Path, tmp_path: Path
) -> None:
    path = adversarial.report(tmp_path / "out.html", title="a title")
    assert path == tmp_path / "out.html"

    def steady(text: str) -> str:
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)

    assert steady(path.read_text(encoding="utf-8")) == steady(render(from_file(saved), "a title"))


def test_the_random_state_is_left_alone(adversarial: avbvi.Posterior, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    adversarial.report(tmp_path / "out.html")
    adversarial.save(tmp_path / "fit.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_amortised_fit(amortised: avbvi.Posterior, tmp_path: Path) -> None:
    path = amortised.report(tmp_path / "out.html")
    found = check_complete(path.read_text(encoding="utf-8"))
    titles = [title for level, title in found.headings if level == 2]
    assert titles == [*SECTIONS[:2], "Latents", *SECTIONS[4:]]
    assert "Reconstructions: root mean squared errors" in found.text
    assert "There are no importance weights" in found.text
    assert len(found.all("img")) == 4  # latent map, predictive, training, reliability
    amortised.save(tmp_path / "fit.pt")
    assert "Latents" in render(from_file(tmp_path / "fit.pt"))


def test_a_density_without_observations_says_so(tmp_path: Path) -> None:
    density = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(1,))
    posterior = quick_fit(density)
    found = check_complete(posterior.report(tmp_path / "out.html").read_text(encoding="utf-8"))
    assert "Not shown: a LogDensity has no observed sites" in found.text
    assert "the trunk, whose density is exact" in found.text
    assert "no adversary is in force" in found.text


def test_files_without_draws_say_why(adversarial: avbvi.Posterior, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "fit.pt"
    adversarial.save(path, report=False)
    assert LEFT_OUT in check_complete(render(from_file(path))).text
    older = torch.load(saved, weights_only=True)
    older["version"] = 3
    del older["evidence"], older["report"]
    torch.save(older, path)
    found = check_complete(render(from_file(path)))
    assert OLDER in found.text
    assert f"Verdict: {adversarial.verdict.status}" in found.text
    guide, own = avbvi.load(path, model).guide.state_dict(), adversarial.guide.state_dict()
    assert guide.keys() == own.keys()
    assert all(torch.equal(guide[name], own[name]) for name in own)


@pytest.mark.parametrize("name", ["out.pdf", "out", "out.html.png"])
def test_other_suffixes_are_refused(adversarial: avbvi.Posterior, name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must end in .html, found '{tmp_path / name}'")):
        adversarial.report(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_places_that_are_none_are_refused(adversarial: avbvi.Posterior, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        adversarial.report(tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        adversarial.report(tmp_path / "none" / "out.html")
    with pytest.raises(TypeError, match="path must be a path"):
        adversarial.report(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="title must be a string"):
        adversarial.report(tmp_path / "out.html", title=3)  # type: ignore[arg-type]


def test_an_older_page_stays_whole_when_a_new_one_fails(
    adversarial: avbvi.Posterior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.html"
    path.write_text("the older page")
    monkeypatch.setattr("avbvi.checkpoints.os.replace", lambda *a: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        adversarial.report(path)
    assert path.read_text() == "the older page"
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]


@pytest.mark.slow
def test_a_browser_shows_it_without_a_request_or_an_error(page: Path) -> None:
    with chromium() as browser:
        grounds = []
        for width, scheme in ((1100, "light"), (1100, "dark"), (390, "light"), (390, "dark")):
            context = browser.new_context(
                viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True, reduced_motion="reduce"
            )
            shown = context.new_page()
            said, asked = watched(shown)
            shown.goto(page.as_uri())
            shown.wait_for_load_state("networkidle")
            assert not said
            assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            loaded = shown.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
            assert loaded
            assert all(loaded)
            dark = shown.evaluate("[...document.images].map(i => i.currentSrc === i.getAttribute('src'))")
            assert set(dark) == {scheme == "light"}
            grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
            for colour, ground in (("p", "section"), (".verdict p", ".verdict"), ("caption", "section")):
                assert contrast(shown, colour, ground) >= 4.5
            shown.emulate_media(media="print")
            assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            assert shown.evaluate("[...document.images].every(i => i.currentSrc === i.getAttribute('src'))")
            context.close()
        assert grounds[0] == grounds[2] != grounds[1] == grounds[3]


def watched(shown: Any) -> tuple[list[str], list[str]]:
    """What a page will have said, and asked for."""
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("requestfailed", lambda request: said.append(request.url))
    return said, asked


def contrast(shown: Any, of: str, on: str) -> float:
    """Contrast of an element's text to the background of another (WCAG 2.1)."""

    def colour(selector: str, which: str) -> str:
        rgb = shown.evaluate(f"getComputedStyle(document.querySelector({selector!r})).{which}")
        return "#" + "".join(f"{int(channel):02x}" for channel in re.findall(r"\d+", rgb)[:3])

    return colours.contrast(colour(of, "color"), colour(on, "backgroundColor"))


def test_observations_are_those_of_the_model(saved: Path) -> None:
    (check,) = from_file(saved).summary.checks
    assert check.name == "y & z"
    assert torch.equal(check.observed, DATA)
    assert check.statistics["largest"][0] == pytest.approx(1.2)
