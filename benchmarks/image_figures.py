"""Sheets of pictures: data with their reconstructions, samples, interpolations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

Shape = tuple[int, int, int]


def tiled(pictures: Tensor, shape: Shape, columns: int, gap: int = 1) -> Tensor:
    """Pictures in rows, as one: (height, width), or (height, width, 3) for colours.

    Args:
        pictures: (n, pixels), values in [0, 1]; a last row that is not full is filled up with white.
        shape: (channels, height, width) of each.
        columns: pictures in a row.
        gap: white pixels between them.
    """
    channels, height, width = shape
    lines = -(-len(pictures) // columns)
    cells = torch.ones(lines * columns, channels, height + gap, width + gap)
    cells[: len(pictures), :, :height, :width] = 1.0 - pictures.reshape(-1, *shape)
    if channels > 1:
        cells[: len(pictures), :, :height, :width] = pictures.reshape(-1, *shape)
    grid = cells.unflatten(0, (lines, columns)).permute(2, 0, 3, 1, 4).reshape(channels, lines * (height + gap), -1)
    grid = grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap]
    return grid[0] if channels == 1 else grid.permute(1, 2, 0)


def sheet(pictures: Mapping[str, Tensor], shape: Shape) -> Figure:
    """Data above their reconstructions, samples from the prior, and interpolations between encodings.

    Grey levels are shown as ink: 1 is black.

    Args:
        pictures: "samples" (m, pixels) and "interpolations" (lines, columns, pixels); of a model with an encoder also
            "data" and "reconstructions" (n, pixels).
        shape: (channels, height, width) of each.
    """
    lines = pictures["interpolations"]
    panels = {}
    # Without reconstructions the rows are as long as where there are as many lines.
    columns = 2 * len(lines)
    if "data" in pictures:
        columns = len(pictures["data"])
        both = torch.cat([pictures["data"], pictures["reconstructions"]])
        panels["data (above), reconstructions"] = tiled(both, shape, columns)
    panels["samples"] = tiled(pictures["samples"], shape, columns)
    panels["interpolations"] = tiled(lines.flatten(0, 1), shape, lines.shape[1])
    heights = [panel.shape[0] / panel.shape[1] for panel in panels.values()]
    fig = Figure(figsize=(5.0, 5.0 * sum(heights) + 1.0), layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(len(panels), 1, height_ratios=heights)
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        ax.imshow(panel.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        ax.set_title(title, fontsize="small")
        ax.set_axis_off()
    return fig


def rows(pictures: Mapping[str, Tensor], shape: Shape) -> Figure:
    """A row of pictures for each name, grey levels as ink.

    Args:
        pictures: by name, (n, pixels), as many in each row.
        shape: (channels, height, width) of each.
    """
    panels = {name: tiled(each.clamp(0.0, 1.0), shape, len(each)) for name, each in pictures.items()}
    columns = max(len(each) for each in pictures.values())
    # Room for the names by their length: a layout that is solved for leaves out labels beside axes of fixed aspect.
    room = 0.3 + 0.065 * max(len(name) for name in panels)
    width = room + 0.3 * columns
    fig = Figure(figsize=(width, 0.36 * len(panels) + 0.1))
    FigureCanvasAgg(fig)
    axes = fig.subplots(len(panels), 1, squeeze=False)[:, 0]
    fig.subplots_adjust(left=room / width, right=0.995, bottom=0.01, top=0.99)
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        ax.imshow(panel.numpy(), cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="x-small")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    return fig
