"""Pictures of what the verdict rests on: importance weights, reliability, moment shift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from ..arguments import instance, real_tensor
from ..diagnostics import K_HAT_LIMIT, MomentShift, Reliability, pareto_smooth
from .theme import drawing_on

#: Relative to equal ones.
LEAST_WEIGHT = 1e-4


def importance_weights(ax: Axes, log_weights: Any, *, label: str | None = None) -> Axes:
    """Draw sorted importance weights relative to equal ones, with their Pareto-smoothed tail; both axes logarithmic.

    The title tells k-hat, the shape of the tail, and whether it is below 0.7. Weights below 1e-4 are out of view.

    Args:
        ax: the axes to draw in.
        log_weights: log p - log q (nats) at draws of q (n,), n >= 25; -inf is a weight of zero.
        label: title, k-hat being added.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or the weights are no numbers.
        ValueError: see :func:`~avbvi.diagnostics.pareto_smooth`.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> ax = plots.importance_weights(Figure().subplots(), torch.zeros(100), label="equal weights")
        >>> ax.get_title()
        'equal weights: k-hat -inf (good)'

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
    """
    lw = real_tensor("log_weights", log_weights).detach().double().cpu()
    smoothed, k_hat = pareto_smooth(lw)
    n = len(lw)
    rank = np.arange(1, n + 1)
    raw = (torch.softmax(lw, 0) * n).sort(descending=True).values.numpy()
    smooth = (smoothed.exp() * n).sort(descending=True).values.numpy()
    with drawing_on(ax) as theme:
        ax.plot(rank, raw, ".", color=theme.main, markersize=3, label="weights")
        ax.plot(rank, smooth, color=theme.accent, linewidth=1.2, linestyle="-", label="Pareto-smoothed")
        ax.axhline(1.0, color=theme.muted, linewidth=0.8, linestyle="--")
        ax.set_xscale("log")
        positive = raw[raw > 0.0]
        if len(positive) and positive[0] > positive[-1]:
            ax.set_yscale("log")
            if positive[-1] < LEAST_WEIGHT < positive[0]:
                ax.set_ylim(bottom=LEAST_WEIGHT)
        ax.set_xlabel("rank")
        ax.set_ylabel("weight × n")
        quality = "good" if k_hat < K_HAT_LIMIT else "too heavy a tail"
        ax.set_title(f"{label + ': ' if label else ''}k-hat {k_hat:.2f} ({quality})")
        ax.legend()
    return ax


def reliability_diagram(ax: Axes, reliability: Reliability, *, label: str | None = None) -> Axes:
    """Draw how often a draw was q's against how probable the adversary called it; on the diagonal it is right.

    The areas of the dots are proportional to the numbers of draws in the bins.

    Args:
        ax: the axes to draw in.
        reliability: of :func:`~avbvi.diagnostics.reliability` or ``calibrate(...).reliability``.
        label: title, the expected calibration error being added.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``reliability`` of another kind.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> from avbvi.diagnostics import reliability
        >>> found = reliability(torch.randn(500) + 0.5, torch.randn(500) - 0.5)
        >>> ax = plots.reliability_diagram(Figure().subplots(), found, label="adversary")
        >>> ax.get_title().startswith("adversary: calibration error")
        True

    Source: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML.
    """
    instance("reliability", reliability, Reliability, "what avbvi.diagnostics.reliability returned")
    full = (reliability.counts > 0).cpu().numpy()
    predicted, observed = (x.cpu().numpy()[full] for x in (reliability.predicted, reliability.observed))
    counts = reliability.counts.cpu().numpy()[full]
    with drawing_on(ax) as theme:
        ax.plot([0.0, 1.0], [0.0, 1.0], color=theme.muted, linewidth=0.8, linestyle="--", label="right")
        ax.plot(predicted, observed, color=theme.main, linewidth=1.0, linestyle="-")
        ax.scatter(predicted, observed, s=8.0 + 150.0 * counts / counts.sum(), color=theme.main, zorder=3)
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("predicted probability of q")
        ax.set_ylabel("observed frequency of q")
        ax.set_title(f"{label + ': ' if label else ''}calibration error {reliability.error:.3f}")
        ax.legend(loc="upper left")
    return ax


def moment_shift_panel(
    ax: Axes, shift: MomentShift, names: Sequence[str] | None = None, *, label: str | None = None
) -> Axes:
    """Draw by coordinate how far a short HMC moved the mean (sds) and the log of the sd, with two standard errors.

    Args:
        ax: the axes to draw in.
        shift: of :func:`~avbvi.diagnostics.moment_shift`.
        names: of the coordinates; numbers by default.
        label: title.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``shift`` of another kind.
        ValueError: not one name per coordinate.
    """
    instance("shift", shift, MomentShift, "what avbvi.diagnostics.moment_shift returned")
    dim = len(shift.shifts)
    if names is not None and len(names) != dim:
        raise ValueError(f"names must have one entry per coordinate ({dim}), found {len(names)}")
    place = np.arange(dim)
    # The ratio is before over after; the change of the log sd has the other sign.
    change, error = -shift.ratios.log(), shift.ratio_errors / shift.ratios
    with drawing_on(ax) as theme:
        ax.axvline(0.0, color=theme.muted, linewidth=0.8, linestyle="--")
        for offset, value, stderr, colour, marker, text in (
            (-0.12, shift.shifts, shift.shift_errors, theme.main, "o", "mean (sd)"),
            (0.12, change, error, theme.accent, "s", "log sd"),
        ):
            ax.errorbar(
                value.cpu().numpy(), place + offset, xerr=2.0 * stderr.cpu().numpy(), fmt=marker, markersize=3.5,
                color=colour, elinewidth=1.0, label=text,
            )  # fmt: skip
        ax.set_yticks(place, names if names is not None else [str(i + 1) for i in range(dim)])
        ax.set_ylim(dim - 0.5, -0.5)
        ax.set_xlabel("change by HMC")
        if names is None:
            ax.set_ylabel("coordinate")
        if label is not None:
            ax.set_title(label)
        ax.legend()
    return ax
