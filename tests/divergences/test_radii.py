"""The standard errors of the nearest-neighbour judges, against the spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avbvi import divergences as d
from avbvi.divergences.radii import Blocks, block_radii, both_radii, repeats
from avbvi.estimates import Estimate


def draws(n: int, dim: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("size", [100, 300])
def test_radii_of_blocks_are_those_of_each_block(size: int) -> None:
    q, p = draws(5 * size, 3, 1).view(5, size, 3), draws(5 * size, 3, 2).view(5, size, 3)
    own, other = block_radii(q, q, 3, same=True), block_radii(q, p, 3)
    for block in range(5):
        rho, nu = both_radii(q[block], p[block], 3)
        torch.testing.assert_close(own.log_volume[block], rho.log_volume, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.log_volume[block], nu.log_volume, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (1000, 2500), (100_000, 40_000)])
def test_blocks_are_disjoint_and_of_the_stated_share(n: int, m: int) -> None:
    blocks = Blocks.of(3, n, m)
    assert 4 <= blocks.number <= 32
    for size in (n, m):
        parts = blocks.split(torch.arange(size)[:, None])
        assert parts.shape[0] == blocks.number
        assert parts.shape[1] == int(blocks.share * size) >= 64
        assert parts.unique().numel() == parts.numel()
    assert Blocks.of(3, 255, m).number == 0


def test_repeats_are_counted_by_row_not_by_coordinate() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 3.0], [0.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    assert repeats(x) == 1
    assert repeats(x[:3]) == 0


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Estimate]] = {
    "kl": d.knn_kl,
    "kl adaptive": d.knn_kl_adaptive,
    "j": d.knn_j_divergence,
    "js": d.knn_js_divergence,
    "entropy": lambda x, y: d.knn_entropy(x),
    "cross-entropy": d.knn_cross_entropy,
    "renyi": lambda x, y: d.knn_alpha_divergence(x, y, d.Renyi(0.7)),
    "tsallis": lambda x, y: d.knn_alpha_divergence(x, y, d.Tsallis(1.3)),
    "hellinger": lambda x, y: d.knn_alpha_divergence(x, y, d.Hellinger()),
    "bhattacharyya": lambda x, y: d.knn_alpha_divergence(x, y, d.Bhattacharyya()),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_standard_errors_are_the_spread_over_seeds(name: str) -> None:
    runs = 100
    estimates = [ESTIMATORS[name](draws(500, 2, s, 0.8), draws(500, 2, 1000 + s)) for s in range(runs)]
    spread = float(torch.tensor([e.value for e in estimates]).std())
    typical = math.sqrt(sum(e.stderr**2 for e in estimates) / runs)
    # The spread over 100 seeds is known to 7 %, the root mean square of 7 blocks over 100 seeds to 3 %.
    assert 0.75 < typical / spread < 1.3


@pytest.mark.parametrize("name", ESTIMATORS)
def test_small_samples_have_an_error_too(name: str) -> None:
    estimate = ESTIMATORS[name](draws(12, 2, 1), draws(12, 2, 2))
    assert math.isfinite(estimate.value)
    assert estimate.stderr > 0.0 or name == "hellinger"


def test_repeats_are_counted_among_draws_that_share_coordinates() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(0, 40, (3000, 3), generator=generator).double()
    x[:, 0] += (torch.rand(3000, generator=generator) < 0.5) * torch.randn(3000, generator=generator).double()
    seen: set[tuple[float, ...]] = set()
    count = 0
    for row in map(tuple, x.tolist()):
        count += row in seen
        seen.add(row)
    assert count > 5
    assert repeats(x) == count
    assert repeats(torch.unique(x, dim=0)) == 0
