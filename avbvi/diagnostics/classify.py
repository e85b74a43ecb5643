"""A freshly trained classifier between two samples, evaluated on draws that it was not trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..divergences.networks import RatioNetwork, train_ratio
from ..estimates import Estimate

WIDTH, BLOCKS, BATCH, PASSES = 48, 1, 512, 30
LOG_2 = math.log(2.0)


def held_out_log_ratio(q: Tensor, r: Tensor, *, passes: int = PASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """T = log q - log r learned anew, at draws of both that took no part in its training.

    Two networks, each trained on one half of the rows (a fifth of which choose its best snapshot) and evaluated on
    the other. Row i of q and row i of r go to the same half: pairs (a chain before and after) are never split.

    Args:
        q: what the networks see of the draws of q, (n, k), n >= 40.
        r: the same of the draws of r, (n, k).
        passes: passes over the training draws.
        seed: of weights and batches; the global random state is not touched.

    Returns:
        T at the rows of q and of r, (n,) each, float64, in nats.

    Source: Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, ICLR.
    """
    pooled = torch.cat([q, r])
    center, scale = pooled.mean(0), pooled.std(0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q, r = (((x - center) / scale).clamp(-20.0, 20.0).float() for x in (q, r))
    generator = torch.Generator("cpu").manual_seed(seed)
    network = RatioNetwork(q.shape[1], WIDTH, BLOCKS)
    order = torch.randperm(len(q), generator=generator).to(q.device)
    at_q, at_r = q.new_zeros(len(q), dtype=torch.float64), q.new_zeros(len(r), dtype=torch.float64)
    for parity in (0, 1):
        inside, outside = order[parity::2], order[1 - parity :: 2]
        validation, training = inside[: len(inside) // 5], inside[len(inside) // 5 :]

        def score(weights: list[Tensor], rows: Tensor = validation) -> float:
            return -float(cross_entropies(network.values(weights, q[rows]), network.values(weights, r[rows])).mean())

        weights = train_ratio(
            network, q[training], r[training], score=score, passes=passes, batch_size=BATCH, generator=generator
        )
        at_q[outside], at_r[outside] = network.values(weights, q[outside]), network.values(weights, r[outside])
    return at_q, at_r


def cross_entropies(t_q: Tensor, t_r: Tensor) -> Tensor:
    """Cross-entropy of the label at each pair of draws (n,), half from q and half from r; log 2 for T = 0."""
    return 0.5 * (softplus(-t_q) + softplus(t_r))


def information(t_q: Tensor, t_r: Tensor) -> Estimate:
    """Log 2 less the held-out cross-entropy (nats): a lower bound of the Jensen-Shannon divergence.

    Args:
        t_q: T at draws of q (n,) that took no part in its training, in nats.
        t_r: T at draws of r (n,), in nats.

    Returns:
        The bound in nats, with its standard error.

    Example:
        A classifier that knows nothing, and one that is sure and right:

        >>> import torch
        >>> from avbvi.diagnostics import information
        >>> abs(float(information(torch.zeros(100), torch.zeros(100)))) < 1e-6
        True
        >>> round(float(information(torch.full((100,), 50.0), torch.full((100,), -50.0))), 4)  # log 2
        0.6931

    Source: Goodfellow et al. (2014), Generative adversarial nets, NeurIPS, section 4.1.
    """
    gain = LOG_2 - cross_entropies(t_q, t_r).double()
    return Estimate(float(gain.mean()), float(gain.std() / math.sqrt(len(gain))))
