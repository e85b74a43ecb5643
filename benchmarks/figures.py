"""Figures from records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from avbvi.plots import style
from avbvi.plots.theme import LIGHT, LINES, MARKERS
from benchmarks.tables import CONTROLS, LABELS, Row, of, values

#: Those of avbvi.plots, told apart by colour-blind readers, and three more for boards of many methods, which are told
#: apart by their markers too; grey is left for references.
COLOURS = (*LIGHT.colours, "#56B4E9", "#E69F00", "#4D4D4D")
LEAST_KL = 1e-3
#: What pictures of standard normal latents in the plane show.
PLANE = 3.5


@style()
def methods(records: Sequence[Row], target: str) -> Figure:
    """One dot per seed: k-NN KL and the classifier's accuracy, methods as rows."""
    shown = [m for m in LABELS if of(records, target, m)]
    panels: tuple[tuple[str, str, Callable[[float], float]], ...] = (
        ("knn_kl_qp", "k-NN KL(q, p), 10,000 draws", lambda v: max(v, LEAST_KL)),
        ("c2st", "classifier accuracy - 1/2, 50,000 draws", lambda v: max(v - 0.5, LEAST_KL)),
    )
    fig = Figure(figsize=(9.0, 0.34 * len(shown) + 1.2), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, len(panels), sharey=True)
    for ax, (key, title, position) in zip(axes, panels, strict=True):
        for row, method in enumerate(shown):
            found = values(of(records, target, method), key)
            control = method in CONTROLS
            ax.plot(
                [position(v) for v in found],
                [row] * len(found),
                "s" if control else "o",
                color="0.55" if control else COLOURS[0],
                alpha=0.6,
                markersize=6,
            )
        ax.set_xscale("log")
        ax.set_xlim(0.8 * LEAST_KL, None)
        ax.set_xlabel(title)
        _plain(ax, "x")
    axes[0].set_yticks(range(len(shown)), [LABELS[m] for m in shown])
    axes[0].invert_yaxis()
    return fig


@style()
def curves(records: Sequence[Row], target: str, floor: Sequence[float] = ()) -> Figure:
    """k-NN KL along one run of each method, against iterations and against wall time; values below .001 at .001."""
    mine = [r for r in records if r["target"] == target and r.get("knn_kl_qp") is not None]
    shown = [m for m in LABELS if of(mine, target, m)]
    fig = Figure(figsize=(10.0, 4.6), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, 2, sharey=True)
    for ax, key, title in zip(axes, ("steps", "seconds"), ("iterations", "seconds on one core"), strict=True):
        for i, (colour, method) in enumerate(zip(COLOURS, shown, strict=False)):
            for seed in sorted({r["seed"] for r in of(mine, target, method)}):
                rows = sorted((r for r in of(mine, target, method) if r["seed"] == seed), key=lambda r: r["seconds"])
                rows = [r for r in rows if r[key]]
                ax.plot(
                    [r[key] for r in rows],
                    [max(r["knn_kl_qp"], LEAST_KL) for r in rows],
                    marker=MARKERS[i],
                    linestyle=LINES[i % len(LINES)],
                    markersize=4.5,
                    linewidth=1.4,
                    color=colour,
                    label=LABELS[method] if seed == 0 else None,
                )
        if floor:
            ax.axhspan(LEAST_KL, max(*floor, LEAST_KL), color="0.92", zorder=0, label="noise floor (exact draws)")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(title)
        _plain(ax, "both")
    axes[0].set_ylabel("k-NN KL(q, p), 10,000 draws")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return fig


@style()
def board(records: Sequence[Row], key: str, title: str, *, least: float, above: float = 0.0) -> Figure:
    """One panel per target, methods as rows, a dot per seed; the noise floor as a line."""
    targets = list(dict.fromkeys(r["target"] for r in records))
    shown = [m for m in LABELS if m not in CONTROLS and any(r["method"] == m for r in records)]
    columns = min(2 if len(targets) <= 4 else 3, len(targets))
    lines = -(-len(targets) // columns)
    fig = Figure(figsize=(3.4 * columns + 1.4, lines * (0.24 * len(shown) + 0.75)), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(lines, columns, sharey=True, sharex=True, squeeze=False)
    for ax, target in zip(axes.flat, targets, strict=False):
        for row, method in enumerate(shown):
            found = values([r for r in of(records, target, method) if "error" not in r], key)
            own = method in ("default", "avb-pure")
            marker, colour = ("D", COLOURS[1]) if own else ("o", COLOURS[0])
            ax.plot([max(v - above, least) for v in found], [row] * len(found), marker, color=colour, alpha=0.7)
            if of(records, target, method) and not found:
                ax.text(least, row, " failed", va="center", fontsize="x-small", color="0.4")
        floors = values(of(records, target, "floor"), key)
        if floors:
            ax.axvline(max(max(floors) - above, least), color="0.6", linestyle=":", linewidth=1.2)
        ax.set_xscale("log")
        ax.set_title(target.replace("_", " "), fontsize="small")
        _plain(ax, "x")
    for ax in axes.flat[len(targets) :]:
        ax.set_visible(False)
    axes[0, 0].set_yticks(range(len(shown)), [LABELS[m] for m in shown])
    axes[0, 0].invert_yaxis()
    for ax in axes.flat:
        ax.tick_params(labelsize="small")
    fig.supxlabel(title, fontsize="small")
    return fig


@style()
def planes(
    columns: Mapping[str, Mapping[str, Tensor]], titles: Mapping[str, str], per_line: int | None = None
) -> Figure:
    """Latents in the plane: a column per method, a row per law, draws (n, B, 2) coloured by datum.

    Args:
        columns: method -> law (such as "encoder") -> its draws; the first method has all laws, others may lack some.
        titles: how methods and laws read.
        per_line: methods side by side before the next ones go below; by default all.
    """
    laws = list(next(iter(columns.values())))
    methods = list(columns)
    across = per_line or len(methods)
    lines = [methods[i : i + across] for i in range(0, len(methods), across)]
    # Panels get smaller as there are more of them, so that the picture keeps its size on a page.
    side = 2.9 if len(lines) == 1 else 2.1
    fig = Figure(
        figsize=(side * across + 0.3, (side * len(laws) + 0.2) * len(lines)),
        layout="constrained",
    )
    FigureCanvasAgg(fig)
    axes = fig.subplots(len(lines) * len(laws), across, sharex=True, sharey=True, squeeze=False)
    for row, line in enumerate(lines):
        block = axes[row * len(laws) : (row + 1) * len(laws)]
        for place in range(across):
            _column(list(block[:, place]), columns[line[place]] if place < len(line) else {}, laws)
        for ax, method in zip(block[0], line, strict=False):
            ax.set_title(titles.get(method, method), fontsize="medium")
        for ax, law in zip(block[:, 0], laws, strict=True):
            ax.set_ylabel(titles.get(law, law))
    return fig


def _column(axes: Sequence[Axes], drawn: Mapping[str, Tensor], laws: Sequence[str]) -> None:
    """One method's panels; without frame where it has no such law, and empty where there is no method."""
    for ax, law in zip(axes, laws, strict=True):
        ax.set_aspect("equal")
        ax.set_xlim(-PLANE, PLANE)
        ax.set_ylim(-PLANE, PLANE)
        ax.spines[["top", "right"]].set_visible(False)
        if law not in drawn:
            ax.spines[["left", "bottom"]].set_visible(False)
            ax.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
            if drawn:
                ax.text(0.0, 0.0, "none", color="0.5", ha="center", va="center")
            continue
        for i, colour in zip(range(drawn[law].shape[1]), COLOURS, strict=False):
            x, y = drawn[law][:, i].double().unbind(-1)
            ax.plot(x, y, ".", color=colour, markersize=1.2, alpha=0.6, rasterized=True)


def _plain(ax: Axes, grid: Literal["both", "x", "y"]) -> None:
    ax.grid(axis=grid, which="major", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
