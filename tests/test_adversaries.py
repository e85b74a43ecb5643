"""Adversaries: the logistic objective and its optimum, the hint, and that networks find log q - log r."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit
from torch.distributions import MultivariateNormal, Normal

from avbvi.adversaries import Adversary, Hint, Logistic, MLPAdversary, ResidualAdversary


def test_logistic_loss_is_the_cross_entropy() -> None:
    t_q, t_r = torch.randn(7).double() * 3.0, torch.randn(5).double() * 3.0
    expected = -np.log(expit(t_q.numpy())).mean() - np.log(1.0 - expit(t_r.numpy())).mean()
    assert float(Logistic().loss(t_q, t_r)) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(Logistic().log_ratio(t_q), t_q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_logistic_loss_is_stable_at_extreme_logits(dtype: torch.dtype, size: float) -> None:
    for sign_q, sign_r in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        t_q = torch.tensor([sign_q * size], dtype=dtype, requires_grad=True)
        t_r = torch.tensor([sign_r * size], dtype=dtype, requires_grad=True)
        loss = Logistic().loss(t_q, t_r)
        loss.backward()
        expected = -log_expit(sign_q * size) - log_expit(-sign_r * size)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-20)
        assert float(t_q.grad) == pytest.approx(-expit(-sign_q * size), abs=1e-7)
        assert float(t_r.grad) == pytest.approx(expit(sign_r * size), abs=1e-7)


def test_logistic_loss_is_stationary_and_least_at_the_log_ratio() -> None:
    q, r = Normal(*torch.tensor([0.5, 0.7]).double()), Normal(*torch.tensor([-0.2, 1.4]).double())
    x = torch.linspace(-12.0, 12.0, 401, dtype=torch.float64)
    step = float(x[1] - x[0])
    density_q, density_r = q.log_prob(x).exp(), r.log_prob(x).exp()

    def functional(t: torch.Tensor) -> torch.Tensor:
        """E_q of the loss's first term + E_r of its second by quadrature, each term read off the objective."""
        far = torch.full_like(t, 800.0)  # softplus(-800) = 0 exactly: only the other term is left
        at_q = torch.stack([Logistic().loss(a, -b) for a, b in zip(t, far, strict=True)])
        at_r = torch.stack([Logistic().loss(b, a) for a, b in zip(t, far, strict=True)])
        return (density_q * at_q + density_r * at_r).sum() * step

    best = q.log_prob(x) - r.log_prob(x)
    # The functional derivative q dl/dt_q + r dl/dt_r vanishes point by point.
    t_q, t_r = best.clone().requires_grad_(), best.clone().requires_grad_()
    gradient_q, gradient_r = torch.autograd.grad(Logistic().loss(t_q, t_r) * len(x), (t_q, t_r))
    pointwise = density_q * gradient_q + density_r * gradient_r
    assert float((density_q * gradient_q).abs().max()) > 0.05
    assert float(pointwise.abs().max()) < 1e-12
    least = float(functional(best))
    for direction in (torch.ones_like(x), x.sin(), -x.square()):
        for size in (0.1, -0.1):
            assert float(functional(best + size * direction)) > least
    # At the optimum the loss is 2 log 2 - 2 JSD(q, r).
    middle = 0.5 * (density_q + density_r)
    jsd = 0.5 * (density_q * (q.log_prob(x) - middle.log()) + density_r * (r.log_prob(x) - middle.log())).sum() * step
    assert least == pytest.approx(2.0 * math.log(2.0) - 2.0 * float(jsd), abs=1e-9)


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
