"""One style for all pictures: colours told apart by colour-blind readers, on a light page and on a dark one.

The colours are a variant of Okabe and Ito's, moved as little as it takes that each has a contrast of at least 3 to its
page, and that any two remain apart in CIE Lab for readers without red, green or blue cones.

Source: Okabe and Ito (2008), Color universal design; contrast: WCAG 2.1, success criterion 1.4.11; tested by the
simulation of Machado, Oliveira and Fernandes (2009), IEEE Trans. Vis. Comput. Graph. 15(6).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from ..arguments import flag, instance

#: Markers and line styles that go with the colours, so that nothing is told by colour alone.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


@dataclass(frozen=True)
class Theme:
    """Colours of a picture.

    Attributes:
        page: background of figure and axes.
        text: of labels, ticks and frames.
        muted: of lines of reference, such as a diagonal.
        shade: of bands and stages behind the data.
        colours: for series, in this order; six, told apart by colour-blind readers.
        densities: map for what is not negative, from about the page's colour on.
        ratios: map for what has a sign, the page's colour at zero.
        image: map for grey levels, 0 as the page.
    """

    page: str
    text: str
    muted: str
    shade: str
    colours: tuple[str, ...]
    densities: Colormap
    ratios: Colormap
    image: Colormap

    @property
    def main(self) -> str:
        """The colour of a single series."""
        return self.colours[0]

    @property
    def accent(self) -> str:
        """The colour of what stands out from it."""
        return self.colours[1]

    def parameters(self) -> Any:
        """Matplotlib's parameters, a dict for ``matplotlib.rc_context``."""
        ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
        n = len(self.colours)
        return {
            **dict.fromkeys(ink, self.text),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.page),
            "savefig.facecolor": "auto",
            "axes.prop_cycle": cycler(color=self.colours) + cycler(linestyle=LINES[:n]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.labelsize": "medium",
            "xtick.labelsize": "small",
            "ytick.labelsize": "small",
            "legend.fontsize": "small",
            "legend.frameon": False,
            "font.size": 9.5,
            "lines.linewidth": 1.4,
            "lines.markersize": 4.0,
            "figure.dpi": 150.0,
            "savefig.dpi": "figure",
        }


def _map(name: str, *colours: str) -> Colormap:
    return LinearSegmentedColormap.from_list(f"avbvi_{name}", colours)


LIGHT = Theme(
    page="#ffffff",
    text="#24292f",
    muted="#8a8f98",
    shade="#e4e6ea",
    colours=("#0a5c9d", "#d9670f", "#1ea86c", "#bb81aa", "#6e3d04", "#130971"),
    densities=_map("densities", "#f4f9fe", "#a9cdea", "#4a90c8", "#0a5c9d", "#06345c"),
    ratios=_map("ratios", "#06345c", "#0a5c9d", "#7fb2d8", "#f7f7f7", "#efae78", "#d9670f", "#7a3500"),
    image=_map("image", "#ffffff", "#000000"),
)
DARK = Theme(
    page="#1b1d21",
    text="#e3e5e8",
    muted="#8a8f98",
    shade="#33373e",
    colours=("#54b8fe", "#d96b14", "#217748", "#e69cb2", "#faf63e", "#8561ff"),
    densities=_map("dark_densities", "#1f2a35", "#1f5f92", "#54b8fe", "#b4e0ff", "#f2faff"),
    ratios=_map("dark_ratios", "#d3edff", "#54b8fe", "#225d88", "#26292e", "#86450f", "#e8812f", "#ffdcb8"),
    image=_map("dark_image", "#1b1d21", "#f4f6f8"),
)


@contextmanager
def style(*, dark: bool = False) -> Iterator[Theme]:
    """The style of avbvi's pictures for the figures made within; Matplotlib's settings are as before afterwards.

    Panels look at the axes that they are given: those of a dark figure are drawn in dark mode, within or not.

    Args:
        dark: light ink on a dark page.

    Yields:
        The theme, for colours of your own marks.

    Raises:
        TypeError: ``dark`` is no bool.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from avbvi.plots import style
        >>> with style(dark=True) as theme:
        ...     ax = Figure().subplots()
        ...     line, = ax.plot([0.0, 1.0], label="mine")
        >>> line.get_color() == theme.colours[0]
        True
    """
    theme = DARK if flag("dark", dark) else LIGHT
    with matplotlib.rc_context(theme.parameters()):
        yield theme


@contextmanager
def drawing_on(ax: Axes) -> Iterator[Theme]:
    """The style that suits the page behind given axes.

    Raises:
        TypeError: ``ax`` is no axes.
    """
    instance("ax", ax, Axes, "Matplotlib axes, such as figure.subplots() gives")
    with style(dark=luminance(_page(ax)) < 0.18) as theme:
        yield theme


def new_figure(width: float, height: float) -> Figure:
    """A figure without a window, of this size in inches, in the style in force."""
    return Figure(figsize=(width, height), layout="constrained")


def luminance(colour: Any) -> float:
    """Relative luminance of a colour, from 0 (black) to 1 (white).

    Source: WCAG 2.1, definition of relative luminance.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _page(ax: Axes) -> tuple[float, ...]:
    """The colour seen behind the axes: theirs over the figure's over white."""
    seen: tuple[float, ...] = (1.0, 1.0, 1.0)
    root = ax.figure.figure  # also of a subfigure; get_figure(root=True) is new in Matplotlib 3.10
    for colour in (*(() if root is None else (root.get_facecolor(),)), ax.get_facecolor()):
        red, green, blue, alpha = to_rgba(colour)
        seen = tuple(alpha * new + (1.0 - alpha) * old for new, old in zip((red, green, blue), seen, strict=True))
    return seen
