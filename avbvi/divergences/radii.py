"""Nearest-neighbour radii of a sample, and standard errors of what is made of them.

The standard errors come from subsampling (Politis and Romano 1994, Large sample confidence regions
based on subsamples under minimal assumptions, Annals of Statistics 22(4)): the figure is computed again
on up to 32 disjoint blocks of both samples, and its variance, being inversely proportional to the
size, is scaled to the whole. Unlike the spread of the n terms it counts neighbours that points
share and that both samples are random. A jackknife would not do: nearest-neighbour figures are not
smooth enough, and it overstated their error by up to a factor of two in tests with normals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..estimates import Estimate
from .neighbours import Tiles, nearest

# Blocks, the least points that a block has, and the share of the sample that a block is at least.
BLOCKS = 32
LEAST_BLOCK = 64
SHARE = 1 / 128
# Blocks up to this size are searched together; larger ones one after the other.
SMALL_BLOCK = 256
# Share of repeated points that rounding alone explains in one dimension (float32 draws).
ROUNDING_TIES = 1e-3


@dataclass(frozen=True)
class Radii:
    """Distances of n points to their k-th neighbours: of a whole sample, or of several blocks at once.

    Attributes:
        log_radius: shape (*blocks, n).
        points: how many points the neighbours were searched among, the point itself not counted.
        dim: their dimension.
    """

    log_radius: Tensor
    points: int
    dim: int

    @property
    def log_volume(self) -> Tensor:
        """Log of points * radius^dim, (*blocks, n): minus the log density there, but for a constant."""
        return self.dim * self.log_radius + math.log(self.points)


def both_radii(q: Tensor, p: Tensor, k: int, tiles: Tiles | None = None) -> tuple[Radii, Radii]:
    """Distances from the q (n, d) to their k-th neighbours among the other q and among the p (m, d).

    Raises:
        ValueError: points are repeated, so that a distance is 0.
    """
    own = nearest(q, q, k, same=True, tiles=tiles)
    other = nearest(q, p, k, tiles=tiles, order=own.order)
    if bool((other.distance[:, 0] == 0).any()):
        refuse_shared(q, p)
    return _checked(own.distance, len(q) - 1, q.shape[1]), _checked(other.distance, len(p), q.shape[1])


def own_radii(q: Tensor, k: int, tiles: Tiles | None = None) -> Radii:
    """Distances from the q (n, d) to their k-th neighbours among the other q; see `both_radii`."""
    return _checked(nearest(q, q, k, same=True, tiles=tiles).distance, len(q) - 1, q.shape[1])


def _checked(distance: Tensor, points: int, dim: int) -> Radii:
    zeros = int((distance[:, -1] == 0).sum())
    if zeros:
        raise ValueError(
            f"{zeros} points have so many duplicates that a k-th distance is 0 and the estimate infinite. Thin the "
            "chain or draw independent points."
        )
    return Radii(distance[:, -1].log(), points, dim)


@dataclass(frozen=True)
class Blocks:
    """Disjoint blocks of several samples, for standard errors by subsampling.

    Attributes:
        number: how many; 0 where the samples are too small for 4 blocks.
        share: what share of the points of each sample a block has.
    """

    number: int
    share: float

    @classmethod
    def of(cls, k: int, *sizes: int) -> Blocks:
        """Blocks for samples of these sizes."""
        share = max(SHARE, max(LEAST_BLOCK, 4 * (k + 1)) / min(sizes))
        number = min(BLOCKS, int(1.0 / share))
        return cls(number if number >= 4 else 0, share)

    def split(self, sample: Tensor) -> Tensor:
        """The blocks of a sample (n, d), shape (number, size, d): strided, so that an order does no harm."""
        size = max(1, int(self.share * len(sample)))
        stride = len(sample) // size
        return sample[: size * stride].view(size, stride, -1)[:, : self.number].transpose(0, 1)

    def estimate(self, value: float, parts: Callable[[], Tensor], terms: Tensor) -> Estimate:
        """A figure with its standard error from its values on the blocks (number,).

        Without blocks it is that of the mean of `terms`, which ignores that these depend on each other.
        """
        if not self.number:
            return Estimate(value, float(terms.std()) / math.sqrt(terms.numel()))
        return Estimate(value, float(parts().std()) * math.sqrt(self.share))


def block_radii(q: Tensor, p: Tensor, k: int, *, same: bool = False) -> Radii:
    """Distances from blocks of q (blocks, n, d) to their k-th neighbours in the same block of p (blocks, m, d)."""
    size = p.shape[1]
    if size <= SMALL_BLOCK:
        distance = torch.cdist(q, p, compute_mode="donot_use_mm_for_euclid_dist")
        rank = k - 1 + same  # with `same` a point's own distance 0 comes first
        if distance.is_cuda:
            kth = distance.kthvalue(rank + 1, dim=2).values
        else:  # several times as fast as PyTorch's
            kth = torch.from_numpy(np.partition(distance.numpy(), rank, axis=2)[:, :, rank])
    else:
        kth = torch.stack([nearest(a, b, k, same=same).distance[:, -1] for a, b in zip(q, p, strict=True)])
    return Radii(kth.log(), size - same, q.shape[2])


def repeats(points: Tensor) -> int:
    """How many rows equal an earlier row."""
    # NumPy sorts small arrays several times as fast.
    first = points[:, 0].sort().values if points.is_cuda else torch.from_numpy(np.sort(points[:, 0].numpy()))
    tied = first[1:][first[1:] == first[:-1]].unique()
    if not len(tied):
        return 0  # as good as always, and much faster than sorting rows
    # Of many draws in single precision some share a coordinate: only these are sorted by rows.
    place = torch.searchsorted(tied, points[:, 0].contiguous()).clamp_max(len(tied) - 1)
    rows = points[tied[place] == points[:, 0]]
    return int(rows.shape[0] - torch.unique(rows, dim=0).shape[0])


def refuse_repeats(**samples: Tensor) -> None:
    """Raise if a sample holds repeated points; in one dimension a few are taken for rounding."""
    for name, points in samples.items():
        count = repeats(points)
        _refuse(count, points, f"{name} holds {count} points that repeat another point of {name}")


def refuse_shared(x: Tensor, y: Tensor) -> None:
    """Raise if the samples have points in common; in one dimension a few are taken for rounding."""
    shared = repeats(torch.cat([x, y])) - repeats(x) - repeats(y)
    _refuse(shared, x, f"x and y share {shared} points")


def _refuse(count: int, points: Tensor, what: str) -> None:
    size, dim = points.shape
    if count > (ROUNDING_TIES * size if dim == 1 else 0):
        raise ValueError(
            f"{what} ({count} of {size}); nearest-neighbour distances need distinct points. Thin the chain, or use "
            "independent draws in full precision."
        )
