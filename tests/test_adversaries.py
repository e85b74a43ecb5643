"""Adversaries: the hint, and that networks find log q - log r."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from avbvi.adversaries import Adversary, Hint, MLPAdversary, ResidualAdversary


@pytest.mark.parametrize("adversary", [ResidualAdversary(target_hint=False), MLPAdversary()], ids=["residual", "mlp"])
def test_a_trained_adversary_is_the_log_ratio(adversary: Adversary) -> None:
    q = MultivariateNormal(torch.tensor([0.5, -0.3]), torch.tensor([[0.6, 0.3], [0.3, 0.8]]))
    r = MultivariateNormal(torch.zeros(2), torch.eye(2))
    adversary.build_for(2, 2)
    steps = 1500
    optimiser = torch.optim.Adam(adversary.parameters(), lr=5e-3, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        adversary.objective.loss(adversary(q.sample((512,))), adversary(r.sample((512,)))).backward()
        optimiser.step()
        schedule.step()
    x = q.sample((20_000,))
    with torch.no_grad():
        error = adversary.objective.log_ratio(adversary(x)) - (q.log_prob(x) - r.log_prob(x))
    assert float(error.abs().mean()) < 0.1
    assert float((q.log_prob(x) - r.log_prob(x)).abs().mean()) > 0.3  # T = 0 would not do


def test_without_a_hint_t_starts_at_zero() -> None:
    for adversary in (ResidualAdversary(), ResidualAdversary(target_hint=False), MLPAdversary()):
        adversary.build_for(3, 2)
        assert torch.count_nonzero(adversary(torch.randn(5, 3))) == 0


@pytest.mark.parametrize("score", [False, True])
def test_with_a_hint_t_starts_as_the_squashed_centred_hint(score: bool) -> None:
    adversary = ResidualAdversary(score=score)
    adversary.build_for(2, 2)
    assert adversary.uses_target
    assert adversary.uses_score is score
    ratio = torch.linspace(-100.0, 100.0, 11)
    adversary.observe(ratio + 3.0)
    hint = Hint(ratio, torch.randn(11, 2) if score else None)
    t = adversary(torch.randn(11, 2), hint)
    torch.testing.assert_close(t, 20.0 * torch.tanh((ratio - 3.0) / 20.0))
    # Near its centre T is the hint itself: x - 20 tanh(x / 20) = x^3 / 1200 + ...
    small = 3.0 + torch.linspace(-0.5, 0.5, 11)
    t = adversary(torch.randn(11, 2), Hint(small, hint.score))
    torch.testing.assert_close(t, small - 3.0, atol=0.5**3 / 1200 + 1e-5, rtol=0.0)


@pytest.mark.parametrize("slope", [None, 0.2])
def test_every_parameter_receives_a_gradient(slope: float | None) -> None:
    for adversary in (ResidualAdversary(hidden=8, slope=slope), MLPAdversary(hidden=(8, 8))):
        adversary.build_for(2, 3)
        with torch.no_grad():
            for p in adversary.parameters():
                p.add_(0.1 * torch.randn_like(p))
        hint = Hint(torch.randn(32), torch.randn(32, 3))
        adversary.objective.loss(adversary(torch.randn(32, 2), hint), adversary(torch.randn(32, 2), hint)).backward()
        silent = [n for n, p in adversary.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0.0]
        assert silent == []


def test_the_score_is_seen_through_asinh() -> None:
    adversary = ResidualAdversary(hidden=8, blocks=1)
    adversary.build_for(2, 3)
    with torch.no_grad():
        for p in adversary.network.parameters():
            p.copy_(torch.randn_like(p))
    features, score = torch.randn(6, 2), 50.0 * torch.randn(6, 3)
    zero = torch.zeros(6)
    expected = adversary.network(torch.cat([features, torch.asinh(score / 2.0)], -1)).squeeze(-1)
    torch.testing.assert_close(adversary(features, Hint(zero, score)), expected)
    empty = adversary.network(torch.cat([features, torch.zeros(6, 3)], -1)).squeeze(-1)
    torch.testing.assert_close(adversary(features), empty)


def test_observe_follows_its_recursion() -> None:
    adversary = ResidualAdversary()
    adversary.build_for(2, 2)
    batches = [torch.randn(10) + i for i in range(4)]
    center = float(batches[0].mean())
    adversary.observe(batches[0])
    assert float(adversary.center) == pytest.approx(center, rel=1e-6)
    for batch in batches[1:]:
        adversary.observe(batch)
        center = 0.95 * center + 0.05 * float(batch.mean())
    assert float(adversary.center) == pytest.approx(center, rel=1e-5)


def test_without_target_hint_nothing_of_the_target_is_asked_or_used() -> None:
    adversary = ResidualAdversary(target_hint=False)
    adversary.build_for(2, 2)
    assert not adversary.uses_target
    assert not adversary.uses_score
    adversary.observe(torch.ones(3))
    x = torch.randn(4, 2)
    assert torch.equal(adversary(x, Hint(torch.ones(4))), adversary(x))
