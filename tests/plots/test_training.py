"""Pictures of a run: the values of the record, the stages, what is in view."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avbvi import plots
from avbvi.diagnostics import Verdict
from avbvi.posterior import Run


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def run(steps: int, adversarial_from: int | None = None) -> Any:
    history: dict[str, list[float]] = {"step": [], "elbo": [], "stage": []}
    for step in range(10, steps + 1, 10):
        history["step"].append(float(step))
        history["elbo"].append(-12.0 - 1000.0 / step**1.5)
        history["stage"].append(float(adversarial_from is not None and step > adversarial_from))
    return SimpleNamespace(run=Run(steps=steps, history=history), verdict=None)


def test_training_curve(ax: Axes) -> None:
    plots.training_curve(ax, run(1000, 500), log_evidence=-11.5)
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ["one step", "moving average", "adversarial stage", "exact log-evidence"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run(1000).run.history["elbo"])
    (shade,) = ax.patches
    assert shade.get_extents().transformed(ax.transData.inverted()).x0 == pytest.approx(510.0)
    low, high = ax.get_ylim()
    assert -13.0 < low < -12.0
    assert high > -11.5
    ax.figure.canvas.draw()


def test_training_curve_with_little_to_show(ax: Axes) -> None:
    plots.training_curve(ax, run(10))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one step", "moving average"]
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="no recorded steps"):
        plots.training_curve(ax, run(9))


def posterior(figures: dict[str, float], *, exact: bool) -> Any:
    steps = [float(i) for i in range(10, 1010, 10)]
    history = {"step": steps, "elbo": [-5.0 + 0.001 * s for s in steps], "stage": [0.0] * 100}
    return SimpleNamespace(run=Run(history=history), verdict=Verdict("ok", [], figures), elbo_is_exact=exact)


@pytest.mark.parametrize(("exact", "kind"), [(True, "a lower bound"), (False, "learned, no bound")])
def test_elbo_trace_marks_the_final_elbo(ax: Axes, exact: bool, kind: str) -> None:
    figures = {"elbo": -3.0, "elbo_stderr": 0.1, "log_evidence": -2.5}
    plots.elbo_trace(ax, posterior(figures, exact=exact))
    marked = [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2]
    assert marked == [-2.5, -3.0]
    assert ax.patches[0].get_extents().height > 0.0
    np.testing.assert_allclose(ax.lines[2].get_ydata(), posterior(figures, exact=exact).run.history["elbo"])
    assert ax.get_ylim()[1] >= -2.5
    assert any(kind in text.get_text() for text in ax.get_legend().get_texts())


def test_losses_and_their_moving_averages(ax: Axes) -> None:
    losses = {"one": [float(i) for i in range(100)], "other": torch.linspace(5.0, 4.0, 100)}
    assert plots.loss_curve(ax, losses, every=10) is ax
    raw, smooth = ax.lines[:2]
    np.testing.assert_allclose(raw.get_xdata(), 10 * np.arange(1, 101))
    np.testing.assert_allclose(raw.get_ydata(), losses["one"])
    # The average of two values, at the later one's step.
    np.testing.assert_allclose(smooth.get_ydata(), np.arange(99) + 0.5)
    np.testing.assert_allclose(smooth.get_xdata(), 10 * np.arange(2, 101))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "other"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss (nats)")
    low, high = ax.get_ylim()
    assert 4.0 > low > -10.0
    assert high > 99.0


def test_a_single_loss_has_no_legend_and_infinities_do_not_hide_it(ax: Axes) -> None:
    plots.loss_curve(ax, [np.inf, 3.0, 2.0, np.nan, 1.0], label="loss (nats per datum)")
    assert ax.get_legend() is None
    low, high = ax.get_ylim()
    assert 0.5 < low < 1.0 < 2.0 < high < 2.5
    assert ax.get_ylabel() == "loss (nats per datum)"


def test_loss_curve_errors(ax: Axes) -> None:
    for losses, message in (
        ({}, "losses must not be empty"),
        ([], r"losses must be values \(n,\), found shape \(0,\)"),
        ({"a": [[1.0]]}, r"losses\['a'\] must be values"),
    ):
        with pytest.raises(ValueError, match=message):
            plots.loss_curve(ax, losses)
    with pytest.raises(ValueError, match="every must be at least 1"):
        plots.loss_curve(ax, [1.0], every=0)
