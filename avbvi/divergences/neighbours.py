"""Nearest-neighbour search: k-d tree or blocked brute force, whichever is faster.

Both give the same distances to rounding in float64. Brute force finds candidates by a matrix
product in float32 and measures these again from the differences in float64; a row whose
candidates can't be proved complete, given the rounding error of the product, is searched again
in higher precision.
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

__all__ = ["Neighbours", "nearest"]

# Above this dimension a k-d tree visits most of its leaves and loses to matrix products.
TREE_DIMENSIONS = 7
# Elements of one block of the distance matrix when `chunk_size` is left open.
# On the CPU what is made of a block has to stay below 128 KiB: larger arrays get fresh pages each time.
BLOCK_ELEMENTS_CPU = 2**19
BLOCK_ELEMENTS_CUDA = 2**28
# Rows that a block has at least: a matrix product of fewer is slow.
LEAST_ROWS = 10
# Candidates beyond those asked for: without some slack the proof of completeness fails often.
SLACK = 2


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


def nearest(
    queries: Tensor,
    points: Tensor,
    count: int,
    *,
    same: bool = False,
    chunk_size: int | None = None,
    order: NDArray[Any] | None = None,
) -> Neighbours:
    """The `count` nearest points of each query.

    Args:
        queries: shape (n, d), float64.
        points: shape (m, d), float64, on the same device; m >= count, or m > count with `same`.
        count: how many.
        same: queries and points are one sample, and a point is no neighbour of itself.
        chunk_size: rows that are compared with all points at once by brute force (d >= 8, or CUDA);
            memory is about 4 * chunk_size * m bytes. By default a block stays near 2 MiB (CPU) or
            1 GiB (CUDA).
        order: an order of the queries in which each lies near the last, from an earlier search; it
            saves time in a tree and changes nothing else.
    """
    if queries.device.type == "cpu" and queries.shape[1] <= TREE_DIMENSIONS:
        return _by_tree(queries, points, count, order, same=same)
    return by_blocks(queries, points, count, same=same, chunk_size=chunk_size)


def _by_tree(
    queries: Tensor, points: Tensor, count: int, order: NDArray[Any] | None = None, *, same: bool
) -> Neighbours:
    # Nodes that are not shrunk to their points take less time to build and none more to search.
    tree = cKDTree(points.numpy(), compact_nodes=False, leafsize=16)
    ranks = list(range(1, count + 1 + same))
    # In the tree's own order a query finds the way of the last one in the cache.
    order = tree.indices if same else order
    if order is None:
        distance, index = tree.query(queries.numpy(), ranks, workers=torch.get_num_threads())
    else:
        distance, index = np.empty((len(queries), len(ranks))), np.empty((len(queries), len(ranks)), dtype=np.int64)
        distance[order], index[order] = tree.query(queries.numpy()[order], ranks, workers=torch.get_num_threads())
    if not same:
        return Neighbours(torch.from_numpy(distance), torch.from_numpy(index))
    found = Neighbours(torch.from_numpy(distance[:, 1:]), torch.from_numpy(index[:, 1:]), order)
    # A point's own distance 0 comes first, unless others repeat it.
    misplaced = (index[:, 0] != np.arange(len(index))).nonzero()[0]
    for row in misplaced:
        others = index[row] != row
        if others.all():  # the point itself was crowded out by its repeats
            others[-1] = False
        found.distance[row] = torch.from_numpy(distance[row][others])
        found.index[row] = torch.from_numpy(index[row][others])
    return found


def by_blocks(queries: Tensor, points: Tensor, count: int, *, same: bool, chunk_size: int | None = None) -> Neighbours:
    """Brute force in blocks of rows; see `nearest`."""
    n = queries.shape[0]
    # A common unit keeps squares from overflowing; a power of two rounds nothing.
    unit = 2.0 ** math.frexp(max(float(queries.abs().max()), float(points.abs().max())))[1]
    left, right = queries / unit, points / unit
    distance = queries.new_empty(n, count)
    index = torch.empty(n, count, dtype=torch.long, device=queries.device)
    rows = torch.arange(n, device=queries.device)
    for dtype in (torch.float32, torch.float64):
        search = _Product(right, count, dtype, same=same)
        rest = []
        for part in rows.split(chunk_size or search.chunk_size()):
            distance[part], index[part], complete = search(left[part], part)
            rest.append(part[~complete])
        rows = torch.cat(rest)
        if not len(rows):
            break
    for part in rows.split(max(1, (chunk_size or 64) // 8)):
        # Points that are close together compared with the size of the whole sample.
        exact = torch.cdist(left[part], right, compute_mode="donot_use_mm_for_euclid_dist")
        if same:
            exact[torch.arange(len(part), device=exact.device), part] = math.inf
        distance[part], index[part] = exact.topk(count, largest=False)
    return Neighbours(distance * unit, index)


class _Product:
    """Search by |b|^2 - 2 a.b, which orders points b around a fixed a like their squared distance does.

    That is one matrix product, but it cancels for near neighbours. So a few candidates more than
    needed are kept, and their distances are taken again from the differences.
    """

    def __init__(self, points: Tensor, count: int, dtype: torch.dtype, *, same: bool) -> None:
        m, dim = points.shape
        self.centre = points.mean(0)  # keeps the expanded squares small
        centred = points - self.centre
        self.points, self.count, self.same, self.dtype = points, count, same, dtype
        self.candidates = min(count + SLACK, m - same)
        # A full sort or selection over m columns costs far more than the product. Instead take the
        # minimum of each of `groups` strided groups of columns: the c smallest entries of a row lie
        # in the c groups with the smallest minima, so only these are searched.
        self.width = max(1, math.isqrt(m // self.candidates))
        self.groups = -(-m // self.width)
        self.right = points.new_zeros(dim + 1, self.width * self.groups, dtype=dtype)
        self.right[:dim, :m] = (-2.0 * centred).T
        squares = centred.square().sum(1)
        self.right[dim, :m] = squares
        self.right[dim, m:] = math.inf  # padding is nobody's neighbour
        self.reach = float(squares.max().sqrt())
        self.strides = torch.arange(self.width, device=points.device) * self.groups
        self.buffer = points.new_empty(0, dtype=dtype)

    def chunk_size(self) -> int:
        elements = BLOCK_ELEMENTS_CUDA if self.right.is_cuda else BLOCK_ELEMENTS_CPU
        return max(LEAST_ROWS, elements // self.right.shape[1])

    def __call__(self, queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances and indices (r, count) for queries (r, d), and whether each row is proved right (r,)."""
        centred = queries - self.centre
        left = torch.cat([centred, centred.new_ones(len(centred), 1)], 1).to(self.dtype)
        if len(self.buffer) < len(left):
            # One buffer for all blocks: fresh pages for each cost as much as the product.
            self.buffer = left.new_empty(len(left), self.right.shape[1])
        block = torch.mm(left, self.right, out=self.buffer[: len(left)])
        if self.same:
            block[torch.arange(len(left), device=block.device), own] = math.inf
        minima = block.view(len(left), self.width, self.groups).amin(1)
        near = minima.topk(min(self.candidates, self.groups), largest=False, sorted=False).indices
        columns = (near.unsqueeze(2) + self.strides).view(len(left), -1)
        score, best = block.gather(1, columns).topk(self.candidates, largest=False, sorted=False)
        columns = columns.gather(1, best)
        difference = self.points[columns] - queries.unsqueeze(1)
        distance, order = torch.linalg.vector_norm(difference, dim=2).topk(self.count, largest=False, sorted=True)
        index = columns.gather(1, order)
        if self.candidates == len(self.points) - self.same:
            return distance, index, torch.ones_like(own, dtype=torch.bool)
        # Rounding of inputs and of a product of d + 1 terms (Higham 2002, eq. 3.5). No point that
        # was left out has a score below the largest of the candidates' by more than twice this.
        length = torch.linalg.vector_norm(centred, dim=1)
        error = (queries.shape[1] + 6) * _product_eps(self.dtype) * self.reach * (self.reach + 2.0 * length)
        bound = score.amax(1).double() + length.square() - error
        return distance, index, distance[:, -1].square() <= bound


def _product_eps(dtype: torch.dtype) -> float:
    """Relative rounding of a matrix product: PyTorch may be told to take fewer bits in float32."""
    if dtype == torch.float64:
        return torch.finfo(dtype).eps
    bits = {"highest": 23, "high": 10, "medium": 7}  # TF32, bfloat16
    return 2.0 ** -bits[torch.get_float32_matmul_precision()]
