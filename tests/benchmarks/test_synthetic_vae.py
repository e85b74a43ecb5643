"""The synthetic board: its judges on a model with known answers, its jobs and picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import figures, synthetic_vae
from benchmarks.runner import Job
from models.synthetic_images import OPTIMUM
from models.vaes import VAE

DRAWS = 8_000
SHARPNESS = 6.0


class Quadrants(nn.Module):
    """A decoder that lights one pixel in each quadrant."""

    def forward(self, z: Tensor) -> Tensor:
        right, upper = z[..., 0] > 0.0, z[..., 1] > 0.0
        on = torch.stack([right & upper, ~right & upper, ~right & ~upper, right & ~upper], -1)
        return SHARPNESS * (2.0 * on.to(z) - 1.0)


def in_quadrants(n: int) -> Tensor:
    signs = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    return torch.randn(n, 4, 2).abs() * signs


def known(optimism: float, scale: float = 1.0) -> synthetic_vae.Trained:
    """Normals of this scale folded into their quadrants, whose density the encoder believes to be lower than it is."""

    def log_q(z: Tensor) -> Tensor:
        normal = torch.distributions.Normal(0.0, scale).log_prob(z).sum(-1)
        return normal + math.log(4.0) - optimism

    return synthetic_vae.Trained(VAE(Quadrants(), 2), lambda n: scale * in_quadrants(n), log_q, {})


def test_figures_of_a_perfect_encoder() -> None:
    wrong = math.log1p(math.exp(-SHARPNESS))  # of one pixel, in nats
    # With an even number of points the jumps of the decoder lie midway between two.
    row = synthetic_vae.judged(known(0.0), DRAWS, points=200)
    assert row["reconstruction_error"] == pytest.approx(wrong, rel=1e-4)
    # Draws of another quadrant add e^-12 each.
    assert row["log_likelihood"] == pytest.approx(OPTIMUM - 4.0 * wrong, abs=1e-4)
    assert row["elbo"] == pytest.approx(OPTIMUM - 4.0 * wrong, abs=1e-4)
    stderr = row["elbo_exact_stderr"]
    assert stderr < 0.015
    assert row["elbo_exact"] == pytest.approx(OPTIMUM - 4.0 * wrong, abs=4.0 * stderr)
    assert row["gap"] == pytest.approx(row["log_likelihood"] - row["elbo_exact"])
    assert abs(row["kl_aggregate"]) < 4.0 * row["kl_aggregate_stderr"]


def test_an_optimistic_estimate_and_a_narrow_encoder_are_seen() -> None:
    scale = 0.7
    row = synthetic_vae.judged(known(0.3, scale), DRAWS)
    kl = scale**2 - 1.0 - 2.0 * math.log(scale)
    stderr = row["elbo_exact_stderr"] + 2.0 / math.sqrt(DRAWS)
    assert row["elbo_error"] == pytest.approx(0.3, abs=4.0 * stderr)
    assert row["gap"] == pytest.approx(kl, abs=4.0 * stderr)
    assert row["kl_aggregate"] == pytest.approx(kl, abs=4.0 * row["kl_aggregate_stderr"])


def test_methods_share_the_model_and_its_first_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    # Training of no length: what is left is where each method begins.
    begun: dict[str, dict[str, Tensor]] = {}

    class Stop(Exception):
        pass

    make = synthetic_vae.make_vae

    def noted() -> VAE:
        vae = make()
        begun[method] = {k: v.clone() for k, v in vae.state_dict().items()}
        raise Stop

    monkeypatch.setattr(synthetic_vae, "make_vae", noted)
    for method in synthetic_vae.METHODS:
        with pytest.raises(Stop):
            synthetic_vae.METHODS[method](3, 1)
    first, *others = begun.values()
    assert len(others) == 2
    for other in others:
        for key, value in first.items():
            assert torch.equal(other[key], value)


@pytest.mark.parametrize("method", list(synthetic_vae.METHODS))
def test_a_short_run_fills_a_record(method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(synthetic_vae, "QUICK_STEPS", 10)
    monkeypatch.setattr(synthetic_vae, "QUICK_JUDGED", 400)
    monkeypatch.setattr(synthetic_vae, "QUICK_POINTS", 41)
    monkeypatch.setattr(synthetic_vae, "CACHE", tmp_path)
    (row,) = synthetic_vae.run(Job(synthetic_vae.TARGET, method, 0, 0.05))
    assert row["steps"] == 10
    assert all(math.isfinite(row[key]) for key in ("log_likelihood", "elbo", "elbo_exact", "kl_aggregate"))
    # An untrained model is no better than the optimum, nor is any encoder's ELBO.
    assert row["log_likelihood"] < OPTIMUM
    assert row["elbo_exact"] < row["log_likelihood"] + 4.0 * row["elbo_exact_stderr"]
    assert not list(tmp_path.iterdir())


def test_the_picture_shows_each_law_of_each_method() -> None:
    drawn = {"avb": {"encoder": in_quadrants(50), "posterior": 2.0 * in_quadrants(50)}}
    fig = figures.planes(drawn, {"avb": "AVB"})
    upper, lower = fig.axes
    assert upper.get_title() == "AVB"
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("encoder", "posterior")
    for ax, law in ((upper, "encoder"), (lower, "posterior")):
        assert len({line.get_color() for line in ax.lines}) == 4
        for i, line in enumerate(ax.lines):
            shown = torch.as_tensor(line.get_xydata())
            torch.testing.assert_close(shown, drawn["avb"][law][:, i].double())
