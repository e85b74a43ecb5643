"""Nearest-neighbour search: k-d tree or tiled brute force, whichever is faster.

Both give the same distances to rounding in float64. Brute force compares tiles of queries with tiles of points by a
matrix product in float32, keeps the least score of every few points, and measures all points of the best such groups
again from the differences in float64. A row whose candidates can't be proved complete, given the rounding error of the
product, is searched again in higher precision. No matrix of all queries by all points ever exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from .. import distributed
from ..divided.division import divide

__all__ = ["Neighbours", "Tiles", "nearest"]

# Up to this dimension a k-d tree visits few of its leaves; above, matrix products win unless the points are so many
# that the tree's time, which grows more slowly, is the shorter one again.
TREE_DIMENSIONS = 7
# Points from which on a tree is still faster in one dimension more than the last, measured with normals on one core.
TREE_POINTS = {8: 20_000, 9: 200_000}
# Bytes of a tile and all that is made of it when `memory` is left open; on CUDA at most an eighth of what is free.
BYTES_CPU, BYTES_CUDA, FREE_SHARE_CUDA = 2**25, 2**31, 8
# On the CPU the products of a tile stay in the cache.
BLOCK_BYTES_CPU = 2**22
# Rows that a tile has, if the memory allows it: a matrix product of fewer is slow. Columns that it has whatever the
# memory, and the most points in a group.
ROWS_CPU, ROWS_CUDA, LEAST_COLUMNS, WIDEST = 64, 2**12, 2**8, 2**14
# Points that are centred and rounded at a time.
PREPARED = 2**16
# Groups of candidates beyond those asked for: without some slack the proof of completeness fails often.
SLACK = 2
# Share of the first tile's rows that has to be proved in float32, for the others to be tried.
WORTHWHILE = 0.5

# Pairs of queries and points from which on several processes share a search.
WORTH_DIVIDING = 2**22


@dataclass(frozen=True)
class Neighbours:
    """The nearest points of n queries.

    Attributes:
        distance: shape (n, count), float64, nearest first.
        index: rows of the points, shape (n, count).
        order: where the search knows one, an order of the queries in which each lies near the last, shape (n,).
    """

    distance: Tensor
    index: Tensor
    order: NDArray[Any] | None = None


@dataclass(frozen=True)
class Tiles:
    """How large the tiles of brute force are; results do not depend on it.

    Attributes:
        rows: queries in a tile, or ``None`` for as many as fit.
        memory: bytes that one tile with all that is made of it may take, or ``None`` for 32 MiB on the CPU and 2 GiB on
            CUDA, at most an eighth of its free memory.
    """

    rows: int | None = None
    memory: float | None = None

    def plan(self, n: int, m: int, groups: int, dim: int, dtype: torch.dtype, device: torch.device) -> Plan:
        """Sizes of the tiles for n queries of m points of which the best ``groups`` groups are looked at."""
        size, of_candidate = torch.finfo(dtype).bits // 8, 8 * (3 * dim + 4)
        memory = self._bytes(device)
        # As many minima as candidates' bytes: both take time.
        width = max(1, min(math.isqrt(size * m // (groups * of_candidate)), WIDEST))
        # A quarter for the minima by group, with a copy, a quarter for candidates and their differences.
        rows = max(1, min(n, self.rows or self._rows(device), int(memory / 4 // (2 * size * -(-m // width)))))
        measured = max(1, min(rows, int(memory / 4 // (groups * width * of_candidate))))
        block = memory / 2 if device.type == "cuda" else min(memory / 2, BLOCK_BYTES_CPU)
        columns = max(width, min(m, max(LEAST_COLUMNS, int(block // (size * rows)))))
        tiles = -(-m // columns)
        return Plan(rows, measured, width, -(-m // (tiles * width)), tiles)

    def elements(self, device: torch.device) -> int:
        """Numbers in float64 that the memory of one tile holds."""
        return int(self._bytes(device) // 8)

    def _bytes(self, device: torch.device) -> float:
        if self.memory is not None:
            return self.memory
        if device.type != "cuda":
            return BYTES_CPU
        free, _ = torch.cuda.mem_get_info(device)
        return min(BYTES_CUDA, free / FREE_SHARE_CUDA)

    @staticmethod
    def _rows(device: torch.device) -> int:
        return ROWS_CUDA if device.type == "cuda" else ROWS_CPU


@dataclass(frozen=True)
class Plan:
    """Tiles of ``rows`` queries by ``tiles`` times ``stride * width`` points, in groups of ``width``.

    Candidates are measured for ``measured`` queries at a time.
    """

    rows: int
    measured: int
    width: int
    stride: int
    tiles: int

    @property
    def columns(self) -> int:
        """Points in a tile."""
        return self.stride * self.width

    @property
    def groups(self) -> int:
        """All groups of points."""
        return self.stride * self.tiles


def nearest(
    queries: Tensor,
    points: Tensor,
    count: int,
    *,
    same: bool = False,
    first: int = 0,
    tiles: Tiles | None = None,
    order: NDArray[Any] | None = None,
) -> Neighbours:
    """The `count` nearest points of each query.

    A query's result does not depend on the other queries: any part of them can be searched for by itself. So the
    processes of :func:`avbvi.distributed.together`, which all have to ask, divide them among each other.

    Args:
        queries: shape (n, d), float64.
        points: shape (m, d), float64, on the same device; m >= count, or m > count with `same`.
        count: how many.
        same: the queries are points, and a point is no neighbour of itself.
        first: with `same`, which of the points the first query is; the others follow it.
        tiles: how much is compared at once by brute force, where no tree is used (see `by_tree`).
        order: an order of the queries in which each lies near the last, from an earlier search; it
            saves time in a tree and changes nothing else.
    """
    if distributed.world_size() > 1 and len(queries) * len(points) >= WORTH_DIVIDING:
        return _by_processes(queries, points, count, same=same, first=first, tiles=tiles)
    if queries.device.type == "cpu" and by_tree(queries.shape[1], len(points)):
        return _by_tree(queries, points, count, order, same=same, first=first)
    return by_blocks(queries, points, count, same=same, first=first, tiles=tiles)


def _by_processes(
    queries: Tensor, points: Tensor, count: int, *, same: bool, first: int, tiles: Tiles | None
) -> Neighbours:
    """Each process searches for its part of the queries, and all get the whole."""
    part = divide("number of points", len(queries), "take more")
    with distributed.alone():
        found = nearest(part.own(queries), points, count, same=same, first=first + part.start, tiles=tiles)
    return Neighbours(part.gathered(found.distance), part.gathered(found.index))


def by_tree(dim: int, size: int) -> bool:
    """Whether a tree is the faster way on the CPU, for so many points of this dimension."""
    return dim <= TREE_DIMENSIONS or size >= TREE_POINTS.get(dim, math.inf)


def _by_tree(
    queries: Tensor, points: Tensor, count: int, order: NDArray[Any] | None = None, *, same: bool, first: int = 0
) -> Neighbours:
    # Nodes that are not shrunk to their points take less time to build and none more to search.
    tree = cKDTree(points.numpy(), compact_nodes=False, leafsize=16)
    ranks = list(range(1, count + 1 + same))
    # In the tree's own order a query finds the way of the last one in the cache.
    if same:
        place = np.empty(len(points), dtype=np.int64)
        place[tree.indices] = np.arange(len(points))
        order = place[first : first + len(queries)].argsort()
    if order is None:
        distance, index = tree.query(queries.numpy(), ranks, workers=torch.get_num_threads())
    else:
        distance, index = np.empty((len(queries), len(ranks))), np.empty((len(queries), len(ranks)), dtype=np.int64)
        distance[order], index[order] = tree.query(queries.numpy()[order], ranks, workers=torch.get_num_threads())
    if not same:
        return Neighbours(torch.from_numpy(distance), torch.from_numpy(index))
    found = Neighbours(torch.from_numpy(distance[:, 1:]), torch.from_numpy(index[:, 1:]), order)
    # A point's own distance 0 comes first, unless others repeat it.
    misplaced = (index[:, 0] != np.arange(first, first + len(index))).nonzero()[0]
    for row in misplaced:
        others = index[row] != first + row
        if others.all():  # the point itself was crowded out by its repeats
            others[-1] = False
        found.distance[row] = torch.from_numpy(distance[row][others])
        found.index[row] = torch.from_numpy(index[row][others])
    return found


def by_blocks(
    queries: Tensor, points: Tensor, count: int, *, same: bool, first: int = 0, tiles: Tiles | None = None
) -> Neighbours:
    """Brute force in tiles; see `nearest`."""
    n, tiles = queries.shape[0], tiles or Tiles()
    # A common unit keeps squares from overflowing; a power of two rounds nothing.
    unit = 2.0 ** math.frexp(max(float(queries.abs().max()), float(points.abs().max())))[1]
    distance = queries.new_empty(n, count)
    index = torch.empty(n, count, dtype=torch.long, device=queries.device)
    rows = torch.arange(n, device=queries.device)
    for dtype in (torch.float32, torch.float64):
        search, rest = Product(points, count, dtype, same=same, tiles=tiles, queries=len(rows), unit=unit), []
        for begin in range(0, len(rows), search.plan.rows):
            part = rows[begin : begin + search.plan.rows]
            distance[part], index[part], complete = search(queries[part] / unit, first + part)
            rest.append(part[~complete])
            if begin == 0 and dtype == torch.float32 and len(rest[0]) > (1.0 - WORTHWHILE) * len(part):
                # Float64 takes twice as long, which costs less than to fail on all rows.
                rest.append(rows[search.plan.rows :])
                break
        rows = torch.cat(rest)
        if not len(rows):
            return Neighbours(distance * unit, index)
    # Points that are close together compared with the size of the whole sample.
    step = max(1, tiles.elements(queries.device) // (16 * queries.shape[1]))
    for part in rows.split(max(1, (tiles.rows or 64) // 8)):
        distance[part], index[part] = _by_differences(
            queries[part] / unit, points, first + part, count, step, same=same, unit=unit
        )
    return Neighbours(distance * unit, index)


def _by_differences(
    queries: Tensor, points: Tensor, own: Tensor, count: int, step: int, *, same: bool, unit: float
) -> tuple[Tensor, Tensor]:
    """Distances and indices (r, count) of queries (r, d), all by differences, ``step`` at a time; in the unit."""
    distance, index = queries.new_empty(len(queries), 0), own.new_empty(len(queries), 0)
    columns = max(1, step // len(queries))
    for begin in range(0, len(points), columns):
        part = points[begin : begin + columns] / unit
        near = torch.cdist(queries, part, compute_mode="donot_use_mm_for_euclid_dist")
        places = torch.arange(begin, begin + near.shape[1], device=own.device).expand(len(queries), -1)
        if same:
            near = torch.where(places == own[:, None], math.inf, near)
        distance, index = torch.cat([distance, near], 1), torch.cat([index, places], 1)
        distance, best = distance.topk(min(count, distance.shape[1]), largest=False)
        index = index.gather(1, best)
    return distance, index


class Product:
    """Search by |b|^2 - 2 a.b, which orders points b around a fixed a like their squared distance does.

    That is one matrix product, but it cancels for near neighbours. So it only chooses a few groups of points, those
    with the least scores, whose distances are taken again from the differences. All other points have scores that are
    no less than the least one of the best group that was left out.

    Args:
        points: (m, d), float64.
        count: how many neighbours.
        dtype: of the product.
        same: a query is one of the points, and no neighbour of itself.
        tiles: how much is compared at once.
        queries: how many there will be.
        unit: a power of two that makes points and queries about 1 at most; queries and distances are in this unit.
    """

    def __init__(
        self,
        points: Tensor,
        count: int,
        dtype: torch.dtype,
        *,
        same: bool,
        tiles: Tiles,
        queries: int,
        unit: float = 1.0,
    ) -> None:
        m, dim = points.shape
        self.points: Tensor = points
        self.count: int = count
        self.same: bool = same
        self.dtype: torch.dtype = dtype
        # The point itself, where it is among the points, fills a group's first place.
        wanted = count + SLACK + same
        self.plan: Plan = tiles.plan(queries, m, wanted, dim, dtype, points.device)
        self.chosen: int = min(wanted, self.plan.groups)
        self.unit = unit
        # The expanded squares stay small around the centre. Of the points in other units there is no copy.
        sums = ((part / unit).sum(0) for part in points.split(PREPARED))
        self.centre: Tensor = sum(sums, points.new_zeros(dim)) / m
        self.right: Tensor = points.new_zeros(dim + 1, self.plan.columns * self.plan.tiles, dtype=dtype)
        self.right[dim, m:] = math.inf  # padding is nobody's neighbour
        farthest = points.new_zeros(())
        for begin in range(0, m, PREPARED):
            centred = points[begin : begin + PREPARED] / unit - self.centre
            squares, place = centred.square().sum(1), slice(begin, begin + len(centred))
            self.right[:dim, place] = -2.0 * centred.T
            self.right[dim, place] = squares
            farthest = torch.maximum(farthest, squares.max())
        self.reach: float = float(farthest.sqrt())
        # Strided groups of columns: the least of each is found by whole vectors.
        self.strides: Tensor = torch.arange(self.plan.width, device=points.device) * self.plan.stride
        self.buffer: Tensor = points.new_empty(0, dtype=dtype)
        self.minima: Tensor = points.new_empty(0, dtype=dtype)

    def __call__(self, queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances and indices (r, count) for queries (r, d), and whether each row is proved right (r,)."""
        plan, r = self.plan, len(queries)
        centred = queries - self.centre
        left = torch.cat([centred, centred.new_ones(r, 1)], 1).to(self.dtype)
        if len(self.buffer) < r:
            # One buffer for all tiles: fresh pages for each cost as much as the product.
            self.buffer, self.minima = left.new_empty(r, plan.columns), left.new_empty(r, plan.groups)
        block, minima = self.buffer[:r], self.minima[:r]
        for tile in range(plan.tiles):
            torch.mm(left, self.right[:, tile * plan.columns : (tile + 1) * plan.columns], out=block)
            groups = minima[:, tile * plan.stride : (tile + 1) * plan.stride]
            torch.amin(block.view(r, plan.width, plan.stride), 1, out=groups)
        # One group more than are looked at: it tells how near a point that was left out may be.
        least = minima.topk(min(self.chosen + 1, plan.groups), largest=False, sorted=True)
        near = least.indices[:, : self.chosen]
        first = near // plan.stride * plan.columns + near % plan.stride
        parts = (x.split(plan.measured) for x in (queries, own, first))
        found = [self._measured(*part) for part in zip(*parts, strict=True)]
        distance, index = (torch.cat(x) for x in zip(*found, strict=True))
        if self.chosen == plan.groups:
            return distance, index, torch.ones(r, dtype=torch.bool, device=own.device)
        length = torch.linalg.vector_norm(centred, dim=1)
        bound = least.values[:, -1].double() + length.square() - self.error(length)
        return distance, index, distance[:, -1].square() <= bound

    def _measured(self, queries: Tensor, own: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest (r, count) of the points in groups that begin at ``first`` (r, groups), by differences."""
        columns = (first.unsqueeze(2) + self.strides).view(len(queries), -1)
        candidates = self.points[columns.clamp_max(len(self.points) - 1)].div_(self.unit).sub_(queries.unsqueeze(1))
        measured = torch.linalg.vector_norm(candidates, dim=2)
        nobody = columns >= len(self.points)
        measured.masked_fill_(nobody | (columns == own[:, None]) if self.same else nobody, math.inf)
        distance, order = measured.topk(self.count, largest=False, sorted=True)
        return distance, columns.gather(1, order)

    def error(self, length: Tensor) -> Tensor:
        """How far a score may be off, for queries at this distance from the centre.

        Rounding of inputs and of a product of d + 1 terms (Higham 2002, eq. 3.5), underflow, and what float64 itself
        leaves of the squares.
        """
        terms, here = self.points.shape[1] + 6, torch.finfo(torch.float64).eps
        relative = terms * _product_eps(self.dtype) * self.reach * (self.reach + 2.0 * length)
        return relative + terms * torch.finfo(self.dtype).tiny + 4.0 * here * length.square()


def _product_eps(dtype: torch.dtype) -> float:
    """Relative rounding of a matrix product: PyTorch may be told to take fewer bits in float32."""
    if dtype != torch.float32:
        return torch.finfo(dtype).eps
    bits = {"highest": 23, "high": 10, "medium": 7}  # TF32, bfloat16
    return 2.0 ** -bits[torch.get_float32_matmul_precision()]
