"""Pictures of simulation-based calibration: ranks, their histogram, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from ..arguments import instance
from ..ranks import Calibration
from .theme import LINES, drawing_on, new_figure, style

MOST_ROWS = 8
MOST_BINS = 20


def ecdf_panel(ax: Axes, calibration: Calibration, name: str, *, level: float = 0.95) -> Axes:
    """Draw the distribution function of a statistic's ranks less the uniform one, with its simultaneous band.

    The line of an exact posterior stays within the band throughout with probability ``level``. Above 0 on the left and
    below on the right, ranks gather at both ends (draws too narrow); the reverse, in the middle (too wide).

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        name: a key of ``calibration.ranks``.
        level: of the band.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``calibration`` no study.
        ValueError: an unknown statistic, or a level that is not between 0 and 1.
    """
    _check(calibration)
    band = calibration.band(level)
    difference = calibration.ecdf_difference(name)
    points = np.concatenate([[0.0], band.points, [1.0]])
    low, high = (np.pad(counts / band.n - band.points, 1) for counts in (band.lower, band.upper))
    outside = bool(((difference < low[1:-1]) | (difference > high[1:-1])).any())
    with drawing_on(ax) as theme:
        ax.fill_between(points, low, high, color=theme.shade, linewidth=0, zorder=0, label=f"{level:.0%} band")
        ax.axhline(0.0, color=theme.muted, linewidth=0.8, zorder=1)
        ax.plot(
            points,
            np.pad(difference, 1),
            color=theme.accent if outside else theme.main,
            linestyle="--" if outside else "-",
            linewidth=1.3,
            label=f"{name} (leaves it)" if outside else name,
        )
        ax.set_xlim(0.0, 1.0)
        ax.set_xlabel("rank / (draws + 1)")
        ax.set_ylabel("ECDF difference")
    return ax


def rank_panel(ax: Axes, calibration: Calibration, name: str, *, level: float = 0.99) -> Axes:
    """Draw the histogram of a statistic's ranks, with the interval in which each bar lies with probability ``level``.

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        name: a key of ``calibration.ranks``.
        level: of the interval of each bar by itself.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``calibration`` no study.
        ValueError: an unknown statistic.
    """
    _check(calibration)
    n = calibration.band().n
    values = calibration.draws + 1
    bins = min(values, int(np.clip(n // 10, 5, MOST_BINS)))
    # Whole numbers of ranks in each bin; where these differ, so do the expected heights.
    edges = np.arange(bins + 1) * values // bins
    if name not in calibration.ranks:
        raise ValueError(f"there is no statistic {name!r}; there are {list(calibration.ranks)}")
    counts, _ = np.histogram(calibration.ranks[name].numpy(), bins=edges - 0.5)
    low, high = (binom.ppf(q, n, np.diff(edges) / values) for q in (0.5 - 0.5 * level, 0.5 + 0.5 * level))
    # A step needs its last height twice, at both ends of the last bin.
    low, high = np.append(low, low[-1]), np.append(high, high[-1])
    with drawing_on(ax) as theme:
        ax.fill_between(edges / values, low, high, step="post", color=theme.shade, linewidth=0)
        ax.bar(
            edges[:-1] / values,
            counts,
            np.diff(edges) / values,
            align="edge",
            color=theme.main,
            edgecolor=theme.page,
            alpha=0.6,
        )
        ax.axhline(n / bins, color=theme.muted, linewidth=0.8)
        ax.set_xlim(0.0, 1.0)
        ax.set_ylim(0.0, 1.15 * max(counts.max(), float(high.max())))
        ax.set_xlabel("rank / (draws + 1)")
        ax.set_ylabel("simulations")
    return ax


def coverage_panel(ax: Axes, calibration: Calibration, names: Sequence[str]) -> Axes:
    """Draw the share of truths that regions of each probability hold, against that probability.

    On the diagonal the posterior is right; below it overconfident. The shade of the first statistic is the 95 %
    interval at each probability by itself.

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        names: keys of ``calibration.ranks``.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``calibration`` no study.
        ValueError: no or unknown statistics.
    """
    _check(calibration)
    if not names:
        raise ValueError("names must not be empty")
    levels = np.linspace(0.02, 0.98, 49).tolist()
    with drawing_on(ax) as theme:
        ax.plot([0.0, 1.0], [0.0, 1.0], color=theme.muted, linewidth=0.8, linestyle="--")
        for i, name in enumerate(names):
            rows = calibration.coverage(levels, [name])
            level = [row.level for row in rows]
            if i == 0:
                low, high = [row.low for row in rows], [row.high for row in rows]
                ax.fill_between(level, low, high, color=theme.shade, linewidth=0, zorder=0)
            ax.plot(
                level,
                [row.share for row in rows],
                color=theme.colours[i % len(theme.colours)],
                linestyle=LINES[i % len(LINES)],
                linewidth=1.3,
                label=name,
            )
        ax.set_xlim(0.0, 1.0)
        ax.set_ylim(0.0, 1.0)
        ax.set_xlabel("credibility")
        ax.set_ylabel("coverage")
        if len(names) > 1:
            ax.legend()
    return ax


def plot_sbc(
    calibration: Calibration,
    names: Sequence[str] | None = None,
    *,
    panel_size: float = 2.4,
    dark: bool = False,
) -> Figure:
    """One row per statistic: distribution function of the ranks with its band, histogram, expected coverage.

    Args:
        calibration: what :func:`~avbvi.sbc` returned.
        names: keys of ``calibration.ranks``; by default all, or the eight with the smallest p-values, worst first.
        panel_size: height of a panel in inches.
        dark: light ink on a dark page.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: ``calibration`` is no study.
        ValueError: no or unknown statistics, or no simulation has ranks.
    """
    _check(calibration)
    calibration.band()
    if names is None:
        names = list(calibration.ranks)
        if len(names) > MOST_ROWS:
            names = sorted(names, key=lambda name: calibration.p_values[name])[:MOST_ROWS]
    if not names:
        raise ValueError("names must not be empty")
    with style(dark=dark):
        figure = new_figure(3.6 * panel_size, panel_size * len(names) + 0.3)
        for row, name in zip(figure.subplots(len(names), 3, squeeze=False), names, strict=True):
            ecdf_panel(row[0], calibration, name)
            rank_panel(row[1], calibration, name)
            coverage_panel(row[2], calibration, [name])
            row[0].set_title(f"{name}  (adjusted p {calibration.adjusted_p_values[name]:.2g})", loc="left")
    return figure


def _check(calibration: Any) -> None:
    instance("calibration", calibration, Calibration, "what avbvi.sbc returned")
