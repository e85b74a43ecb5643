"""The search for neighbours against full sorted distance matrices, on points that make it hard."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avbvi.divergences import neighbours
from avbvi.divergences.neighbours import by_blocks, nearest


def draws(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sorted_distances(queries: Tensor, points: Tensor, count: int, *, same: bool) -> tuple[Tensor, Tensor]:
    """Distances and indices by the definition."""
    distance = (queries[:, None] - points).square().sum(2).sqrt()
    if same:
        distance.fill_diagonal_(torch.inf)
    ordered, index = distance.sort(dim=1, stable=True)
    return ordered[:, :count], index[:, :count]


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 32])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 77, 10_000])
def test_distances_and_indices_are_those_of_the_definition(dim: int, same: bool, chunk_size: int | None) -> None:
    x = draws(300, dim, 1)
    y = x if same else draws(410, dim, 2)
    distance, index = sorted_distances(x, y, 5, same=same)
    for found in (
        nearest(x, y, 5, same=same, chunk_size=chunk_size),
        by_blocks(x, y, 5, same=same, chunk_size=chunk_size),
    ):
        torch.testing.assert_close(found.distance, distance, rtol=1e-12, atol=0.0)
        assert torch.equal(found.index, index)


@pytest.mark.parametrize("same", [False, True])
def test_an_order_of_the_queries_changes_nothing(same: bool) -> None:
    x, y = draws(500, 3, 1), draws(400, 3, 2)
    own = nearest(x, x, 4, same=True)
    assert own.order is not None
    assert sorted(own.order) == list(range(500))
    plain, ordered = nearest(x, y, 4), nearest(x, y, 4, order=own.order)
    assert torch.equal(plain.distance, ordered.distance)
    assert torch.equal(plain.index, ordered.index)


def test_every_point_can_be_asked_for() -> None:
    x = draws(9, 10, 1)
    distance, _ = sorted_distances(x, x, 8, same=True)
    torch.testing.assert_close(nearest(x, x, 8, same=True).distance, distance)
    distance, _ = sorted_distances(x, x[:4] + 1.0, 4, same=False)
    torch.testing.assert_close(nearest(x, x[:4] + 1.0, 4).distance, distance)


@pytest.mark.parametrize("gap", [1e2, 1e5, 1e9])
def test_clusters_far_apart_are_searched_again_in_higher_precision(gap: float) -> None:
    # Distances within a cluster are lost in the rounding of the squares of the distances between them.
    cluster = draws(400, 10, 1)
    cluster[200:] += gap
    distance, index = sorted_distances(cluster, cluster, 4, same=True)
    found = by_blocks(cluster, cluster, 4, same=True)
    torch.testing.assert_close(found.distance, distance, rtol=1e-7, atol=0.0)
    assert torch.equal(found.index, index)


def test_the_proof_of_completeness_fails_where_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # With clusters this far apart no row can be proved right in float32, and all can in float64.
    cluster = draws(400, 10, 1)
    cluster[200:] += 1e4
    unit = float((cluster - cluster.mean(0)).abs().max())
    scaled = (cluster - cluster.mean(0)) / unit
    rows = torch.arange(400)
    proved = {
        dtype: float(neighbours._Product(scaled, 4, dtype, same=True)(scaled, rows)[2].double().mean())
        for dtype in (torch.float32, torch.float64)
    }
    assert proved[torch.float32] < 0.05
    assert proved[torch.float64] == 1.0


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_units_do_not_overflow(scale: float) -> None:
    x, y = draws(200, 9, 1), draws(250, 9, 2)
    near, far = by_blocks(x, y, 3, same=False), by_blocks(scale * x, scale * y, 3, same=False)
    torch.testing.assert_close(far.distance / scale, near.distance, rtol=1e-12, atol=0.0)
    assert torch.equal(far.index, near.index)


@pytest.mark.parametrize("dim", [1, 2, 9])
def test_a_point_is_no_neighbour_of_itself_even_among_its_repeats(dim: int) -> None:
    x = draws(60, dim, 1)
    x[10:20] = x[0]  # eleven copies of one point
    x[30] = x[31]
    for count in (1, 3, 12):
        found = nearest(x, x, count, same=True)
        assert not (found.index == torch.arange(60)[:, None]).any()
        distance, _ = sorted_distances(x, x, count, same=True)
        torch.testing.assert_close(found.distance, distance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lower_precision_of_products_does_no_harm(precision: str) -> None:
    x = draws(500, 12, 1) * torch.logspace(-2, 1, 12, dtype=torch.float64)
    distance, index = sorted_distances(x, x, 4, same=True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        eps = neighbours._product_eps(torch.float32)
        found = by_blocks(x, x, 4, same=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert eps >= 2.0**-10  # so that nothing is proved that such a product could have got wrong
    torch.testing.assert_close(found.distance, distance, rtol=1e-12, atol=0.0)
    assert torch.equal(found.index, index)
