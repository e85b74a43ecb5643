"""Sheets of images: each pixel at its place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avbvi import plots


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def shown(ax: Axes) -> np.ndarray:
    """The picture's values, NaN where it is blank."""
    (image,) = ax.images
    return np.ma.filled(image.get_array().astype(float), np.nan)


@pytest.mark.parametrize("channel", [False, True])
def test_pixels_stand_in_their_image(ax: Axes, channel: bool) -> None:
    images = torch.rand(5, 3, 2)
    assert plots.image_panel(ax, images[:, None] if channel else images, columns=2, label="five") is ax
    sheet = shown(ax)
    assert sheet.shape == (3 * 4 - 1, 2 * 3 - 1)
    for i in range(5):
        top, left = 4 * (i // 2), 3 * (i % 2)
        np.testing.assert_allclose(sheet[top : top + 3, left : left + 2], images[i].numpy(), rtol=1e-6)
    blank = np.isnan(sheet)
    assert blank[3].all()
    assert blank[:, 2].all()
    assert blank[8:, 3:].all()
    assert (~blank).sum() == images.numel()
    assert ax.get_title() == "five"
    assert not ax.axison


def test_values_outside_are_clipped_and_ink_is_dark(ax: Axes) -> None:
    plots.image_panel(ax, torch.tensor([[[-1.0, 0.25], [0.5, 3.0]]]))
    np.testing.assert_allclose(shown(ax), [[0.0, 0.25], [0.5, 1.0]])
    (image,) = ax.images
    assert image.get_clim() == (0.0, 1.0)
    assert image.cmap(1.0)[:3] == (0.0, 0.0, 0.0)
    assert image.cmap(0.0)[:3] == (1.0, 1.0, 1.0)


def test_colours_keep_their_channels_and_the_page_shows_between(ax: Axes) -> None:
    images = torch.rand(3, 3, 2, 2)
    plots.image_panel(ax, images, columns=2)
    rgba = np.asarray(ax.images[0].get_array())
    assert rgba.shape == (5, 5, 4)
    np.testing.assert_allclose(rgba[3:5, 0:2, :3], images[2].permute(1, 2, 0).numpy(), rtol=1e-6)
    assert (rgba[:2, :2, 3] == 1.0).all()
    assert (rgba[2, :, 3] == 0.0).all()
    assert (rgba[3:, 3:, 3] == 0.0).all()


def test_reconstructions_stand_below_their_data(ax: Axes) -> None:
    data, reconstructions = torch.rand(2, 5, 2, 2)
    plots.reconstruction_panel(ax, data, reconstructions, columns=3)
    sheet = shown(ax)
    assert sheet.shape == (4 * 3 - 1, 3 * 3 - 1)
    for i in range(5):
        top, left = 6 * (i // 3), 3 * (i % 3)
        np.testing.assert_allclose(sheet[top : top + 2, left : left + 2], data[i].numpy(), rtol=1e-6)
        np.testing.assert_allclose(sheet[top + 3 : top + 5, left : left + 2], reconstructions[i].numpy(), rtol=1e-6)
    assert np.isnan(sheet[6:, 6:]).all()


def test_image_grid_has_a_panel_for_each_sheet() -> None:
    figure = plots.image_grid({"data": torch.rand(4, 2, 2), "samples": torch.rand(6, 1, 2, 2)}, dark=True)
    assert [ax.get_title() for ax in figure.axes] == ["data", "samples"]
    assert [shown(ax).shape for ax in figure.axes] == [(2, 11), (5, 11)]
    figure.canvas.draw()


@pytest.mark.parametrize("images", [torch.rand(2, 2), torch.rand(2, 2, 4, 4), torch.rand(0, 4, 4)])
def test_other_shapes_are_refused(ax: Axes, images: Any) -> None:
    for call in (
        lambda: plots.image_panel(ax, images),
        lambda: plots.reconstruction_panel(ax, images, images),
        lambda: plots.image_grid({"data": images}),
    ):
        with pytest.raises(ValueError, match=r"must have shape \(n, height, width\)"):
            call()


def test_other_errors(ax: Axes) -> None:
    with pytest.raises(ValueError, match="data and reconstructions must have the same shape"):
        plots.reconstruction_panel(ax, torch.rand(2, 3, 3), torch.rand(3, 3, 3))
    with pytest.raises(ValueError, match="sheets must not be empty"):
        plots.image_grid({})
    with pytest.raises(ValueError, match="columns must be at least 1"):
        plots.image_panel(ax, torch.rand(2, 3, 3), columns=0)
