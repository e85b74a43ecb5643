"""Divergences and entropies from k-nearest-neighbour distances."""

from __future__ import annotations

import math

import torch
from scipy.special import digamma, gammaln
from torch import Tensor

from ..arguments import integer, positive_number
from ..estimates import Estimate
from .neighbours import Tiles, nearest
from .radii import Blocks, Radii, block_radii, both_radii, own_radii, refuse_repeats, refuse_shared
from .samples import Draws, matrix, paired_draws


def knn_kl(x: Draws, y: Draws, k: int = 3, *, chunk_size: int | None = None, memory: float | None = None) -> Estimate:
    """Estimate KL(q, p) from draws of both by k-nearest-neighbour distances.

    With rho_k(i) the distance from x_i to its k-th neighbour among the other x, and nu_k(i) to
    its k-th neighbour among the y, the estimate is

        d/n sum_i log(nu_k(i) / rho_k(i)) + log(m / (n - 1))      (nats).

    It is blunt. At finite n it is biased either way in ten dimensions: with 3000 points it
    reads .79 for a KL of .43 (q = N(0, .64 I), p = N(0, I)), and with 50 000 it does not see
    one coordinate widened by a tenth. It may be negative. It needs independent draws; repeated
    or strongly correlated ones bias it upwards. It is unchanged by a common shift, rotation or
    scaling of both samples, not by a change of one coordinate's units.

    The standard error comes from subsampling: the estimate is repeated on up to 32 disjoint blocks of
    both samples, and its variance scaled by the size. Unlike the spread of the n terms it counts
    neighbours that points share and the sampling of y; with 32 blocks it is itself known to 13 %.
    With too few points for 4 blocks of 64 it is the spread of the n terms over sqrt(n). Neither
    includes the bias.

    Args:
        x: draws of q, shape (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p, shape (m, d), m >= k; m may differ from n. Moved to x's device.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows of x in a tile where no tree is used (d >= 10, 8 and 9 but for many points, or CUDA); as many
            as fit by default. It changes the time alone.
        memory: bytes that a tile and all that is made of it may take, however many points there are; 32 MiB by default
            on the CPU, 2 GiB on CUDA, or an eighth of what is free there. The samples themselves, in float64, and one
            of them again, in single precision or where that does not suffice in double, come on top.

    Returns:
        The divergence in nats with its standard error. Distances are evaluated in float64.

    Raises:
        TypeError: x or y is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or
            points repeated within or between the samples (their distance 0 makes the estimate
            infinite or biased). In one dimension, where rounding to float32 repeats a few
            draws in ten thousand, up to one in a thousand is accepted as long as every k-th
            distance is positive.

    Example:
        Two normals whose means are one standard deviation apart: KL(q, p) = 1 / 2.

        >>> import avbvi, torch
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(4000, 2), torch.randn(4000, 2) + torch.tensor([1.0, 0.0])
        >>> kl = avbvi.knn_kl(x, y)
        >>> abs(kl.value - 0.5) < 0.15, 0.0 < kl.stderr < 0.1
        (True, True)

    Source: Wang, Kulkarni and Verdu (2009), Divergence estimation for multidimensional
    densities via k-nearest-neighbor distances, IEEE Trans. Inf. Theory 55(5), 2392-2405: the
    estimator with one fixed k for both samples. ITE: BDKL_KnnK (BDKL_KnnKiTi takes k = sqrt(n)).
    """
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    terms = _kl_terms(*both_radii(q, p, k, tiles))
    blocks = Blocks.of(k, len(q), len(p))
    return blocks.estimate(float(terms.mean()), lambda: _kl_of_blocks(q, p, k, blocks), terms)


def knn_j_divergence(
    x: Draws, y: Draws, k: int = 3, *, chunk_size: int | None = None, memory: float | None = None
) -> Estimate:
    """Estimate Jeffreys' J-divergence KL(q, p) + KL(p, q), in nats; symmetric in x and y.

    The limits are those of :func:`knn_kl`.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p (m, d), m >= k + 1; m may differ from n. Moved to x's device.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The divergence in nats with its standard error.

    Raises:
        TypeError: a sample is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or repeated points.

    Example:
        Two normals whose means are one standard deviation apart: 1 / 2 in both directions.

        >>> import torch
        >>> from avbvi.divergences import knn_j_divergence
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(4000, 2), torch.randn(4000, 2) + torch.tensor([1.0, 0.0])
        >>> abs(knn_j_divergence(x, y).value - 1.0) < 0.2
        True

    Source: Jeffreys (1946), An invariant form for the prior probability in estimation problems, Proc. R. Soc. A 186,
    by two estimates of :func:`knn_kl`. ITE: MDJDist_DKL.
    """
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    _check_size("y", p, k + 1, k)
    there = _kl_terms(*both_radii(q, p, k, tiles))
    back = _kl_terms(*both_radii(p, q, k, tiles))
    blocks = Blocks.of(k, len(q), len(p))
    size = min(len(there), len(back))
    return blocks.estimate(
        float(there.mean() + back.mean()),
        lambda: _kl_of_blocks(q, p, k, blocks) + _kl_of_blocks(p, q, k, blocks),
        there[:size] + back[:size],
    )


def knn_kl_adaptive(
    x: Draws, y: Draws, k: int = 1, *, chunk_size: int | None = None, memory: float | None = None
) -> Estimate:
    """Estimate KL(q, p) with the neighbours counted in one ball around each x_i, which reduces the bias.

    The ball's radius is the larger of the distances from x_i to its k-th neighbours in both samples. With l_i of
    the other x and m_i of the y inside it, and the distances rho to the l_i-th and nu to the m_i-th of them, it is

        1/n sum_i [d log(nu(i) / rho(i)) + psi(l_i) - psi(m_i)] + log(m / (n - 1))      (nats).

    Both densities are averaged over the same region, so that their slopes cancel to first order. What is
    gained depends on the case: the benchmark ``divergences`` has figures. It costs a wider search, most of all
    where q and p hardly overlap.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p (m, d), m >= k + 1; m may differ from n. Moved to x's device.
        k: neighbours that the smaller of both counts in a ball has at least.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The divergence in nats with its standard error.

    Raises:
        TypeError: a sample is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or repeated points.

    Example:
        Two normals whose means are one standard deviation apart: KL(q, p) = 1 / 2.

        >>> import torch
        >>> from avbvi.divergences import knn_kl_adaptive
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(4000, 2), torch.randn(4000, 2) + torch.tensor([1.0, 0.0])
        >>> abs(knn_kl_adaptive(x, y).value - 0.5) < 0.15
        True

    Source: Wang, Kulkarni and Verdu (2009), the estimator with data-dependent k for a smaller bias. ITE has no
    counterpart.
    """
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    _check_size("y", p, k + 1, k)
    terms = _adaptive_terms(q, p, k, tiles)
    blocks = Blocks.of(k, len(q), len(p))
    return blocks.estimate(
        float(terms.mean()),
        lambda: torch.stack(
            [_adaptive_terms(a, b, k, tiles).mean() for a, b in zip(blocks.split(q), blocks.split(p), strict=True)]
        ),
        terms,
    )


def knn_entropy(x: Draws, k: int = 3, *, chunk_size: int | None = None, memory: float | None = None) -> Estimate:
    """Estimate the differential entropy of q, in nats: log(n - 1) - psi(k) + log V_d + d/n sum_i log rho_k(i).

    V_d is the volume of the unit ball. The limits are those of :func:`knn_kl`.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The entropy in nats with its standard error.

    Raises:
        TypeError: a sample is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or repeated points.

    Example:
        The standard normal has log(2 pi e) / 2 = 1.42 nats in each dimension.

        >>> import torch
        >>> from avbvi.divergences import knn_entropy
        >>> _ = torch.manual_seed(0)
        >>> entropy = knn_entropy(torch.randn(4000, 2))
        >>> abs(entropy.value - 2.84) < 0.1
        True

    Source: Kozachenko and Leonenko (1987), Sample estimate of the entropy of a random vector, Problems of
    Information Transmission 23, 95-101. ITE: BHShannon_KnnK.
    """
    tiles = _options(k, chunk_size, memory)
    q = matrix(x, "x")
    _check_size("x", q, k + 1, k)
    refuse_repeats(x=q)
    terms = _entropy_terms(own_radii(q, k, tiles), k)
    blocks = Blocks.of(k, len(q))

    def of_blocks() -> Tensor:
        parts = blocks.split(q)
        return _entropy_terms(block_radii(parts, parts, k, same=True), k).mean(1)

    return blocks.estimate(float(terms.mean()), of_blocks, terms)


def knn_cross_entropy(
    x: Draws, y: Draws, k: int = 3, *, chunk_size: int | None = None, memory: float | None = None
) -> Estimate:
    """Estimate the cross-entropy -E_q[log p], in nats: log m - psi(k) + log V_d + d/n sum_i log nu_k(i).

    Less :func:`knn_entropy` it is :func:`knn_kl`, whose limits hold.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p (m, d), m >= k; m may differ from n. Moved to x's device.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The cross-entropy in nats with its standard error.

    Raises:
        TypeError: a sample is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or repeated points.

    Example:
        Two normals whose means are one standard deviation apart: log(2 pi e) + 1 / 2 = 3.34 nats.

        >>> import torch
        >>> from avbvi.divergences import knn_cross_entropy
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(4000, 2), torch.randn(4000, 2) + torch.tensor([1.0, 0.0])
        >>> abs(knn_cross_entropy(x, y).value - 3.34) < 0.15
        True

    Source: Leonenko, Pronzato and Savani (2008), A class of Renyi information estimators for multidimensional
    densities, Annals of Statistics 36(5), 2153-2182. ITE: BCCE_KnnK.
    """
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    _, nu = both_radii(q, p, k, tiles)
    terms = _entropy_terms(nu, k)
    blocks = Blocks.of(k, len(q), len(p))
    return blocks.estimate(
        float(terms.mean()),
        lambda: _entropy_terms(block_radii(blocks.split(q), blocks.split(p), k), k).mean(1),
        terms,
    )


def knn_js_divergence(
    x: Draws, y: Draws, k: int = 3, *, chunk_size: int | None = None, memory: float | None = None
) -> Estimate:
    """Estimate the Jensen-Shannon divergence H((q + p)/2) - (H(q) + H(p))/2, in nats, between 0 and log 2.

    The entropies are those of :func:`knn_entropy`; equally many draws of q and p together are a sample of the
    mixture. Of the larger sample the first min(n, m) draws are used.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p (m, d), m >= k + 1; m may differ from n. Moved to x's device.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The divergence in nats with its standard error; noise may carry it outside [0, log 2].

    Raises:
        TypeError: a sample is no tensor or array of real numbers, or k is no integer.
        ValueError: wrong or unequal dimensions, too few points, NaN or infinite values, or repeated points.

    Example:
        Two laws that do not overlap: log 2 = .69, the most there is.

        >>> import torch
        >>> from avbvi.divergences import knn_js_divergence
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(4000, 2), torch.randn(4000, 2) + 20.0
        >>> abs(knn_js_divergence(x, y).value - 0.69) < 0.05
        True

    Source: Lin (1991), Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37(1), 145-151.
    ITE: MDJS_HS, which draws the mixture's sample at random.
    """
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    size = min(len(q), len(p))
    q, p = q[:size], p[:size]
    _check_size("y", p, k + 1, k)
    refuse_shared(q, p)
    pooled = torch.cat([q, p])
    blocks = Blocks.of(k, size)
    mixture, of_q, of_p = (_entropy_terms(own_radii(s, k, tiles), k) for s in (pooled, q, p))

    def of_blocks() -> Tensor:
        parts_q, parts_p = blocks.split(q), blocks.split(p)
        entropies = (
            _entropy_terms(block_radii(part, part, k, same=True), k).mean(1)
            for part in (torch.cat([parts_q, parts_p], 1), parts_q, parts_p)
        )
        mixed, first, second = entropies
        return mixed - 0.5 * (first + second)

    terms = 0.5 * (mixture[:size] + mixture[size:] - of_q - of_p)
    return blocks.estimate(float(terms.mean()), of_blocks, terms)


def _pair(x: Draws, y: Draws, k: int, chunk_size: int | None, memory: float | None) -> tuple[Tensor, Tensor, Tiles]:
    """Both samples, checked for a search of k-th neighbours of x in both, and how much of them is compared at once."""
    tiles = _options(k, chunk_size, memory)
    q, p = paired_draws(x, y)
    _check_size("x", q, k + 1, k)
    _check_size("y", p, k, k)
    refuse_repeats(x=q, y=p)
    return q, p, tiles


def _options(k: int, chunk_size: int | None, memory: float | None) -> Tiles:
    integer("k", k, 1)
    return Tiles(
        None if chunk_size is None else integer("chunk_size", chunk_size, 1),
        None if memory is None else positive_number("memory", memory),
    )


def _check_size(name: str, sample: Tensor, least: int, k: int) -> None:
    if len(sample) < least:
        raise ValueError(f"{name} has {len(sample)} points; k = {k} needs at least {least}. Draw more.")


def _kl_terms(rho: Radii, nu: Radii) -> Tensor:
    """Log ratios of volumes, (*blocks, n), whose mean is the estimate of :func:`knn_kl`."""
    return nu.log_volume - rho.log_volume


def _kl_of_blocks(q: Tensor, p: Tensor, k: int, blocks: Blocks) -> Tensor:
    parts_q, parts_p = blocks.split(q), blocks.split(p)
    return _kl_terms(block_radii(parts_q, parts_q, k, same=True), block_radii(parts_q, parts_p, k)).mean(1)


def _entropy_terms(radii: Radii, k: int) -> Tensor:
    """Minus the log densities that the volumes of the balls imply, (*blocks, n)."""
    return radii.log_volume + (_log_unit_ball(radii.dim) - float(digamma(k)))


def _log_unit_ball(dim: int) -> float:
    """Log volume of the unit ball."""
    return 0.5 * dim * math.log(math.pi) - float(gammaln(0.5 * dim + 1.0))


def _adaptive_terms(q: Tensor, p: Tensor, k: int, tiles: Tiles) -> Tensor:
    """Terms (n,) whose mean is the estimate of :func:`knn_kl_adaptive`."""
    refuse_shared(q, p)
    of_q = nearest(q, q, k, same=True, tiles=tiles).distance[:, -1]
    of_p = nearest(q, p, k, tiles=tiles).distance[:, -1]
    radius = torch.maximum(of_q, of_p)
    # In its own sample the point itself is found too, at distance 0.
    inside_q, rho = _ball(q, q, radius, k + 1, tiles)
    inside_p, nu = _ball(q, p, radius, k, tiles)
    psi = torch.special.digamma(inside_q.double() - 1.0) - torch.special.digamma(inside_p.double())
    return q.shape[1] * (nu / rho).log() + psi + math.log(len(p) / (len(q) - 1))


def _ball(queries: Tensor, points: Tensor, radius: Tensor, least: int, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """How many points lie within each query's radius, and the distance of the last of them."""
    inside = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    last = torch.zeros_like(radius)
    waiting = torch.arange(len(queries), device=queries.device)
    count = least + 4
    while len(waiting):
        count = min(count, len(points))
        distance = nearest(queries[waiting], points, count, tiles=tiles).distance
        # The radius may come from another search, which rounds differently.
        within = distance <= radius[waiting, None] * (1.0 + 1e-12)
        number = within.sum(1)
        inside[waiting] = number
        last[waiting] = distance.gather(1, (number - 1).clamp_min(0)[:, None])[:, 0]
        waiting = waiting[within[:, -1]] if count < len(points) else waiting[:0]
        count *= 4
    return inside, last
