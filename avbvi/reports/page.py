"""The page itself: a template filled with sections, every text escaped, written whole or not at all."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import jinja2

from ..arguments import instance
from ..checkpoints import check_path, write_text_atomically
from ..estimates import Estimate
from .blocks import number
from .material import Material
from .sections import HEADLINES, sections

SUFFIXES = (".html", ".htm")


def check_page(path: str | os.PathLike[str], title: str | None) -> Path:
    """The path of a page that is to be written, checked before any work is done.

    Raises:
        TypeError: path is no path, or title no string.
        ValueError: path has another suffix than .html or .htm.
        FileNotFoundError: its folder does not exist.
        CheckpointError: it is a folder.
    """
    if title is not None:
        instance("title", title, str, "a string")
    checked = check_path(path)
    if checked.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path must end in .html, found {str(path)!r}: a report is a page for a browser")
    return checked


def write_report(material: Material, path: Path, title: str | None = None) -> Path:
    """Write the page of this material; an existing one is replaced at once or not at all."""
    write_text_atomically(path, render(material, title))
    return path


def render(material: Material, title: str | None = None) -> str:
    """The page as HTML.

    Args:
        material: what it is about.
        title: of the page; by default the model's name.
    """
    verdict, summary = material.verdict, material.summary
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title or summary.model,
            status=verdict.status,
            headline=HEADLINES.get(verdict.status, ""),
            tiles=_tiles(material),
            sections=sections(material),
            written=summary.written,
            version=summary.versions.get("avbvi", ""),
        )
    )


def _tiles(material: Material) -> list[tuple[str, str, str]]:
    """The few figures that stand beside the verdict: name, value, what is set smaller after it."""
    figures, run, summary = material.verdict.figures, material.run, material.summary
    tiles: list[tuple[str, str, str]] = []
    if "elbo" in figures:
        kind = "ELBO, a lower bound" if summary.exact else "ELBO, learned"
        elbo = str(Estimate(figures["elbo"], figures.get("elbo_stderr", math.nan))).replace("-", "−")
        value, sign, error = elbo.partition("±")
        tiles.append((kind, value.strip(), f"±\u00a0{error.strip()}" if sign else ""))
    if "mean_shift" in figures:
        tiles.append(("mean shift by HMC", number(figures["mean_shift"], 2), "sd"))
    if "k_hat" in figures:
        tiles.append(("k-hat of the weights", number(figures["k_hat"], 2), ""))
    if "active_units" in figures and summary.latents is not None:
        tiles.append(("active latents", f"{figures['active_units']:.0f} of {summary.latents.dim}", ""))
    tiles.append(("steps", f"{run.steps:,}".replace(",", "\u00a0"), ""))
    tiles.append(("seconds", number(run.seconds, 3), ""))
    return tiles


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("avbvi.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
