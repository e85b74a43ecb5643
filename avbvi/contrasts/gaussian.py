"""A Gaussian that follows the sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import flag, number
from ..trunks import standard_normal_log_prob
from .base import Contrast, checked_jitter


class GaussianContrast(Contrast):
    """A Gaussian with the sampler's mean and (co)variance: the paper's Adaptive Contrast (Algorithm 2).

    Args:
        full: full covariance instead of the paper's diagonal.
        momentum: weight of the past in the running moments; 0 takes each batch's own, as the paper does.
        jitter: added to the variances, in units of the base coordinates squared.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``momentum`` outside [0, 1), or a negative or infinite ``jitter``.

    Example:
        >>> import torch, avbvi
        >>> contrast = avbvi.GaussianContrast(full=True)
        >>> contrast.build(2)
        >>> contrast.update(3.0 + 2.0 * torch.randn(10_000, 2))
        >>> contrast.features(torch.tensor([3.0, 3.0])).round(decimals=1).abs().tolist()  # whitened
        [0.0, 0.0]

    Source: AVB (Mescheder, Nowozin and Geiger 2017), section 4 and Algorithm 2.
    """

    loc: Tensor
    scale_tril: Tensor
    covariance: Tensor

    def __init__(self, full: bool = False, momentum: float = 0.0, jitter: float = 1e-6) -> None:
        super().__init__()
        self.full: bool = flag("full", full)
        self.momentum: float = number("momentum", momentum)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), found {momentum}")
        self.jitter: float = checked_jitter(jitter)

    def _build(self, dim: int) -> None:
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("covariance", torch.eye(dim))
        self.register_buffer("scale_tril", torch.eye(dim))

    def reset(self, draws: Tensor) -> None:
        self._follow(draws, 0.0)

    def update(self, draws: Tensor) -> None:
        self._follow(draws, self.momentum)

    @torch.no_grad()
    def _follow(self, draws: Tensor, momentum: float) -> None:
        loc = draws.mean(0)
        centred = draws - loc
        if self.full:
            covariance = centred.mT @ centred / (draws.shape[0] - 1)
        else:
            covariance = torch.diag_embed(centred.square().sum(0) / (draws.shape[0] - 1))
        self.loc.lerp_(loc, 1.0 - momentum)
        self.covariance.lerp_(covariance, 1.0 - momentum)
        ridge = self.covariance + self.jitter * torch.eye(len(self.loc), dtype=self.loc.dtype, device=self.loc.device)
        if self.full:
            factor, info = torch.linalg.cholesky_ex(ridge)
            # A batch of collapsed draws has no Cholesky factor: keep the last one, the next batch will do.
            self.scale_tril.copy_(torch.where(info == 0, factor, self.scale_tril))
        else:
            self.scale_tril.copy_(ridge.sqrt())

    def sample(self, n: int) -> Tensor:
        noise = torch.randn(n, self.loc.shape[0], dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + noise @ self.scale_tril.mT

    def log_prob(self, e: Tensor) -> Tensor:
        log_det = self.scale_tril.diagonal().log().sum()
        return standard_normal_log_prob(self.features(e)) - log_det

    def features(self, e: Tensor) -> Tensor:
        if not self.full:
            return (e - self.loc) / self.scale_tril.diagonal()
        flat = (e - self.loc).reshape(-1, e.shape[-1])
        return torch.linalg.solve_triangular(self.scale_tril, flat.mT, upper=False).mT.reshape(e.shape)
