"""The batched HMC kernel leaves its target invariant and removes local errors."""

import math

import torch

from avbvi.hmc import short_hmc


def gaussian(sd: torch.Tensor):
    return lambda z: -0.5 * (z / sd).square().sum(-1)


def test_leaves_exact_draws_exact():
    sd = torch.tensor([0.1, 1.0, 10.0])
    chains = short_hmc(gaussian(sd), sd * torch.randn(4000, 3), steps=20)
    # Variance of n independent normal draws has standard error sqrt(2 / n) in units of the variance.
    assert ((chains.states.var(0) / sd.square() - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    assert (chains.states.mean(0).abs() / sd < 4 / math.sqrt(4000)).all()


def test_mends_scale_and_location():
    sd = torch.tensor([0.5, 2.0])
    start = 0.3 + 1.4 * sd * torch.randn(4000, 2)
    chains = short_hmc(gaussian(sd), start, steps=60)
    assert ((chains.states.var(0) / sd.square() - 1).abs() < 4 * math.sqrt(2 / 4000)).all()
    assert (chains.states.mean(0).abs() / sd < 4 / math.sqrt(4000)).all()
    assert 0.7 < chains.acceptance < 0.95


def test_rejects_moves_out_of_the_support():
    def half_normal(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, 0] > 0, -0.5 * z[:, 0].square(), -math.inf)

    chains = short_hmc(half_normal, torch.randn(4000, 1).abs(), steps=20)
    assert (chains.states > 0).all()
    mean = math.sqrt(2 / math.pi)
    assert abs(float(chains.states.mean()) - mean) < 4 * math.sqrt((1 - mean**2) / 4000)
