"""The digits board."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import digits, image_models, runner
from benchmarks.image_models import AVB
from benchmarks.runner import Job
from models.vaes import VAE


def test_quadrature_of_a_decoder_that_ignores_its_latents() -> None:
    vae = VAE(digits.decoder(2), 2)
    logits = torch.randn(64)
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()
        list(vae.parameters())[-1].copy_(logits)
    x = torch.bernoulli(torch.full((5, 64), 0.4))
    expected = torch.distributions.Bernoulli(logits=logits.double()).log_prob(x.double()).sum(-1)
    found = digits.log_evidence_2d(vae, x, points=61)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0.0)


def test_quadrature_against_draws_of_the_prior() -> None:
    vae = VAE(digits.decoder(2), 2)
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(2.0)  # so that the latents matter
    x = vae.sample(4, torch.zeros(1))
    z = torch.randn(20_000, 1, 2)
    with torch.no_grad():
        log_weights = (vae.log_joint(x, z) - vae.prior(z).log_prob(z)).double()
    weights = (log_weights - log_weights.max(0).values).exp()
    monte_carlo = weights.mean(0).log() + log_weights.max(0).values
    stderr = weights.std(0) / weights.mean(0) / math.sqrt(len(z))
    assert float(log_weights.std()) > 0.3
    found = digits.log_evidence_2d(vae, x, points=101)
    assert bool(((found - monte_carlo).abs() < 4.0 * stderr).all())
    assert float(stderr.max()) < 0.05


def test_a_quick_run_has_the_figures_of_its_target() -> None:
    (row,) = digits.run(Job("digits_2d", "vae", 100, runner.QUICK_MINUTES))
    # Forty steps are no training, but annealing and quadrature judge the same decoder.
    assert abs(row["ais"] - row["log_likelihood"]) < 4.0 * row["ais_stderr"] + 0.05
    assert row["elbo"] < row["log_likelihood"] < -5.0
    assert row["elbo_exact"] == row["elbo"]
    assert row["binarisation"].startswith("training dynamic")
    assert "seed 0" in row["binarisation"]
    assert row["steps"] == digits.QUICK_STEPS


@pytest.mark.slow
def test_a_quick_run_of_avb_knows_its_own_elbo() -> None:
    (row,) = digits.run(Job("digits_2d", AVB, 100, runner.QUICK_MINUTES))
    assert row["elbo_exact"] - 0.02 < row["elbo_exact_upper"] < row["log_likelihood"] + 0.02
    assert row["elbo_exact_upper"] - row["elbo_exact"] < 0.05


def test_records_are_ordered_and_compared_with_the_vae_of_their_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "CACHE", tmp_path)
    torch.save(torch.tensor([-3.0, -4.0]), digits.evidence_file("digits_8d", "vae", 1))
    torch.save(torch.tensor([-2.0, -2.0]), digits.evidence_file("digits_8d", AVB, 1))
    rows = [
        {"target": target, "method": method, "seed": seed}
        for target, method, seed in (
            ("digits_8d", AVB, 1), ("digits_8d", AVB, 0), ("digits_2d", AVB, 1), ("digits_8d", "vae", 1)
        )
    ]  # fmt: skip
    records = digits.finished(rows)
    assert [(r["target"], r["method"], r["seed"]) for r in records] == [
        ("digits_2d", AVB, 1), ("digits_8d", "vae", 1), ("digits_8d", AVB, 0), ("digits_8d", AVB, 1)
    ]  # fmt: skip
    expected = image_models.ahead(torch.tensor([-2.0, -2.0]), torch.tensor([-3.0, -4.0]))
    assert records[3]["ahead_of_vae"] == expected["ahead_of_vae"] == 1.5
    assert all("ahead_of_vae" not in r for r in records[:3])


def test_thresholded_digits_are_a_target_of_their_own() -> None:
    assert {name: str(pixels[1]) for name, (_, pixels) in digits.TARGETS.items()} == {
        **dict.fromkeys(("digits_2d", "digits_8d", "digits_16d"), "static: one Bernoulli draw, seed 0"),
        "threshold_8d": "static: threshold at 0.5",
    }


def test_rivals_with_flows_run_on_one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []

    def ask(name: str, jobs: list[Job], *rest: Any, **others: Any) -> list[dict[str, Any]]:
        asked.extend(jobs)
        return []

    monkeypatch.setattr(runner, "run_jobs", ask)
    monkeypatch.setattr(digits, "CACHE", digits.CACHE / "nowhere")
    digits.main([])
    seeds = {key: sorted(j.seed for j in asked if (j.target, j.method) == key) for key in {j.key[:2] for j in asked}}
    assert seeds["digits_2d", AVB] == seeds["digits_16d", "full-vae"] == seeds["digits_8d", "vae"] == [0, 1, 2]
    assert seeds["digits_8d", "iaf-vae"] == seeds["threshold_8d", AVB] == [0]
    assert len(seeds) == len(digits.TARGETS) * len(digits.METHODS)
