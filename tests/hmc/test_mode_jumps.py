"""Jumps between modes leave the target as it is, and mend the modes' shares."""

import math

import pytest
import torch

from avbvi.hmc import run_hmc
from avbvi.hmc.kernel import evaluate
from avbvi.hmc.mode_jumps import ModeJump
from avbvi.starts import LaplaceModes

WEIGHTS = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
LOCS = torch.tensor([[-20.0, 0.0], [0.0, 15.0], [30.0, 5.0]], dtype=torch.float64)
FACTORS = torch.tensor(
    [[[1.0, 0.0], [0.5, 0.2]], [[3.0, 0.0], [-1.0, 1.0]], [[0.1, 0.0], [0.0, 2.0]]], dtype=torch.float64
)
TARGET = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(WEIGHTS), torch.distributions.MultivariateNormal(LOCS, scale_tril=FACTORS)
)


def exact_modes(weights: torch.Tensor = WEIGHTS) -> LaplaceModes:
    return LaplaceModes(LOCS.clone(), FACTORS @ FACTORS.mT, weights.log())


def shares(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.cdist(z, LOCS).argmin(-1), 3).double().mean(0)


def test_exact_gaussians_are_always_accepted():
    z = TARGET.sample((2000,))
    jump = ModeJump(exact_modes())
    state, probability = jump.step(TARGET.log_prob, evaluate(TARGET.log_prob, z), None)
    # Where modes are Gaussian the ratio is that of the proposals: min(1, (1 - w_i) / (1 - w_j)).
    here, there = jump.assign(z)[0], jump.assign(state.z)[0]
    stayed = here == there
    expected = ((1 - WEIGHTS[here]) / (1 - WEIGHTS[there])).clamp_max(1.0)
    torch.testing.assert_close(probability[~stayed], expected[~stayed], atol=1e-6, rtol=0)
    torch.testing.assert_close(state.log_prob, TARGET.log_prob(state.z))
    # An accepted jump keeps the whitened coordinates.
    white = jump.assign(z)[1][here, torch.arange(2000)]
    new = jump.assign(state.z)[1][there, torch.arange(2000)]
    torch.testing.assert_close(new, white, atol=1e-9, rtol=0)


def test_exact_draws_stay_exact():
    n = 8000
    # Wrong weights, places and widths, as a Laplace approximation has them.
    jump = ModeJump(
        LaplaceModes(LOCS + 0.05, 0.8 * FACTORS @ FACTORS.mT, torch.full((3,), 1 / 3, dtype=torch.float64).log())
    )
    state = evaluate(TARGET.log_prob, TARGET.sample((n,)))
    for _ in range(12):
        state, probability = jump.step(TARGET.log_prob, state, None)
    assert 0.1 < float(probability.mean()) < 0.9
    assert bool(((shares(state.z) - WEIGHTS).abs() < 4 * (WEIGHTS * (1 - WEIGHTS) / n).sqrt()).all())
    for m in range(3):
        x = torch.linalg.solve(FACTORS[m], (state.z[torch.cdist(state.z, LOCS).argmin(-1) == m] - LOCS[m]).mT)
        count = x.shape[1]
        assert float(x.mean(1).abs().max()) < 4 / math.sqrt(count)
        assert float((x.square().mean(1) - 1).abs().max()) < 4 * math.sqrt(2 / count)


def test_no_jump_into_a_place_of_no_return():
    # The mode at 3 overlaps that at 0; a proposal that would belong to the mode it left is refused.
    locs = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    jump = ModeJump(LaplaceModes(locs, torch.ones(2, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)))
    normal = lambda z: -0.5 * (z[:, 0] - 1.5).square() / 4  # noqa: E731
    z = torch.tensor([[-2.0], [1.4], [1.6], [5.0]], dtype=torch.float64)
    _, probability = jump.step(normal, evaluate(normal, z), None)
    # -2 -> 1, which belongs to the mode at 0; 1.4 -> 4.4 is fine.
    assert probability[0] == 0
    assert probability[3] == 0
    expected = math.exp((0.1**2 - 2.9**2) / 8)
    torch.testing.assert_close(probability[1:3], torch.full((2,), expected, dtype=torch.float64))


def test_learns_moments_and_weights_from_the_chains():
    jump = ModeJump(LaplaceModes(LOCS + 0.1, FACTORS @ FACTORS.mT * 0.7, torch.zeros(3, dtype=torch.float64)))
    pieces = [TARGET.sample((4000,)) for _ in range(3)]
    for z in pieces:
        jump.observe(z)
    jump.update()
    z = torch.cat(pieces)
    which = torch.cdist(z, LOCS).argmin(-1)
    for m in range(3):
        mine = z[which == m]
        torch.testing.assert_close(jump.locs[m], mine.mean(0))
        torch.testing.assert_close(jump.covariances[m], torch.cov(mine.mT, correction=0), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(jump.log_weights.exp(), shares(z), atol=1e-3, rtol=0)
    # Nothing observed since: a second update leaves the Gaussians.
    before = jump.covariances.clone()
    jump.update()
    torch.testing.assert_close(jump.covariances, before)


def test_makes_hmc_cross():
    run = run_hmc(
        TARGET.log_prob,
        LOCS[torch.arange(600) % 3] + 0.1 * torch.randn(600, 2, dtype=torch.float64),
        draws=10,
        warmup=60,
        max_leapfrog_steps=24,
        thin=3,
        jump=ModeJump(exact_modes(torch.full((3,), 1 / 3))),
    )
    found = torch.nn.functional.one_hot(torch.cdist(run.draws, LOCS).argmin(-1), 3).double()
    means = found.mean(1)
    assert bool(((means.mean(0) - WEIGHTS).abs() < 4 * means.std(0) / math.sqrt(600)).all())
    assert float(run.rhat().max()) < 1.01 + 0.016  # 1.01 and four times the scatter of ten draws of 600 chains
    assert run.jump_acceptance > 0.5


def test_one_mode_is_too_few():
    with pytest.raises(ValueError, match="at least two modes to jump between, found 1"):
        ModeJump(LaplaceModes(LOCS[:1], FACTORS[:1], torch.zeros(1)))
