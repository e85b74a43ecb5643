"""All panels and grids alike: axes in and out, labels, light and dark, no trace in Matplotlib's settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avbvi import Calibration, plots
from avbvi.diagnostics import Verdict, moment_shift, reliability
from avbvi.plots.theme import DARK, LIGHT
from avbvi.posterior import Run
from avbvi.simulations import Simulation
from tests.plots.known import known_guide

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = {"image_panel", "reconstruction_panel", "image_grid"}


def posterior() -> Any:
    steps = [float(i) for i in range(10, 510, 10)]
    history = {"step": steps, "elbo": [-5.0 + 0.001 * s for s in steps], "stage": [float(s > 200) for s in steps]}
    figures = {"elbo": -4.5, "elbo_stderr": 0.1, "log_evidence": -4.4}
    return SimpleNamespace(run=Run(history=history), verdict=Verdict("ok", [], figures), elbo_is_exact=True)


def study() -> Calibration:
    rounds = [Simulation(i, {}, {"mu": i, "tau": i // 2}, None, None, 1.0) for i in range(100)]
    return Calibration(tuple(rounds), 99, {}, 0)


def draws() -> dict[str, Any]:
    return {"mu": torch.randn(200), "tau": torch.rand(200), "eta": torch.randn(200, 8)}


#: Each panel, called with axes.
PANELS: dict[str, Callable[[Axes], Axes]] = {
    "contrast_marginal": lambda ax: plots.contrast_marginal(ax, known_guide(), "mu", n=200),
    "contrast_panel": lambda ax: plots.contrast_panel(ax, known_guide(), label="r"),
    "coverage_panel": lambda ax: plots.coverage_panel(ax, study(), ["mu", "tau"]),
    "density_panel": lambda ax: plots.density_panel(
        ax, lambda z: -z.square().sum(-1), (-2, 2, -2, 2), draws=torch.randn(9, 2)
    ),
    "ecdf_panel": lambda ax: plots.ecdf_panel(ax, study(), "tau"),
    "elbo_trace": lambda ax: plots.elbo_trace(ax, posterior()),
    "function_panel": lambda ax: plots.function_panel(ax, lambda z: z[:, 0], (-2, 2, -2, 2), bar="T", label="T"),
    "image_panel": lambda ax: plots.image_panel(ax, torch.rand(4, 3, 3), label="images"),
    "importance_weights": lambda ax: plots.importance_weights(ax, torch.randn(100)),
    "kde_panel": lambda ax: plots.kde_panel(ax, torch.randn(100), torch.randn(100), label="kde"),
    "landscape_panel": lambda ax: plots.landscape_panel(ax, known_guide(), draws=50),
    "latent_map": lambda ax: plots.latent_map(ax, torch.randn(30, 2), torch.arange(30) % 3),
    "loss_curve": lambda ax: plots.loss_curve(ax, {"one": torch.rand(100), "other": torch.rand(100)}),
    "marginal_panel": lambda ax: plots.marginal_panel(ax, {"one": torch.randn(50), "other": torch.rand(50)}, label="x"),
    "moment_shift_panel": lambda ax: plots.moment_shift_panel(ax, moment_shift(*torch.randn(2, 50, 3))),
    "rank_panel": lambda ax: plots.rank_panel(ax, study(), "mu"),
    "reconstruction_panel": lambda ax: plots.reconstruction_panel(ax, torch.rand(4, 3, 3), torch.rand(4, 3, 3)),
    "reliability_diagram": lambda ax: plots.reliability_diagram(ax, reliability(torch.randn(99) + 1, torch.randn(99))),
    "training_curve": lambda ax: plots.training_curve(ax, posterior(), log_evidence=-4.4),
}
#: Each grid, called with its mode.
GRIDS: dict[str, Callable[[bool], Figure]] = {
    "image_grid": lambda dark: plots.image_grid({"data": torch.rand(4, 3, 3)}, dark=dark),
    "kde_grid": lambda dark: plots.kde_grid({"one": draws()}, dark=dark),
    "pair_grid": lambda dark: plots.pair_grid({"one": draws(), "other": draws()}, ["mu", "tau"], dark=dark),
    "plot_sbc": lambda dark: plots.plot_sbc(study(), dark=dark),
}
#: Axes whose coordinates are the caller's, who names them.
UNNAMED = IMAGES | {"density_panel", "function_panel", "kde_panel"}


def test_none_is_left_out() -> None:
    assert PANELS.keys() | GRIDS.keys() == set(plots.__all__) - {"Theme", "style"}


@pytest.fixture
def _no_trace() -> Any:
    """Settings as they were, and no figure that pyplot knows."""
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def rendered(figure: Figure) -> np.ndarray:
    """Pixels (height, width, 3) in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255.0


def check_colours(figure: Figure, dark: bool, *, page: float) -> None:
    """Page, ink and text of the mode; at least the share ``page`` of the picture is the page's."""
    theme, other = (DARK, LIGHT) if dark else (LIGHT, DARK)
    pixels = rendered(figure)
    colour = np.array(matplotlib.colors.to_rgb(theme.page))
    assert (np.abs(pixels - colour).max(-1) < 0.01).mean() >= page
    assert np.abs(pixels - colour).max() > 0.4
    for ax in figure.axes:
        texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels(), *ax.texts]
        texts += ax.get_legend().get_texts() if ax.get_legend() is not None else []
        assert other.text not in {text.get_color() for text in texts if text.get_text()}


@pytest.mark.usefixtures("_no_trace")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PANELS)
def test_panels(name: str, dark: bool) -> None:
    with plots.style(dark=dark):
        figure = Figure(figsize=(4.0, 3.5), layout="constrained", dpi=60)
        ax = figure.subplots()
    assert PANELS[name](ax) is ax
    check_colours(figure, dark, page=0.05)
    if name not in UNNAMED:
        assert ax.get_xlabel()
        assert ax.get_ylabel()


@pytest.mark.usefixtures("_no_trace")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", GRIDS)
def test_grids(name: str, dark: bool) -> None:
    figure = GRIDS[name](dark)
    assert isinstance(figure, Figure)
    check_colours(figure, dark, page=0.05)


@pytest.mark.usefixtures("_no_trace")
@pytest.mark.parametrize("name", PANELS)
def test_each_line_of_a_panel_is_told_without_colour(name: str) -> None:
    """Lines that a legend names differ in style, marker or width."""
    ax = PANELS[name](Figure().subplots())
    named = [line for line in ax.lines if line.get_label() and not line.get_label().startswith("_")]
    looks = [(str(line.get_linestyle()), line.get_marker(), line.get_linewidth()) for line in named]
    assert len(set(looks)) == len(looks)


NAN = torch.tensor([0.0, 1.0, 2.0, float("nan")])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ax: plots.kde_panel(ax, NAN, torch.randn(4)), ValueError, "x must be finite, found NaN"),
        (lambda ax: plots.kde_panel(ax, torch.randn(4), NAN), ValueError, "y must be finite, found NaN"),
        (lambda ax: plots.kde_panel(ax, "x", "y"), TypeError, "x must be a tensor, array or list"),
        (lambda ax: plots.kde_panel(ax, np.array(["a"] * 4), NAN), TypeError, "x must hold real numbers"),
        (lambda ax: plots.kde_panel(ax, *torch.randn(2, 9), limits=(0, 1)), ValueError, "limits must be"),
        (lambda ax: plots.marginal_panel(ax, {"a": NAN}), ValueError, r"sets\['a'\] must be finite"),
        (lambda ax: plots.pair_grid({"a": {"mu": NAN, "tau": NAN}}), ValueError, r"draws\['mu'\] must be finite"),
        (lambda ax: plots.latent_map(ax, NAN.reshape(2, 2), [0, 1]), ValueError, "latents must be finite"),
        (lambda ax: plots.image_panel(ax, NAN.reshape(1, 2, 2)), ValueError, "images must be finite"),
        (lambda ax: plots.importance_weights(ax, "w"), TypeError, "log_weights must be a tensor"),
        (lambda ax: plots.reliability_diagram(ax, 0.1), TypeError, "reliability must be what"),
        (lambda ax: plots.moment_shift_panel(ax, NAN), TypeError, "shift must be what"),
        (lambda ax: plots.training_curve(ax, {"elbo": [1.0]}), TypeError, "posterior must be what avbvi.fit returned"),
        (lambda ax: plots.elbo_trace(ax, None), TypeError, "posterior must be what avbvi.fit returned"),
        (lambda ax: plots.ecdf_panel(ax, [1, 2], "mu"), TypeError, "calibration must be what avbvi.sbc returned"),
        (lambda ax: plots.rank_panel(ax, [1, 2], "mu"), TypeError, "calibration must be what avbvi.sbc returned"),
        (lambda ax: plots.coverage_panel(ax, [1, 2], ["mu"]), TypeError, "calibration must be what avbvi.sbc returned"),
        (lambda ax: plots.plot_sbc([1, 2]), TypeError, "calibration must be what avbvi.sbc returned"),
    ],
)
def test_a_refusal_names_the_argument(call: Callable[[Axes], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Figure().subplots())


def test_import_changes_no_global_state() -> None:
    code = """
import matplotlib, sys
before = dict(matplotlib.rcParams)
import avbvi.plots
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True, timeout=120)
