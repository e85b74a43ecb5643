"""The network behind a learned density ratio: residual, with an output that is linear in its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Adam's largest rate, and the least number of steps: few draws make short passes.
_RATE = 3e-3
_MIN_STEPS = 300
# Snapshots of the weights that compete on the validation draws.
_SNAPSHOTS = 12


@dataclass(frozen=True)
class RatioNetwork:
    """T(u) = a(u) + b(u)'u / sqrt(k), with a and b the outputs of one residual network.

    The product lets a coordinate count for more in one region than in another: to first order,
    the log-ratio of p moved along a small field v is -(div v + v'grad log p), which is of this form
    where the gradient is among the inputs.

    Args:
        inputs: k, the number of inputs.
        width: of the hidden layers.
        blocks: residual blocks h + B silu(A silu(h)).
    """

    inputs: int
    width: int
    blocks: int

    def weights(self, like: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Fresh weights and biases, alternating, on the device of ``like``, for which T = 0."""
        shapes = [(self.width, self.inputs)]
        shapes += [(self.width, self.width)] * (2 * self.blocks)
        shapes += [(1 + self.inputs, self.width)]
        # What ends a block, and the output, start at 0: the identity, and the indifferent T.
        starts_at_zero = {2 * block + 2 for block in range(self.blocks)} | {len(shapes) - 1}
        weights: list[Tensor] = []
        for layer, (fan_out, fan_in) in enumerate(shapes):
            weight = torch.randn(fan_out, fan_in, generator=generator, dtype=like.dtype, device="cpu")
            weight *= 0.0 if layer in starts_at_zero else math.sqrt(1.0 / (3.0 * fan_in))
            weights += [weight.to(like.device), like.new_zeros(fan_out)]
        return weights

    def __call__(self, weights: list[Tensor], u: Tensor) -> Tensor:
        """T at inputs u (batch, k), shape (batch,)."""
        linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
        hidden = linear(u, weights[0], weights[1])
        for block in range(self.blocks):
            first_weight, first_bias, last_weight, last_bias = weights[4 * block + 2 : 4 * block + 6]
            inner = linear(silu(hidden), first_weight, first_bias)
            hidden = hidden + linear(silu(inner), last_weight, last_bias)
        out = linear(silu(hidden), weights[-2], weights[-1])
        return out[:, 0] + (out[:, 1:] * u).sum(-1) / math.sqrt(self.inputs)

    @torch.no_grad()
    def values(self, weights: list[Tensor], u: Tensor) -> Tensor:
        """T in float64 without its graph, by pieces that bound the memory of the hidden layers."""
        return torch.cat([self(weights, piece) for piece in u.split(65_536)]).double()


def train_ratio(
    network: RatioNetwork,
    q: Tensor,
    p: Tensor,
    *,
    score: Callable[[list[Tensor]], float],
    passes: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Train T towards log q/p by the logistic loss, both laws with equal weight.

    Args:
        network: what is trained.
        q, p: training inputs, shape (n, k) and (m, k).
        score: judges a snapshot of the weights on draws apart; larger is better.
        passes: passes over the smaller sample; as many draws of the larger are used per pass.
        batch_size: draws per step, of both laws together.
        generator: of weights and batches, on the CPU.

    Returns:
        The weights of the snapshot with the largest score.
    """
    softplus = torch.nn.functional.softplus
    weights = network.weights(q, generator)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=_RATE, weight_decay=1e-2, fused=True)
    size = min(q.shape[0], p.shape[0])
    # Small samples: at least 8 steps a pass, as long as a batch keeps 32 draws of each law.
    half = min(size, max(1, min(batch_size // 2, max(32, size // 8))))
    per_pass = size // half
    steps = max(passes * per_pass, _MIN_STEPS)
    warm = max(1, steps // 20)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / warm) * 0.5 * (1.0 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    due = {round(steps * (i + 1) / _SNAPSHOTS) for i in range(_SNAPSHOTS)}
    best_score, best = -math.inf, [weight.detach().clone() for weight in weights]
    for step in range(steps):
        place = step % per_pass
        if place == 0:
            orders = [torch.randperm(z.shape[0], generator=generator, device="cpu").to(z.device) for z in (q, p)]
        batch = slice(place * half, (place + 1) * half)
        with torch.enable_grad():
            out = network(weights, torch.cat([q[orders[0][batch]], p[orders[1][batch]]]))
            loss = softplus(-out[:half]).mean() + softplus(out[half:]).mean()
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        optimiser.step()
        schedule.step()
        if step + 1 in due:
            current = score(weights)
            if current > best_score:
                best_score, best = current, [weight.detach().clone() for weight in weights]
    return best
