"""The runs of the safety board: that they are watched, and what they tell."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from avbvi import elbo, fitting
from avbvi.diagnostics import choose_stage
from benchmarks import safety


@pytest.fixture(autouse=True)
def _trainer_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board changes modules, as it has its process to itself."""
    monkeypatch.setattr(fitting, "Trainer", fitting.Trainer)
    monkeypatch.setattr(elbo, "choose_stage", partial(choose_stage, n=500))


def test_the_long_run_is_looked_at_every_ten_steps(tmp_path: Path) -> None:
    (row,) = safety.million_steps(30, tmp_path)
    assert (row["steps"], row["states_looked_at"], row["states_not_finite"]) == (30, 3, 0)
    assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_what_an_outcome_tells(tmp_path: Path) -> None:
    fitting.Trainer = safety.Unjudged  # type: ignore[misc]
    outcome = safety.outcome(safety.calm_fit, tmp_path / "run.pt")
    assert outcome["peak_bytes"] != 0
    assert outcome["steps"] == 160
    assert len(outcome["random_state"]) == len(outcome["digest"]) == 64
    assert safety.saved_step(tmp_path / "run.pt") == 160
