"""Iterates: R-hat against ArviZ, drift against a known trend, records at even times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avbvi.diagnostics import Iterates, agreement
from tests.diagnostics.known import LOC, SCALE_TRIL, guide_at


def test_rhat_is_that_of_arviz_with_the_halves_as_chains() -> None:
    arviz = pytest.importorskip("arviz")
    iterates = torch.rand(24, 2, 3, dtype=torch.float64) + 1.0
    found = agreement(iterates)
    for moment in range(2):
        for i in range(3):
            chains = np.stack([iterates[:12, moment, i].numpy(), iterates[12:, moment, i].numpy()])
            assert float(found.rhat[moment, i]) == pytest.approx(float(arviz.rhat(chains, method="rank")))


def test_drift_is_the_change_between_the_halves() -> None:
    n, sd, slope = 40, 2.0, 0.3
    time = torch.arange(n, dtype=torch.float64)
    means = slope * time
    sds = sd * torch.exp(0.01 * (time - time.mean()))
    iterates = torch.stack([means, sds], 1)[:, :, None]
    found = agreement(iterates)
    assert float(found.drift[0, 0]) == pytest.approx(slope * n / 2 / float(sds.mean()))
    assert float(found.drift[1, 0]) == pytest.approx(0.01 * n / 2)
    spread = slope / float(sds.mean()) * math.sqrt(np.var(np.arange(n // 2), ddof=1) * 2 / (n / 2))
    assert float(found.stderr[0, 0]) == pytest.approx(spread)
    assert bool((found.rhat > 2.0).all())


def test_drift_of_noise_is_within_its_error() -> None:
    draws = torch.randn(64, 512, 4)
    found = agreement(torch.stack([draws.mean(1), draws.std(1)], 1))
    assert bool((found.drift.abs() < 4.0 * found.stderr).all())
    # A mean of 512 draws, 32 of them in each half.
    assert float(found.stderr[0].mean()) == pytest.approx(math.sqrt(2.0 / (512 * 32)), rel=0.2)


@pytest.mark.parametrize("shape", [(15, 2, 3), (20, 3, 3), (20, 2)])
def test_misshapen_iterates_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(n, 2, dim\) with n >= 16"):
        agreement(torch.ones(shape))


def test_records_are_taken_at_even_times_of_the_stage() -> None:
    guide, _ = guide_at(LOC, SCALE_TRIL)
    iterates = Iterates(records=40, draws=2000)
    state = torch.get_rng_state()
    for step in range(1000):
        guide.stage.fill_(int(step >= 200))
        if step >= 200:
            guide.part("trunk").start(LOC + 3.0, SCALE_TRIL)
        iterates.update(guide, step / 1000)
    assert torch.equal(torch.get_rng_state(), state)
    assert iterates.last_half(0) is None  # 8 records
    late = iterates.last_half(1)
    assert late is not None
    assert late.shape == (16, 2, 2)  # the later half of 32
    sds = torch.linalg.vector_norm(SCALE_TRIL, dim=1)
    assert bool(((late[:, 0] - LOC - 3.0).abs() < 4.5 * sds / math.sqrt(2000)).all())
    assert bool(((late[:, 1] / sds - 1.0).abs() < 4.5 / math.sqrt(2 * 2000)).all())


def test_iterates_go_on_from_a_checkpoint() -> None:
    guide, _ = guide_at(LOC, SCALE_TRIL)
    whole, first, second = Iterates(40, 2), Iterates(40, 2), Iterates(40, 2)
    for step in range(100):
        if step == 50:
            second.load_state_dict(first.state_dict())
        for one in (whole, first) if step < 50 else (whole, second):
            torch.manual_seed(step)
            one.update(guide, step / 100)
    late, resumed = whole.last_half(0), second.last_half(0)
    assert late is not None
    assert resumed is not None
    assert torch.equal(late, resumed)


def test_too_few_records_or_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="draws must be at least 2, found 1"):
        Iterates(draws=1)
    with pytest.raises(ValueError, match="records must be at least 1, found 0"):
        Iterates(records=0)
