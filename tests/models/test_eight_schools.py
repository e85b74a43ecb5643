"""Both Eight Schools problems: density, evidence, exact draws, reference draws."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from scipy.integrate import dblquad, quad
from torch import Tensor

from models import eight_schools as es

DRAWS = 200_000
Model = Callable[..., None]


def trace_log_prob(model: Model, z: Tensor, y: Tensor, sigma: Tensor) -> float:
    values = {"mu": z[0], "tau": z[1], "eta": z[2:]}
    trace = poutine.trace(poutine.condition(model, data=values)).get_trace(y, sigma)
    return float(trace.log_prob_sum())


def test_log_density_is_the_models() -> None:
    y, sigma = (v.double() for v in es.paper_data())
    z = 2.0 * torch.randn(20, 10, dtype=torch.float64)
    expected = [trace_log_prob(es.model, row, y, sigma) for row in z]
    torch.testing.assert_close(es.log_density(z, y, sigma), z.new_tensor(expected))
    # batch dimensions, default data, single precision
    value = es.log_density(z.view(4, 5, 10))
    torch.testing.assert_close(value.flatten(), z.new_tensor(expected), rtol=1e-6, atol=1e-5)
    assert es.log_density(z.float()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(\*batch, 10\)"):
        es.log_density(z[:, :9])


def test_classic_log_density_is_the_models_with_its_jacobian() -> None:
    y, sigma = (v.double() for v in es.classic_data())
    z = torch.randn(20, 10, dtype=torch.float64)
    z[:, :2] *= 4.0
    constrained = z.clone()
    constrained[:, 1] = z[:, 1].exp()
    expected = [trace_log_prob(es.classic_model, row, y, sigma) for row in constrained]
    expected = z.new_tensor(expected) + z[:, 1]
    torch.testing.assert_close(es.classic_log_density(z, y, sigma), expected)
    # far out the density is tiny, not NaN
    assert es.classic_log_density(torch.tensor([0.0, 80.0] + [0.0] * 8)).isfinite()
    assert es.classic_log_density(torch.tensor([0.0, -80.0] + [0.0] * 8)).isfinite()


@pytest.mark.parametrize("model", [es.model, es.classic_model])
def test_models_run_by_default_vectorised_and_as_prior_predictive(model: Model) -> None:
    trace = poutine.trace(model).get_trace()
    assert trace.nodes["y"]["is_observed"]
    assert trace.nodes["eta"]["value"].shape == (8,)
    prior = poutine.trace(model).get_trace(None)
    assert not prior.nodes["y"]["is_observed"]
    assert prior.nodes["y"]["value"].shape == (8,)
    with pyro.plate("particles", 6, dim=-2):
        trace = poutine.trace(model).get_trace()
    assert trace.nodes["eta"]["value"].shape == (6, 8)
    double = es.SIGMA.double()
    trace = poutine.trace(model).get_trace(None, double)
    assert trace.nodes["mu"]["value"].dtype == torch.float64


def test_data_cannot_be_changed_by_accident() -> None:
    y, sigma = es.paper_data()
    y.zero_()
    sigma.zero_()
    assert float(es.Y[0]) == pytest.approx(2.8)
    assert float(es.SIGMA[0]) == pytest.approx(0.8)


def test_log_evidence_by_two_dimensional_quadrature_and_known_value() -> None:
    assert es.exact_log_evidence() == pytest.approx(-12.710812, abs=1e-6)
    y = np.array([2.8, 0.8, -0.3, 0.7, -0.1, 0.1, 1.8, 1.2])
    sigma = np.array([0.8, 0.5, 0.8, 0.6, 0.5, 0.6, 0.5, 0.4])

    def density(tau: float, mu: float) -> float:
        spread = np.sqrt(sigma**2 + tau**2)
        log_p = -0.5 * ((y - mu) / spread) ** 2 - np.log(spread)
        log_p = log_p.sum() - 0.5 * (mu**2 + tau**2) - 5.0 * math.log(2.0 * math.pi)
        return math.exp(log_p + 12.0)

    # half of the line by symmetry in tau
    value, _ = dblquad(density, -3.0, 5.0, 0.0, 9.0, epsabs=1e-8, epsrel=1e-8)
    assert math.log(2.0 * value) - 12.0 == pytest.approx(es.exact_log_evidence(), abs=1e-5)


def test_classic_log_evidence_by_two_dimensional_quadrature() -> None:
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def density(tau: float, mu: float) -> float:
        log_p = stats.norm.logpdf(mu, 0.0, 5.0) + stats.halfcauchy.logpdf(tau, scale=5.0)
        spread = np.sqrt(sigma**2 + tau**2)
        log_p += float(np.sum(-0.5 * ((y - mu) / spread) ** 2 - np.log(spread)))
        return math.exp(log_p - 4.0 * math.log(2.0 * math.pi) + 31.0)

    grid_mu = np.linspace(-30.0, 40.0, 141)
    # trapezoidal in mu (smooth, vanishing ends), adaptive in tau
    rows = [quad(density, 0.0, 400.0, args=(mu,), points=(5, 20, 80))[0] for mu in grid_mu]
    value = math.log(sum(rows) * (grid_mu[1] - grid_mu[0])) - 31.0
    assert value == pytest.approx(es.classic_exact_log_evidence(), abs=1e-5)
    assert es.classic_exact_log_evidence() == pytest.approx(-31.311347, abs=1e-6)


@pytest.mark.parametrize("classic", [False, True])
def test_log_evidence_by_importance_sampling_of_the_full_density(classic: bool) -> None:
    # All ten coordinates at once; the prior (widened for the classic problem) covers them.
    n = 1_000_000
    z = torch.randn(n, 10, dtype=torch.float64)
    log_q = -0.5 * z.square().sum(-1) - 5.0 * math.log(2.0 * math.pi)
    if classic:
        z[:, 0] = 4.0 + 5.0 * z[:, 0]
        z[:, 1] = 1.0 + 2.0 * z[:, 1]
        log_q = log_q - math.log(10.0)
        log_weight = es.classic_log_density(z) - log_q
        exact = es.classic_exact_log_evidence()
    else:
        log_weight = es.log_density(z) - log_q
        exact = es.exact_log_evidence()
    weight = (log_weight - exact).exp()
    error = float(weight.std()) / math.sqrt(n)
    assert error < 0.05
    assert abs(float(weight.mean()) - 1.0) < 4.0 * error


@pytest.mark.parametrize(
    ("sample", "moments"),
    [
        (es.exact_posterior, es.exact_moments),
        (es.classic_exact_posterior, es.classic_exact_moments),
    ],
)
def test_exact_draws_have_the_moments_of_the_quadrature(
    sample: Callable[..., dict[str, Tensor]],
    moments: Callable[[], dict[str, tuple[Tensor, Tensor]]],
) -> None:
    draws, exact = sample(DRAWS, seed=5), moments()
    assert draws.keys() == exact.keys()
    for name, draw in draws.items():
        mean, sd = exact[name]
        assert draw.shape == (DRAWS, *mean.shape)
        standard = (draw - mean) / sd
        assert float(standard.mean(0).abs().max()) < 4.5 / math.sqrt(DRAWS)
        square = standard.square()
        error = square.std(0) / math.sqrt(DRAWS)
        assert float(((square.mean(0) - 1.0) / error).abs().max()) < 4.5
        assert draw.flatten().unique().numel() == draw.numel()


def test_exact_draws_follow_the_full_density() -> None:
    # Stein's identity E[grad log p] = 0 and E[z_i grad_j log p] = -delta_ij sees the joint law,
    # not the marginals alone.
    draws = es.exact_posterior(DRAWS, seed=6)
    z = torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["eta"]], 1)
    z.requires_grad_()
    (score,) = torch.autograd.grad(es.log_density(z).sum(), z)
    z = z.detach()
    assert float((score.mean(0) / score.std(0)).abs().max()) < 4.5 / math.sqrt(DRAWS)
    product = z.unsqueeze(2) * score.unsqueeze(1)
    error = product.std(0) / math.sqrt(DRAWS)
    assert float(((product.mean(0) + torch.eye(10)) / error).abs().max()) < 4.5


def test_both_modes_are_alike() -> None:
    tau = es.exact_posterior(DRAWS, seed=7)["tau"]
    share = float((tau > 0).double().mean())
    assert abs(share - 0.5) < 4.5 * 0.5 / math.sqrt(DRAWS)
    assert stats.ks_2samp(tau[tau > 0], -tau[tau < 0]).pvalue > 1e-4
    mean, _ = es.exact_moments()["tau"]
    assert abs(float(mean)) < 1e-12


def test_draws_are_seeded_and_leave_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, second = es.exact_posterior(50, seed=1), es.exact_posterior(50, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["mu"], es.exact_posterior(50, seed=2)["mu"])
    assert all(value.dtype == torch.float64 for value in first.values())
    with pytest.raises(ValueError, match="n must be at least 1"):
        es.exact_posterior(0, seed=1)


def test_classic_draws_are_consistent() -> None:
    draws = es.classic_exact_posterior(1000, seed=1)
    assert bool((draws["tau"] > 0).all())
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["eta"]
    torch.testing.assert_close(draws["theta"], theta)


def test_classic_moments_agree_with_posteriordb(posteriordb: Path) -> None:
    reference = es.classic_reference(posteriordb)
    exact = es.classic_exact_moments()
    for name, draw in reference.items():
        assert draw.shape[0] == 10_000
        mean, sd = exact[name]
        standard = (draw - mean) / sd
        # posteriordb states an effective size above 9200 of 10000
        error = 1.0 / math.sqrt(9200)
        assert float(standard.mean(0).abs().max()) < 4.5 * error
        square = standard.square()
        assert float(((square.mean(0) - 1.0) / square.std(0)).abs().max()) < 4.5 * error
    ours = es.classic_exact_posterior(10_000, seed=3)
    for name in ("mu", "tau"):
        assert stats.ks_2samp(ours[name], reference[name]).pvalue > 1e-4
    for school in range(8):
        test = stats.ks_2samp(ours["theta"][:, school], reference["theta"][:, school])
        assert test.pvalue > 1e-4


def test_classic_reference_reads_a_folder_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="AVBVI_POSTERIORDB"):
        es.classic_reference(tmp_path)
    np.savez(
        tmp_path / "eight_schools-eight_schools_noncentered.draws.npz",
        mu=np.zeros((2, 5), np.float32),
        tau=np.ones((2, 5), np.float32),
        theta=np.arange(80, dtype=np.float32).reshape(2, 5, 8),
    )
    data = {"J": 8, "y": es.CLASSIC_Y.tolist(), "sigma": es.CLASSIC_SIGMA.tolist()}
    (tmp_path / "eight_schools.data.json").write_text(json.dumps(data))
    monkeypatch.setenv("AVBVI_POSTERIORDB", str(tmp_path))
    draws = es.classic_reference()
    assert draws["mu"].shape == (10,)
    assert torch.equal(draws["theta"], torch.arange(80.0).double().view(10, 8))
    data["y"][0] = 2.8
    (tmp_path / "eight_schools.data.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="other data"):
        es.classic_reference(tmp_path)
