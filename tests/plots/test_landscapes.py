"""The adversary's landscape and the contrast: what is drawn is log q - log r and log r at the points of the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.distributions import MultivariateNormal

from avbvi import plots
from avbvi.plots import landscapes
from avbvi.plots.learned import Learned
from tests.amortised.known import LinearGaussian, exact_guide
from tests.plots.known import CENTRE, LOC, SCALE_TRIL, SPREAD, known_guide, log_contrast, log_ratio

LIMITS = (-1.0, 2.0, -3.0, 1.0)


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Grid and heights of what is drawn by ``signed`` and ``filled``."""
    seen: dict[str, np.ndarray] = {}
    for name in ("signed", "filled"):
        draw = getattr(landscapes, name)

        def spy(ax: Axes, x: Any, y: Any, height: Any, *args: Any, draw: Any = draw, **kwargs: Any) -> None:
            seen.update(x=x, y=y, height=height)
            draw(ax, x, y, height, *args, **kwargs)

        monkeypatch.setattr(landscapes, name, spy)
    return seen


def plane(drawn: dict[str, np.ndarray], point: torch.Tensor, columns: tuple[int, int]) -> torch.Tensor:
    """The points of the plane through ``point`` (4,), by hand."""
    points = point.repeat(drawn["x"].size, 1)
    for column, values in zip(columns, (drawn["x"], drawn["y"]), strict=True):
        points[:, column] = torch.as_tensor(values.ravel(), dtype=points.dtype)
    return points


def test_landscape_is_the_log_ratio_on_the_plane(ax: Axes, drawn: dict[str, np.ndarray]) -> None:
    at = {"mu": torch.tensor(0.7), "tau": 1.3, "eta": [0.1, -0.6]}
    assert plots.landscape_panel(ax, known_guide(), "mu", ("eta", 1), at=at, limits=LIMITS, label="T") is ax
    point = torch.tensor([0.7, np.log(1.3), 0.1, -0.6], dtype=torch.float32)
    expected = log_ratio(plane(drawn, point, (0, 3)))
    np.testing.assert_allclose(drawn["height"].ravel(), expected.numpy(), atol=2e-5)
    assert (drawn["x"].min(), drawn["x"].max(), drawn["y"].min(), drawn["y"].max()) == LIMITS
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == (r"$\mu$", r"$\eta$$_{2}$", "T")
    assert "nats" in ax.figure.axes[1].get_ylabel()


def test_the_thick_contour_is_zero(ax: Axes) -> None:
    """log q - log r at the vertices of the last contour, within the error of interpolation on the grid."""
    guide = known_guide()
    plots.landscape_panel(ax, guide, "mu", "tau", at={"eta": [0.1, -0.6]}, limits=LIMITS)
    zero = ax.collections[-1]
    assert list(zero.levels) == [0.0]
    vertices = np.concatenate([s for s in zero.allsegs[0] if len(s)])
    assert len(vertices) > 50
    point = Learned(guide).point({"eta": [0.1, -0.6]}).repeat(len(vertices), 1)
    point[:, :2] = torch.as_tensor(vertices, dtype=point.dtype)
    assert log_ratio(point).abs().max() < 5e-3


def test_by_default_the_plane_goes_through_the_mean_and_holds_the_draws(ax: Axes) -> None:
    guide = known_guide()
    plots.landscape_panel(ax, guide, draws=300)
    z = Learned(guide).draws(300)
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), z[:, :2].numpy(), atol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (r"$\mu$", r"$\tau$ (unconstrained)")
    (low, high), mean = ax.get_xlim(), Learned(guide).draws().mean(0)
    assert low < mean[0] < high
    np.testing.assert_allclose(Learned(guide).point(None), mean)


def test_draws_for_a_picture_move_no_generator() -> None:
    guide, before = known_guide(), torch.get_rng_state()
    plots.contrast_marginal(Figure().subplots(), guide, "mu", n=100)
    assert torch.equal(torch.get_rng_state(), before)


def test_contrast_panel_shows_r_and_contours_of_q(ax: Axes, drawn: dict[str, np.ndarray]) -> None:
    at = {"mu": 0.7, "tau": 1.3, "eta": [0.1, -0.6]}
    plots.contrast_panel(ax, known_guide(), ("eta", 0), ("eta", 1), at=at, limits=LIMITS)
    point = torch.tensor([0.7, np.log(1.3), 0.1, -0.6], dtype=torch.float32)
    points = plane(drawn, point, (2, 3))
    log_r = log_contrast(points)
    np.testing.assert_allclose(drawn["height"].ravel(), (log_r - log_r.max()).exp().numpy(), atol=1e-5)
    log_q = log_r + log_ratio(points)
    np.testing.assert_allclose(ax.collections[-1].levels, float(log_q.max()) - np.array([4.5, 2.0, 0.5]), atol=1e-4)
    segments = [s for s in ax.collections[-1].allsegs[1] if len(s)]
    vertices = np.concatenate(segments)
    on = point.repeat(len(vertices), 1)
    on[:, 2:] = torch.as_tensor(vertices, dtype=on.dtype)
    np.testing.assert_allclose(log_contrast(on) + log_ratio(on), float(log_q.max()) - 2.0, atol=0.02)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["contrast r", "learned q"]


def test_contrast_draws_have_the_moments_of_r() -> None:
    """Four standard errors of 20,000 draws."""
    z = Learned(known_guide()).contrast_draws(20_000)
    covariance = SCALE_TRIL @ torch.diag(SPREAD.square()) @ SCALE_TRIL.mT
    sd = covariance.diagonal().sqrt()
    assert ((z.mean(0) - LOC - SCALE_TRIL @ CENTRE) / sd).abs().max() < 4 / 20_000**0.5
    assert (z.std(0) / sd - 1.0).abs().max() < 4 / 40_000**0.5


def test_contrast_marginal_has_a_line_for_each_law(ax: Axes) -> None:
    plots.contrast_marginal(ax, known_guide(), "tau", n=4000)
    assert [line.get_label() for line in ax.lines] == ["q", "contrast r"]
    assert ax.get_xlabel() == r"$\tau$ (unconstrained)"
    x, y = ax.lines[1].get_xdata(), ax.lines[1].get_ydata()
    mean = LOC[1] + (SCALE_TRIL @ CENTRE)[1]
    sd = float((SCALE_TRIL[1] * SPREAD).norm())
    # Smoothing and noise of a kernel estimate from 4000 draws: within a tenth of the peak.
    exact = np.exp(-0.5 * ((x - float(mean)) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    assert np.abs(y - exact).max() < 0.1 * exact.max()


def test_amortised_guides_are_asked_about_one_datum(ax: Axes, drawn: dict[str, np.ndarray]) -> None:
    known = LinearGaussian(learned=False)
    x = known.data(3)
    guide = exact_guide(known.model, known.width).setup(x)
    plots.landscape_panel(ax, guide, datum=x[1:2], limits=LIMITS)
    z = torch.as_tensor(np.stack([drawn["x"].ravel(), drawn["y"].ravel()], -1), dtype=torch.float32)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(z)
    expected = guide.part("sampler").log_prob(z, x[1]) - prior
    np.testing.assert_allclose(drawn["height"].ravel(), expected.numpy(), atol=2e-4)
    plots.contrast_marginal(ax, guide, ("z", 1), datum=x[:1], n=50)
    point = Learned(guide, x[:1]).point({"z": [0.3, -0.4]})
    assert point.tolist() == pytest.approx([0.3, -0.4])
    for datum, message in ((None, "datum must be given"), (x, "minibatch of 1 datum, found 3")):
        with pytest.raises(ValueError, match=message):
            plots.landscape_panel(ax, guide, datum=datum)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"across": "nu"}, r"across names no latent site: 'nu'; there are \['mu', 'tau', 'eta'\]"),
        ({"up": "eta"}, "up must be one scalar; site 'eta' has 2"),
        ({"up": ("eta", 2)}, "up names element 2 of site 'eta', which has 2"),
        ({"across": "tau"}, "across and up must be different"),
        ({"at": {"nu": 1.0}}, r"at has \['nu'\], which are no latent sites"),
        ({"at": {"eta": 1.0}}, r"at\['eta'\] must have shape \(2,\), found \(\)"),
        ({"at": {"tau": -1.0}}, "outside the site's support"),
        ({"datum": torch.zeros(1, 3)}, "datum is for amortised guides"),
        ({"limits": (1.0, 0.0, 0.0, 1.0)}, "limits must be"),
        ({"bound": 0.0}, "bound must be positive"),
        ({"draws": -1}, "draws must be at least 0"),
    ],
)
def test_refusals(ax: Axes, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.landscape_panel(ax, known_guide(), **arguments)


def test_without_an_adversary_there_is_no_landscape(ax: Axes) -> None:
    with pytest.raises(ValueError, match="trunk's stage"):
        plots.landscape_panel(ax, known_guide(adversarial=False))
    with pytest.raises(TypeError, match=r"posterior must be what avbvi\.fit returned"):
        plots.landscape_panel(ax, "fit.pt")  # type: ignore[arg-type]
