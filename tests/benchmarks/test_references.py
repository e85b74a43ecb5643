"""Reference draws on disk: the posterior's law, made once, made again when their sources change."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from benchmarks import references
from benchmarks.problems import Draws, stacked
from benchmarks.references import HMCReference


def conjugate(y: torch.Tensor) -> None:
    """Two coordinates, N(0, 1) a priori, each seen once with sd 1: posterior N(y / 2, 1/2)."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


def matrix(draws: Draws) -> torch.Tensor:
    return stacked(draws, "z")


@pytest.fixture
def reference(tmp_path: Path) -> HMCReference:
    # R-hat of independent draws is above one by about .0035 with so many chains of this length, a third of the limit.
    y = torch.tensor([1.0, -3.0])
    return HMCReference("conjugate", conjugate, (y,), matrix, (), chains=200, draws=20, warmup=50, folder=tmp_path)


def test_draws_follow_the_posterior_and_come_with_their_evidence(reference: HMCReference) -> None:
    draws = reference(10_000, 0)
    assert draws.shape == (4000, 2)
    assert draws.dtype == torch.float64
    ess = reference.figures["ess_min"]
    assert 1000 < ess < 8000
    error = math.sqrt(0.5 / min(ess, 4000.0))
    assert float((draws.mean(0) - torch.tensor([0.5, -1.5])).abs().max()) < 4 * error
    assert float((draws.var(0) / 0.5 - 1.0).abs().max()) < 4 * math.sqrt(2.0 / min(ess, 4000.0))
    assert reference.figures["rhat_max"] < 1.01
    assert set(reference.figures) == set(references.EVIDENCE)


def test_draws_are_made_once(reference: HMCReference, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reference(5, 3)
    monkeypatch.setattr(references.avbvi, "hmc_posterior", lambda *a, **k: pytest.fail("made again"))
    again = replace(reference)
    assert torch.equal(again(5, 3), first)
    assert not torch.equal(again(5, 4), first)
    assert [file.name for file in reference.folder.iterdir()] == [reference.path.name]


def test_other_settings_or_sources_are_other_files(
    reference: HMCReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert replace(reference, draws=21).path != reference.path
    monkeypatch.setattr(references, "ROOT", tmp_path)
    (tmp_path / "model.py").write_text("a")
    sourced = replace(reference, sources=("model.py",))
    before = sourced.path
    assert before != reference.path
    (tmp_path / "model.py").write_text("b")
    assert sourced.path != before


def test_halves_are_disjoint_and_together_all_draws(reference: HMCReference) -> None:
    first, second = reference.halves(1)
    assert len(first) == len(second) == 2000
    assert torch.equal(torch.cat([first, second]).unique(dim=0), reference(10_000, 0).unique(dim=0))
    assert not torch.equal(reference.halves(2)[0], first)


def test_chains_that_have_not_mixed_are_no_reference(reference: HMCReference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "RHAT_LIMIT", 0.5)
    with pytest.raises(RuntimeError, match="the reference chains of conjugate have not mixed"):
        reference.prepare()
    assert not list(reference.folder.iterdir())
