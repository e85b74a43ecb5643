"""The style: colours told apart, contrast, no trace of it afterwards."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from avbvi import plots
from avbvi.plots.theme import DARK, LIGHT, LINES, MARKERS, Theme, luminance
from tests.plots.colours import VISION, contrast, lab, least_distance, linear

#: In CIE Lab, where 2.3 is just noticeable.
LEAST_DISTANCE = 20.0
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


# -- the measures themselves --------------------------------------------------------------------------


def test_lab_of_known_colours() -> None:
    """White, black, and sRGB's red, whose Lab under D65 is (53.24, 80.09, 67.20)."""
    np.testing.assert_allclose(lab(linear(["#ffffff"])), [[100.0, 0.0, 0.0]], atol=0.02)
    np.testing.assert_allclose(lab(linear(["#000000"])), [[0.0, 0.0, 0.0]], atol=1e-9)
    np.testing.assert_allclose(lab(linear(["#ff0000"])), [[53.24, 80.09, 67.20]], atol=0.02)


def test_contrast_of_known_colours() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert luminance("#777777") == pytest.approx((1.05 / 4.478) - 0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("colours", "vision"),
    [
        (("#b24c00", "#6a6a00"), "protanopia"),
        (("#d62728", "#7f7a1e"), "deuteranopia"),
        (("#1f77b4", "#138276"), "tritanopia"),
    ],
)
def test_colours_that_are_confused_are_found(colours: tuple[str, str], vision: str) -> None:
    """Pairs along a line of confusion: apart to most readers, close to these."""
    assert least_distance(colours, vision) < LEAST_DISTANCE < least_distance(colours, "all cones")


def test_simulated_vision_keeps_greys() -> None:
    for matrix in VISION.values():
        np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-5)


# -- the palettes ---------------------------------------------------------------------------------------


@THEMES
@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart(theme: Theme, vision: str) -> None:
    assert least_distance(theme.colours, vision) >= LEAST_DISTANCE


@THEMES
def test_colours_stand_out_from_their_page(theme: Theme) -> None:
    assert min(contrast(colour, theme.page) for colour in theme.colours) >= 3.0
    assert contrast(theme.text, theme.page) >= 7.0
    assert contrast(theme.muted, theme.page) >= 3.0


@THEMES
def test_text_can_be_read_on_a_shade(theme: Theme) -> None:
    assert contrast(theme.text, theme.shade) >= 4.5


@THEMES
@pytest.mark.parametrize("vision", VISION)
def test_maps_rise_evenly_from_the_page(theme: Theme, vision: str) -> None:
    """Lightness of the map of densities moves away from the page's throughout, in print without colour too."""
    steps = [matplotlib.colors.to_hex(theme.densities(x)) for x in np.linspace(0.0, 1.0, 21)]
    lightness = lab(linear(steps) @ VISION[vision].T)[:, 0]
    away = np.diff(lightness) * (-1.0 if theme is LIGHT else 1.0)
    assert away.min() > 0.0
    page = lab(linear([theme.page]))[0, 0]
    assert abs(lightness[0] - page) < 10.0 < 40.0 < abs(lightness[-1] - page)


@THEMES
@pytest.mark.parametrize("vision", VISION)
def test_both_signs_of_a_ratio_are_told_apart(theme: Theme, vision: str) -> None:
    for x in (0.1, 0.2, 0.3):
        pair = [matplotlib.colors.to_hex(theme.ratios(v)) for v in (0.5 - x, 0.5 + x)]
        assert least_distance(pair, vision) >= LEAST_DISTANCE


def test_each_colour_has_its_line_and_ten_classes_their_marker() -> None:
    assert len(set(map(str, LINES))) >= len(LIGHT.colours) == len(DARK.colours)
    assert len(set(MARKERS)) >= 10
    # A class is told by colour and marker together: all pairs of the first thirty differ.
    pairs = [(i % len(LIGHT.colours), i % len(MARKERS)) for i in range(30)]
    assert len(set(pairs)) == 30


# -- the context ------------------------------------------------------------------------------------------


def test_style_holds_within_and_leaves_no_trace() -> None:
    before = dict(matplotlib.rcParams)
    with plots.style(dark=True) as theme:
        assert theme is DARK
        assert matplotlib.rcParams["text.color"] == DARK.text
        ax = Figure().subplots()
        assert matplotlib.colors.to_hex(ax.get_facecolor()) == DARK.page
        with plots.style() as inner:
            assert inner is LIGHT
        assert matplotlib.rcParams["text.color"] == DARK.text
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(RuntimeError, match="within"), plots.style():
        raise RuntimeError("within")
    assert dict(matplotlib.rcParams) == before


def test_panels_follow_the_page_of_their_axes() -> None:
    with plots.style(dark=True):
        dark = Figure().subplots()
    light = Figure().subplots()
    clear = Figure(facecolor=DARK.page).subplots()
    clear.patch.set_alpha(0.0)
    for ax, theme in ((dark, DARK), (light, LIGHT), (clear, DARK)):
        plots.loss_curve(ax, {"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 2.0]})
        assert [line.get_color() for line in ax.lines] == [theme.colours[0]] * 2 + [theme.colours[1]] * 2
        assert {text.get_color() for text in ax.get_legend().get_texts()} == {theme.text}


def test_dark_must_be_a_bool() -> None:
    with pytest.raises(TypeError, match="dark must be True or False, found str 'no'"), plots.style(dark="no"):  # type: ignore[arg-type]
        pass


def test_a_panel_needs_axes() -> None:
    with pytest.raises(TypeError, match="ax must be Matplotlib axes"):
        plots.loss_curve(Figure(), [1.0])  # type: ignore[arg-type]
