"""Stein's identity: a check of the draws alone, which needs no density of q."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..guides import AVBGuide
    from ..targets import UnconstrainedTarget


def stein_matrix(guide: AVBGuide, target: UnconstrainedTarget, n: int) -> tuple[Tensor, float]:
    """-E_q[s (e - E e)^T] (dim, dim), and the size of its sampling noise in spectral norm; I if q is the posterior.

    s is the gradient of log p in base coordinates. Integration by parts gives the identity for any density
    that vanishes at infinity (Stein's identity). For Gaussians of covariances S (posterior) and C (q) it is
    S^-1 C, whose eigenvalues are the squared ratios of standard deviations over all directions. It needs no
    density of q, and can't see a mode that q lacks.

    Args:
        guide: set up, in its final stage.
        target: what it approximates.
        n: number of draws.

    Returns:
        The matrix (dim, dim), dimensionless, float64; and the size of its noise, a scalar.

    Source: Stein (1972), A bound for the error in the normal approximation to the distribution of a sum of dependent
    random variables, Proc. 6th Berkeley Symposium 2; as a judge of samples Gorham and Mackey (2015), Measuring sample
    quality with Stein's method, NeurIPS.
    """
    base = guide.draw_base(n)
    with torch.enable_grad():
        leaf = base.detach().requires_grad_()
        z, log_det = guide.part("trunk")(leaf)
        (score,) = torch.autograd.grad((target.log_prob(z) + log_det).sum(), leaf)
    score, centred = score.double(), (base - base.mean(0)).double()
    matrix = -score.mT @ centred / n
    variance = (score.square().mT @ centred.square() / n - matrix.square()) / n
    # The spectral norm of a d x d matrix of independent noise is about 2 sqrt(d) of its entries' sd.
    noise = 2.0 * math.sqrt(len(matrix)) * float(variance.mean().clamp_min(0.0).sqrt())
    return matrix, noise
