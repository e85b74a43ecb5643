"""Pictures of draws and densities: right data in the right axes, clear errors."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde
from torch import Tensor

from avbvi import plots
from avbvi.plots import draws as drawn


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


def test_contours_of_a_density_lie_where_it_has_their_height(ax: Axes) -> None:
    """exp(-r^2 / 2) is c on the circle of radius sqrt(-2 log c); the grid has 127 cells across 8."""
    plots.density_panel(ax, lambda z: -0.5 * z.square().sum(-1), (-4.0, 4.0, -4.0, 4.0))
    regions = ax.collections[0]
    assert regions.levels[0] == pytest.approx(0.04, abs=1e-3)
    for level, lines in zip(regions.levels[1:-1], regions.allsegs[1:], strict=True):
        radius = np.linalg.norm(np.concatenate(lines), axis=1)
        inner = radius[radius < np.sqrt(-2.0 * np.log(level)) + 0.02]
        assert len(inner) > 20
        # Each region is bounded by the circles of its two levels.
        upper = regions.levels[list(regions.levels).index(level) + 1]
        circles = np.sqrt(-2.0 * np.log(np.array([level, min(upper, 1.0)])))
        assert np.abs(radius[:, None] - circles).min(1).max() < 0.02


def test_function_panel_marks_zero_and_both_signs(ax: Axes) -> None:
    """x y^2 - 1 / 2 is zero on a curve; its bar is symmetric."""
    figure = ax.figure
    panel = plots.function_panel(ax, lambda z: z[:, 0] * z[:, 1] ** 2 - 0.5, (-2.0, 2.0, -2.0, 2.0), bound=3.0, bar="T")
    assert panel is ax
    zero = ax.collections[-1]
    vertices = np.concatenate([s for s in zero.allsegs[0] if len(s)])
    np.testing.assert_allclose(vertices[:, 0] * vertices[:, 1] ** 2, 0.5, atol=5e-3)
    lines = ax.collections[-2]
    dashed = [style[1] is not None for style in lines.get_linestyles()]
    assert dashed == [level < 0.0 for level in lines.levels]
    low, high = figure.axes[1].get_ylim()
    assert (low, high) == (-3.0, 3.0)
    assert figure.axes[1].get_ylabel() == "T"


def test_function_panel_leaves_blank_what_is_not_finite(ax: Axes) -> None:
    plots.function_panel(ax, lambda z: z[:, 0].log(), (-1.0, 2.0, 0.0, 1.0), draws=torch.rand(10, 2), label="log x")
    vertices = np.concatenate([p.vertices for p in ax.collections[0].get_paths() if len(p.vertices)])
    assert vertices[:, 0].min() > 0.0
    assert len(ax.collections[-1].get_offsets()) == 10
    assert ax.get_title() == "log x"


def test_function_panel_errors(ax: Axes) -> None:
    limits = (-1.0, 1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="function must map"):
        plots.function_panel(ax, lambda z: z, limits)
    with pytest.raises(ValueError, match="finite nowhere"):
        plots.function_panel(ax, lambda z: z[:, 0] - torch.inf, limits)
    with pytest.raises(ValueError, match="bound must be positive, found -1"):
        plots.function_panel(ax, lambda z: z[:, 0], limits, bound=-1.0)
    with pytest.raises(ValueError, match="limits must be"):
        plots.function_panel(ax, lambda z: z[:, 0], (0.0, 0.0, 0.0, 1.0))


def test_a_constant_function_is_drawn(ax: Axes) -> None:
    plots.function_panel(ax, lambda z: 0.0 * z[:, 0], (-1.0, 1.0, -1.0, 1.0), bar="T")
    darkness(ax.figure)


def test_marginals_are_kernel_estimates(ax: Axes) -> None:
    sets = {"one": torch.randn(500), "other": np.random.default_rng(1).normal(3.0, 1.0, 400)}
    assert plots.marginal_panel(ax, sets, label="mu") is ax
    for line, (name, x) in zip(ax.lines, sets.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_allclose(line.get_ydata(), gaussian_kde(np.asarray(x, float))(line.get_xdata()))
    assert len({str(line.get_linestyle()) for line in ax.lines}) == 2
    assert ax.get_xlim()[0] < -1.5 < 4.5 < ax.get_xlim()[1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mu", "density")


def test_marginal_panel_errors(ax: Axes) -> None:
    for sets, message in (
        ({}, "sets must not be empty"),
        ({"a": torch.zeros(10)}, r"sets\['a'\] must hold 3 draws"),
        ({"a": torch.randn(10), "b": torch.randn(5, 2)}, r"sets\['b'\] must hold 3 draws"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.marginal_panel(ax, sets)


def test_contours_hold_their_share() -> None:
    """Of a Gaussian in the plane the share 1 - c lies where the density is at least c times its maximum."""
    x, y = np.meshgrid(np.linspace(-5, 5, 400), np.linspace(-5, 5, 400))
    found = drawn.share_levels(np.exp(-0.5 * (x**2 + y**2)), (0.5, 0.9))
    np.testing.assert_allclose(found, [0.1, 0.5], atol=2e-3)


def test_pair_grid() -> None:
    sets = {"avbvi": draws(), "HMC": draws(shift=1.0)}
    figure = plots.pair_grid(sets, ["mu", "tau", ("eta", 2)])
    axes = np.array(figure.axes).reshape(3, 3)
    assert [[ax.axison for ax in row] for row in axes] == [[True, False, False], [True, True, False], [True] * 3]
    assert [ax.get_xlabel() for ax in axes[2]] == [r"$\mu$", r"$\tau$", r"$\eta$$_{3}$"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["", r"$\tau$", r"$\eta$$_{3}$"]
    # The diagonal has each set's marginal, in the column's own coordinate.
    line = axes[1, 1].lines[1]
    np.testing.assert_allclose(line.get_ydata(), gaussian_kde(sets["HMC"]["tau"].numpy())(line.get_xdata()))
    # Below: the first set filled, contours of the other in its own line and colour.
    contours = axes[2, 0].collections[1]
    assert len(contours.levels) == 2
    vertices = np.concatenate(contours.allsegs[1])
    assert abs(vertices[:, 0].mean() - 1.0) < 0.4
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["avbvi", "HMC"]
    assert darkness(figure) > 0.5


def test_pair_grid_takes_the_first_scalars() -> None:
    figure = plots.pair_grid({"one": draws()})
    assert len(figure.axes) == 16
    assert [ax.get_xlabel() for ax in figure.axes[-4:]] == [r"$\mu$", r"$\tau$", r"$\eta$$_{1}$", r"$\eta$$_{2}$"]


def test_pair_grid_errors() -> None:
    with pytest.raises(ValueError, match="sets must not be empty"):
        plots.pair_grid({})
    with pytest.raises(ValueError, match="at least 2 scalars, found 1"):
        plots.pair_grid({"one": draws()}, ["mu"])
    with pytest.raises(ValueError, match="site 'eta' has 8 elements"):
        plots.pair_grid({"one": draws()}, ["mu", ("eta", 8)])
