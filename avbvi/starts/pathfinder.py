"""Pathfinder: Gaussians from the curvature along optimisation paths, the one with the best ELBO of each path."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .lbfgs import HISTORY, InverseHessian, LogDensityFunction, Pairs, Paths


class PathGaussians(NamedTuple):
    """The best Gaussian of each path.

    Shapes: locs (n, dim), covariances (n, dim, dim), elbos (n,), -inf where a path has none.
    """

    locs: Tensor
    covariances: Tensor
    elbos: Tensor


@torch.no_grad()
def pathfinder(
    log_prob: LogDensityFunction, paths: Paths, *, points: int = 24, draws: int = 8, history: int = HISTORY
) -> PathGaussians:
    """The Gaussian of the largest ELBO along each path: N(z + H g, H) at a point z with gradient g of the log-density.

    H is the inverse Hessian of L-BFGS from the path up to that point. Gaussians found before the optimum may hold
    more mass than one at it: a funnel's optimum lies in a neck that has none.

    Args:
        log_prob: (n, dim) -> (n,).
        paths: of L-BFGS.
        points: of each path that are tried, evenly spaced, its end among them.
        draws: of each Gaussian for its ELBO.
        history: pairs that make up H.

    Returns:
        The Gaussians, in the dtype of the paths' points.

    Source: Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: Parallel quasi-Newton variational inference,
    JMLR 23(306), 1-49, Algorithms 1 to 4.
    """
    n, longest, dim = paths.points.shape
    rows, locs, hessians = [], [], []
    first = paths.gradients[:, 0]
    length = (1.0 / first.norm(dim=-1).clamp_min(1e-30))[:, None].expand(n, dim)
    pairs = Pairs.none(length, history)
    # Which points of each path are tried: its end, and steps of equal length back from there.
    stride = ((paths.lengths - 1).double() / points).clamp_min(1.0)
    for at in range(1, longest):
        step = paths.points[:, at].double() - paths.points[:, at - 1].double()
        change = paths.gradients[:, at - 1] - paths.gradients[:, at]
        pairs = pairs.with_pair(step, change)
        back = (paths.lengths - 1 - at).double()
        tried = (back >= 0) & (torch.floor((back + 1) / stride) > torch.floor(back / stride)) | (back == 0)
        index = (tried & (pairs.steps != 0.0).any(2).any(1)).nonzero().squeeze(-1)
        if len(index) == 0:
            continue
        hessian = pairs.rows(index).inverse_hessian()
        rows.append(index)
        locs.append(paths.points[index, at].double() + hessian.times(paths.gradients[index, at]))
        hessians.append(hessian)
    best = PathGaussians(
        paths.points[:, 0].clone(),
        torch.eye(dim).to(paths.points).expand(n, dim, dim).clone(),
        torch.full((n,), -math.inf, dtype=torch.float64, device=paths.points.device),
    )
    if not rows:
        return best
    row, loc = torch.cat(rows), torch.cat(locs)
    hessian = InverseHessian(*(torch.cat(part) for part in zip(*hessians, strict=True)))
    z, log_q = draw_factored(loc, hessian, draws)
    inside = torch.isfinite(z).all(-1)
    log_p = log_prob(z.where(inside[..., None], 0.0).to(paths.points).flatten(0, 1)).reshape(log_q.shape).double()
    elbos = (log_p - log_q).where(inside, -math.inf).mean(-1).nan_to_num(-math.inf, -math.inf, -math.inf)
    for i in range(n):
        mine = (row == i).nonzero().squeeze(-1)
        if len(mine) and float(elbos[mine].max()) > -math.inf:
            top = mine[elbos[mine].argmax()]
            best.locs[i] = loc[top].to(best.locs)
            best.covariances[i] = InverseHessian(*(part[top : top + 1] for part in hessian)).dense()[0].to(best.locs)
            best.elbos[i] = elbos[top]
    return best


def draw_factored(loc: Tensor, covariance: InverseHessian, draws: int) -> tuple[Tensor, Tensor]:
    """Draws (n, draws, dim) of N(loc, H) for locs (n, dim), and their log-density (n, draws).

    It costs dim J^2 and not dim^3; the log-density is NaN where H is not positive.

    Source: Zhang et al. (2022), Algorithm 4.
    """
    n, dim = loc.shape
    root = covariance.alpha.sqrt()
    q, r = torch.linalg.qr(covariance.beta / root[:, :, None])
    inner = torch.eye(r.shape[1]).to(r) + r @ covariance.gamma @ r.mT
    factor, info = torch.linalg.cholesky_ex(0.5 * (inner + inner.mT))
    noise = torch.randn(n, draws, dim, dtype=torch.float64).to(loc)
    low = noise @ q
    z = loc[:, None] + root[:, None] * (noise + (low @ factor.mT - low) @ q.mT)
    log_det = root.log().sum(-1) + factor.diagonal(dim1=1, dim2=2).log().sum(-1)
    log_q = -0.5 * (noise.square().sum(-1) + dim * math.log(2 * math.pi)) - log_det[:, None]
    return z, log_q.where((info == 0)[:, None], torch.nan)
