"""The board of AVB's relatives, on pictures made here and models whose figures are known."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import image_figures, image_models, relative_targets, relatives, runner
from benchmarks.image_models import AVB, Trained
from benchmarks.pieces import Clock
from benchmarks.relatives import DATA, METHODS, Setting
from benchmarks.runner import Job
from models.architectures import CIFAR10, MNIST
from models.data import cifar
from models.data.binarisation import DynamicBinarisation, Intensities
from models.data.images import Images, Split
from models.decoders import FullyConnectedDecoder
from models.likelihoods import LearnedNormalLikelihood
from models.vaes import VAE
from tests.models.linear_gaussian import exact_posterior, linear_vae, log_evidence

QUICK = runner.QUICK_MINUTES
WEIGHT = torch.tensor([[1.5, 1.2], [0.9, 1.2], [1.0, 0.9]])
BIAS = torch.tensor([0.3, -0.2, 0.1])


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(relatives, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(relatives, "PICTURES", tmp_path)
    kept = relatives.data, relatives.classifier  # a test may replace them
    yield
    for function in kept:
        function.cache_clear()


def small(target: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Give a target other settings."""
    changed = replace(relative_targets.TARGETS[target], **changes)
    monkeypatch.setitem(relative_targets.TARGETS, target, changed)


def test_held_out_pictures_come_round_equally_often() -> None:
    levels = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    images = Images(levels.contiguous(), maximum=4)
    target = replace(relative_targets.TARGETS["digits"], pixels=(Intensities(), Intensities()))
    found = relatives.held_out(target, Split(images, images), 12)
    assert found.shape == (12, 4)
    first = (4 * found[:, 0]).round().long()
    assert sorted(first[:5].tolist()) == sorted(first[5:10].tolist()) == [0, 1, 2, 3, 4]
    assert torch.equal(found, relatives.held_out(target, Split(images, images), 12))
    binary = replace(target, pixels=(DynamicBinarisation(), Intensities()))
    assert set(relatives.held_out(binary, Split(images, images), 12).unique().tolist()) <= {0.0, 1.0}


def test_samples_are_draws_and_means_of_the_model() -> None:
    vae = VAE(relative_targets.digits_task().decoder(), 8, relative_targets.binary())
    logits = torch.linspace(-2.0, 2.0, 64)
    with torch.no_grad():
        for weights in vae.parameters():
            weights.zero_()
        list(vae.parameters())[-1].copy_(logits)
    before = torch.random.get_rng_state()
    draws, means = relatives.samples(vae, 4000, torch.zeros(1, 64))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(draws, relatives.samples(vae, 4000, torch.zeros(1, 64))[0])
    p = logits.sigmoid()
    torch.testing.assert_close(means, p.expand(4000, 64))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert bool(((draws.mean(0) - p).abs() < 5.0 * (p * (1.0 - p) / 4000).sqrt()).all())


def test_the_score_of_classifiers_that_know_nothing_and_everything() -> None:
    x = torch.arange(40.0)[:, None].remainder(4.0) / 3.0
    known, stderr = relatives.score(lambda x: 1e3 * nn.functional.one_hot((3.0 * x[:, 0]).round().long(), 4).float(), x)
    assert known == pytest.approx(4.0)
    assert stderr == pytest.approx(0.0, abs=1e-9)
    unknown, _ = relatives.score(lambda x: torch.zeros(len(x), 4), x)
    assert unknown == pytest.approx(1.0)


@pytest.mark.slow
def test_an_encoder_that_is_off_does_not_count_against_the_decoder() -> None:
    vae = linear_vae(WEIGHT, BIAS)
    x = vae.sample(6, WEIGHT)
    loc, covariance = exact_posterior(WEIGHT, BIAS, x)

    def far(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        z = 8.0 + 0.01 * torch.randn(n, len(x), 2)
        return z, torch.zeros(n, len(x))

    def right(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        posterior = torch.distributions.MultivariateNormal(loc, covariance)
        z = posterior.sample((n,))
        return z, posterior.log_prob(z)

    exact = float(log_evidence(WEIGHT, BIAS, x).mean())
    both = relative_targets.TARGETS["digits"]
    one = replace(both, both_starts=False)

    def found(target: relative_targets.Target, draw: Any) -> float:
        trained = Trained(vae, draw, None, {})
        return relatives.annealed(trained, x, target, 30, None, Clock()).mean.value

    assert found(one, far) < exact - 1.0
    assert abs(found(both, far) - exact) < 0.15
    assert abs(found(one, right) - exact) < 0.05


def test_rows_of_a_quick_run() -> None:
    setting = Setting()
    (alone,) = relatives.run(Job("digits", DATA, 100, QUICK), setting)
    assert 1.0 <= alone["inception_score"] <= 10.0
    assert "ais" not in alone
    (gan,) = relatives.run(Job("digits", "dcgan", 100, QUICK), setting)
    assert not {"elbo", "elbo_exact", "rmse", "bits_per_dim"} & set(gan)
    assert gan["parameters"] == 0
    (row,) = relatives.run(Job("digits", "as-vae", 100, QUICK), setting)
    assert row["elbo"] < row["ais"] + 4.0 * row["ais_stderr"]
    assert row["elbo_exact"] == row["elbo"]
    # Ten steps: pixels are nearly coins still.
    for ais in (row["ais"], gan["ais"]):
        assert -64.0 * math.log(2.0) - 3.0 < ais < -30.0
    assert 0.4 < row["rmse"] < 0.55
    assert row["binarisation"].startswith("training dynamic")
    assert not list(relatives.CACHE.glob("*"))


@pytest.mark.slow
def test_pieces_of_a_run_make_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("digits", "as-vae-g", 100, QUICK)
    (whole,) = relatives.run(job, Setting())
    with pytest.raises(KeyboardInterrupt):
        relatives.run(job, Setting(end=time.time() - 1.0))
    assert list(relatives.CACHE.glob("*.training.pt"))
    (row,) = relatives.run(job, Setting(end=time.time() + 60.0))
    assert {key: row[key] for key in ("ais", "elbo", "rmse", "inception_score")} == {
        key: whole[key] for key in ("ais", "elbo", "rmse", "inception_score")
    }
    assert row["seconds"] == pytest.approx(row["train_seconds"] + row["ais_seconds"])
    assert not list(relatives.CACHE.glob("*.pt"))


def test_cifar_is_judged_by_bins_in_bits_and_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH", 10)
    numbers = np.random.default_rng(0)
    for name in (name for names in cifar.PARTS.values() for name in names):
        levels = numbers.integers(0, 256, (10, 3072), dtype=np.uint8)
        content = {b"data": levels, b"labels": list(range(10))}
        (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    networks = replace(CIFAR10, latent_dim=3, channels=(4, 8), hidden=8)
    task = relative_targets.convolutional_task(networks, LearnedNormalLikelihood, relative_targets.SLOW)
    small("cifar10", monkeypatch, task=replace(task, width=20, shape=(8,)))
    assert relatives.missing(Job("cifar10", "vae", 0, QUICK), tmp_path) is None
    assert "nowhere" in str(relatives.missing(Job("cifar10", "vae", 0, QUICK), tmp_path / "nowhere"))
    (row,) = relatives.run(Job("cifar10", "as-vae", 100, QUICK), Setting(folder=tmp_path))
    assert row["bits_per_dim"] == pytest.approx(-row["elbo"] / (3072 * math.log(2.0)))
    # Uniform levels have 8 bits, and 256 / sqrt(12) = 74 is the sd of what can't be reconstructed.
    assert row["bits_per_dim"] > 8.0
    assert row["rmse"] > 70.0
    assert "ais" not in row
    assert 1.0 <= row["inception_score"] <= 10.0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[1:])
def test_every_method_runs_on_mnist_with_convolutions(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(
        *(
            Images(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8), labels=torch.arange(n) % 10)
            for n in (130, 12)
        )
    )
    monkeypatch.setattr(relatives, "data", lambda target, folder: split)
    networks = replace(MNIST, latent_dim=3, channels=(4, 8, 8), hidden=8)
    task = relative_targets.convolutional_task(networks, relative_targets.binary, relative_targets.SLOW)
    small("mnist", monkeypatch, task=replace(task, width=200, shape=(60,)))
    (row,) = relatives.run(Job("mnist", method, 100, QUICK), Setting())
    assert -784.0 < row["ais"] < -400.0  # coins, as the pixels are: 784 log 2 = 543
    assert row.get("elbo_exact", row["ais"]) < row["ais"] + 4.0 * row["ais_stderr"]


def test_the_board_asks_for_digits_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []

    def ask(name: str, jobs: list[Job], worker: Any, settings: runner.Options, **others: Any) -> list[dict[str, Any]]:
        asked.extend(jobs)
        assert settings.workers == 2
        assert not settings.wants("mnist", "vae")  # whose saved rows stay as they are
        return []

    monkeypatch.setattr(runner, "run_jobs", ask)
    relatives.main([])
    seeds = {method: sorted(j.seed for j in asked if j.method == method) for method in METHODS}
    assert {j.target for j in asked} == {"digits"}
    assert seeds["as-vae"] == seeds["vae"] == seeds["as-vae-g"] == seeds[AVB] == [0, 1, 2]
    assert seeds[DATA] == seeds["iaf-vae"] == seeds["dcgan"] == [0]


def test_the_command_line() -> None:
    command = ["--targets", "mnist", "--methods", "as-vae", "--seeds", "1", "--piece-minutes", "9", "--folder", "x"]
    settings, setting = relatives.read(command)
    assert (settings.targets, settings.methods, settings.seeds) == (("mnist",), ("as-vae",), 1)
    assert (setting.folder, setting.device, setting.in_pieces) == (Path("x"), "cpu", True)
    assert 530.0 < setting.end - time.time() <= 540.0
    assert not relatives.read([])[1].in_pieces
    assert relatives.shared(relative_targets.TARGETS["mnist"], "cuda", quick=False).recipe.steps == 30_000
    assert Setting("cuda:1").kind == "cuda"
    for wrong in (["--piece-minutes", "0"], ["--folder", "x"], ["--targets", "nothing"], ["--devise", "cpu"]):
        with pytest.raises(SystemExit):
            relatives.read(wrong)


def test_records_are_ordered_and_compared_with_the_vae_of_their_seed() -> None:
    relatives.CACHE.mkdir()
    torch.save(torch.tensor([-3.0, -4.0]), relatives.evidence_file("digits", "vae", 1))
    torch.save(torch.tensor([-2.0, -2.0]), relatives.evidence_file("digits", "as-vae", 1))
    rows = [
        {"target": target, "method": method, "seed": seed}
        for target, method, seed in (
            ("mnist", "vae", 0), ("digits", "as-vae", 1), ("digits", "as-vae", 0), ("digits", DATA, 0)
        )
    ]  # fmt: skip
    records = relatives.finished(rows)
    assert [(r["target"], r["method"], r["seed"]) for r in records] == [
        ("digits", DATA, 0), ("digits", "as-vae", 0), ("digits", "as-vae", 1), ("mnist", "vae", 0)
    ]  # fmt: skip
    expected = image_models.ahead(torch.tensor([-2.0, -2.0]), torch.tensor([-3.0, -4.0]))
    assert records[2]["ahead_of_vae"] == expected["ahead_of_vae"] == 1.5
    assert all("ahead_of_vae" not in r for r in records if r is not records[2])


def test_the_figure_has_a_row_of_each_method_below_the_data() -> None:
    relatives.CACHE.mkdir()
    images = Images(torch.randint(0, 17, (30, 1, 8, 8), dtype=torch.uint8), maximum=16)
    assert relatives.figure("digits", Split(images, images)) is None
    ink = {"samples": torch.ones(relatives.SHOWN, 64), "means": torch.zeros(relatives.SHOWN, 64)}
    torch.save(ink, relatives.CACHE / "digits-dcgan-samples.pt")
    path = relatives.figure("digits", Split(images, images))
    assert path is not None
    assert path.stat().st_size > 1000
    figure = image_figures.rows({"data": torch.zeros(3, 64), "GAN": ink["samples"][:3]}, (1, 8, 8))
    assert [ax.get_ylabel() for ax in figure.axes] == ["data", "GAN"]
    shown = figure.axes[1].get_images()[0].get_array()
    assert shown is not None
    assert shown.shape == (8, 3 * 9 - 1)
    assert float(shown[:, :8].max()) == 0.0  # draws are ink, not the means


def test_the_networks_of_digits_are_those_of_the_digits_board() -> None:
    task = relative_targets.digits_task()
    decoder = task.decoder()
    assert isinstance(decoder, FullyConnectedDecoder)
    assert decoder.latent_dim == 8
    assert decoder.hidden == (200, 200)
