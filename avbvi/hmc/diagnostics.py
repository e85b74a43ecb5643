"""Have the chains mixed? R-hat and effective sample size, for few long chains and for many short ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: From this many chains on the effective sample size is read off the spread of the chains' means.
MANY_CHAINS = 100


def rank_rhat(draws: Tensor) -> Tensor:
    """Rank-normalised split R-hat of each coordinate, the larger of bulk and folded, by ArviZ; below 1.01 is good.

    For independent draws it lies at 1 to within about 1 / (draws * sqrt(chains)), by chance.

    Args:
        draws: (chains, draws, dim).

    Returns:
        Shape (dim,), float64; NaN with fewer than four draws per chain or a single chain.

    Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Rank-normalization, folding, and localization: an
    improved R-hat for assessing convergence of MCMC, Bayesian Analysis 16(2), 667-718.
    """
    from ..export import import_arviz  # here, so that HMC itself needs torch alone

    if draws.shape[0] < 2 or draws.shape[1] < 4:
        return torch.full(draws.shape[2:], torch.nan, dtype=torch.float64)
    az = import_arviz()
    arrays = draws.detach().cpu().double().numpy()
    # Chains that all stand still have no variance within.
    with np.errstate(divide="ignore", invalid="ignore"):
        values = [float(az.rhat(arrays[:, :, j], method="rank")) for j in range(arrays.shape[2])]
    return torch.tensor(values, dtype=torch.float64)


def bulk_ess(draws: Tensor) -> Tensor:
    """Effective number of draws for the centre of each coordinate (of the rank-normalised draws).

    With 100 chains or more it is the chains' number times the variance of the draws over the variance of the
    chains' means: the chains are independent, so that their means show all autocorrelation, with a relative
    standard error of sqrt(2 / chains). ArviZ sums autocorrelations along each chain, for which short chains
    have too few lags: for 1000 chains of 10 independent draws it finds 14 700. With fewer chains its figure is taken.

    Args:
        draws: (chains, draws, dim).

    Returns:
        Shape (dim,), float64; above chains * draws by chance, or where successive draws are anticorrelated.
    """
    if len(draws) < MANY_CHAINS:
        return _arviz_ess(draws, "bulk")
    return _ess_by_means(rank_normal(draws))


def tail_ess(draws: Tensor) -> Tensor:
    """Effective number of draws for the 5 % and 95 % quantiles, the lesser, as :func:`bulk_ess`: (dim,)."""
    if len(draws) < MANY_CHAINS:
        return _arviz_ess(draws, "tail")
    ordered = draws.detach().double().flatten(0, 1).sort(0).values
    n = len(ordered)
    below = [_ess_by_means((draws.double() <= ordered[int(q * (n - 1))]).double()) for q in (0.05, 0.95)]
    return torch.minimum(*below)


def rank_normal(draws: Tensor) -> Tensor:
    """Normal quantiles of (rank - 3/8) / (N + 1/4) over all chains together: (chains, draws, dim), float64."""
    flat = draws.detach().double().flatten(0, 1)
    # Ties get the ranks of their order, not their mean rank: they hardly occur among continuous draws.
    rank = flat.argsort(0).argsort(0).double() + 1.0
    return torch.special.ndtri((rank - 0.375) / (len(flat) + 0.25)).reshape(draws.shape)


def _ess_by_means(draws: Tensor) -> Tensor:
    return len(draws) * draws.flatten(0, 1).var(0) / draws.mean(1).var(0)


def _arviz_ess(draws: Tensor, method: str) -> Tensor:
    from ..export import import_arviz

    az = import_arviz()
    arrays = draws.detach().cpu().double().numpy()
    values = [float(az.ess(arrays[:, :, j], method=method)) for j in range(arrays.shape[2])]
    return torch.tensor(values, dtype=torch.float64)
