"""Pictures of calibration: the right numbers in the right axes, clear errors."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from avbvi import Calibration
from avbvi.plots import coverage_panel, ecdf_panel, plot_sbc, rank_panel
from avbvi.simulations import Simulation
from avbvi.uniformity import band

N, DRAWS = 100, 99


def study(**ranks: np.ndarray) -> Calibration:
    rounds = [
        Simulation(i, {}, {name: int(values[i]) for name, values in ranks.items()}, None, None, 1.0) for i in range(N)
    ]
    return Calibration(tuple(rounds), DRAWS, {}, 0)


@pytest.fixture
def ax() -> Axes:
    axes: Axes = Figure().subplots()
    return axes


@pytest.fixture
def result() -> Calibration:
    """Ranks that are uniform, and ranks in the lower half only."""
    return study(fine=np.random.default_rng(0).permutation(100), low=np.arange(100) // 2, log_q=np.arange(100) // 2)


def test_ecdf_panel(ax: Axes, result: Calibration) -> None:
    ecdf_panel(ax, result, "low")
    line = next(line for line in ax.lines if len(line.get_xdata()) > 2)
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    # Twice the uniform distribution function up to one half, then 1.
    np.testing.assert_allclose(y, np.minimum(2.0 * x, 1.0) - x, atol=1e-12)
    vertices = ax.collections[0].get_paths()[0].vertices
    found = band(N, DRAWS)
    middle = np.abs(vertices[:, 0] - 0.5) < 1e-9
    assert vertices[middle, 1].min() == pytest.approx(found.lower[49] / N - 0.5)
    assert vertices[middle, 1].max() == pytest.approx(found.upper[49] / N - 0.5)


def test_a_line_that_leaves_the_band_has_another_colour(result: Calibration) -> None:
    colours = []
    for name in ("fine", "low"):
        axes = Figure().subplots()
        ecdf_panel(axes, result, name)
        colours.append(next(line.get_color() for line in axes.lines if len(line.get_xdata()) > 2))
    assert colours[0] != colours[1]


def test_rank_panel(ax: Axes, result: Calibration) -> None:
    rank_panel(ax, result, "low")
    heights = [patch.get_height() for patch in ax.patches]
    assert heights == [20] * 5 + [0] * 5
    low, high = stats.binom.ppf([0.005, 0.995], N, 0.1)
    vertices = ax.collections[0].get_paths()[0].vertices
    assert (vertices[:, 1].min(), vertices[:, 1].max()) == (low, high)


def test_coverage_panel(ax: Axes, result: Calibration) -> None:
    coverage_panel(ax, result, ["fine", "low", "log_q"])
    lines = {line.get_label(): line for line in ax.lines}
    x, y = np.asarray(lines["fine"].get_xdata()), np.asarray(lines["fine"].get_ydata())
    np.testing.assert_allclose(y, x)
    # Where log q is largest the truth never lies, until the region takes in the lower half.
    x, y = np.asarray(lines["log_q"].get_xdata()), np.asarray(lines["log_q"].get_ydata())
    np.testing.assert_allclose(y, np.maximum(0.0, 2.0 * (x - 0.5)), atol=1e-12)


def test_plot_sbc_shows_the_worst(result: Calibration) -> None:
    figure = plot_sbc(result)
    assert len(figure.axes) == 9
    many = study(**{f"s{i}": np.random.default_rng(i).permutation(100) for i in range(9)}, low=np.arange(100) // 2)
    figure = plot_sbc(many)
    assert len(figure.axes) == 24
    assert figure.axes[0].get_title(loc="left").startswith("low  (adjusted p ")
    figure = plot_sbc(result, ["low"])
    assert [axes.get_xlabel() for axes in figure.axes] == [*["rank / (draws + 1)"] * 2, "credibility"]
    figure.canvas.draw()


def test_errors(ax: Axes, result: Calibration) -> None:
    for panel in (ecdf_panel, rank_panel):
        with pytest.raises(ValueError, match=r"no statistic 'x'; there are \['fine', 'low', 'log_q'\]"):
            panel(ax, result, "x")
    with pytest.raises(ValueError, match="no statistic 'x'"):
        coverage_panel(ax, result, ["x"])
    for empty in (lambda: coverage_panel(ax, result, []), lambda: plot_sbc(result, [])):
        with pytest.raises(ValueError, match="names must not be empty"):
            empty()
    with pytest.raises(ValueError, match="no simulation has ranks"):
        plot_sbc(result.only("ok"))
    assert torch.is_tensor(result.ranks["low"])
