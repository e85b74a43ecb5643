"""The search for neighbours against full sorted distance matrices, on points that make it hard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avbvi.divergences import neighbours
from avbvi.divergences.neighbours import Product, Tiles, by_blocks, nearest


def draws(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def search(points: Tensor, dtype: torch.dtype, count: int = 4) -> Product:
    """The search for neighbours of the points among themselves in one precision."""
    return Product(points, count, dtype, same=True, tiles=Tiles(), queries=len(points))


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
        nearest(x, y, 5, same=same, tiles=Tiles(chunk_size)),
        by_blocks(x, y, 5, same=same, tiles=Tiles(chunk_size)),
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
    proved = {dtype: float(search(scaled, dtype)(scaled, rows)[2].double().mean()) for dtype in DTYPES}
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


CASES = {
    "normal": lambda x: x,
    "far from the origin": lambda x: x + 1e8,
    "units apart": lambda x: x * torch.logspace(-6, 6, x.shape[1], dtype=x.dtype),
    "tight clusters": lambda x: 1e-6 * x + 1e3 * (torch.arange(len(x)) % 7)[:, None],
    "one far point": lambda x: torch.cat([x[:-1], x[-1:] + 1e12]),
    "repeats": lambda x: x[torch.arange(len(x)) // 3],
    "a line": lambda x: x[:, :1].expand(-1, x.shape[1]) + 1e-7 * x,
    "heavy tails": lambda x: x / draws(len(x), 1, 9).abs().pow(3),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tiles", [Tiles(), Tiles(memory=20_000), Tiles(rows=300, memory=2_000)])
def test_all_tiles_give_the_distances_of_a_tree(case: str, tiles: Tiles) -> None:
    x, y = CASES[case](draws(300, 9, 1)), CASES[case](draws(500, 9, 2))
    expected, _ = cKDTree(y.numpy()).query(x.numpy(), 5)
    found = by_blocks(x, y, 5, same=False, tiles=tiles)
    torch.testing.assert_close(found.distance, torch.from_numpy(expected), rtol=1e-12, atol=0.0)
    # The indices are those of points at these distances.
    distance = (y[found.index] - x[:, None]).square().sum(2).sqrt()
    torch.testing.assert_close(distance, torch.from_numpy(expected), rtol=1e-12, atol=0.0)
    assert all(len(set(row)) == 5 for row in found.index.tolist())


@pytest.mark.parametrize("case", ["normal", "tight clusters", "repeats"])
@pytest.mark.parametrize("tiles", [Tiles(), Tiles(memory=20_000)])
def test_tiles_within_one_sample_give_the_distances_of_a_tree(case: str, tiles: Tiles) -> None:
    x = CASES[case](draws(900, 9, 1))
    expected, _ = cKDTree(x.numpy()).query(x.numpy(), 5)  # the first is the point itself, or a repeat of it
    found = by_blocks(x, x, 4, same=True, tiles=tiles)
    torch.testing.assert_close(found.distance, torch.from_numpy(expected[:, 1:]), rtol=1e-12, atol=0.0)
    assert not (found.index == torch.arange(len(x))[:, None]).any()


def test_part_of_the_queries_finds_what_all_find() -> None:
    x, y = draws(500, 12, 1), draws(3000, 12, 2)
    whole, part = by_blocks(x, y, 3, same=False), by_blocks(x[170:311], y, 3, same=False)
    assert torch.equal(whole.distance[170:311], part.distance)
    assert torch.equal(whole.index[170:311], part.index)


@pytest.mark.parametrize("dim", [3, 12])
def test_part_of_a_sample_finds_its_neighbours_in_all_of_it(dim: int) -> None:
    x = draws(600, dim, 1)
    x[200:205] = x[190]  # also among repeats
    whole, part = nearest(x, x, 3, same=True), nearest(x[170:311], x, 3, same=True, first=170)
    torch.testing.assert_close(whole.distance[170:311], part.distance, rtol=1e-12, atol=1e-12)
    assert not (part.index == torch.arange(170, 311)[:, None]).any()


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            # Expanded tensors have no memory of their own.
            if isinstance(x, Tensor) and x.numel() and 0 not in x.stride():
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return result


@pytest.mark.parametrize("case", ["normal", "one far point", "tight clusters"])
def test_memory_is_bounded_by_the_budget_not_by_the_pairs(case: str) -> None:
    n, m, dim, memory = 200, 30_000, 9, 2**20
    x, y = CASES[case](draws(n, dim, 1)), CASES[case](draws(m, dim, 2))
    with Largest() as largest:
        by_blocks(x, y, 3, same=False, tiles=Tiles(memory=memory))
    # The points with their squares, of the 48 MB that the distances of all pairs take, or one tile of 64 Ki points.
    assert largest.bytes <= max(8 * 1.02 * m * (dim + 1), memory)


def test_a_plan_keeps_to_its_memory_for_a_million_points() -> None:
    cpu = torch.device("cpu")
    for m, dim, memory in ((10**6, 10, 2**25), (10**6, 30, 2**25), (10**7, 100, 2**26)):
        plan = Tiles(memory=memory).plan(m, m, 5, dim, torch.float32, cpu)
        assert 4 * plan.rows * (plan.columns + 2 * plan.groups) + plan.measured * 5 * plan.width * 24 * dim <= memory
        assert m <= plan.columns * plan.tiles <= 1.02 * m
        assert plan.rows >= 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_of_a_score_is_within_its_bound(dtype: torch.dtype) -> None:
    x = CASES["heavy tails"](draws(300, 10, 3))
    x = x / x.abs().max()
    product = search(x, dtype)
    centred = x - product.centre
    left = torch.cat([centred, centred.new_ones(300, 1)], 1)
    exact = centred.square().sum(1) - 2.0 * centred @ centred.mT
    score = torch.mm(left.to(dtype), product.right[:, :300]).double()
    bound = product.error(torch.linalg.vector_norm(centred, dim=1))[:, None]
    assert ((score - exact).abs() <= bound).all()
    if dtype != torch.float64:  # and the bound is not far too wide
        assert float(((score - exact).abs() / bound).max()) > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_proved_are_right_in_any_precision(dtype: torch.dtype) -> None:
    # Pairs of points in thirty dimensions: one neighbour stands out, and bfloat16 proves some of the rows.
    x = draws(300, 30, 1).repeat_interleave(2, 0)
    x = x + 1e-3 * draws(600, 30, 2)
    x = x / x.abs().max()
    distance, index = sorted_distances(x, x, 1, same=True)
    found, where, proved = search(x, dtype, 1)(x, torch.arange(600))
    torch.testing.assert_close(found[proved], distance[proved], rtol=1e-12, atol=0.0)
    assert torch.equal(where[proved], index[proved])
    assert bool(proved.all()) or dtype == torch.bfloat16


def test_half_precision_proves_nothing_where_the_nearest_are_many() -> None:
    # Why candidates are searched in single precision: bfloat16 would have nearly all rows searched twice.
    x = draws(5000, 10, 1) / 5.0
    rows = torch.arange(64)
    proved = {dtype: float(search(x, dtype)(x[:64], rows)[2].double().mean()) for dtype in DTYPES}
    assert proved[torch.bfloat16] == 0.0
    assert proved[torch.float32] > 0.95
    assert proved[torch.float64] == 1.0


def test_float32_is_given_up_after_the_first_tile_where_it_proves_little(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    call = Product.__call__

    def counted(self: Product, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(self.dtype)
        return call(self, *args)

    monkeypatch.setattr(Product, "__call__", counted)
    cluster = draws(640, 10, 1)
    cluster[320:] += 1e5
    by_blocks(cluster, cluster, 4, same=True, tiles=Tiles(64))
    assert calls.count(torch.float32) == 1
    assert calls.count(torch.float64) == 10


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_gpu_gives_the_distances_of_a_tree(case: str, precision: str) -> None:
    x, y = CASES[case](draws(3000, 9, 1)), CASES[case](draws(5000, 9, 2))
    expected, _ = cKDTree(y.numpy()).query(x.numpy(), 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for tiles in (Tiles(), Tiles(memory=2**20)):
            found = nearest(x.cuda(), y.cuda(), 5, tiles=tiles)
            torch.testing.assert_close(found.distance.cpu(), torch.from_numpy(expected), rtol=1e-12, atol=0.0)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_memory_is_bounded_by_the_budget() -> None:
    n, dim, memory = 200_000, 10, 2**28
    x = torch.randn(n, dim, dtype=torch.float64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nearest(x, x, 3, same=True, tiles=Tiles(memory=memory))
    # Beside the tiles the points once more in single and, for rows that need it, double precision, and the results.
    assert torch.cuda.max_memory_allocated() - before < 1.5 * memory + 12 * 8 * n * 3


@pytest.mark.slow
def test_a_hundred_thousand_points() -> None:
    x = draws(100_000, 10, 1)
    rows = torch.arange(0, 100_000, 500)
    expected, _ = cKDTree(x.numpy()).query(x[rows].numpy(), 4)
    with Largest() as largest:
        found = nearest(x, x, 3, same=True)
    assert largest.bytes <= 11 * 8 * 100_000 + 2**25
    torch.testing.assert_close(found.distance[rows], torch.from_numpy(expected[:, 1:]), rtol=1e-12, atol=0.0)
