"""Pictures of simulation-based calibration; they take Matplotlib axes and change no global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from .plots import ACCENT
from .ranks import Calibration

__all__ = ["coverage_panel", "ecdf_panel", "plot_sbc", "rank_panel"]

MOST_ROWS = 8
MOST_BINS = 20
LINE = "#123a5c"
SHADE = "0.87"


def ecdf_panel(ax: Axes, calibration: Calibration, name: str, *, level: float = 0.95) -> None:
    """Draw the distribution function of a statistic's ranks less the uniform one, with its simultaneous band.

    The line of an exact posterior stays within the band throughout with probability ``level``. Above 0 on the left and
    below on the right, ranks gather at both ends (draws too narrow); the reverse, in the middle (too wide).

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        name: a key of ``calibration.ranks``.
        level: of the band.

    Raises:
        ValueError: an unknown statistic, or a level that is not between 0 and 1.
    """
    band = calibration.band(level)
    difference = calibration.ecdf_difference(name)
    points = np.concatenate([[0.0], band.points, [1.0]])
    low, high = (np.pad(counts / band.n - band.points, 1) for counts in (band.lower, band.upper))
    ax.fill_between(points, low, high, color=SHADE, linewidth=0, zorder=0, label=f"{level:.0%} band")
    ax.axhline(0.0, color="0.6", linewidth=0.8, zorder=1)
    outside = bool(((difference < low[1:-1]) | (difference > high[1:-1])).any())
    ax.plot(points, np.pad(difference, 1), color=ACCENT if outside else LINE, linewidth=1.3, label=name)
    ax.set_xlim(0.0, 1.0)
    ax.set_xlabel("rank / (draws + 1)")
    ax.set_ylabel("ECDF difference")


def rank_panel(ax: Axes, calibration: Calibration, name: str, *, level: float = 0.99) -> None:
    """Draw the histogram of a statistic's ranks, with the interval in which each bar lies with probability ``level``.

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        name: a key of ``calibration.ranks``.
        level: of the interval of each bar by itself.

    Raises:
        ValueError: an unknown statistic.
    """
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
    ax.fill_between(edges / values, low, high, step="post", color=SHADE, linewidth=0)
    ax.bar(
        edges[:-1] / values,
        counts,
        np.diff(edges) / values,
        align="edge",
        color="#7ea6cc",
        edgecolor="white",
        alpha=0.8,
    )
    ax.axhline(n / bins, color="0.5", linewidth=0.8)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.15 * max(counts.max(), float(high.max())))
    ax.set_xlabel("rank / (draws + 1)")
    ax.set_ylabel("simulations")


def coverage_panel(ax: Axes, calibration: Calibration, names: Sequence[str]) -> None:
    """Draw the share of truths that regions of each probability hold, against that probability.

    On the diagonal the posterior is right; below it overconfident. The shade of the first statistic is the 95 %
    interval at each probability by itself.

    Args:
        ax: the axes to draw in.
        calibration: what :func:`~avbvi.sbc` returned.
        names: keys of ``calibration.ranks``.

    Raises:
        ValueError: no or unknown statistics.
    """
    if not names:
        raise ValueError("names must not be empty")
    levels = np.linspace(0.02, 0.98, 49).tolist()
    ax.plot([0.0, 1.0], [0.0, 1.0], color="0.6", linewidth=0.8, linestyle="--")
    for i, name in enumerate(names):
        rows = calibration.coverage(levels, [name])
        level = [row.level for row in rows]
        if i == 0:
            ax.fill_between(level, [r.low for r in rows], [r.high for r in rows], color=SHADE, linewidth=0, zorder=0)
        ax.plot(level, [row.share for row in rows], color=LINE if len(names) == 1 else None, linewidth=1.3, label=name)
    ax.set_xlim(0.0, 1.0)
    ax.set_ylim(0.0, 1.0)
    ax.set_xlabel("credibility")
    ax.set_ylabel("coverage")


def plot_sbc(calibration: Calibration, names: Sequence[str] | None = None, *, panel_size: float = 2.4) -> Figure:
    """One row per statistic: distribution function of the ranks with its band, histogram, expected coverage.

    Args:
        calibration: what :func:`~avbvi.sbc` returned.
        names: keys of ``calibration.ranks``; by default all, or the eight with the smallest p-values, worst first.
        panel_size: height of a panel in inches.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        ValueError: no or unknown statistics, or no simulation has ranks.
    """
    calibration.band()
    if names is None:
        names = list(calibration.ranks)
        if len(names) > MOST_ROWS:
            names = sorted(names, key=lambda name: calibration.p_values[name])[:MOST_ROWS]
    if not names:
        raise ValueError("names must not be empty")
    figure = Figure(figsize=(3.6 * panel_size, panel_size * len(names) + 0.3), layout="constrained", dpi=150)
    for row, name in zip(figure.subplots(len(names), 3, squeeze=False), names, strict=True):
        ecdf_panel(row[0], calibration, name)
        rank_panel(row[1], calibration, name)
        coverage_panel(row[2], calibration, [name])
        row[0].set_title(
            f"{name}  (adjusted p {calibration.adjusted_p_values[name]:.2g})", fontsize="medium", loc="left"
        )
        for ax in row:
            ax.tick_params(labelsize="small")
    return figure
