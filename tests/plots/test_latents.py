"""Latent maps: one artist for each class, at its latents; the prior's circles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avbvi import plots
from avbvi.plots.theme import LIGHT


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def test_each_class_has_its_artist_and_its_name(ax: Axes) -> None:
    z, classes = torch.randn(60, 2), torch.arange(60) % 3 + 4
    assert plots.latent_map(ax, z, classes, label="map") is ax
    assert [c.get_label() for c in ax.collections] == ["4", "5", "6"]
    for i, artist in enumerate(ax.collections):
        np.testing.assert_allclose(artist.get_offsets(), z[classes == i + 4].numpy())
    names = {t.get_text(): t.get_position() for t in ax.texts}
    np.testing.assert_allclose(names["5"], np.median(z[classes == 5].numpy(), axis=0))
    shapes = {artist.get_paths()[0].vertices.tobytes() for artist in ax.collections}
    colours = {artist.get_facecolor().tobytes() for artist in ax.collections}
    assert len(shapes) == len(colours) == 3
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("$z_1$", "$z_2$", "map")


def test_several_draws_of_each_datum(ax: Axes) -> None:
    z, classes = torch.randn(4, 6, 2), np.array(["a", "b"] * 3)
    plots.latent_map(ax, z, classes, names=["first", "second"], prior=False)
    np.testing.assert_allclose(ax.collections[1].get_offsets(), z[:, 1::2].reshape(-1, 2).numpy())
    assert [t.get_text() for t in ax.texts] == ["first", "second"]  # and no words on a prior
    assert not ax.patches


def test_circles_hold_their_share_of_the_prior(ax: Axes) -> None:
    """Of 40,000 draws of the standard normal, within four standard errors."""
    plots.latent_map(ax, torch.zeros(4, 2), torch.zeros(4))
    radius = torch.randn(40_000, 2).norm(dim=-1)
    for circle, share in zip(ax.patches, (0.5, 0.95), strict=True):
        inside = float((radius < circle.get_radius()).float().mean())
        assert abs(inside - share) < 4 * (share * (1 - share) / 40_000) ** 0.5


def test_more_classes_than_colours_differ_in_markers(ax: Axes) -> None:
    n = 10
    assert n > len(LIGHT.colours)
    plots.latent_map(ax, torch.randn(n, 2), torch.arange(n))
    looks = {(a.get_facecolor().tobytes(), a.get_paths()[0].vertices.tobytes()) for a in ax.collections}
    assert len(looks) == n


def test_at_most_5000_draws_are_shown(ax: Axes) -> None:
    plots.latent_map(ax, torch.randn(9000, 2), torch.arange(9000) % 2)
    assert [len(a.get_offsets()) for a in ax.collections] == [2250, 2250]


def test_errors(ax: Axes) -> None:
    with pytest.raises(ValueError, match=r"latents must have shape \(n, 2\) or \(m, n, 2\), found \(4, 3\)"):
        plots.latent_map(ax, torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"classes must have one entry per datum, shape \(4,\), found \(3,\)"):
        plots.latent_map(ax, torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"names must have one entry per class \(2\), found 1"):
        plots.latent_map(ax, torch.zeros(4, 2), [0, 1, 0, 1], names=["one"])
    with pytest.raises(TypeError, match="prior must be True or False"):
        plots.latent_map(ax, torch.zeros(4, 2), torch.zeros(4), prior=1)  # type: ignore[arg-type]
