"""Pictures of draws, densities and training; they take Matplotlib axes and change no global state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde
from torch import Tensor

if TYPE_CHECKING:
    from .posterior import Posterior

__all__ = ["density_panel", "kde_grid", "kde_panel", "training_curve"]

#: A scalar of a draw: a site's name, or the name and the index of one of its elements.
Coordinate = str | tuple[str, int]
#: x from, x to, y from, y to.
Limits = tuple[float, float, float, float]

MOST_DRAWS = 5000
GRID = 64
COLOURS = "Blues"
ACCENT = "#b3560e"


def kde_panel(ax: Axes, x: Any, y: Any, *, limits: Limits | None = None, label: str | None = None) -> None:
    """Draw a filled two-dimensional kernel density estimate, dark where draws are dense.

    Args:
        ax: the axes to draw in.
        x, y: draws (n,), tensors or arrays; at most 5000, evenly spaced, are used.
        limits: (x from, x to, y from, y to); by default the central 99 % of the draws and a margin.
        label: title of the panel.

    Raises:
        ValueError: x and y differ in shape, are not one-dimensional, are fewer than 3, or lie on a line.
    """
    points = np.stack([_array(x), _array(y)])
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"x and y must have shape (n,) with n >= 3, found {tuple(points.shape[1:])}")
    x_from, x_to, y_from, y_to = limits or _limits([points])
    thinned = points[:, :: -(-points.shape[1] // MOST_DRAWS)]
    try:
        density = gaussian_kde(thinned)
    except np.linalg.LinAlgError as error:
        raise ValueError("x and y lie on a line: a two-dimensional density needs draws that vary in both") from error
    grid_x, grid_y = np.meshgrid(np.linspace(x_from, x_to, GRID), np.linspace(y_from, y_to, GRID))
    height = density(np.stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    _fill(ax, grid_x, grid_y, height)
    if label is not None:
        ax.set_title(label, fontsize="medium")


def kde_grid(
    columns: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[tuple[Coordinate, Coordinate]] = (("mu", "tau"), ("tau", ("eta", 0))),
    *,
    limits: Sequence[Limits | None] | None = None,
    panel_size: float = 2.2,
) -> Figure:
    """Compare several sets of draws: one row per pair of coordinates, one column per set, shared limits per row.

    Args:
        columns: title -> draws {site: (n, *shape)}, tensors or arrays.
        pairs: for each row its horizontal and vertical coordinate: a site's name, or (name, index) for one
            element of a vector.
        limits: for each row (x from, x to, y from, y to), or ``None`` for limits that suit all columns.
        panel_size: width and height of a panel in inches.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: no columns or pairs, not one entry of ``limits`` per pair, or a coordinate that is no scalar.
        KeyError: a set of draws lacks a site.
    """
    if not columns or not pairs:
        raise ValueError("columns and pairs must not be empty")
    if limits is not None and len(limits) != len(pairs):
        raise ValueError(f"limits must have one entry per pair ({len(pairs)}), found {len(limits)}")
    figure = Figure(
        figsize=(panel_size * len(columns) + 0.6, panel_size * len(pairs) + 0.5), layout="constrained", dpi=150
    )
    axes = figure.subplots(len(pairs), len(columns), squeeze=False, sharex="row", sharey="row")
    for row, (across, up) in enumerate(pairs):
        points = [np.stack([_coordinate(draws, across), _coordinate(draws, up)]) for draws in columns.values()]
        window = (limits[row] if limits is not None else None) or _limits(points)
        for column, (title, xy) in enumerate(zip(columns, points, strict=True)):
            ax = axes[row, column]
            kde_panel(ax, xy[0], xy[1], limits=window, label=title if row == 0 else None)
            ax.set_xlabel(_name(across))
            ax.tick_params(labelsize="small")
        axes[row, 0].set_ylabel(_name(up))
    return figure


def density_panel(
    ax: Axes,
    log_prob: Callable[[Tensor], Tensor],
    limits: Limits,
    *,
    draws: Any = None,
    label: str | None = None,
) -> None:
    """Draw exp(log density) of a two-dimensional density, and draws on top of it.

    Args:
        ax: the axes to draw in.
        log_prob: (n, 2) -> (n,), normalised or not.
        limits: (x from, x to, y from, y to).
        draws: points (n, 2) to be shown as dots, at most 5000.
        label: title of the panel.

    Raises:
        ValueError: ``log_prob`` returns another shape or is finite nowhere within the limits, or ``draws``
            has another shape.
    """
    x_from, x_to, y_from, y_to = limits
    n = 2 * GRID
    grid_x, grid_y = np.meshgrid(np.linspace(x_from, x_to, n), np.linspace(y_from, y_to, n))
    points = torch.as_tensor(np.stack([grid_x.ravel(), grid_y.ravel()], -1), dtype=torch.get_default_dtype())
    with torch.no_grad():
        value = log_prob(points)
    if value.shape != (n * n,):
        raise ValueError(f"log_prob must map ({n * n}, 2) to ({n * n},), found {tuple(value.shape)}")
    height = _array(value).reshape(grid_x.shape)
    top = height[np.isfinite(height)].max(initial=-np.inf)
    if not np.isfinite(top):
        raise ValueError(f"log_prob is finite nowhere within limits={limits}")
    _fill(ax, grid_x, grid_y, np.nan_to_num(np.exp(height - top)), darkest=1.05 if draws is None else 1.8)
    if draws is not None:
        dots = _array(draws)
        if dots.ndim != 2 or dots.shape[1] != 2:
            raise ValueError(f"draws must have shape (n, 2), found {tuple(dots.shape)}")
        dots = dots[:: max(1, -(-len(dots) // MOST_DRAWS))]
        ax.scatter(dots[:, 0], dots[:, 1], s=3, color=ACCENT, alpha=0.5, linewidths=0, zorder=3)
    if label is not None:
        ax.set_title(label, fontsize="medium")


def training_curve(ax: Axes, posterior: Posterior, *, log_evidence: float | None = None) -> None:
    """Draw the ELBO's estimates (nats) against the step, the adversarial stage shaded.

    The vertical range is that of the run's second half, so that the first steps do not hide the rest.

    Args:
        ax: the axes to draw in.
        posterior: what :func:`~avbvi.fit` returned.
        log_evidence: an exact log-evidence (nats) to be marked by a horizontal line.

    Raises:
        ValueError: the run recorded nothing (it had fewer than 10 steps).
    """
    history = posterior.run.history
    step, elbo = np.asarray(history["step"]), np.asarray(history["elbo"])
    if not len(step):
        raise ValueError("the run has no recorded steps; ELBOs are recorded every 10 steps")
    ax.plot(step, elbo, color="#2b6ca3", linewidth=0.8, alpha=0.45, label="one step")
    window = max(1, len(step) // 50)
    smooth = np.convolve(elbo, np.ones(window) / window, mode="valid")
    ax.plot(step[window - 1 :], smooth, color="#123a5c", linewidth=1.4, label="moving average")
    adversarial = step[np.asarray(history["stage"]) > 0]
    if len(adversarial):
        ax.axvspan(adversarial[0], adversarial[-1], color="0.9", zorder=0, linewidth=0, label="adversarial stage")
    shown = [elbo[len(elbo) // 2 :]]
    if log_evidence is not None:
        ax.axhline(log_evidence, color=ACCENT, linestyle="--", linewidth=1.2, label="exact log-evidence")
        shown.append(np.array([log_evidence]))
    finite = np.concatenate(shown)
    finite = finite[np.isfinite(finite)]
    if len(finite):
        low, high = finite.min(), finite.max()
        margin = 0.1 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
    ax.set_xlim(step[0], max(step[-1], step[0] + 1.0))
    ax.set_xlabel("step")
    ax.set_ylabel("ELBO estimate (nats)")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize="small", frameon=False)


def _fill(ax: Axes, x: np.ndarray, y: np.ndarray, height: np.ndarray, *, darkest: float = 1.05) -> None:
    """Filled contours of a non-negative function on a grid, white where it is less than 4 % of its maximum.

    ``darkest`` is the height, relative to the maximum, that would be drawn in the darkest colour.
    """
    top = float(height.max())
    if top > 0.0:
        levels = top * np.linspace(0.04, 1.0, 13)
        ax.contourf(x, y, height, levels=levels, cmap=COLOURS, vmin=-0.1 * top, vmax=darkest * top)
    ax.set_xlim(float(x.min()), float(x.max()))
    ax.set_ylim(float(y.min()), float(y.max()))


def _limits(points: Sequence[np.ndarray]) -> Limits:
    """A window that holds the central 99 % of each set of draws (2, n), with a margin."""
    low = np.min([np.quantile(p, 0.005, axis=1) for p in points], axis=0)
    high = np.max([np.quantile(p, 0.995, axis=1) for p in points], axis=0)
    margin = 0.08 * (high - low) + 1e-9
    (x_from, y_from), (x_to, y_to) = low - margin, high + margin
    return float(x_from), float(x_to), float(y_from), float(y_to)


def _coordinate(draws: Mapping[str, Any], which: Coordinate) -> np.ndarray:
    site = which if isinstance(which, str) else which[0]
    if site not in draws:
        raise KeyError(f"the draws have no site {site!r}; they have {sorted(draws)}")
    value = _array(draws[site])
    if not isinstance(which, str):
        value = value.reshape(len(value), -1)[:, which[1]]
    elif value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1:
        raise ValueError(f"site {site!r} has draws of shape {value.shape[1:]}; name one element: ({site!r}, 0)")
    return value


def _name(which: Coordinate) -> str:
    """Label of a coordinate, counted from 1 as formulas do: eta_1."""
    if not isinstance(which, str):
        return rf"{_symbol(which[0])}$_{{{which[1] + 1}}}$"
    return _symbol(which)


def _symbol(name: str) -> str:
    greek = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
    return rf"$\{name}$" if name in greek.split() else name


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)
