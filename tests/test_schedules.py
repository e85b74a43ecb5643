"""Schedules: annealing and decay at known points, and Adam under them against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from avbvi.schedules import Schedule, ScheduledAdam


def test_beta_rises_linearly_to_one() -> None:
    schedule = Schedule(anneal=0.4, beta_start=0.2)
    assert schedule.beta(0.0) == pytest.approx(0.2)
    assert schedule.beta(0.1) == pytest.approx(0.4)
    assert schedule.beta(0.3) == pytest.approx(0.8)
    assert [schedule.beta(x) for x in (0.4, 0.7, 1.0)] == [1.0, 1.0, 1.0]
    assert Schedule(anneal=0.0).beta(0.0) == 1.0


def test_decay_is_half_a_cosine() -> None:
    schedule = Schedule()
    for progress, factor in ((0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1.0, 0.0), (1.2, 0.0)):
        assert schedule.factor(progress) == pytest.approx(factor, abs=1e-12)
    assert [Schedule(decay=False).factor(x) for x in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["trunk", "anneal", "polish", "average", "adversary_floor"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_shares_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Schedule\({name}=\.\.\.\) must be in \[0, 1"):
        Schedule(**{name: value})


@pytest.mark.parametrize("value", [0.0, 1.1, math.nan])
def test_beta_starts_above_zero(value: float) -> None:
    with pytest.raises(ValueError, match="beta_start"):
        Schedule(beta_start=value)


def test_scheduled_adam_is_adam_with_the_scheduled_rate() -> None:
    schedule, steps = Schedule(), 20
    start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    done = 0
    optimiser = ScheduledAdam([ours], lr=0.1, factor=lambda: schedule.factor(done / steps))
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.5, 0.999))
    rate = torch.optim.lr_scheduler.LambdaLR(reference, lambda i: schedule.factor(i / steps))
    for _ in range(steps):
        for x, o in ((ours, optimiser), (theirs, reference)):
            o.zero_grad()
            (x - 0.5).pow(4).sum().backward()
            o.step()
        rate.step()
        done += 1
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    assert float((ours - start).detach().abs().min()) > 0.3


def test_an_adversarial_step_counts_as_four_of_the_trunks() -> None:
    # N steps with share s for the trunk cost s N + 4 (1 - s) N; the trunk's part of that is its share of the work.
    for trunk in (0.0, 0.2, 0.5, 0.9, 1.0):
        s = Schedule(trunk=trunk).trunk_share_of_steps
        assert s / (s + 4.0 * (1.0 - s)) == pytest.approx(trunk)
