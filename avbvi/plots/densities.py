"""Pictures of functions of two variables: densities, filled, and functions with a sign, such as log-ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from torch import Tensor

from .coordinates import Limits, array, finite, grid, thinned
from .theme import drawing_on

MOST_DOTS = 5000
GRID = 128
#: Levels of a function with a sign, zero among them.
LEVELS = 16


def density_panel(
    ax: Axes,
    log_prob: Callable[[Tensor], Tensor],
    limits: Limits,
    *,
    draws: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw exp(log density) of a two-dimensional density, and draws on top of it.

    Args:
        ax: the axes to draw in.
        log_prob: (n, 2) -> (n,), normalised or not.
        limits: (x from, x to, y from, y to).
        draws: points (n, 2) to be shown as dots, at most 5000.
        label: title of the panel.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes.
        ValueError: ``log_prob`` returns another shape or is finite nowhere within the limits, or ``draws``
            has another shape.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> ax = plots.density_panel(
        ...     Figure().subplots(), lambda z: -z.square().sum(-1), (-3.0, 3.0, -3.0, 3.0), draws=torch.randn(200, 2)
        ... )
        >>> ax.get_xlim() == (-3.0, 3.0)
        True
    """
    with drawing_on(ax) as theme:
        x, y = grid(limits, GRID)
        height = _values("log_prob", log_prob, x, y)
        top = height[np.isfinite(height)].max(initial=-np.inf)
        if not np.isfinite(top):
            raise ValueError(f"log_prob is finite nowhere within limits={limits}")
        darkest = 1.05 if draws is None else 1.8
        filled(ax, x, y, np.nan_to_num(np.exp(height - top)), theme.densities, darkest=darkest)
        if draws is not None:
            dots(ax, draws, theme.accent)
        if label is not None:
            ax.set_title(label)
    return ax


def function_panel(
    ax: Axes,
    function: Callable[[Tensor], Tensor],
    limits: Limits,
    *,
    bound: float | None = None,
    draws: Any = None,
    label: str | None = None,
    bar: str | None = None,
) -> Axes:
    """Draw a function of two variables that has a sign, with the contour of zero: a log-ratio, say.

    Colour and shade tell sign and size; contours of negative values are dashed.

    Args:
        ax: the axes to draw in.
        function: (n, 2) -> (n,).
        limits: (x from, x to, y from, y to).
        bound: the size from which on the colour no longer changes; by default the largest within the limits that is
            finite.
        draws: points (n, 2) to be shown as dots, at most 5000.
        label: title of the panel.
        bar: label of a colour bar beside the axes, with the unit; ``None`` for no bar.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes.
        ValueError: ``function`` returns another shape or is finite nowhere within the limits, ``bound`` is not
            positive, or ``draws`` has another shape.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> figure = Figure()
        >>> ax = plots.function_panel(
        ...     figure.subplots(), lambda z: z[:, 0] - z[:, 1].square(), (-3.0, 3.0, -3.0, 3.0), bar="log-ratio (nats)"
        ... )
        >>> len(figure.axes)  # the panel and its bar
        2
    """
    with drawing_on(ax):
        x, y = grid(limits, GRID)
        signed(ax, x, y, _values("function", function, x, y), bound=bound, bar=bar)
        if draws is not None:
            dots(ax, draws)
        if label is not None:
            ax.set_title(label)
    return ax


def filled(
    ax: Axes, x: np.ndarray, y: np.ndarray, height: np.ndarray, colours: Colormap, *, darkest: float = 1.05
) -> None:
    """Filled contours of a non-negative function on a grid, the page where it is less than 4 % of its maximum.

    ``darkest`` is the height, relative to the maximum, that would be drawn in the map's last colour.
    """
    top = float(height.max())
    if top > 0.0:
        levels = top * np.linspace(0.04, 1.0, 13)
        ax.contourf(x, y, height, levels=levels, cmap=colours, vmin=-0.1 * top, vmax=darkest * top)
    _frame(ax, x, y)


def signed(
    ax: Axes, x: np.ndarray, y: np.ndarray, height: np.ndarray, *, bound: float | None = None, bar: str | None = None
) -> None:
    """Filled contours of a function with a sign on a grid, symmetric about zero; what is not finite stays blank.

    Raises:
        ValueError: it is finite nowhere, or ``bound`` is not positive.
    """
    finite = height[np.isfinite(height)]
    if not len(finite):
        raise ValueError("the function is finite nowhere within the limits")
    if bound is not None and not bound > 0.0:
        raise ValueError(f"bound must be positive, found {bound}")
    top = float(np.abs(finite).max()) if bound is None else bound
    top = top or 1.0
    levels = np.linspace(-top, top, 2 * LEVELS + 1)
    with drawing_on(ax) as theme:
        shown = np.ma.masked_invalid(height)
        regions = ax.contourf(x, y, shown, levels=levels, cmap=theme.ratios, extend="both")
        if finite.min() < finite.max():
            lines = [level for level in levels[::4] if level and finite.min() < level < finite.max()]
            if lines:
                ax.contour(
                    x, y, shown, levels=lines, colors=theme.text, linewidths=0.5, alpha=0.55,
                    linestyles=["--" if level < 0.0 else "-" for level in lines],
                )  # fmt: skip
            if finite.min() < 0.0 < finite.max():
                ax.contour(x, y, shown, levels=[0.0], colors=theme.text, linewidths=1.4)
        if bar is not None:
            figure = ax.get_figure()
            assert figure is not None
            colour_bar = figure.colorbar(regions, ax=ax, ticks=levels[:: LEVELS // 2], format="%.3g")
            colour_bar.set_label(bar)
            colour_bar.outline.set_visible(False)
    _frame(ax, x, y)


def dots(ax: Axes, draws: Any, colour: str | None = None) -> None:
    """Draws (n, 2) as dots, at most 5000.

    Raises:
        ValueError: ``draws`` has another shape.
    """
    points = finite("draws", draws)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"draws must have shape (n, 2), found {tuple(points.shape)}")
    points = thinned(points, MOST_DOTS)
    with drawing_on(ax) as theme:
        ax.scatter(points[:, 0], points[:, 1], s=3, color=colour or theme.text, alpha=0.5, linewidths=0, zorder=3)


def _values(name: str, function: Callable[[Tensor], Tensor], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The function's values on a grid.

    Raises:
        ValueError: it returns another shape.
    """
    points = torch.as_tensor(np.stack([x.ravel(), y.ravel()], -1), dtype=torch.get_default_dtype())
    with torch.no_grad():
        value = function(points)
    if value.shape != (x.size,):
        raise ValueError(f"{name} must map ({x.size}, 2) to ({x.size},), found {tuple(value.shape)}")
    return array(value).reshape(x.shape)


def _frame(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    ax.set_xlim(float(x.min()), float(x.max()))
    ax.set_ylim(float(y.min()), float(y.max()))
