"""A report on a fit: Eight Schools as one HTML page, to be opened in a browser or sent on.

python examples/report.py [--steps 1000] [--out eight_schools.html] [--screenshots FOLDER]
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import avbvi
from models import eight_schools

#: Name -> width and height of the window in pixels, colour scheme.
WINDOWS: dict[str, Any] = {"light": (1000, 1250, "light"), "dark": (1000, 1345, "dark"), "phone": (390, 1250, "light")}


def screenshots(page: Path, folder: Path) -> None:
    """Pictures of the page as a browser shows it; needs playwright and an installed Chromium."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (width, height, scheme) in WINDOWS.items():
            size: Any = {"width": width, "height": height}
            shown = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
            shown.goto(page.resolve().as_uri())
            if name == "dark":  # the pictures of the draws; elsewhere the page's top
                shown.evaluate("document.getElementById('draws').scrollIntoView()")
            shown.screenshot(path=folder / f"report_{name}.png")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A report on a fit of Eight Schools.")
    parser.add_argument("--steps", type=int, default=1000, help="number of training steps")
    parser.add_argument("--out", default="eight_schools.html", help="page to write")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the page")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    posterior = avbvi.fit(eight_schools.model, seed=options.seed, steps=options.steps)
    page = posterior.report(options.out, title="Eight Schools")
    print(posterior.verdict)
    print(f"page: {page}")
    if options.screenshots is not None:
        screenshots(page, options.screenshots)


if __name__ == "__main__":
    main()
