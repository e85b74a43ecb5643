"""R-hat and effective sample sizes against exact answers and independent implementations."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from avbvi.export import import_arviz
from avbvi.hmc.diagnostics import bulk_ess, rank_normal, rank_rhat, tail_ess


def autoregression(chains: int, draws: int, rho: float) -> torch.Tensor:
    """Stationary AR(1) chains with standard normal margins (chains, draws, 1)."""
    x = [torch.randn(chains, dtype=torch.float64)]
    for _ in range(draws - 1):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * torch.randn(chains, dtype=torch.float64))
    return torch.stack(x, 1)[..., None]


def test_rank_normal():
    x = torch.randn(7, 11, 2)
    expected = scipy.stats.norm.ppf((scipy.stats.rankdata(x.reshape(77, 2).numpy(), axis=0) - 0.375) / 77.25)
    np.testing.assert_allclose(rank_normal(x).reshape(77, 2).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_ess_of_many_short_chains(rho):
    m, n = 2000, 10
    # Variance of a chain's mean: (1 / n) (1 + 2 sum_k (1 - k / n) rho^k).
    inflation = 1 + 2 * sum((1 - k / n) * rho**k for k in range(1, n))
    ess = bulk_ess(autoregression(m, n, rho))
    assert float(ess) == pytest.approx(m * n / inflation, rel=4 * math.sqrt(2 / m))


def test_tail_ess_of_many_chains():
    m, n = 2000, 10
    assert float(tail_ess(autoregression(m, n, 0.0))) == pytest.approx(m * n, rel=5 * math.sqrt(2 / m))
    constant = torch.randn(m, 1, 1).expand(m, n, 1)
    # Chains that stand still are worth one draw each.
    assert float(tail_ess(constant)) == pytest.approx(m, rel=4 * math.sqrt(2 / m))


def test_few_chains_are_left_to_arviz():
    az = import_arviz()
    x = torch.cat([autoregression(4, 500, 0.6), autoregression(4, 500, 0.0)], -1)
    for ours, kind in ((bulk_ess, "bulk"), (tail_ess, "tail")):
        expected = [float(az.ess(x[..., j].numpy(), method=kind)) for j in range(2)]
        np.testing.assert_allclose(ours(x).numpy(), expected)
    np.testing.assert_allclose(rank_rhat(x).numpy(), [float(az.rhat(x[..., j].numpy())) for j in range(2)])


def test_rhat_sees_chains_that_differ():
    mixed = torch.randn(200, 20, 3)
    shifted = mixed + torch.tensor([0.0, 1.0, 0.0]) * torch.randn(200, 1, 1)
    shifted[..., 2] *= torch.linspace(0.3, 2.0, 200)[:, None]  # same centre, another width in each chain
    rhat = rank_rhat(shifted)
    assert 0.99 < float(rhat[0]) < 1.01
    # Between-chain variance 1 over within-chain variance 1: R-hat is sqrt(2).
    assert float(rhat[1]) == pytest.approx(math.sqrt(2), abs=0.08)
    assert float(rhat[2]) > 1.05


def test_rhat_of_too_few_draws_is_unknown():
    assert bool(torch.isnan(rank_rhat(torch.randn(100, 3, 2))).all())
    assert bool(torch.isnan(rank_rhat(torch.randn(1, 100, 2))).all())


def test_rhat_of_chains_that_stand_still_says_so_without_a_warning():
    # The variance within chains is 0 but for rounding.
    assert float(rank_rhat(torch.randn(20, 1, 1).expand(20, 6, 1))) > 1e6
