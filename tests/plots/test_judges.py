"""Pictures of diagnostics: the values drawn are the values given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avbvi import plots
from avbvi.diagnostics import moment_shift, pareto_smooth, reliability


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_importance_weights_are_sorted_and_relative_to_equal_ones(ax: Axes) -> None:
    log_weights = torch.randn(500, dtype=torch.float64)
    assert plots.importance_weights(ax, log_weights, label="trunk") is ax
    smoothed, k_hat = pareto_smooth(log_weights)
    assert f"trunk: k-hat {k_hat:.2f}" in ax.get_title()
    raw, smooth = (line.get_ydata() for line in ax.lines[:2])
    weights = np.exp(log_weights.numpy())
    np.testing.assert_allclose(raw, np.sort(weights / weights.mean())[::-1])
    np.testing.assert_allclose(smooth, np.sort(500 * smoothed.exp().numpy())[::-1])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_equal_weights_are_drawn_too(ax: Axes) -> None:
    plots.importance_weights(ax, torch.zeros(100))
    assert ax.get_title() == "k-hat -inf (good)"
    assert ax.lines[0].get_ydata() == pytest.approx(np.ones(100))


def test_reliability_diagram_shows_the_full_bins(ax: Axes) -> None:
    t_q, t_r = torch.randn(300) + 1.0, torch.randn(300) - 1.0
    found = reliability(t_q, t_r, 30)
    found.counts[3] = 0.0  # an empty bin has no place
    plots.reliability_diagram(ax, found)
    full = found.counts > 0
    dots = np.asarray(ax.collections[0].get_offsets())
    np.testing.assert_allclose(dots, torch.stack([found.predicted, found.observed], -1)[full].numpy())
    assert f"{found.error:.3f}" in ax.get_title()


def test_moment_shift_is_drawn_by_coordinate(ax: Axes) -> None:
    x, y = torch.randn(2, 200, 3)
    shift = moment_shift(x, 2.0 * y + 1.0)
    plots.moment_shift_panel(ax, shift, ["mu", "tau", "eta"], label="HMC")
    means, scales = (container[0].get_xdata() for container in ax.containers)
    np.testing.assert_allclose(means, shift.shifts.numpy())
    np.testing.assert_allclose(scales, -np.log(shift.ratios.numpy()))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["mu", "tau", "eta"]
    bars = np.asarray(ax.containers[0][2][0].get_segments())
    np.testing.assert_allclose(bars[:, 1, 0] - bars[:, 0, 0], 4.0 * shift.shift_errors.numpy())


def test_names_must_fit(ax: Axes) -> None:
    with pytest.raises(ValueError, match=r"one entry per coordinate \(3\), found 1"):
        plots.moment_shift_panel(ax, moment_shift(*torch.randn(2, 30, 3)), ["mu"])
