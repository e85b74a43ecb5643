"""Pictures of draws: densities in the plane and of single coordinates, several sets beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from .coordinates import (
    Coordinate,
    Limits,
    coordinate,
    coordinate_name,
    finite,
    grid,
    scalars,
    thinned,
    window,
)
from .densities import filled
from .theme import LINES, drawing_on, new_figure, style

MOST_DRAWS = 5000
MOST_COORDINATES = 4
GRID = 64
#: Contours of a set of draws over another: these shares of the draws lie within.
SHARES = (0.5, 0.9)


def kde_panel(ax: Axes, x: Any, y: Any, *, limits: Limits | None = None, label: str | None = None) -> Axes:
    """Draw a filled two-dimensional kernel density estimate, deep where draws are dense.

    Args:
        ax: the axes to draw in.
        x: draws (n,), a tensor or an array; at most 5000, evenly spaced, are used.
        y: draws (n,) of the other coordinate.
        limits: (x from, x to, y from, y to); by default the central 99 % of the draws and a margin.
        label: title of the panel.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes.
        ValueError: x and y differ in shape, are not one-dimensional or finite, are fewer than 3, or lie on a line; or
            limits that are not in order.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> x, y = torch.randn(2, 500)
        >>> ax = plots.kde_panel(Figure().subplots(), x, y, limits=(-3.0, 3.0, -3.0, 3.0), label="standard normal")
        >>> ax.get_title()
        'standard normal'
    """
    with drawing_on(ax) as theme:
        points = _points(x, y)
        across, up = grid(limits or window([points]), GRID)
        filled(ax, across, up, _kde(points, across, up), theme.densities)
        if label is not None:
            ax.set_title(label)
    return ax


def kde_grid(
    columns: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[tuple[Coordinate, Coordinate]] = (("mu", "tau"), ("tau", ("eta", 0))),
    *,
    limits: Sequence[Limits | None] | None = None,
    panel_size: float = 2.2,
    dark: bool = False,
) -> Figure:
    """Compare several sets of draws: one row per pair of coordinates, one column per set, shared limits per row.

    Args:
        columns: title -> draws {site: (n, *shape)}, tensors or arrays.
        pairs: for each row its horizontal and vertical coordinate: a site's name, or (name, index) for one
            element of a vector.
        limits: for each row (x from, x to, y from, y to), or ``None`` for limits that suit all columns.
        panel_size: width and height of a panel in inches.
        dark: light ink on a dark page.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: no columns or pairs, not one entry of ``limits`` per pair, or a coordinate that is no scalar.
        KeyError: a set of draws lacks a site.

    Example:
        >>> import torch
        >>> from avbvi import plots
        >>> narrow, wide = ({"mu": s * torch.randn(500), "eta": s * torch.randn(500, 8)} for s in (0.5, 1.0))
        >>> figure = plots.kde_grid({"narrow": narrow, "wide": wide}, [("mu", ("eta", 0))])
        >>> [ax.get_title() for ax in figure.axes]
        ['narrow', 'wide']
        >>> figure.savefig("draws.png")
    """
    if not columns or not pairs:
        raise ValueError("columns and pairs must not be empty")
    if limits is not None and len(limits) != len(pairs):
        raise ValueError(f"limits must have one entry per pair ({len(pairs)}), found {len(limits)}")
    with style(dark=dark):
        figure = new_figure(panel_size * len(columns) + 0.6, panel_size * len(pairs) + 0.5)
        axes = figure.subplots(len(pairs), len(columns), squeeze=False, sharex="row", sharey="row")
        for row, (across, up) in enumerate(pairs):
            points = [np.stack([coordinate(draws, across), coordinate(draws, up)]) for draws in columns.values()]
            shown = (limits[row] if limits is not None else None) or window(points)
            for column, (title, xy) in enumerate(zip(columns, points, strict=True)):
                ax = axes[row, column]
                kde_panel(ax, xy[0], xy[1], limits=shown, label=title if row == 0 else None)
                ax.set_xlabel(coordinate_name(across))
            axes[row, 0].set_ylabel(coordinate_name(up))
    return figure


def marginal_panel(
    ax: Axes, sets: Mapping[str, Any], *, limits: tuple[float, float] | None = None, label: str | None = None
) -> Axes:
    """Draw kernel density estimates of one coordinate by several sets of draws, in different lines and colours.

    Args:
        ax: the axes to draw in.
        sets: name -> draws (n,), tensors or arrays; at most 5000 of each, evenly spaced, are used.
        limits: (from, to); by default the central 99 % of each set and a margin.
        label: of the horizontal axis.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes.
        ValueError: no sets, or draws that are not (n,) or finite, fewer than 3, or all equal.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> sets = {"narrow": 0.5 * torch.randn(500), "wide": torch.randn(500)}
        >>> ax = plots.marginal_panel(Figure().subplots(), sets, label="mu")
        >>> [line.get_label() for line in ax.lines]
        ['narrow', 'wide']
    """
    if not sets:
        raise ValueError("sets must not be empty")
    with drawing_on(ax) as theme:
        values = {name: finite(f"sets[{name!r}]", x) for name, x in sets.items()}
        for name, x in values.items():
            if x.ndim != 1 or len(x) < 3 or not np.ptp(x) > 0.0:
                raise ValueError(
                    f"sets[{name!r}] must hold 3 draws (n,) or more that are not all equal, found shape {x.shape}"
                )
        if limits is None:
            limits = window([np.stack([x, x]) for x in values.values()])[:2]
        place = np.linspace(*limits, 4 * GRID)
        for i, (name, x) in enumerate(values.items()):
            colour = theme.colours[i % len(theme.colours)]
            height = gaussian_kde(thinned(x, MOST_DRAWS))(place)
            if i == 0:
                ax.fill_between(place, height, color=colour, alpha=0.18, linewidth=0)
            ax.plot(place, height, color=colour, linestyle=LINES[i % len(LINES)], label=name)
        ax.set_xlim(*limits)
        ax.set_ylim(bottom=0.0)
        ax.set_ylabel("density")
        if label is not None:
            ax.set_xlabel(label)
        if len(values) > 1:
            ax.legend()
    return ax


def pair_grid(
    sets: Mapping[str, Mapping[str, Any]],
    coordinates: Sequence[Coordinate] | None = None,
    *,
    panel_size: float = 1.6,
    dark: bool = False,
) -> Figure:
    """Draw each pair of some coordinates in the plane, and each coordinate by itself on the diagonal.

    The first set of draws is filled; of the others contours hold 50 % and 90 % of the draws.

    Args:
        sets: name -> draws {site: (n, *shape)}, tensors or arrays.
        coordinates: sites' names, or (name, index) for one element of a vector; by default the first four scalars.
        panel_size: width and height of a panel in inches.
        dark: light ink on a dark page.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: no sets, fewer than two coordinates, or one that is no scalar.
        KeyError: a set of draws lacks a site.

    Example:
        >>> import torch
        >>> from avbvi import plots
        >>> draws = {"mu": torch.randn(500), "eta": torch.randn(500, 8)}
        >>> figure = plots.pair_grid({"fit": draws}, ["mu", ("eta", 0), ("eta", 7)], dark=True)
        >>> len(figure.axes)
        9
    """
    if not sets:
        raise ValueError("sets must not be empty")
    shown = scalars(next(iter(sets.values())), MOST_COORDINATES) if coordinates is None else list(coordinates)
    if len(shown) < 2:
        raise ValueError(f"coordinates must name at least 2 scalars, found {len(shown)}")
    columns = {name: [coordinate(draws, which) for which in shown] for name, draws in sets.items()}
    k = len(shown)
    with style(dark=dark) as theme:
        figure = new_figure(panel_size * k + 0.5, panel_size * k + 0.4)
        axes = figure.subplots(k, k, squeeze=False, sharex="col")
        for i in range(k):
            for j in range(k):
                ax = axes[i, j]
                if j > i:
                    ax.set_axis_off()
                elif j == i:
                    marginal_panel(ax, {name: values[i] for name, values in columns.items()})
                    ax.set(ylabel="", yticks=[])
                    if ax.get_legend() is not None:
                        ax.get_legend().remove()
                else:
                    _overlaid(ax, [np.stack([values[j], values[i]]) for values in columns.values()])
                if i == k - 1:
                    ax.set_xlabel(coordinate_name(shown[j]))
                if j == 0 and i > 0:
                    ax.set_ylabel(coordinate_name(shown[i]))
                elif j > 0:
                    ax.tick_params(labelleft=False)
        if len(sets) > 1:
            handles, _ = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, list(sets), loc="upper right", labelcolor=theme.text)
    return figure


def _overlaid(ax: Axes, sets: Sequence[np.ndarray]) -> None:
    """Draws (2, n) of several sets: the first filled, the others as contours."""
    limits = window(sets)
    kde_panel(ax, *sets[0], limits=limits)
    across, up = grid(limits, GRID)
    with drawing_on(ax) as theme:
        for i, points in enumerate(sets[1:], 1):
            height = _kde(points, across, up)
            levels = share_levels(height, SHARES)
            colour = theme.colours[i % len(theme.colours)]
            ax.contour(
                across, up, height, levels=levels, colors=colour, linestyles=[LINES[i % len(LINES)]], linewidths=1.1
            )


def share_levels(height: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Levels of a density on an even grid above which lie these shares of its sum, in ascending order."""
    falling = np.sort(height.ravel())[::-1]
    total = np.cumsum(falling) / falling.sum()
    return sorted({float(falling[np.searchsorted(total, share)]) for share in shares})


def _points(x: Any, y: Any) -> np.ndarray:
    x, y = finite("x", x), finite("y", y)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have the same shape (n,), found {x.shape} and {y.shape}")
    if x.ndim != 1 or len(x) < 3:
        raise ValueError(f"x and y must have shape (n,) with n >= 3, found {x.shape}")
    return np.stack([x, y])


def _kde(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kernel density estimate from draws (2, n) on a grid."""
    try:
        density = gaussian_kde(thinned(points.T, MOST_DRAWS).T)
    except np.linalg.LinAlgError as error:
        raise ValueError("x and y lie on a line: a two-dimensional density needs draws that vary in both") from error
    height: np.ndarray = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    return height
