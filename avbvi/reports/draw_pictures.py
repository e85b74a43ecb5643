"""Pictures of the draws: marginals, pairs, and what a short HMC changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..diagnostics import limits
from ..plots.draws import share_levels
from .blocks import Picture, number
from .coordinates import Coordinates
from .drawing import Scheme, bare, kernel_density, label, picture, window

#: Coordinates in the picture of marginals, in that of pairs, and in that of changes.
MARGINALS, PAIRS, CHANGES = 6, 4, 20
#: Contours of a density: these shares of the draws lie within.
SHARES = (0.95, 0.8, 0.5, 0.2)
#: Points along an axis of a two-dimensional density.
GRID = 44


def _sets(coordinates: Coordinates) -> tuple[np.ndarray, np.ndarray | None, int]:
    """The guide's draws (or the posterior's), those after HMC, and how many coordinates have both."""
    if coordinates.before is None or coordinates.after is None:
        return coordinates.draws.numpy().astype(float), None, coordinates.draws.shape[1]
    before, after = (x.numpy().astype(float) for x in (coordinates.before, coordinates.after))
    return before, after, before.shape[1]


def worst(coordinates: Coordinates, count: int) -> list[int]:
    """The worst coordinates that there are pictures of, in the order of the table."""
    _, _, known = _sets(coordinates)
    return sorted([i for i in coordinates.order if i < known][:count])


def marginals(coordinates: Coordinates) -> Picture:
    """Marginal densities of the worst coordinates, before and after HMC."""
    x, y, _ = _sets(coordinates)
    chosen = worst(coordinates, MARGINALS)
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    windows = [window(x[:, i], None if y is None else y[:, i]) for i in chosen]
    grids = [np.linspace(*w, 160) for w in windows]
    densities = [kernel_density(x[:, i], grid) for i, grid in zip(chosen, grids, strict=True)]
    after = [None if y is None else kernel_density(y[:, i], grid) for i, grid in zip(chosen, grids, strict=True)]

    def draw(figure: Figure, scheme: Scheme) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, i, grid, density, moved in zip(axes, chosen, grids, densities, after, strict=False):
            if density is not None:
                ax.fill_between(grid, density, color=scheme.fit, alpha=0.45, linewidth=0, label="the fit")
                ax.plot(grid, density, color=scheme.fit, linewidth=1.2)
            if moved is not None:
                ax.plot(grid, moved, color=scheme.reference, linewidth=1.4, linestyle=(0, (4, 1.5)), label="after HMC")
            ax.set_xlim(grid[0], grid[-1])
            ax.set_ylim(bottom=0.0)
            ax.set_xlabel(label(coordinates.names[i]))
            bare(ax)
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        handles, names = axes[0].get_legend_handles_labels()
        if y is not None and handles:
            figure.legend(handles, names, loc="outside upper left", ncols=2)

    shown = ", ".join(coordinates.names[i] for i in chosen)
    compared = "" if y is None else " before (filled) and after (dashed) a short HMC"
    return picture(
        draw,
        (2.25 * columns + 0.1, 1.65 * rows + 0.4),
        f"Marginal densities of {shown}{compared}.",
        f"Marginal densities{compared}, of {_which(coordinates, chosen)}.",
    )


def _which(coordinates: Coordinates, chosen: Sequence[int]) -> str:
    if len(chosen) == coordinates.total:
        return "all coordinates"
    by = "the most skewed" if coordinates.before is None else "those that HMC changes most"
    return f"{len(chosen)} of {coordinates.total} coordinates, {by}"


def pairs(coordinates: Coordinates) -> Picture | None:
    """Densities of the pairs of the worst coordinates, before and after HMC; ``None`` for a single coordinate."""
    x, y, _ = _sets(coordinates)
    chosen = worst(coordinates, PAIRS)
    k = len(chosen)
    if k < 2:
        return None
    windows = {i: window(x[:, i], None if y is None else y[:, i]) for i in chosen}
    panels = {
        (across, up): _panel(x, y, across, up, windows)
        for row, up in enumerate(chosen[1:])
        for across in chosen[: row + 1]
    }

    def draw(figure: Figure, scheme: Scheme) -> None:
        axes = figure.subplots(k - 1, k - 1, squeeze=False, sharex="col", sharey="row")
        for row, up in enumerate(chosen[1:]):
            for column, across in enumerate(chosen[:-1]):
                ax = axes[row, column]
                if column > row:
                    ax.set_axis_off()
                    continue
                _pair(ax, scheme, *panels[across, up])
                ax.set_xlim(*windows[across])
                ax.set_ylim(*windows[up])
                if row == k - 2:
                    ax.set_xlabel(label(coordinates.names[across], 16))
                if column == 0:
                    ax.set_ylabel(label(coordinates.names[up], 16))

    shown = ", ".join(coordinates.names[i] for i in chosen)
    after = "" if y is None else "; dashed, the same density levels of the draws after a short HMC"
    return picture(
        draw,
        (2.1 * (k - 1) + 0.5, 2.0 * (k - 1) + 0.4),
        f"Two-dimensional densities of the fit's draws for each pair of {shown}{after}.",
        f"Pairs: the fit's density, filled where 95, 80, 50 and 20 % of the draws lie{after}.",
    )


#: Coordinates of a grid, and the density of the fit and that after HMC on it.
Panel = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]


def _panel(x: np.ndarray, y: np.ndarray | None, across: int, up: int, windows: dict[int, tuple[float, float]]) -> Panel:
    """Densities of a pair of coordinates on a grid."""
    grid_x, grid_y = np.meshgrid(np.linspace(*windows[across], GRID), np.linspace(*windows[up], GRID))
    at = np.stack([grid_x.ravel(), grid_y.ravel()])
    found = [None if s is None else kernel_density(s[:, [across, up]].T, at) for s in (x, y)]
    fit, moved = (None if height is None else height.reshape(grid_x.shape) for height in found)
    return grid_x, grid_y, fit, moved


def _pair(
    ax: Axes, scheme: Scheme, grid_x: np.ndarray, grid_y: np.ndarray, fit: np.ndarray | None, moved: np.ndarray | None
) -> None:
    levels = None if fit is None else _levels(fit)
    if fit is not None and levels is not None:
        colours = scheme.densities(np.linspace(0.2, 0.8, len(levels)))
        ax.contourf(grid_x, grid_y, fit, levels=[*levels, fit.max() * 1.01], colors=colours)
    levels = None if moved is None else _levels(moved)
    if moved is not None and levels is not None:
        ax.contour(
            grid_x, grid_y, moved, levels=levels[:3], colors=scheme.reference, linewidths=1.0, linestyles="dashed"
        )


def _levels(height: np.ndarray) -> list[float] | None:
    """Heights of a density on a grid above which the shares lie, rising; ``None`` where they are not apart."""
    if not height.sum() > 0.0:
        return None
    found = share_levels(height, SHARES)
    return found if len(found) == len(SHARES) and found[-1] < height.max() else None


def changes(coordinates: Coordinates) -> Picture | None:
    """By how much a short HMC changes mean and standard deviation of each coordinate."""
    if coordinates.changes is None or not len(coordinates.changes):
        return None
    chosen = worst(coordinates, CHANGES)
    found = coordinates.changes.double().numpy()[chosen]

    def draw(figure: Figure, scheme: Scheme) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        place = np.arange(len(chosen))
        spread = np.log(found[:, 2])
        for ax, value, error, limit, text in (
            (left, found[:, 0], found[:, 1], limits.MEAN_SHIFT, "shift of the mean (sd)"),
            (right, spread, found[:, 3] / found[:, 2], math.log(limits.SD_RATIO[1]), "change of the log sd"),
        ):
            ax.axvspan(-limit, limit, color=scheme.shade, zorder=0, linewidth=0)
            ax.axvline(0.0, color=scheme.faint, linewidth=0.8)
            ax.errorbar(value, place, xerr=2.0 * error, fmt="o", markersize=4, color=scheme.fit_strong, elinewidth=1.2)
            reach = max(1.25 * limit, float(np.nanmax(np.abs(value) + 2.0 * error)) * 1.1)
            ax.set_xlim(-reach, reach)
            ax.set_xlabel(text)
        left.set_yticks(place, [label(coordinates.names[i], 18) for i in chosen])
        left.set_ylim(len(chosen) - 0.5, -0.5)

    largest = max(range(len(chosen)), key=lambda i: abs(found[i, 0]))
    size = float(found[largest, 0])
    return picture(
        draw,
        (6.8, 0.24 * len(chosen) + 0.7),
        f"What a short HMC changes, by coordinate: the largest shift of a mean, {number(size, 2)} sd, "
        f"is that of {coordinates.names[chosen[largest]]}.",
        "Change of mean and standard deviation by a short HMC, with two standard errors, for "
        f"{_which(coordinates, chosen)}. A good fit lies within the shaded limits of the verdict.",
    )
