"""Gaussians and weights by importance-weighted draws, where the exact answers are known."""

from __future__ import annotations

import torch
from torch import Tensor

from avbvi.starts import LaplaceModes, gaussian_bounds, improved_gaussians, weights_by_draws

LOCS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [6.0, 6.0]])
COVARIANCES = torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.6, 0.0], [0.0, 1.0]], [[2.0, -1.0], [-1.0, 1.0]]])
WEIGHTS = torch.tensor([0.2, 0.5, 0.3])
EXACT = LaplaceModes(LOCS, COVARIANCES, WEIGHTS.log())


def mixture(z: Tensor) -> Tensor:
    return torch.logsumexp(EXACT.component_log_probs(z) + EXACT.log_weights, -1)


def test_weights_of_overlapping_gaussians() -> None:
    wrong = EXACT._replace(log_weights=torch.tensor([0.6, 0.3, 0.1]).log())
    found = weights_by_draws(mixture, wrong, 2000).log_weights.exp()
    # Four sds, which are .003 for the two that overlap and .0004 for the one alone (30 repetitions with other seeds).
    assert float((found - WEIGHTS).abs().max()) < 0.0125
    assert abs(float(found[2]) - 0.3) < 0.002


def test_a_gaussian_moves_to_the_moments_of_a_normal_target() -> None:
    target = torch.distributions.MultivariateNormal(torch.tensor([3.0, -1.0]), torch.tensor([[4.0, 1.0], [1.0, 2.0]]))
    start = LaplaceModes(torch.zeros(1, 2), torch.eye(2)[None], torch.zeros(1))
    first = gaussian_bounds(target.log_prob, start, 2000)
    found, bounds = improved_gaussians(target.log_prob, start, first, 2000, rounds=10, tempered=True)
    assert float(first) < -1.0
    assert float(bounds) > -0.2
    # A bound that can't gain .2 more by groups of 8 has weights of a variance below about 3: log(1 + 3) / 2 = .7 nats.
    moved = torch.distributions.MultivariateNormal(found.locs[0], found.covariances[0])
    assert float(torch.distributions.kl_divergence(moved, target)) < 0.7


def test_gaussians_that_are_exact_stay() -> None:
    apart = EXACT._replace(locs=10.0 * LOCS)

    def log_prob(z: Tensor) -> Tensor:
        return torch.logsumexp(apart.component_log_probs(z) + apart.log_weights, -1)

    bounds = gaussian_bounds(log_prob, apart, 1000)
    torch.testing.assert_close(bounds, WEIGHTS.log(), atol=1e-3, rtol=0.0)
    found, _ = improved_gaussians(log_prob, apart, bounds)
    assert torch.equal(found.locs, apart.locs)
    assert torch.equal(found.covariances, apart.covariances)


def test_weights_are_left_where_no_draw_has_density() -> None:
    found = weights_by_draws(lambda z: z.sum(-1) * torch.nan, EXACT)
    assert torch.equal(found.log_weights, EXACT.log_weights)
