"""Importance-weighted VAEs (Burda, Grosse and Salakhutdinov 2016): the bound as a Pyro loss, log-weights for judges."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer import RenyiELBO
from torch import Tensor

from avbvi.arguments import integer

from .encoders import Encoder
from .vaes import VAE

__all__ = ["ImportanceWeightedELBO", "log_weights"]


class ImportanceWeightedELBO(RenyiELBO):
    """L_K = E log 1/K sum_k p(x, z_k) / q(z_k | x) for each datum, summed and scaled over the data.

    Pyro's ``RenyiELBO(alpha=0)`` is the same where the plate holds all data; in a subsampled plate it takes the scale
    N / B into the weights' exponent, here it multiplies the bound. The latents' draws must be reparameterised.

    Args:
        num_particles: K, evaluated at once.
    """

    def __init__(self, num_particles: int) -> None:
        num_particles = integer("num_particles", num_particles, 1)
        super().__init__(alpha=0, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """-L_K, estimated with one set of K draws per datum, as a tensor to be differentiated."""
        ((model_trace, guide_trace),) = self._get_traces(model, guide, args, kwargs)
        log_w: Tensor | float = 0.0
        scale = 1.0
        for trace, sign in ((model_trace, 1.0), (guide_trace, -1.0)):
            for site in trace.nodes.values():
                if site["type"] == "sample" and site["cond_indep_stack"]:
                    plates = site["cond_indep_stack"]
                    scale = math.prod((plate.full_size or plate.size) / plate.size for plate in plates)
                    log_w = log_w + sign * site["log_prob"] / scale
        assert isinstance(log_w, Tensor)
        bound = log_w if self.num_particles == 1 else log_w.logsumexp(0) - math.log(self.num_particles)
        return -(scale * bound).sum()

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


@torch.no_grad()
def log_weights(vae: VAE, encoder: Encoder, x: Tensor, n: int, *, chunk: int = 100) -> Tensor:
    """log p(x_i, z) - log q(z | x_i) at n draws for each datum, shape (n, B), float64.

    Their log-mean-exp over draws is the importance-weighted bound of log p(x_i), their mean the ELBO.

    Args:
        vae: the model.
        encoder: the proposal.
        x: data, shape (B, *shape).
        n: number of draws.
        chunk: draws at a time, which bounds the memory.
    """
    n, chunk = integer("n", n, 1), integer("chunk", chunk, 1)
    weights = []
    for done in range(0, n, chunk):
        draws = encoder.propose(x, min(chunk, n - done))
        weights.append((vae.log_joint(x, draws.z) - draws.log_q).double())
    return torch.cat(weights)
