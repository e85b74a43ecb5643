"""The family's board: its judges on encoders with known answers, what its methods share, its pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import family, family_methods, figures, latent_tables
from benchmarks import synthetic_vae as example
from benchmarks.family_methods import METHODS, RELATIVES, TARGET, UNSURE, Coder, Fitted
from benchmarks.runner import Job
from models.encoders import parameter_count
from models.synthetic_images import OPTIMUM, one_hot_images
from models.vaes import VAE, Likelihood, bernoulli

DRAWS = 8_000
SHARPNESS = 6.0
#: An even number of points puts the axes, where the decoder jumps, midway between two of them.
POINTS = 200
SIGNS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
JOBS = [(target, method) for target, methods in METHODS.items() for method in methods]


class Quadrants(nn.Module):
    """A decoder that lights one pixel in each quadrant."""

    def forward(self, z: Tensor) -> Tensor:
        on = ((z[..., None, :] > 0.0) == (SIGNS > 0.0)).all(-1)
        return SHARPNESS * (2.0 * on.to(z) - 1.0)


def folded(n: int) -> Tensor:
    """Draws of a standard normal in each of the four quadrants, (n, 4, 2)."""
    return torch.randn(n, 4, 2).abs() * SIGNS


def folded_log_q(scale: float, inside: bool = True) -> Any:
    """log q of those draws times a scale for each of the four images at any z."""

    def log_q(z: Tensor) -> Tensor:
        normal = torch.distributions.Normal(0.0, scale).log_prob(z).sum(-1) + math.log(4.0)
        return torch.where(((z > 0.0) == (SIGNS > 0.0)).all(-1), normal, -math.inf)

    return log_q


def fitted(coder: Coder | None, likelihood: Likelihood = bernoulli) -> Fitted:
    return Fitted(VAE(Quadrants(), 2, likelihood), coder)


@pytest.mark.parametrize("dense", [True, False], ids=["by density", "by neighbours"])
def test_figures_of_a_perfect_encoder(dense: bool) -> None:
    row = family.judged(fitted(Coder(folded, folded_log_q(1.0) if dense else None)), DRAWS, POINTS)
    wrong = math.log1p(math.exp(-SHARPNESS))  # of one pixel, in nats
    right = math.exp(-wrong)
    # A quarter of the prior lights the pixel of an image, the others light another one.
    probability = 0.25 * (right**4 + 3.0 * (right * (1.0 - right)) ** 2)
    assert row["log_likelihood"] == pytest.approx(math.log(probability), abs=1e-6)
    assert row["kl_data"] == pytest.approx(OPTIMUM - math.log(probability), abs=1e-6)
    assert row["share_of_data"] == pytest.approx(4.0 * probability, abs=1e-6)
    assert row["reconstruction_error"] == pytest.approx(wrong, rel=1e-3)
    # q is the posterior, but for what that has of other quadrants, and its aggregate the prior. With the density both
    # ratios are constant.
    tolerance = 1e-4 if dense else 4.0 * row["elbo_exact_stderr"]
    assert abs(row["gap"]) < tolerance < 0.05
    assert abs(row["kl_aggregate"]) < max(1e-5, 4.0 * row["kl_aggregate_stderr"])


@pytest.mark.parametrize("dense", [True, False], ids=["by density", "by neighbours"])
def test_figures_of_a_narrow_encoder(dense: bool) -> None:
    scale = 0.7
    coder = Coder(lambda n: scale * folded(n), folded_log_q(scale) if dense else None)
    row = family.judged(fitted(coder), DRAWS, POINTS)
    kl = scale**2 - 1.0 - 2.0 * math.log(scale)
    # Quadrants do not overlap, so that the aggregate is as far from the prior as each part from its posterior.
    assert row["gap"] == pytest.approx(kl, abs=4.0 * row["elbo_exact_stderr"])
    assert row["kl_aggregate"] == pytest.approx(kl, abs=4.0 * row["kl_aggregate_stderr"])
    assert max(row["elbo_exact_stderr"], row["kl_aggregate_stderr"]) < 0.05 * kl


def test_what_an_adversarial_autoencoder_aims_at_is_no_posterior_where_pixels_are_unsure() -> None:
    """Regions that do not overlap fill the prior, whatever the likelihood; each posterior lies in all of them."""
    row = family.judged(fitted(Coder(folded), family_methods.unsure), DRAWS, POINTS)
    wrong = 0.2 + 0.6 / (1.0 + math.exp(SHARPNESS))
    ratio = (wrong / (1.0 - wrong)) ** 2  # of the likelihoods of another image's region and of one's own
    share = 1.0 / (1.0 + 3.0 * ratio)
    assert abs(row["kl_aggregate"]) < 4.0 * row["kl_aggregate_stderr"] < 0.05
    assert row["gap"] == pytest.approx(-math.log(share), abs=4.0 * row["elbo_exact_stderr"])
    assert row["gap"] > 0.15
    assert row["log_likelihood"] == pytest.approx(math.log(0.25 * (1.0 - wrong) ** 4 / share), abs=1e-5)


def test_a_model_without_encoder_has_the_figures_of_its_images_alone() -> None:
    row = family.judged(fitted(None), DRAWS, POINTS)
    assert set(row) == {"log_likelihood", "kl_data", "js_data", "share_of_data"}


def test_what_the_picture_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "POINTS", 100)
    assert set(family.drawn(fitted(None), 10)) == {"posterior"}
    drawn = family.drawn(fitted(Coder(folded)), 2_000)
    assert set(drawn) == {"encoder", "posterior"}
    # A posterior with pixels this sure lies in its quadrant, up to a cell of the grid.
    inside = (drawn["posterior"] * SIGNS > -0.2).all(-1)
    assert float(inside.double().mean()) > 0.999


def test_an_unsure_pixel_is_wrong_as_often_as_said() -> None:
    on = family_methods.unsure(torch.tensor([[40.0, -40.0, 0.0, 1.0]])).base_dist.probs[0]
    torch.testing.assert_close(on, torch.tensor([0.8, 0.2, 0.5, 0.2 + 0.6 * torch.sigmoid(torch.tensor(1.0)).item()]))


def test_methods_share_the_first_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[tuple[str, str], dict[str, Tensor]] = {}

    class Stop(Exception):
        pass

    make = family_methods.make_vae

    def noted(*args: Any) -> VAE:
        begun[job] = {k: v.clone() for k, v in make(*args).state_dict().items()}
        raise Stop

    monkeypatch.setattr(family_methods, "make_vae", noted)
    for job in JOBS:
        with pytest.raises(Stop):
            METHODS[job[0]][job[1]](3, 1)
    assert len(begun) == len(JOBS) == 14
    first, *others = begun.values()
    for other in others:
        for key, value in first.items():
            assert torch.equal(other[key], value)


@torch.no_grad()
def test_the_decoder_depends_on_z_from_the_start() -> None:
    """Its log odds vary as much with z as those of He et al.'s network: about sqrt(2) for a standard normal input."""
    log_odds = torch.stack([family_methods.make_vae().decoder(torch.randn(2_000, 2)).std(0) for _ in range(20)])
    smaller = torch.stack([example.make_vae().decoder(torch.randn(2_000, 2)).std(0) for _ in range(20)])
    assert 0.5 < float(log_odds.mean()) < 2.0
    assert float(smaller.mean()) < 0.1


def test_encoders_have_equally_many_parameters() -> None:
    budget = example.encoder_budget()
    assert abs(parameter_count(family_methods.flow(budget)) - budget) <= 0.1 * budget


#: What the synthetic board's tests run anyway.
RUN_THERE = [(TARGET, method) for method in ("vae", "avb", "avb+ac")]


@pytest.mark.parametrize(("target", "method"), [job for job in JOBS if job not in RUN_THERE])
def test_a_short_run_fills_a_record(target: str, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(family, "QUICK_STEPS", 4)
    monkeypatch.setattr(family, "QUICK_POINTS", 61)
    monkeypatch.setattr(family, "CACHE", tmp_path)
    monkeypatch.setattr(example, "QUICK_JUDGED", 400)
    shared = family_methods.options(4)
    monkeypatch.setattr(family_methods, "options", lambda steps: {**shared, "pretrain_steps": 2})
    (row,) = family.run(Job(target, method, 0, 0.05))
    assert (row["target"], row["method"], row["steps"]) == (target, method, 4)
    # An untrained model is no better than the optimum, nor is any encoder's ELBO.
    assert row["log_likelihood"] < OPTIMUM
    assert ("gap" in row) == (method != "gan")
    if method != "gan":
        assert row["elbo_exact"] < row["log_likelihood"] + 4.0 * row["elbo_exact_stderr"]
        assert math.isfinite(row["kl_aggregate"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["as-vae-r", "as-vae-g", "as-vae", "aae", "ali", "gan"])
def test_training_moves_all_that_a_method_has(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[nn.Module | None, dict[str, Tensor]]] = []
    relative = RELATIVES[method]

    def encoder(vae: VAE) -> Any:
        trainable = relative.encoder(vae)
        for module in (vae, trainable.module):
            made.append((module, {} if module is None else {k: v.clone() for k, v in module.named_parameters()}))
        return trainable

    shared = family_methods.options(3)
    monkeypatch.setattr(family_methods, "options", lambda steps: {**shared, "pretrain_steps": 0})
    family_methods.train_relative(0, 3, relative._replace(encoder=encoder))
    assert len(made) == 2
    for module, before in made:
        for name, value in before.items():
            assert module is not None
            moved = not torch.equal(dict(module.named_parameters())[name], value)
            assert moved, f"{name} rests"


def test_a_picture_is_drawn_when_all_of_its_methods_have_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(family, "CACHE", tmp_path / "draws")
    monkeypatch.setattr(family, "PICTURES", tmp_path / "pictures")
    both = {"encoder": folded(20), "posterior": folded(20)}
    for target, method in JOBS[1:]:
        path = family.draws_of(target, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(both, path)
    family.draw()
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "benchmark_family_unsure.png"
    assert picture.stat().st_size > 1000


def test_the_table_has_a_row_for_every_method_of_a_target() -> None:
    records = [
        {"target": target, "method": method, "seed": 0, "log_likelihood": -1.4 if target == TARGET else -2.1}
        for target, method in JOBS
    ]
    for target in (TARGET, UNSURE):
        _, _, *rows = latent_tables.family(records, target).splitlines()
        assert len(rows) == len(METHODS[target])
        assert [row.split(" | ")[0][2:] for row in rows] == [latent_tables.FAMILY_LABELS[m] for m in METHODS[target]]
        assert all(("-1.4000" in row) == (target == TARGET) for row in rows)


def test_rows_come_in_the_boards_order() -> None:
    rows = [{"target": target, "method": method, "seed": seed} for target, method in JOBS for seed in (1, 0)]
    ordered = family.finished(rows[::-1])
    assert [(r["target"], r["method"]) for r in ordered[::2]] == JOBS
    assert [r["seed"] for r in ordered[:2]] == [0, 1]


def test_a_picture_in_lines_shows_the_laws_that_there_are() -> None:
    with_encoder = {"encoder": folded(30), "posterior": 2.0 * folded(30)}
    drawn = {"a": with_encoder, "b": with_encoder, "c": {"posterior": folded(30)}}
    fig = figures.planes(drawn, {"a": "A"}, per_line=2)
    axes = [fig.axes[i : i + 2] for i in range(0, 8, 2)]
    assert [ax.get_title() for ax in axes[0]] == ["A", "b"]
    assert axes[2][0].get_title() == "c"
    assert [[len(ax.lines) for ax in line] for line in axes] == [[4, 4], [4, 4], [0, 0], [4, 0]]
    assert [[text.get_text() for text in ax.texts] for ax in axes[2]] == [["none"], []]
    assert [line[0].get_ylabel() for line in axes] == ["encoder", "posterior"] * 2
    shown = torch.as_tensor(axes[3][0].lines[1].get_xydata())
    torch.testing.assert_close(shown, drawn["c"]["posterior"][:, 1].double())


def test_the_data_are_the_same_for_all() -> None:
    assert one_hot_images().repeat(example.DRAWS, 1).mean(0).tolist() == [0.25] * 4
