"""Pictures of a run: the ELBO and other losses against the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from ..arguments import found, integer
from ..estimates import Estimate
from .coordinates import array
from .theme import LINES, drawing_on

if TYPE_CHECKING:
    from ..posterior import Posterior

#: A moving average goes over a fiftieth of the record.
WINDOWS = 50


def training_curve(ax: Axes, posterior: Posterior, *, log_evidence: float | None = None) -> Axes:
    """Draw the ELBO's estimates (nats) against the step, the adversarial stage shaded.

    The vertical range is that of the run's second half, so that the first steps do not hide the rest.

    Args:
        ax: the axes to draw in.
        posterior: what :func:`~avbvi.fit` returned.
        log_evidence: an exact log-evidence (nats) to be marked by a horizontal line.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``posterior`` no fit.
        ValueError: the run recorded nothing (it had fewer than 10 steps).
    """
    _check(posterior)
    history = posterior.run.history
    step, elbo = array(history["step"]), array(history["elbo"])
    if not len(step):
        raise ValueError("the run has no recorded steps; ELBOs are recorded every 10 steps")
    with drawing_on(ax) as theme:
        ax.plot(step, elbo, color=theme.main, linewidth=0.8, linestyle="-", alpha=0.4, label="one step")
        place, smooth = _averaged(step, elbo)
        ax.plot(place, smooth, color=theme.main, linewidth=1.6, linestyle="-", label="moving average")
        adversarial = step[array(history["stage"]) > 0]
        if len(adversarial):
            ax.axvspan(
                adversarial[0], adversarial[-1], color=theme.shade, zorder=0, linewidth=0, label="adversarial stage"
            )
        shown = [elbo[len(elbo) // 2 :]]
        if log_evidence is not None:
            ax.axhline(log_evidence, color=theme.accent, linestyle="--", linewidth=1.2, label="exact log-evidence")
            shown.append(np.array([log_evidence]))
        _range(ax, np.concatenate(shown))
        ax.set_xlim(step[0], max(step[-1], step[0] + 1.0))
        ax.set_xlabel("step")
        ax.set_ylabel("ELBO estimate (nats)")
        _legend_above(ax)
    return ax


def elbo_trace(ax: Axes, posterior: Posterior, *, log_evidence: float | None = None) -> Axes:
    """Draw the ELBO along the run (:func:`training_curve`), with the verdict's final ELBO and two standard errors.

    Args:
        ax: the axes to draw in.
        posterior: what :func:`~avbvi.fit` returned.
        log_evidence: an exact log-evidence (nats) to be marked; by default the one by exact importance weights, if the
            verdict has it.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``posterior`` no fit.
        ValueError: the run recorded nothing (it had fewer than 10 steps).
    """
    _check(posterior)
    figures = posterior.verdict.figures
    by_weights = figures.get("log_evidence", math.nan)
    final = Estimate(figures.get("elbo", math.nan), figures.get("elbo_stderr", math.nan))
    with drawing_on(ax) as theme:
        if log_evidence is None and math.isfinite(by_weights):
            ax.axhline(by_weights, color=theme.muted, linestyle=":", linewidth=1.4, label="log-evidence by weights")
        if math.isfinite(final.value):
            kind = "a lower bound" if posterior.elbo_is_exact else "learned, no bound"
            low, high = final.value - 2.0 * final.stderr, final.value + 2.0 * final.stderr
            ax.axhspan(low, high, color=theme.accent, alpha=0.3, linewidth=0, label=f"final ELBO ({kind})")
            ax.axhline(final.value, color=theme.accent, linewidth=1.0, linestyle="-")
    training_curve(ax, posterior, log_evidence=log_evidence)
    bottom, top = ax.get_ylim()
    shown = [x for x in (final.value, by_weights) if math.isfinite(x)]
    ax.set_ylim(min([bottom, *shown]), max([top, *shown]))
    return ax


def loss_curve(
    ax: Axes, losses: Mapping[str, Any] | Sequence[float], *, every: int = 1, label: str = "loss (nats)"
) -> Axes:
    """Draw losses against the step, each with its moving average: what ``svi.step`` returned, say.

    The vertical range is that of the second halves, so that the first steps do not hide the rest.

    Args:
        ax: the axes to draw in.
        losses: values (n,), or name -> values for several curves.
        every: steps from one value to the next.
        label: of the vertical axis, with the unit.

    Returns:
        The axes.

    Raises:
        TypeError: ``ax`` is no axes, or ``every`` no integer.
        ValueError: there are no losses, or they are not (n,).

    Example:
        >>> from matplotlib.figure import Figure
        >>> from avbvi import plots
        >>> losses = [3.0, 2.0, 1.5, 1.4, 1.3]  # such as svi.step(...) returns
        >>> ax = plots.loss_curve(Figure().subplots(), {"ADVI": losses}, label="negative ELBO (nats)")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('step', 'negative ELBO (nats)')
    """
    every = integer("every", every, 1)
    named = losses if isinstance(losses, Mapping) else {"": losses}
    values = {name: array(x) for name, x in named.items()}
    if not values:
        raise ValueError("losses must not be empty")
    for name, x in values.items():
        if x.ndim != 1 or not len(x):
            raise ValueError(f"losses{f'[{name!r}]' if name else ''} must be values (n,), found shape {x.shape}")
    with drawing_on(ax) as theme:
        for i, (name, x) in enumerate(values.items()):
            colour, line = theme.colours[i % len(theme.colours)], LINES[i % len(LINES)]
            step = every * np.arange(1, len(x) + 1)
            ax.plot(step, x, color=colour, linewidth=0.7, linestyle="-", alpha=0.3)
            ax.plot(*_averaged(step, x), color=colour, linewidth=1.6, linestyle=line, label=name)
        _range(ax, np.concatenate([x[len(x) // 2 :] for x in values.values()]))
        ax.set_xlabel("step")
        ax.set_ylabel(label)
        if any(values):
            _legend_above(ax)
    return ax


def _check(posterior: Any) -> None:
    if not hasattr(posterior, "run") or not hasattr(posterior, "verdict"):
        raise TypeError(f"posterior must be what avbvi.fit returned, found {found(posterior)}")


def _averaged(step: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moving average over a fiftieth of the values, each at the last step that it is of."""
    window = max(1, len(values) // WINDOWS)
    return step[window - 1 :], np.convolve(values, np.ones(window) / window, mode="valid")


def _range(ax: Axes, values: np.ndarray) -> None:
    """The vertical range of the values that are finite, with a margin."""
    ax.ticklabel_format(axis="y", useOffset=False)
    finite = values[np.isfinite(values)]
    if len(finite):
        low, high = finite.min(), finite.max()
        margin = 0.1 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)


def _legend_above(ax: Axes) -> None:
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
