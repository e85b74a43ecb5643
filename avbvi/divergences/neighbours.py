"""Nearest-neighbour search: k-d tree or blocked brute force, whichever is faster."""

from __future__ import annotations

import math

import torch
from scipy.spatial import cKDTree
from torch import Tensor

# Above this dimension a k-d tree visits most of its leaves and loses to matrix products.
_TREE_DIMENSIONS = 7
# Elements of one block of the distance matrix when `chunk_size` is left open.
_BLOCK_ELEMENTS_CPU = 2**20  # stays in the cache: 1.6 times as fast as 2**22
_BLOCK_ELEMENTS_CUDA = 2**27


def _neighbours(queries: Tensor, points: Tensor, count: int, chunk_size: int | None, *, same: bool) -> Tensor:
    """Distances to the `count` nearest points, nearest first, shape (n, count).

    With `same`, queries and points are one sample and a point is no neighbour of itself.
    """
    if queries.device.type == "cpu" and queries.shape[1] <= _TREE_DIMENSIONS:
        own = 1 if same else 0  # a point's own distance 0 comes first
        distance, _ = cKDTree(points.numpy()).query(
            queries.numpy(),
            list(range(1 + own, count + own + 1)),
            workers=torch.get_num_threads(),
        )
        return torch.from_numpy(distance)
    return _neighbours_by_blocks(queries, points, count, chunk_size, same=same)


def _neighbours_by_blocks(queries: Tensor, points: Tensor, count: int, chunk_size: int | None, *, same: bool) -> Tensor:
    """Brute force in blocks of rows; see `_neighbours`.

    Candidates come from |b|^2 - 2 a.b, which orders the points b around a fixed a like the
    squared distance does and is one matrix product, but cancels for near neighbours. So a few
    candidates more than needed are kept and their distances are taken again from the
    differences.
    """
    n, dim = queries.shape
    m = points.shape[0]
    candidates = min(count + 4, m - 1 if same else m)
    # A full sort or selection over m columns costs far more than the product. Instead take the
    # minimum of each of `groups` strided groups of columns: the c smallest entries of a row lie
    # in the c groups with the smallest minima, so only these are searched.
    width = max(1, math.isqrt(m // candidates))
    groups = -(-m // width)
    padded = groups * width
    right = points.new_zeros(dim + 1, padded)
    right[:dim, :m] = -2.0 * points.T
    right[dim, :m] = points.square().sum(1)
    right[dim, m:] = math.inf  # padding is nobody's neighbour
    left = torch.cat([queries, queries.new_ones(n, 1)], 1)

    if chunk_size is None:
        cuda = queries.device.type == "cuda"
        chunk_size = max(1, (_BLOCK_ELEMENTS_CUDA if cuda else _BLOCK_ELEMENTS_CPU) // padded)
    chunk_size = min(chunk_size, n)
    # One buffer for all blocks: fresh pages for each cost as much as the product.
    buffer = queries.new_empty(chunk_size, padded)
    strides = torch.arange(width, device=queries.device) * groups
    distances = []
    for start in range(0, n, chunk_size):
        rows = min(chunk_size, n - start)
        block = torch.mm(left[start : start + rows], right, out=buffer[:rows])
        if same:
            own = torch.arange(rows, device=block.device)
            block[own, start + own] = math.inf
        minima = block.view(rows, width, groups).amin(1)
        near = minima.topk(min(candidates, groups), largest=False, sorted=False).indices
        columns = (near.unsqueeze(2) + strides).view(rows, -1)
        best = block.gather(1, columns).topk(candidates, largest=False, sorted=False).indices
        columns = columns.gather(1, best)
        difference = points[columns] - queries[start : start + rows].unsqueeze(1)
        exact = torch.linalg.vector_norm(difference, dim=2)
        distances.append(exact.topk(count, largest=False, sorted=True).values)
    return torch.cat(distances)
