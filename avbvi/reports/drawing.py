"""Pictures as SVG within the page: each is drawn twice, for light and for dark screens, on a transparent ground."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from ..plots.theme import DARK, LIGHT, Theme, style
from .blocks import Picture


@dataclass(frozen=True)
class Scheme:
    """Colours of a picture, of the common style: the fit in blue, what it is held against in orange."""

    ink: str
    faint: str
    fit: Any
    fit_strong: str
    reference: str
    shade: str
    densities: Colormap

    @classmethod
    def of(cls, theme: Theme) -> Scheme:
        """The colours of a theme."""
        return cls(
            ink=theme.text,
            faint=theme.muted,
            fit=theme.densities(0.45),
            fit_strong=theme.main,
            reference=theme.accent,
            shade=theme.shade,
            densities=theme.densities,
        )


#: Draws that a density estimate is made of.
DENSITY_DRAWS = 1500

Draw = Callable[[Figure, Scheme], None]


def picture(draw: Draw, size: tuple[float, float], alt: str, caption: str) -> Picture:
    """A picture in both schemes.

    Args:
        draw: draws on an empty figure in the colours of a scheme.
        size: width and height in inches; an inch is 118 pixels of the page.
        alt: what it shows, for those who can't see it.
        caption: how to read it.
    """
    light, dark = (_svg(draw, size, dark=dark) for dark in (False, True))
    return Picture(light, dark, alt, caption, round(118 * size[0]))


def _svg(draw: Draw, size: tuple[float, float], *, dark: bool) -> str:
    own: Any = {
        "axes.edgecolor": (DARK if dark else LIGHT).muted,
        "axes.facecolor": "none",
        "axes.labelsize": 9,
        "axes.linewidth": 0.7,
        "axes.prop_cycle": cycler(color=[(DARK if dark else LIGHT).main]),  # each line says its own style
        "figure.facecolor": "none",
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "legend.fontsize": 8.5,
        "savefig.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "avbvi",
        "text.usetex": False,
        "xtick.color": (DARK if dark else LIGHT).muted,
        "xtick.labelcolor": (DARK if dark else LIGHT).text,
        "xtick.labelsize": 8,
        "ytick.color": (DARK if dark else LIGHT).muted,
        "ytick.labelcolor": (DARK if dark else LIGHT).text,
        "ytick.labelsize": 8,
    }
    with style(dark=dark) as theme, matplotlib.rc_context(own):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, Scheme.of(theme))
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def label(name: str, longest: int = 24) -> str:
    """A name that fits beside an axis."""
    shown = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return shown.replace("$", r"\$")  # no formula, whatever it holds


def bare(ax: Axes) -> None:
    """Axes whose heights say nothing: no scale on the left."""
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def window(*samples: np.ndarray | None) -> tuple[float, float]:
    """The central 99 % of all samples and a margin."""
    finite = [s[np.isfinite(s)] for s in samples if s is not None]
    low = min(float(np.quantile(s, 0.005)) for s in finite)
    high = max(float(np.quantile(s, 0.995)) for s in finite)
    margin = 0.08 * (high - low) or 1e-6 * max(abs(low), 1.0)
    return low - margin, high + margin


def kernel_density(sample: np.ndarray, at: np.ndarray) -> np.ndarray | None:
    """Kernel density estimate at points (d, k); ``None`` where the draws do not vary."""
    sample = sample[..., :DENSITY_DRAWS]
    try:
        return np.asarray(gaussian_kde(sample)(at))
    except (np.linalg.LinAlgError, ValueError):
        return None
