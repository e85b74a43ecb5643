"""Pictures of what a fit's adversary has learned: the log-ratio of q and the contrast, and both densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..arguments import integer
from .coordinates import Coordinate, Limits, array, grid, window
from .densities import dots, filled, signed
from .draws import marginal_panel
from .learned import Learned
from .theme import drawing_on

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..posterior import Posterior

GRID = 80
#: A log-ratio larger than so many nats changes the colour no further.
BOUND = 10.0
#: Contours of log q below its maximum (nats): 1, 2 and 3 sds of a Gaussian.
DEPTHS = (4.5, 2.0, 0.5)


def landscape_panel(
    ax: Axes,
    posterior: Posterior | AVBGuide,
    across: Coordinate | None = None,
    up: Coordinate | None = None,
    *,
    at: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    datum: Any = None,
    draws: int = 0,
    bound: float = BOUND,
    label: str | None = None,
) -> Axes:
    """Draw the adversary's landscape, its log-ratio T(z) = log q - log r (nats), over a plane of the latents.

    The plane goes through one point, along two coordinates of the unconstrained latents; a colour bar tells the
    values, the thick contour is zero, contours of negative values are dashed. Of an objective whose T is no log-ratio
    the log-ratio is drawn that T stands for.

    Args:
        ax: the axes to draw in.
        posterior: a fit whose adversarial stage was kept, or a guide in that stage.
        across: horizontal coordinate, a latent site's name or (name, index); by default the first.
        up: vertical coordinate; by default the second.
        at: {site: value} of the point, on the sites' own scale; sites left out are at the mean of q's draws.
        limits: (x from, x to, y from, y to); by default the central 99 % of q's draws and a margin.
        datum: of an amortised fit, the datum: a minibatch of one row.
        draws: how many draws of q to show as dots, projected on the plane.
        bound: the size (nats) from which on the colour no longer changes.
        label: title of the panel.

    Returns:
        The axes.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no adversary is in force, a coordinate or a site in ``at`` that is not there, fewer than two
            coordinates, or a ``datum`` too many or too few.
    """
    learned = Learned(posterior, datum)
    cut = _slice(learned, across, up, at, limits)
    n = integer("draws", draws, 0)
    with drawing_on(ax):
        ratio, _ = learned.densities(cut.points)
        height = array(ratio).reshape(cut.x.shape)
        signed(ax, cut.x, cut.y, height, bound=bound, bar="T(z) = log q − log r (nats)")
        if n:
            dots(ax, learned.draws(n)[:, list(cut.columns)])
        _labels(ax, learned, cut, label)
    return ax


def contrast_panel(
    ax: Axes,
    posterior: Posterior | AVBGuide,
    across: Coordinate | None = None,
    up: Coordinate | None = None,
    *,
    at: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    datum: Any = None,
    label: str | None = None,
) -> Axes:
    """Draw the contrast's density r, filled, and contours of the learned q on the same plane of the latents.

    Contours lie 0.5, 2 and 4.5 nats below the maximum of log q on the plane: 1, 2 and 3 sds of a Gaussian. Where they
    leave the filled region the adversary has no draws of r to compare with.

    Args:
        ax: the axes to draw in.
        posterior: a fit whose adversarial stage was kept, or a guide in that stage.
        across: horizontal coordinate, a latent site's name or (name, index); by default the first.
        up: vertical coordinate; by default the second.
        at: {site: value} of the point that the plane goes through; sites left out are at the mean of q's draws.
        limits: (x from, x to, y from, y to); by default the central 99 % of q's draws and a margin.
        datum: of an amortised fit, the datum: a minibatch of one row.
        label: title of the panel.

    Returns:
        The axes.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: as :func:`landscape_panel`.
    """
    learned = Learned(posterior, datum)
    cut = _slice(learned, across, up, at, limits)
    with drawing_on(ax) as theme:
        ratio, log_r = (array(v).reshape(cut.x.shape) for v in learned.densities(cut.points))
        filled(ax, cut.x, cut.y, np.exp(log_r - log_r.max()), theme.densities, darkest=1.8)
        log_q = ratio + log_r
        levels = [float(log_q.max()) - depth for depth in DEPTHS]
        ax.contour(cut.x, cut.y, log_q, levels=levels, colors=theme.accent, linestyles=[":", "--", "-"])
        handles = [Patch(color=theme.densities(0.45)), Line2D([], [], color=theme.accent, linestyle="-")]
        ax.legend(handles, ["contrast r", "learned q"], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        _labels(ax, learned, cut, label)
    return ax


def contrast_marginal(
    ax: Axes, posterior: Posterior | AVBGuide, which: Coordinate, *, n: int = 5000, datum: Any = None
) -> Axes:
    """Draw one coordinate's density by draws of q and by draws of the contrast r.

    Args:
        ax: the axes to draw in.
        posterior: a fit whose adversarial stage was kept, or a guide in that stage.
        which: a latent site's name, or (name, index), of the unconstrained latents.
        n: draws of each.
        datum: of an amortised fit, the datum: a minibatch of one row.

    Returns:
        The axes.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no adversary is in force, the coordinate is not there, n is less than 3, or a ``datum`` too many or
            too few.
    """
    learned = Learned(posterior, datum)
    n = integer("n", n, 3)
    column = learned.column("which", which)
    sets = {"q": learned.draws(n)[:, column], "contrast r": learned.contrast_draws(n)[:, column]}
    return marginal_panel(ax, sets, label=learned.label(column))


class _Slice(NamedTuple):
    """A plane of the latents: its two columns, grid (n, n) of each, and the points (n * n, dim)."""

    columns: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    points: torch.Tensor


def _slice(
    learned: Learned,
    across: Coordinate | None,
    up: Coordinate | None,
    at: Mapping[str, Any] | None,
    limits: Limits | None,
) -> _Slice:
    if learned.dim < 2:
        raise ValueError("posterior has one latent coordinate; a plane needs two (see contrast_marginal)")
    i = 0 if across is None else learned.column("across", across)
    j = 1 if up is None else learned.column("up", up)
    if i == j:
        raise ValueError("across and up must be different coordinates")
    if limits is None:
        limits = window([array(learned.draws()[:, [i, j]]).T])
    x, y = grid(limits, GRID)
    point = learned.point(at)
    points = point.repeat(x.size, 1)
    points[:, i], points[:, j] = (torch.as_tensor(v.ravel()).to(point) for v in (x, y))
    return _Slice((i, j), x, y, points)


def _labels(ax: Axes, learned: Learned, cut: _Slice, label: str | None) -> None:
    ax.set_xlabel(learned.label(cut.columns[0]))
    ax.set_ylabel(learned.label(cut.columns[1]))
    if label is not None:
        ax.set_title(label, pad=22.0 if ax.get_legend() is not None else None)
