"""Gaussian mixtures with full covariances: what trunks, samplers and contrasts share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_factors(scale_trils: Tensor) -> Tensor:
    """Inverses of lower-triangular factors (K, dim, dim)."""
    dim, like = scale_trils.shape[-1], scale_trils
    identity = torch.eye(dim, dtype=like.dtype, device=like.device).expand_as(like)
    return torch.linalg.solve_triangular(scale_trils, identity, upper=False)


def component_log_probs(e: Tensor, log_weights: Tensor, locs: Tensor, inverse_trils: Tensor) -> Tensor:
    """log w_k + log N(e; loc_k, L_k L_k^T): (*batch, dim) -> (*batch, K), from the inverses of L_k (K, dim, dim)."""
    k, dim = locs.shape
    flat = e.reshape(-1, dim)
    # All components' whitenings in one matrix product: L_k^-1 (e - loc_k).
    shift = torch.einsum("kij,kj->ki", inverse_trils, locs).reshape(-1)
    standard = (flat @ inverse_trils.reshape(-1, dim).mT - shift).reshape(-1, k, dim)
    log_det = inverse_trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_prob = -0.5 * (standard.square().sum(-1) + dim * math.log(2 * math.pi)) + log_det + log_weights
    return log_prob.reshape(*e.shape[:-1], k)
