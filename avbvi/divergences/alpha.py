"""The alpha-divergence family from k-nearest-neighbour distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.special import gammaln
from torch import Tensor

from ..arguments import found, number
from ..estimates import Estimate
from .nearest import _pair
from .radii import Blocks, Radii, block_radii, both_radii
from .samples import Draws


class AlphaDivergence(Protocol):
    """A divergence that is a function of the integral I(alpha) of q^alpha p^(1 - alpha)."""

    @property
    def alpha(self) -> float:
        """The order, dimensionless: the share of q's log-density in the integral."""

    def of_integral(self, integral: Tensor) -> Tensor:
        """The divergence for values of the integral I(alpha), of any shape; the result has the same shape."""


@dataclass(frozen=True)
class Renyi:
    """Renyi's divergence log I(alpha) / (alpha - 1), in nats; KL(q, p) in the limit alpha = 1.

    Args:
        alpha: the order, not 1.

    Source: Renyi (1961), On measures of entropy and information, Proc. 4th Berkeley Symposium 1. ITE: BDRenyi_KnnK.
    """

    alpha: float = 0.5

    def of_integral(self, integral: Tensor) -> Tensor:
        """log I / (alpha - 1), of the same shape as ``integral``."""
        return integral.log() / (self.alpha - 1.0)


@dataclass(frozen=True)
class Tsallis:
    """Tsallis' divergence (I(alpha) - 1) / (alpha - 1), dimensionless; KL(q, p) in the limit alpha = 1.

    Args:
        alpha: the order, not 1.

    Source: Tsallis (1998), Generalized entropy-based criterion for consistent testing, Phys. Rev. E 58.
    ITE: BDTsallis_KnnK.
    """

    alpha: float = 0.5

    def of_integral(self, integral: Tensor) -> Tensor:
        """(I - 1) / (alpha - 1), of the same shape as ``integral``."""
        return (integral - 1.0) / (self.alpha - 1.0)


@dataclass(frozen=True)
class Hellinger:
    """Hellinger's distance sqrt(1 - I(1/2)), dimensionless, between 0 and 1.

    Where the estimate of I exceeds 1, by noise, the distance is given as 0 (ITE: the root of the excess).

    Args:
        alpha: the order, 1/2.

    Raises:
        ValueError: another order.

    Source: Hellinger (1909), Neue Begruendung der Theorie quadratischer Formen von unendlichvielen Veraenderlichen,
    J. Reine Angew. Math. 136. ITE: BDHellinger_KnnK.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        _check_half(self)

    def of_integral(self, integral: Tensor) -> Tensor:
        """sqrt(1 - I), of the same shape as ``integral``."""
        return (1.0 - integral).clamp_min(0.0).sqrt()


@dataclass(frozen=True)
class Bhattacharyya:
    """Bhattacharyya's distance -log I(1/2), in nats.

    Args:
        alpha: the order, 1/2.

    Raises:
        ValueError: another order.

    Source: Bhattacharyya (1943), On a measure of divergence between two statistical populations defined by their
    probability distributions, Bull. Calcutta Math. Soc. 35. ITE: BDBhattacharyya_KnnK.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        _check_half(self)

    def of_integral(self, integral: Tensor) -> Tensor:
        """-log I, of the same shape as ``integral``."""
        return -integral.log()


def knn_alpha_divergence(
    x: Draws,
    y: Draws,
    divergence: AlphaDivergence,
    k: int = 3,
    *,
    chunk_size: int | None = None,
    memory: float | None = None,
) -> Estimate:
    """Estimate a divergence of the alpha family from draws x of q and y of p.

    All are functions of I(alpha), the integral of q^alpha p^(1 - alpha), whose estimate is

        B/n sum_i [(n - 1) rho_k(i)^d / (m nu_k(i)^d)]^(1 - alpha),
        B = Gamma(k)^2 / (Gamma(k - alpha + 1) Gamma(k + alpha - 1)),

    rho_k and nu_k being the distances of :func:`knn_kl`. For alpha above 1 the terms are heavy-tailed where q has
    wider tails than p, and the standard error is then too small.

    Args:
        x: draws of q (n, d), n >= k + 1; tensor (CPU or CUDA) or array, any real dtype.
        y: draws of p (m, d), m >= k; m may differ from n. Moved to x's device.
        divergence: ``Renyi(alpha)``, ``Tsallis(alpha)``, ``Hellinger()``, ``Bhattacharyya()``, or an object with an
            ``alpha`` and ``of_integral``.
        k: number of the neighbour; small values are the least biased.
        chunk_size: rows in a tile where no tree is used, as in :func:`knn_kl`.
        memory: bytes that a tile may take, as in :func:`knn_kl`.

    Returns:
        The divergence with its standard error, in nats for Renyi's and Bhattacharyya's, dimensionless for the others.

    Raises:
        TypeError: as in :func:`knn_kl`, or ``divergence`` is no such object.
        ValueError: as in :func:`knn_kl`; alpha = 1 (use :func:`knn_kl`), or |alpha - 1| >= k, for which B is
            infinite.

    Example:
        Normals one standard deviation apart have I(1/2) = exp(-1/8), so Bhattacharyya's distance is 1/8.

        >>> import torch
        >>> from avbvi.divergences import Bhattacharyya, knn_alpha_divergence
        >>> _ = torch.manual_seed(0)
        >>> distance = knn_alpha_divergence(torch.randn(4000, 1), 1.0 + torch.randn(4000, 1), Bhattacharyya())
        >>> abs(distance.value - 0.125) < 0.05
        True

    Source: Poczos and Schneider (2011), On the estimation of alpha-divergences, AISTATS.
    """
    if isinstance(divergence, type) or not hasattr(divergence, "alpha") or not hasattr(divergence, "of_integral"):
        raise TypeError(
            f"divergence must be an object with alpha and of_integral, such as Renyi(0.5), found {found(divergence)}"
        )
    alpha = number("divergence.alpha", divergence.alpha)
    if alpha == 1.0 or not math.isfinite(alpha):
        raise ValueError(f"divergence.alpha must be finite and not 1 (use knn_kl for the limit), got {alpha}.")
    q, p, tiles = _pair(x, y, k, chunk_size, memory)
    if abs(alpha - 1.0) >= k:
        raise ValueError(f"divergence.alpha = {alpha} needs k > |alpha - 1|, got k = {k}.")
    log_b = 2.0 * gammaln(k) - gammaln(k - alpha + 1.0) - gammaln(k + alpha - 1.0)

    def terms(rho: Radii, nu: Radii) -> Tensor:
        return (log_b + (1.0 - alpha) * (rho.log_volume - nu.log_volume)).exp()

    def of_blocks() -> Tensor:
        parts_q, parts_p = blocks.split(q), blocks.split(p)
        of_block = terms(block_radii(parts_q, parts_q, k, same=True), block_radii(parts_q, parts_p, k))
        return slope * of_block.mean(1)

    whole = terms(*both_radii(q, p, k, tiles))
    integral = whole.mean()
    # The error of the integral is carried over by the slope at its value: a block's own estimate may lie
    # where the divergence bends.
    near = integral * torch.tensor([1.0 - 1e-6, 1.0 + 1e-6], dtype=integral.dtype, device=integral.device)
    slope = divergence.of_integral(near).diff() / near.diff()
    blocks = Blocks.of(k, len(q), len(p))
    return blocks.estimate(float(divergence.of_integral(integral)), of_blocks, slope * whole)


def _check_half(divergence: AlphaDivergence) -> None:
    if divergence.alpha != 0.5:
        raise ValueError(f"{type(divergence).__name__} is defined for alpha = 1/2, got {divergence.alpha}.")
