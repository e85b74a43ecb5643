"""Pictures: right data in the right axes, clear errors, no global state."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from avbvi import plots
from avbvi.plots import draws as drawn
from avbvi.posterior import Run

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def draws(n: int = 400, shift: float = 0.0) -> dict[str, Tensor]:
    return {"mu": torch.randn(n) + shift, "tau": torch.rand(n), "eta": torch.randn(n, 8)}


def darkness(figure: Figure) -> float:
    """Largest difference between two pixels of the rendered figure, in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255.0
    return float(pixels.max() - pixels.min())


def peak(ax: Axes) -> np.ndarray:
    """Centre of the region above the highest contour."""
    paths = ax.collections[0].get_paths()
    last = [p for p in paths if len(p.vertices)][-1]
    return last.vertices.mean(0)


def test_kde_panel_is_dark_where_the_draws_are(ax: Axes) -> None:
    x, y = 3.0 + 0.5 * torch.randn(4000), -2.0 + 2.0 * torch.randn(4000)
    plots.kde_panel(ax, x, y, label="somewhere")
    assert ax.get_title() == "somewhere"
    assert np.abs((peak(ax) - [3.0, -2.0]) / [0.5, 2.0]).max() < 0.3
    assert ax.get_xlim()[0] < 2.0 < 4.0 < ax.get_xlim()[1]
    assert darkness(ax.figure) > 0.5


def test_kde_panel_limits(ax: Axes) -> None:
    plots.kde_panel(ax, torch.randn(100), torch.randn(100), limits=(-1.0, 2.0, -3.0, 4.0))
    assert ax.get_xlim() == (-1.0, 2.0)
    assert ax.get_ylim() == (-3.0, 4.0)


def test_kde_panel_uses_at_most_5000_draws(ax: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    kde = drawn.gaussian_kde

    def counting(points: np.ndarray) -> Any:
        used.append(points.shape)
        return kde(points)

    monkeypatch.setattr(drawn, "gaussian_kde", counting)
    plots.kde_panel(ax, torch.randn(12_001), torch.randn(12_001))
    assert used == [(2, 4001)]


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(2), torch.randn(2), "n >= 3"),
        (torch.randn(5, 2), torch.randn(5, 2), r"must have shape \(n,\)"),
        (torch.randn(5), torch.randn(6), "same shape|shape"),
        (torch.ones(50), torch.randn(50), "lie on a line"),
    ],
)
def test_kde_panel_refuses(ax: Axes, x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.kde_panel(ax, x, y)


def test_kde_grid() -> None:
    figure = plots.kde_grid(
        {"one": draws(), "other": draws(shift=5.0), "array": {k: v.numpy() for k, v in draws().items()}}
    )
    axes = np.array(figure.axes).reshape(2, 3)
    assert [a.get_title() for a in axes[0]] == ["one", "other", "array"]
    assert [a.get_title() for a in axes[1]] == ["", "", ""]
    assert axes[0, 0].get_xlim() == axes[0, 1].get_xlim()
    assert axes[0, 0].get_xlim()[1] > 6.0
    assert axes[1, 0].get_xlim() == axes[1, 2].get_xlim() != axes[0, 0].get_xlim()
    assert (axes[0, 0].get_xlabel(), axes[0, 0].get_ylabel()) == (r"$\mu$", r"$\tau$")
    assert axes[1, 0].get_ylabel() == r"$\eta$$_{1}$"
    assert darkness(figure) > 0.5


def test_kde_grid_of_given_limits() -> None:
    figure = plots.kde_grid({"one": draws()}, [("mu", ("eta", 7))], limits=[(-1.0, 1.0, -2.0, 2.0)])
    assert figure.axes[0].get_xlim() == (-1.0, 1.0)
    assert figure.axes[0].get_ylim() == (-2.0, 2.0)


def test_kde_grid_errors() -> None:
    with pytest.raises(KeyError, match="no site 'nu'"):
        plots.kde_grid({"one": draws()}, [("mu", "nu")])
    with pytest.raises(ValueError, match="name one element"):
        plots.kde_grid({"one": draws()}, [("mu", "eta")])
    with pytest.raises(ValueError, match="must not be empty"):
        plots.kde_grid({})
    with pytest.raises(ValueError, match="one entry per pair"):
        plots.kde_grid({"one": draws()}, limits=[None])


def normal(z: Tensor) -> Tensor:
    return -0.5 * ((z - torch.tensor([1.0, -1.0])) / 0.4).square().sum(-1)


def test_density_panel(ax: Axes) -> None:
    plots.density_panel(ax, normal, (-2.0, 4.0, -4.0, 2.0), draws=torch.randn(12_000, 2), label="normal")
    np.testing.assert_allclose(peak(ax), [1.0, -1.0], atol=0.1)
    dots = ax.collections[-1].get_offsets()
    assert len(dots) == 4000
    assert darkness(ax.figure) > 0.5


def test_density_panel_takes_a_bounded_support(ax: Axes) -> None:
    def half(z: Tensor) -> Tensor:
        return normal(z).where(z[..., 0] > 0.0, -torch.inf)

    plots.density_panel(ax, half, (-2.0, 4.0, -4.0, 2.0))
    assert darkness(ax.figure) > 0.5


def test_density_panel_errors(ax: Axes) -> None:
    limits = (-1.0, 1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="log_prob must map"):
        plots.density_panel(ax, lambda z: z, limits)
    with pytest.raises(ValueError, match="finite nowhere"):
        plots.density_panel(ax, lambda z: z[..., 0] - torch.inf, limits)
    with pytest.raises(ValueError, match="draws must have shape"):
        plots.density_panel(ax, normal, limits, draws=torch.zeros(3))


def run(steps: int, adversarial_from: int | None = None) -> Any:
    history: dict[str, list[float]] = {"step": [], "elbo": [], "stage": []}
    for step in range(10, steps + 1, 10):
        history["step"].append(float(step))
        history["elbo"].append(-12.0 - 1000.0 / step**1.5)
        history["stage"].append(float(adversarial_from is not None and step > adversarial_from))
    return SimpleNamespace(run=Run(steps=steps, history=history))


def test_training_curve(ax: Axes) -> None:
    plots.training_curve(ax, run(1000, 500), log_evidence=-11.5)
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["one step", "moving average", "adversarial stage", "exact log-evidence"]
    (shade,) = ax.patches
    assert shade.get_extents().transformed(ax.transData.inverted()).x0 == pytest.approx(510.0)
    low, high = ax.get_ylim()
    assert -13.0 < low < -12.0
    assert high > -11.5
    darkness(ax.figure)


def test_training_curve_with_little_to_show(ax: Axes) -> None:
    plots.training_curve(ax, run(10))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one step", "moving average"]
    darkness(ax.figure)
    with pytest.raises(ValueError, match="no recorded steps"):
        plots.training_curve(ax, run(9))


def test_import_changes_no_global_state() -> None:
    code = """
import matplotlib, sys
before = dict(matplotlib.rcParams)
import avbvi.plots
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=REPOSITORY, check=True, timeout=120)
