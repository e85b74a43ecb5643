"""Figures of annealed weights: standard errors against replication and brute force, sums over data."""

import math

import pytest
import torch

from avbvi.annealed import AnnealedEvidence, LinearTemperatures, Sandwich
from avbvi.annealed.evidence import jackknife_stderr, log_mean_exp


def evidence(log_weights: torch.Tensor) -> AnnealedEvidence:
    chains, batch = log_weights.shape
    return AnnealedEvidence(
        log_weights, torch.zeros(chains, batch, 2), torch.tensor([0.5, 0.7]), LinearTemperatures(2), 3, 1.5
    )


def test_log_mean_exp_does_not_overflow():
    x = torch.tensor([[1000.0, -1000.0], [1000.0 + math.log(3.0), -math.inf]])
    torch.testing.assert_close(
        log_mean_exp(x), torch.tensor([1000.0 + math.log(2.0), -1000.0 - math.log(2.0)]).double(), rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("n", [2, 5, 40])
def test_jackknife_is_that_of_the_definition(n):
    x = torch.randn(n, 3).double() * 4.0 + 300.0
    without = torch.stack([log_mean_exp(torch.cat([x[:i], x[i + 1 :]])) for i in range(n)])
    expected = ((n - 1) / n * (without - without.mean(0)).square().sum(0)).sqrt()
    torch.testing.assert_close(jackknife_stderr(x), expected)


@pytest.mark.parametrize(("n", "sd"), [(5, 0.5), (20, 1.0), (200, 1.0)])
def test_standard_errors_are_the_spread_of_replications(n, sd):
    x = sd * torch.randn(n, 4000, dtype=torch.float64)
    spread = float(log_mean_exp(x).std())
    # Where the delta method holds, var = (exp(sd^2) - 1) / n; the jackknife's mean square lies within a fifth.
    assert spread == pytest.approx(math.sqrt((math.exp(sd**2) - 1.0) / n), rel=0.15)
    assert float(jackknife_stderr(x).square().mean().sqrt()) == pytest.approx(spread, rel=0.2)


def test_standard_errors_of_extreme_weights():
    x = torch.tensor([[0.0, 0.0, -math.inf, 0.0], [30.0, 0.0, 0.0, 0.0], [0.0, 0.0, -math.inf, 0.0]])
    stderr = jackknife_stderr(x)
    assert 10.0 < stderr[0] < 30.0  # one weight outweighs the others
    assert stderr[1] == 0.0
    assert stderr[2] == math.inf
    assert math.isnan(float(jackknife_stderr(x[:1])[0]))


def test_figures_over_data():
    x = torch.randn(6, 30, dtype=torch.float64)
    result = evidence(x)
    w = x.exp()
    torch.testing.assert_close(result.log_evidence, w.mean(0).log())
    torch.testing.assert_close(result.ess, w.sum(0).square() / w.square().sum(0))
    value, stderr = result.mean
    assert value == pytest.approx(float(w.mean(0).log().mean()))
    assert stderr == pytest.approx(float(result.stderr.square().sum().sqrt()) / 30)
    assert result.total.value == pytest.approx(30 * value)
    assert result.total.stderr == pytest.approx(30 * stderr)
    assert result.data_sd == pytest.approx(float(w.mean(0).log().std()))
    text = str(result)
    for words in ("per datum", "30 data", "6 chains", "LinearTemperatures", "standard deviation", "0.50 to 0.70"):
        assert words in text


def test_mean_covers_the_truth_over_replications():
    # Data of evidence 1 whose weights are lognormal: the bias of the logarithm is a tenth of the standard error.
    hits = []
    for _ in range(300):
        value, stderr = evidence(0.3 * torch.randn(5, 20, dtype=torch.float64) - 0.045).mean
        hits.append(abs(value) < 2.0 * stderr)
    # 95 % of normal intervals; Student's t of four degrees of freedom pooled over 20 data changes little.
    assert 0.88 < sum(hits) / 300 < 0.99


def test_a_single_datum_and_a_single_chain_can_be_shown():
    assert "1 datum" in str(evidence(torch.zeros(4, 1)))
    alone = evidence(torch.zeros(1, 3))
    assert math.isnan(alone.mean.stderr)
    assert "nan" in str(alone)


def test_sandwich():
    lower, upper = torch.randn(4, 10, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64) + 1.0
    result = Sandwich(evidence(lower), upper, 2.0)
    torch.testing.assert_close(result.upper, -(-upper).exp().mean(0).log())
    difference = result.upper - lower.exp().mean(0).log()
    assert result.gap.value == pytest.approx(float(difference.mean()))
    assert result.gap.stderr == pytest.approx(float(difference.std()) / math.sqrt(10))
    assert result.mean_lower == result.forward.mean
    assert "gap" in str(result)
    single = Sandwich(evidence(lower[:, :1]), upper[:, :1], 2.0)
    assert single.gap.stderr == pytest.approx(
        math.hypot(float(jackknife_stderr(lower[:, :1])[0]), float(jackknife_stderr(-upper[:, :1])[0]))
    )
