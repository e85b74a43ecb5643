"""Fits that reports are about, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import avbvi
from avbvi.rng import seeded
from tests.reports.fits import Pictures, model, quick_fit


@pytest.fixture(scope="session")
def adversarial() -> avbvi.Posterior:
    """A fit of a few steps that ends in the adversarial stage, suspect or worse."""
    guide = avbvi.AVBGuide(
        model, trunk=avbvi.AffineTrunk(), sampler=avbvi.MLPSampler((8,)), adversary=avbvi.MLPAdversary((8,))
    )
    posterior = quick_fit(model, guide=guide)
    assert posterior.guide.is_adversarial
    return posterior


@pytest.fixture(scope="session")
def saved(adversarial: avbvi.Posterior, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file."""
    path = tmp_path_factory.mktemp("fit") / "fit.pt"
    adversarial.save(path)
    return path


@pytest.fixture(scope="session")
def page(saved: Path) -> Path:
    """A report that was made from the file alone."""
    from avbvi.command import main

    assert main(["report", str(saved)]) == 0
    return saved.with_suffix(".html")


@pytest.fixture(scope="session")
def amortised() -> avbvi.Posterior:
    """A short amortised fit."""
    with seeded(0):
        pictures, x = Pictures(), torch.bernoulli(torch.full((24, 2), 0.6))
        guide = avbvi.AVBGuide(
            pictures.model,
            sampler=avbvi.SemiImplicitSampler(context_dim=2, hidden=(8,)),
            adversary=avbvi.JointAdversary((8,)),
        )
    return quick_fit(pictures.model, x, guide=guide)
