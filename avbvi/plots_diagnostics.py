"""Pictures of what the verdict rests on: importance weights, reliability, ELBO trace, moment shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.axes import Axes

from .diagnostics import K_HAT_LIMIT, MomentShift, Reliability, pareto_smooth
from .estimates import Estimate
from .plots import training_curve

if TYPE_CHECKING:
    from .posterior import Posterior

__all__ = ["elbo_trace", "importance_weights", "moment_shift_panel", "reliability_diagram"]

BLUE, DARK, ACCENT = "#2b6ca3", "#123a5c", "#b3560e"


def importance_weights(ax: Axes, log_weights: Any, *, label: str | None = None) -> float:
    """Draw sorted importance weights relative to equal ones, with their Pareto-smoothed tail; both axes logarithmic.

    Args:
        ax: the axes to draw in.
        log_weights: log p - log q at draws of q (n,), n >= 25; -inf is a weight of zero.
        label: title, k-hat being added.

    Returns:
        The shape k-hat of the tail.

    Raises:
        ValueError: see :func:`~avbvi.diagnostics.pareto_smooth`.
    """
    lw = torch.as_tensor(log_weights).detach().double().cpu()
    smoothed, k_hat = pareto_smooth(lw)
    n = len(lw)
    rank = np.arange(1, n + 1)
    raw = (torch.softmax(lw, 0) * n).sort(descending=True).values.numpy()
    smooth = (smoothed.exp() * n).sort(descending=True).values.numpy()
    ax.plot(rank, raw, ".", color=BLUE, markersize=3, label="weights")
    ax.plot(rank, smooth, color=ACCENT, linewidth=1.2, label="Pareto-smoothed")
    ax.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_xscale("log")
    positive = raw[raw > 0.0]
    if len(positive) and positive[0] > positive[-1]:
        ax.set_yscale("log")
    ax.set_xlabel("rank")
    ax.set_ylabel("weight × n")
    quality = "good" if k_hat < K_HAT_LIMIT else "too heavy a tail"
    ax.set_title(f"{label + ': ' if label else ''}k-hat {k_hat:.2f} ({quality})", fontsize="medium")
    ax.legend(fontsize="small", frameon=False)
    return k_hat


def reliability_diagram(ax: Axes, reliability: Reliability, *, label: str | None = None) -> None:
    """Draw how often a draw was q's against how probable the adversary called it; on the diagonal it is right.

    The areas of the dots are proportional to the numbers of draws in the bins.

    Args:
        ax: the axes to draw in.
        reliability: of :func:`~avbvi.diagnostics.reliability` or ``calibrate(...).reliability``.
        label: title, the expected calibration error being added.
    """
    full = (reliability.counts > 0).cpu().numpy()
    predicted, observed = (x.cpu().numpy()[full] for x in (reliability.predicted, reliability.observed))
    counts = reliability.counts.cpu().numpy()[full]
    ax.plot([0.0, 1.0], [0.0, 1.0], color="0.6", linewidth=0.8, linestyle="--")
    ax.plot(predicted, observed, color=DARK, linewidth=1.0)
    ax.scatter(predicted, observed, s=8.0 + 150.0 * counts / counts.sum(), color=BLUE, zorder=3)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("predicted probability of q")
    ax.set_ylabel("observed frequency of q")
    text = f"{label + ': ' if label else ''}calibration error {reliability.error:.3f}"
    ax.set_title(text, fontsize="medium")


def elbo_trace(ax: Axes, posterior: Posterior, *, log_evidence: float | None = None) -> None:
    """Draw the ELBO along the run (:func:`~avbvi.plots.training_curve`), with the verdict's final ELBO and its error.

    Args:
        ax: the axes to draw in.
        posterior: what :func:`~avbvi.fit` returned.
        log_evidence: an exact log-evidence (nats) to be marked; by default the one by exact importance weights, if the
            verdict has it.

    Raises:
        ValueError: the run recorded nothing (it had fewer than 10 steps).
    """
    figures = posterior.verdict.figures
    by_weights = figures.get("log_evidence", math.nan)
    if log_evidence is None and math.isfinite(by_weights):
        ax.axhline(by_weights, color="0.4", linestyle=":", linewidth=1.2, label="log-evidence by weights")
    final = Estimate(figures.get("elbo", math.nan), figures.get("elbo_stderr", math.nan))
    if math.isfinite(final.value):
        kind = "a lower bound" if posterior.elbo_is_exact else "learned, no bound"
        low, high = final.value - 2.0 * final.stderr, final.value + 2.0 * final.stderr
        ax.axhspan(low, high, color=ACCENT, alpha=0.3, linewidth=0, label=f"final ELBO ({kind})")
        ax.axhline(final.value, color=ACCENT, linewidth=1.0)
    training_curve(ax, posterior, log_evidence=log_evidence)
    bottom, top = ax.get_ylim()
    shown = [x for x in (final.value, by_weights) if math.isfinite(x)]
    ax.set_ylim(min([bottom, *shown]), max([top, *shown]))


def moment_shift_panel(
    ax: Axes, shift: MomentShift, names: Sequence[str] | None = None, *, label: str | None = None
) -> None:
    """Draw by coordinate how far a short HMC moved the mean (sds) and the log of the sd, with two standard errors.

    Args:
        ax: the axes to draw in.
        shift: of :func:`~avbvi.diagnostics.moment_shift`.
        names: of the coordinates; numbers by default.
        label: title.

    Raises:
        ValueError: not one name per coordinate.
    """
    dim = len(shift.shifts)
    if names is not None and len(names) != dim:
        raise ValueError(f"names must have one entry per coordinate ({dim}), found {len(names)}")
    place = np.arange(dim)
    # The ratio is before over after; the change of the log sd has the other sign.
    change, error = -shift.ratios.log(), shift.ratio_errors / shift.ratios
    ax.axvline(0.0, color="0.6", linewidth=0.8, linestyle="--")
    for offset, value, stderr, colour, text in (
        (-0.12, shift.shifts, shift.shift_errors, BLUE, "mean (sd)"),
        (0.12, change, error, ACCENT, "log sd"),
    ):
        ax.errorbar(
            value.cpu().numpy(), place + offset, xerr=2.0 * stderr.cpu().numpy(), fmt="o", markersize=3, color=colour,
            elinewidth=1.0, label=text,
        )  # fmt: skip
    ax.set_yticks(place, names if names is not None else [str(i + 1) for i in range(dim)])
    ax.set_ylim(dim - 0.5, -0.5)
    ax.set_xlabel("change by HMC")
    if label is not None:
        ax.set_title(label, fontsize="medium")
    ax.legend(fontsize="small", frameon=False)
