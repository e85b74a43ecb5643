"""Buffers of a run whose steps read nothing back: few of them, none for arguments that stay, and none by force."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AdversarialELBO, AffineTrunk
from avbvi import training as training_module
from avbvi.capture import running
from avbvi.data.static_batches import StaticBatch
from tests.capture import test_running
from tests.capture.test_running import SHARED, assert_same_run, fitted, small

_only_the_steps = test_running._only_the_steps


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[running.Straight]:
    """How the runs of a test took their steps."""
    made: list[Any] = []
    original = running.execution_of

    def noted(*args: Any, **options: Any) -> Any:
        made.append(original(*args, **options))
        return made[-1]

    monkeypatch.setattr(training_module, "execution_of", noted)
    return made


def test_buffers_of_ever_new_shapes_are_not_kept(runs: list[running.Straight], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of batch that there is no room for is run as it is, and makes the same run."""
    expected = fitted("amortised", capture=False)
    monkeypatch.setattr(running, "MOST_SHAPES", 1)
    assert_same_run(fitted("amortised", capture=True), expected)
    assert len(runs[-1]._batches) == 1


def test_fixed_arguments_are_not_copied(runs: list[running.Straight]) -> None:
    fitted("parameters", capture=True, steps=3)
    (batch,) = runs[-1]._batches
    assert batch.arguments[0] is runs[-1]._trainer.args[0]
    fitted("amortised", capture=True, steps=3)
    (batch,) = runs[-1]._batches
    assert batch.arguments[0] is not runs[-1]._trainer.current[0]
    assert isinstance(batch, StaticBatch)


def test_arguments_without_buffers_are_run_step_by_step() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.to_dense().sum())

    loss, guide = AdversarialELBO(**SHARED), small(model, AffineTrunk())
    data = torch.eye(2).to_sparse()
    run = avbvi.fit(model, data, guide=guide, elbo=loss, steps=3, capture=True, progress=False).run
    assert run.steps == 3
    assert run.execution.startswith("step by step: example: a static buffer needs a dense tensor")
