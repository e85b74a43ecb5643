"""Pictures of latents in the plane, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from ..arguments import flag
from .coordinates import finite, thinned
from .theme import MARKERS, Theme, drawing_on

MOST_DRAWS = 5000
#: The prior's contours hold these shares of its mass.
PRIOR_SHARES = (0.5, 0.95)


def latent_map(
    ax: Axes,
    latents: Any,
    classes: Any,
    *,
    names: Sequence[str] | None = None,
    prior: bool = True,
    label: str | None = None,
) -> Axes:
    """Draw two-dimensional latents by class, in colours and markers, each class named at its median.

    Args:
        ax: the axes to draw in.
        latents: draws of q(z | x), one or a few for each datum (n, 2) or (m, n, 2).
        classes: class of each datum (n,), integers or names.
        names: how the classes, in ascending order, read; by default as they are.
        prior: draw circles that hold 50 % and 95 % of the standard normal prior.
        label: title of the panel.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``prior`` no bool.
        ValueError: latents or classes of another shape, or not one name per class.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> z, digits = torch.randn(100, 2), torch.arange(100) % 10
        >>> ax = plots.latent_map(Figure().subplots(), z, digits)
        >>> len(ax.collections)  # one for each class
        10
    """
    points = finite("latents", latents)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or not points.size:
        raise ValueError(f"latents must have shape (n, 2) or (m, n, 2), found {points.shape}")
    each = np.asarray(classes)
    n = points.shape[-2]
    if each.shape != (n,):
        raise ValueError(f"classes must have one entry per datum, shape ({n},), found {each.shape}")
    points = points.reshape(-1, n, 2)
    found = np.unique(each)
    if names is not None and len(names) != len(found):
        raise ValueError(f"names must have one entry per class ({len(found)}), found {len(names)}")
    shown = [str(x) for x in found] if names is None else list(names)
    most = max(1, MOST_DRAWS // len(found))
    with drawing_on(ax) as theme:
        if flag("prior", prior):
            for share, line in zip(PRIOR_SHARES, (":", "--"), strict=True):
                radius = math.sqrt(-2.0 * math.log1p(-share))
                ax.add_patch(
                    Circle((0.0, 0.0), radius, fill=False, color=theme.muted, linestyle=line, linewidth=1.0, zorder=1)
                )
                ax.text(
                    math.sqrt(0.5) * radius, -math.sqrt(0.5) * radius, f"prior {share:.0%}", gid="prior",
                    ha="center", va="center", fontsize="x-small", bbox=_plate(theme), zorder=3,
                )  # fmt: skip
        for i, (which, name) in enumerate(zip(found, shown, strict=True)):
            mine = points[:, each == which].reshape(-1, 2)
            x, y = thinned(mine, most).T
            ax.scatter(
                x,
                y,
                s=13,
                color=theme.colours[i % len(theme.colours)],
                marker=MARKERS[i % len(MARKERS)],
                alpha=0.7,
                linewidths=0,
                label=name,
                zorder=2,
            )
            middle = np.median(mine, axis=0)
            ax.text(
                middle[0], middle[1], name, ha="center", va="center", weight="bold", zorder=3, color=theme.text,
                bbox=_plate(theme),
            )  # fmt: skip
        ax.set_aspect("equal", adjustable="datalim")
        ax.set_xlabel("$z_1$")
        ax.set_ylabel("$z_2$")
        if label is not None:
            ax.set_title(label)
    return ax


def _plate(theme: Theme) -> dict[str, Any]:
    """What stands behind a text among dots."""
    return {"boxstyle": "round,pad=0.15", "facecolor": theme.page, "alpha": 0.75, "linewidth": 0}
