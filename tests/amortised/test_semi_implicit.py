"""The semi-implicit sampler: its formula, its start, its moments, and its density against quadrature over m."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.amortised.semi_implicit import SemiImplicitSampler

CONTEXT_DIM, DIM, BATCH = 6, 3, 4


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def built(sampler: SemiImplicitSampler, dim: int = DIM) -> SemiImplicitSampler:
    """With a network that is far from its start."""
    sampler.build(dim)
    sampler.double()
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(0.3 * torch.randn_like(p))
        # Moved about by m rather than by x: neither constant nor at the bound throughout.
        sampler.network.from_noise.weight.mul_(3.0)
        sampler.network.leave.bias.zero_()
        sampler.network.leave.weight.mul_(0.5)
    return sampler


def contexts() -> Tensor:
    return torch.randn(BATCH, CONTEXT_DIM)


def noise_of(sampler: SemiImplicitSampler, *shape: int) -> Tensor:
    return sampler.sample_noise(torch.Size(shape), like=torch.zeros(()))


@pytest.mark.parametrize("full", [False, True])
def test_it_starts_near_its_gaussian_and_computes_its_formula(full: bool) -> None:
    sampler = SemiImplicitSampler(CONTEXT_DIM, full=full, extra_noise=2, limit=1.5)
    sampler.build(DIM)
    context, noise = contexts(), noise_of(sampler, 500, BATCH)
    with torch.no_grad():
        gaussians = sampler.gaussians(context)
        start = gaussians.standardise(sampler(noise, context)) - noise[..., :DIM]
        assert 0.0 < float(start.abs().max()) < 0.2
        scale = gaussians.scale.diagonal(dim1=-2, dim2=-1) if full else gaussians.scale
        assert float((scale / 0.5).log().abs().max()) < 1.5  # near start_scale
        built(sampler)
        f = 1.5 * torch.tanh(sampler.network(noise[..., DIM:], sampler.features(context)) / 1.5)
        assert float(f.abs().max()) > 1.4  # the bound is exercised
        e = sampler.gaussians(context).standardise(sampler(noise, context))
        torch.testing.assert_close(e, noise[..., :DIM] + f)


@pytest.mark.parametrize("full", [False, True])
def test_moments_are_those_of_its_draws(full: bool) -> None:
    n = 10_000
    sampler, context = built(SemiImplicitSampler(CONTEXT_DIM, full=full, moment_draws=n)), contexts()
    with torch.no_grad():
        loc, covariance = sampler.moments(context)
        draws = sampler(noise_of(sampler, n, BATCH), context)
    # 5 standard errors of two estimates, for the moments' own draws of f vary less than those of z.
    assert bool(((draws.mean(0) - loc).abs() < 5.0 * draws.std(0) * math.sqrt(2.0 / n)).all())
    centred = draws - draws.mean(0)
    products = centred[..., :, None] * centred[..., None, :]
    assert bool(((products.mean(0) - covariance).abs() < 5.0 * products.std(0) * math.sqrt(2.0 / n)).all())
    # f has a share in it: without f the standardised draws would have covariance I.
    standard = sampler.gaussians(context).standardise(draws).detach()
    assert float(standard.var(0).max()) > 1.2


def quadrature(sampler: SemiImplicitSampler, z: Tensor, context: Tensor) -> Tensor:
    """log q(z | x) with m of width 1 integrated by Gauss-Hermite: (S, B, dim) -> (S, B)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    m, w = torch.as_tensor(nodes), torch.as_tensor(weights)
    keep = w > 0.0  # the outermost underflow
    m, w = m[keep], w[keep] / w.sum()
    gaussians, features = sampler.gaussians(context), sampler.features(context)
    f = sampler.shift(m[:, None, None].expand(-1, len(context), 1), features)
    factor = gaussians.matrices()
    parts = [
        MultivariateNormal(gaussians.loc + torch.einsum("bij,bj->bi", factor, f[k]), scale_tril=factor).log_prob(z)
        for k in range(len(m))
    ]
    return torch.logsumexp(torch.stack(parts) + w.log()[:, None, None], 0)


@pytest.mark.parametrize("full", [False, True])
def test_the_density_is_that_of_quadrature(full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = built(SemiImplicitSampler(CONTEXT_DIM, full=full, extra_noise=1, hidden=(8,)), dim=2)
    context, n, draws = contexts(), 30, 4000
    with torch.no_grad():
        noise = noise_of(sampler, n, BATCH)
        z = sampler(noise, context)
        exact = quadrature(sampler, z, context)
        # Pieces that do not divide the whole: 3 terms per draw and datum at a time would be slow, 900 are not.
        monkeypatch.setattr("avbvi.amortised.semi_implicit.MIXTURE_TERMS", 900 * n * BATCH)
        estimate = sampler.log_prob(z, context, draws=draws)
        lower, upper = sampler.log_prob_bounds(noise, context, draws=draws)
    # The relative variance of q(z | x, m) over m is at most 1 / q(z | x) times its largest value: 5 standard errors.
    peak = -sampler.gaussians(context).log_det.detach() - math.log(2.0 * math.pi)
    stderr = ((peak - exact).exp() / draws).sqrt()
    assert float(stderr.median()) < 0.05
    for found in (estimate, lower, upper):
        assert bool(((found - exact).abs() < 5.0 * stderr + 2.0 / draws * (peak - exact).exp()).all())


def test_the_bounds_lie_on_both_sides_and_close() -> None:
    sampler = built(SemiImplicitSampler(CONTEXT_DIM, extra_noise=1, hidden=(8,)), dim=2)
    context, n = torch.randn(300, CONTEXT_DIM), 20
    gaps = []
    with torch.no_grad():
        noise = sampler.sample_noise(torch.Size((n, 300)), like=context)
        exact = quadrature(sampler, sampler(noise, context), context)
        for draws in (1, 5, 100):
            lower, upper = sampler.log_prob_bounds(noise, context, draws=draws)
            gaps.append(float((upper - lower).mean()))
            for difference in (exact - lower, upper - exact):
                # Draws of a datum share their fresh m, data do not.
                stderr = float(difference.mean(0).std()) / math.sqrt(300)
                assert float(difference.mean()) > (-5.0 if draws == 100 else 3.0) * stderr
    assert gaps[0] > 0.05
    assert gaps[2] < 0.05 * gaps[0]


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, context = built(SemiImplicitSampler(CONTEXT_DIM)), contexts()
    z = torch.randn(2, 3, BATCH, DIM)
    found = []
    for terms in (2**24, 5 * 6 * BATCH):  # all at once; five m at a time
        monkeypatch.setattr("avbvi.amortised.semi_implicit.MIXTURE_TERMS", terms)
        torch.manual_seed(3)
        found.append(sampler.log_prob(z, context, draws=20))
    assert found[0].shape == (2, 3, BATCH)
    torch.testing.assert_close(found[0], found[1])


def test_a_number_of_draws_that_is_none_is_refused() -> None:
    sampler, context = built(SemiImplicitSampler(CONTEXT_DIM)), contexts()
    with pytest.raises(ValueError, match="draws must be at least 1, found 0"):
        sampler.log_prob(torch.randn(BATCH, DIM), context, draws=0)
    with pytest.raises(TypeError, match="draws must be an integer"):
        sampler.log_prob_bounds(noise_of(sampler, BATCH), context, draws=2.5)  # type: ignore[arg-type]
