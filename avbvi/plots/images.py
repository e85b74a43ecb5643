"""Sheets of images: data, samples, reconstructions below what they reconstruct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..arguments import integer, positive_number
from .coordinates import finite
from .theme import drawing_on, new_figure, style

#: Pixels between images.
GAP = 1


def image_panel(ax: Axes, images: Any, *, columns: int | None = None, label: str | None = None) -> Axes:
    """Draw images in rows, in one picture. Grey levels are shown as ink: 1 is black on a light page, 0 the page.

    Args:
        ax: the axes to draw in.
        images: (n, height, width) or (n, channels, height, width) with 1 or 3 channels; values in [0, 1], others are
            clipped.
        columns: images in a row; by default about as many as there are rows.
        label: title of the panel.

    Returns:
        The axes, without ticks; the unit of their coordinates is one pixel.

    Raises:
        TypeError: ``ax`` is no axes, or ``columns`` no integer.
        ValueError: images of another shape, or none.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> ax = plots.image_panel(Figure().subplots(), torch.rand(12, 8, 8), columns=6)
        >>> ax.images[0].get_array().shape  # two rows of six images of 8 x 8 pixels, one pixel between them
        (17, 53)
    """
    pictures = _images("images", images)
    across = max(1, round(math.sqrt(len(pictures)))) if columns is None else integer("columns", columns, 1)
    return _drawn(ax, pictures, across, label)


def reconstruction_panel(
    ax: Axes, data: Any, reconstructions: Any, *, columns: int | None = None, label: str | None = None
) -> Axes:
    """Draw images in rows, below each row its reconstructions.

    Args:
        ax: the axes to draw in.
        data: (n, height, width) or (n, channels, height, width), values in [0, 1].
        reconstructions: of the same shape.
        columns: images in a row; by default all.
        label: title of the panel.

    Returns:
        The axes, as of :func:`image_panel`.

    Raises:
        TypeError: ``ax`` is no axes, or ``columns`` no integer.
        ValueError: images of another shape, none, or data and reconstructions that differ in shape.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> x = torch.rand(5, 8, 8)
        >>> ax = plots.reconstruction_panel(Figure().subplots(), x, x.round(), label="data, and rounded")
        >>> ax.images[0].get_array().shape
        (17, 44)
    """
    above, below = _images("data", data), _images("reconstructions", reconstructions)
    if above.shape != below.shape:
        raise ValueError(f"data and reconstructions must have the same shape, found {above.shape} and {below.shape}")
    across = len(above) if columns is None else integer("columns", columns, 1)
    rows = []
    for first in range(0, len(above), across):
        for pictures in (above, below):
            row = pictures[first : first + across]
            rest = np.full((across - len(row), *row.shape[1:]), np.nan)
            rows.append(np.concatenate([row, rest]))
    return _drawn(ax, np.concatenate(rows), across, label)


def image_grid(
    sheets: Mapping[str, Any], *, columns: int | None = None, image_size: float = 0.45, dark: bool = False
) -> Figure:
    """Sheets of images below each other, each with its title.

    Args:
        sheets: title -> images (n, height, width) or (n, channels, height, width), values in [0, 1].
        columns: images in a row; by default all of the first sheet, at most 12.
        image_size: width of an image in inches.
        dark: light ink on a dark page.

    Returns:
        A figure without a window; ``figure.savefig(path)`` writes it.

    Raises:
        TypeError: ``columns`` or ``image_size`` is no number.
        ValueError: no sheets, or images of another shape.

    Example:
        >>> import torch
        >>> from avbvi import plots
        >>> figure = plots.image_grid({"data": torch.rand(10, 3, 8, 8), "samples": torch.rand(20, 3, 8, 8)})
        >>> [ax.get_title() for ax in figure.axes]
        ['data', 'samples']
    """
    if not sheets:
        raise ValueError("sheets must not be empty")
    pictures = {title: _images(f"sheets[{title!r}]", images) for title, images in sheets.items()}
    across = min(12, len(next(iter(pictures.values())))) if columns is None else integer("columns", columns, 1)
    size = positive_number("image_size", image_size)
    lines = [-(-len(each) // across) * each.shape[-2] / each.shape[-1] for each in pictures.values()]
    with style(dark=dark):
        figure = new_figure(size * across + 0.2, sum(size * line + 0.3 for line in lines))
        axes = figure.subplots(len(pictures), 1, squeeze=False, height_ratios=lines)[:, 0]
        for ax, (title, each) in zip(axes, pictures.items(), strict=True):
            image_panel(ax, each, columns=across, label=title)
    return figure


def _drawn(ax: Axes, pictures: np.ndarray, across: int, label: str | None) -> Axes:
    """Images (n, channels, height, width) in rows of ``across``, blank where they are NaN."""
    with drawing_on(ax) as theme:
        sheet = _tiled(pictures, across)
        if sheet.ndim == 2:
            ax.imshow(np.ma.masked_invalid(sheet), cmap=theme.image, vmin=0.0, vmax=1.0, interpolation="nearest")
        else:
            blank = np.isnan(sheet).any(-1, keepdims=True)
            ax.imshow(
                np.concatenate([np.nan_to_num(sheet), 1.0 - blank], -1), interpolation="nearest"
            )  # transparent between the images
        ax.set_axis_off()
        if label is not None:
            ax.set_title(label)
    return ax


def _images(name: str, images: Any) -> np.ndarray:
    """Images (n, channels, height, width), clipped to [0, 1].

    Raises:
        ValueError: another shape, or none.
    """
    pictures = finite(name, images)
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not pictures.size:
        raise ValueError(
            f"{name} must have shape (n, height, width) or (n, channels, height, width) with 1 or 3 channels and hold "
            f"at least one, found {np.shape(images)}"
        )
    return np.clip(pictures, 0.0, 1.0)


def _tiled(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Images (n, channels, height, width) as one: (height, width), or (height, width, 3) of colours; NaN between."""
    n, channels, height, width = pictures.shape
    lines = -(-n // columns)
    cells = np.full((lines * columns, channels, height + GAP, width + GAP), np.nan)
    cells[:n, :, :height, :width] = pictures
    sheet = cells.reshape(lines, columns, channels, height + GAP, width + GAP).transpose(2, 0, 3, 1, 4)
    sheet = sheet.reshape(channels, lines * (height + GAP), columns * (width + GAP))[:, :-GAP, :-GAP]
    return sheet[0] if channels == 1 else sheet.transpose(1, 2, 0)
