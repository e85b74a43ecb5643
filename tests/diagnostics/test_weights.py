"""Importance weights: smoothing against ArviZ, the trunk's weights and the divergence by weights in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.diagnostics import fit_generalised_pareto, pareto_smooth, summarise_weights, trunk_weights
from tests.diagnostics.known import LOC, SCALE_TRIL, guide_at, log_density

# -- Pareto smoothing --------------------------------------------------------------------------------


def weights_of(kind: str, n: int) -> Tensor:
    x = torch.randn(n, dtype=torch.float64)
    if kind == "light":
        return -0.1 * x.square() + 100.0
    if kind == "heavy":
        return 2.5 * x - 1000.0
    if kind == "infinite variance":
        return 0.45 * x.square()
    if kind == "some zero":
        return torch.where(x > 0.5, -math.inf, x)
    assert kind == "ties"
    return x.round(decimals=1)


@pytest.mark.parametrize("kind", ["light", "heavy", "infinite variance", "some zero", "ties"])
@pytest.mark.parametrize("n", [25, 200, 5000])
def test_pareto_smoothing_is_that_of_arviz(kind: str, n: int) -> None:
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has no psislw")
    log_weights = weights_of(kind, n)
    smoothed, k_hat = pareto_smooth(log_weights)
    with np.errstate(all="ignore"):
        expected, k_expected = arviz.psislw(log_weights.numpy().copy())
    assert k_hat == pytest.approx(float(k_expected), abs=1e-6)
    # Among equal weights the order is arbitrary, so that they may change places.
    np.testing.assert_allclose(smoothed.exp().sort().values.numpy(), np.sort(np.exp(expected)), atol=1e-9, rtol=1e-6)
    if kind != "ties":
        np.testing.assert_allclose(smoothed.exp().numpy(), np.exp(expected), atol=1e-9, rtol=1e-6)
    assert float(smoothed.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.6, 1.0])
def test_generalised_pareto_shape_is_found(shape: float) -> None:
    n, scale = 20_000, 3.0
    u = torch.rand(n, dtype=torch.float64)
    x = scale * torch.expm1(-shape * torch.log1p(-u)) / shape
    k, sigma = fit_generalised_pareto(x.sort().values)
    # Asymptotic standard errors of maximum likelihood: (1 + k) / sqrt(n) and sigma sqrt(2 (1 + k) / n);
    # the prior, worth ten observations, adds a bias.
    assert abs(k - shape) < 4.0 * (1.0 + shape) / math.sqrt(n) + 10.0 / n
    assert abs(sigma / scale - 1.0) < 4.0 * math.sqrt(2.0 * (1.0 + shape) / n)


def test_equal_weights_are_trusted() -> None:
    smoothed, k_hat = pareto_smooth(torch.full((100,), -7.0))
    assert k_hat == -math.inf
    torch.testing.assert_close(smoothed, torch.full((100,), -math.log(100.0), dtype=torch.float64))
    # The same up to the rounding of float32.
    noisy = -7.0 + torch.randint(-4, 5, (20_000,)) * torch.finfo(torch.float32).eps
    assert pareto_smooth(noisy)[1] == -math.inf


def test_a_single_weight_is_not_trusted() -> None:
    log_weights = torch.full((100,), -math.inf)
    log_weights[3] = 5.0
    smoothed, k_hat = pareto_smooth(log_weights)
    assert k_hat == math.inf
    assert float(smoothed[3]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (torch.zeros(24), r"n >= 25, found \(24,\)"),
        (torch.zeros(5, 30), r"found \(5, 30\)"),
        (torch.zeros(30).index_fill(0, torch.tensor([3]), math.nan), "found NaN"),
        (torch.zeros(30).index_fill(0, torch.tensor([3]), math.inf), r"or \+inf"),
        (torch.full((30,), -math.inf), "all -inf"),
    ],
)
def test_unusable_weights_are_refused(log_weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pareto_smooth(log_weights)


def test_trunk_weights_are_the_exact_log_ratios() -> None:
    guide, target = guide_at(LOC + 0.5, 1.3 * SCALE_TRIL)
    base, log_weight = trunk_weights(guide, target, 50)
    z = LOC + 0.5 + 1.3 * base @ SCALE_TRIL.mT
    expected = log_density(z) - MultivariateNormal(LOC + 0.5, scale_tril=1.3 * SCALE_TRIL).log_prob(z)
    torch.testing.assert_close(log_weight, expected, atol=1e-5, rtol=1e-5)


def test_divergence_by_weights_is_the_closed_form() -> None:
    n, shift, log_z = 20_000, 0.5, -7.0
    x = torch.randn(n, dtype=torch.float64) + shift
    log_evidence, kl, k_hat, share = summarise_weights(log_z + 0.5 * (x - shift).square() - 0.5 * x.square())
    # Weights exp(-shift e - shift^2 / 2) have mean 1 and variance exp(shift^2) - 1.
    assert abs(log_evidence - log_z) < 4.0 * math.sqrt(math.expm1(shift**2) / n)
    # Errors of the mean weight and of the mean log weight partly cancel.
    assert abs(kl - 0.5 * shift**2) < 4.0 * shift / math.sqrt(n)
    assert k_hat < 0.5
    assert share == pytest.approx(math.exp(-(shift**2)), abs=0.03)


def test_weights_of_zero_count_in_the_evidence_alone() -> None:
    """Half of the draws outside the support: the evidence is half as large, the mean is over the others."""
    log_weights = torch.full((1000,), 3.0, dtype=torch.float64)
    log_weights[::2] = -math.inf
    log_evidence, kl, k_hat, share = summarise_weights(log_weights)
    assert log_evidence == pytest.approx(3.0 - math.log(2.0))
    assert kl == pytest.approx(-math.log(2.0))
    assert k_hat == -math.inf
    assert share == pytest.approx(0.5)
    assert summarise_weights(torch.full((30,), math.nan)).k_hat == math.inf
