"""Schedules: annealing and decay at known points, and Adam under them against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from avbvi import Stopping
from avbvi.schedules import OpenEnded, Schedule, ScheduledAdam


def test_beta_rises_linearly_to_one() -> None:
    schedule = Schedule(anneal=0.4, beta_start=0.2)
    assert schedule.beta(0.0) == pytest.approx(0.2)
    assert schedule.beta(0.1) == pytest.approx(0.4)
    assert schedule.beta(0.3) == pytest.approx(0.8)
    assert [schedule.beta(x) for x in (0.4, 0.7, 1.0)] == [1.0, 1.0, 1.0]
    assert Schedule(anneal=0.0).beta(0.0) == 1.0


def test_weight_of_the_kl_rises_linearly_to_one() -> None:
    schedule = Schedule(kl_warm_up=0.25)
    assert schedule.kl_weight(0.125) == pytest.approx(0.5)
    assert schedule.kl_weight(0.25) == schedule.kl_weight(0.9) == 1.0
    assert 0.0 < schedule.kl_weight(0.0) < 0.01
    assert Schedule().kl_weight(0.0) == 1.0


def test_decay_is_half_a_cosine() -> None:
    schedule = Schedule()
    for progress, factor in ((0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1.0, 0.0), (1.2, 0.0)):
        assert schedule.factor(progress) == pytest.approx(factor, abs=1e-12)
    assert [Schedule(decay=False).factor(x) for x in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["trunk", "anneal", "polish", "average", "adversary_floor", "kl_warm_up"])
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


# -- runs that a stopping rule ends -----------------------------------------------------------------------


def test_open_ended_run_of_a_rule_that_fires() -> None:
    """Of at most 10,000 steps 1000 anneal; a constant ELBO stops 16 steps later."""
    run = OpenEnded(Stopping(minimum=16), Schedule(trunk=0.5), 10_000)
    for count in range(1, 1017):
        assert run.decay_from is None
        annealed = 0.3 * (count - 1) / 1000.0 if count <= 1000 else 1.0
        assert run.trunk_progress(count - 1) == pytest.approx((annealed, 0.0))
        run.update(count, 1.0)
    assert run.decay_from == 1016
    assert run.steps == round(1.25 * 1016 / 0.8)  # half of the work is four fifths of the steps
    assert run.trunk_progress(1016) == (1.0, 0.0)
    assert run.trunk_progress(1016 + 127) == pytest.approx((1.0, 0.5), abs=2e-3)
    assert run.trunk_progress(1016 + 254) == pytest.approx((1.0, 1.0), abs=4e-3)


def test_open_ended_run_of_a_rule_that_never_fires() -> None:
    run = OpenEnded(Stopping(), Schedule(trunk=1.0), 10_000)
    for count in range(1, 10_001):
        run.update(count, float(count))
    assert (run.decay_from, run.steps, run.rule.stopped_at) == (8000, 10_000, None)
    assert run.trunk_progress(9000) == (1.0, 0.5)


def test_open_ended_run_shortens_the_annealing_of_a_short_maximum() -> None:
    run = OpenEnded(Stopping(), Schedule(trunk=1.0, anneal=0.3), 100)
    assert [run.trunk_progress(count)[0] for count in (0, 15, 30)] == [0.0, pytest.approx(0.15), 1.0]
    assert OpenEnded(Stopping(), Schedule(trunk=1.0, anneal=0.0), 100).trunk_progress(0) == (1.0, 0.0)


def test_open_ended_run_keeps_to_its_maximum() -> None:
    run = OpenEnded(Stopping(minimum=16), Schedule(trunk=1.0, anneal=0.79), 100)
    for count in range(1, 101):
        run.update(count, 1.0)
    assert run.decay_from == 80  # 79 steps of annealing leave the rule one
    assert run.steps == 100


def test_open_ended_run_needs_a_trunk_stage() -> None:
    with pytest.raises(ValueError, match="stopping ends the trunk's stage"):
        OpenEnded(Stopping(), Schedule(trunk=0.0), 100)
