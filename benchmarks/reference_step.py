"""A step of adversarial training as a competent user would write it by hand: what avbvi's own step is timed against.

Frozen: this file is a yardstick. It is not to be made faster or slower; a change of it makes all saved ratios void.

Plain PyTorch, nothing of avbvi or Pyro: an eager loop with the arithmetic of one step of avbvi's adversarial stage
with its defaults above an affine trunk (equal networks, draws, batches, adversary steps; the test beside it finds
equal losses and gradients in double precision). It has the common sense of such loops: fused Adam, one pass of the
adversary over the draws of q and r together, no gradient that nobody asked for, log p evaluated once where it serves
twice.

Notation as in AVB (Mescheder, Nowozin and Geiger 2017): q the sampler's law, r the contrast, T the adversary, with
T* = log q - log r (Prop. 1). Everything lives in the coordinates e of the affine map z = loc + L e.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Adversary", "BoundedAdam", "Mixture", "ReferenceStep", "ResidualNet", "Sampler"]

#: z (n, dim) -> log p(z) up to a constant (n,), differentiable twice.
LogProb = Callable[[Tensor], Tensor]

LOG_2PI = math.log(2.0 * math.pi)


class ResidualNet(nn.Module):
    """Linear in, ``blocks`` residual blocks of two layers with SiLU before each, linear out; it starts at zero."""

    def __init__(self, n_in: int, n_out: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(n_in, hidden)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            end = nn.Linear(hidden, hidden)
            self.blocks.append(nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), end))
            nn.init.zeros_(end.weight)
            nn.init.zeros_(end.bias)
        self.leave = nn.Linear(hidden, n_out)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(functional.silu(h))
        return out


class Sampler(nn.Module):
    """e = A n + f(n) + h exp(s(n)) m with n (twice as wide as e) and m independent standard normal."""

    def __init__(self, dim: int, hidden: int = 64, blocks: int = 2, smoothing: float = 0.5) -> None:
        super().__init__()
        self.dim, self.smoothing = dim, smoothing
        self.network = ResidualNet(2 * dim, 2 * dim, hidden, blocks)
        self.linear = nn.Linear(2 * dim, dim, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(math.sqrt(1.0 - smoothing**2) * torch.eye(dim, 2 * dim))

    def forward(self, n: int) -> Tensor:
        """n draws (n, dim)."""
        weight = self.linear.weight
        noise = torch.randn(n, 3 * self.dim, dtype=weight.dtype, device=weight.device)
        inner, outer = noise[:, : 2 * self.dim], noise[:, 2 * self.dim :]
        shift, log_scale = self.network(inner).chunk(2, dim=-1)
        draws: Tensor = self.linear(inner) + shift + self.smoothing * log_scale.clamp(-4.0, 4.0).exp() * outer
        return draws


class Adversary(nn.Module):
    """T = network(whitened e, asinh(score / 2)) + a squashed multiple of log p - log r less its running mean."""

    center: Tensor

    def __init__(self, dim: int, hidden: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.network = ResidualNet(2 * dim, 1, hidden, blocks)
        self.hint_tenth = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("center", torch.zeros(()))
        self.seen = False

    @torch.no_grad()
    def observe(self, log_ratio: Tensor) -> None:
        """Let the centre follow log p - log r at draws of q."""
        self.center.lerp_(log_ratio.mean(), 0.05 if self.seen else 1.0)
        self.seen = True

    def forward(self, features: Tensor, log_ratio: Tensor, score: Tensor) -> Tensor:
        t = self.network(torch.cat([features, torch.asinh(0.5 * score)], -1)).squeeze(-1)
        out: Tensor = t + 200.0 * self.hint_tenth * torch.tanh((log_ratio - self.center) / 20.0)
        return out


class Mixture:
    """The contrast: K Gaussians, one step of stepwise EM (Cappe and Moulines 2009) for each batch of draws.

    Args:
        dim: width of the draws.
        components: K.
        rate: of the running statistics.
        jitter: added to the variances, relative to the overall ones.
        like: a tensor whose dtype and device it takes.
    """

    def __init__(self, dim: int, components: int, rate: float, jitter: float, like: Tensor) -> None:
        self.dim, self.rate, self.jitter = dim, rate, jitter
        kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.eye = torch.eye(dim, **kind)
        self.log_weights = torch.full((components,), -math.log(components), **kind)
        self.locs = torch.zeros(components, dim, **kind)
        self.factors = self.eye.repeat(components, 1, 1)
        self.inverses = self.factors.clone()
        self.counts = torch.full((components,), 1.0 / components, **kind)
        self.first = torch.zeros(components, dim, **kind)
        self.second = self.factors / components
        # Overall mean and Cholesky factor, for the adversary's coordinates.
        self.center = torch.zeros(dim, **kind)
        self.whitening = self.eye.clone()

    @torch.no_grad()
    def begin(self, draws: Tensor, rounds: int = 20) -> None:
        """Start at some of the draws (n, dim), with their covariance, and run EM on all of them."""
        k = len(self.locs)
        self.locs = draws[torch.randperm(len(draws), device=draws.device)[:k]].clone()
        self.center = draws.mean(0)
        self.whitening = torch.linalg.cholesky(torch.cov(draws.mT).reshape(self.dim, self.dim))
        self.factors = self.whitening.repeat(k, 1, 1)
        self.inverses = torch.linalg.solve_triangular(self.factors, self.eye.expand_as(self.factors), upper=False)
        self.log_weights = torch.full_like(self.log_weights, -math.log(k))
        for _ in range(rounds):
            self.update(draws, 1.0)

    def component_log_probs(self, e: Tensor) -> Tensor:
        """log w_k N(e; m_k, L_k L_k'): (n, dim) -> (n, K)."""
        k = len(self.locs)
        shift = torch.einsum("kij,kj->ki", self.inverses, self.locs).reshape(-1)
        standard = (e @ self.inverses.reshape(-1, self.dim).mT - shift).reshape(-1, k, self.dim)
        log_det = self.inverses.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (standard.square().sum(-1) + self.dim * LOG_2PI) + log_det + self.log_weights

    def log_prob(self, e: Tensor) -> Tensor:
        """log r(e): (n, dim) -> (n,)."""
        return torch.logsumexp(self.component_log_probs(e), -1)

    def features(self, e: Tensor) -> Tensor:
        """e in coordinates in which r has mean zero and covariance I."""
        return torch.linalg.solve_triangular(self.whitening, (e - self.center).mT, upper=False).mT

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws (n, dim)."""
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True)
        noise = torch.randn(n, self.dim, dtype=self.locs.dtype, device=self.locs.device)
        return self.locs[k] + torch.einsum("nij,nj->ni", self.factors[k], noise)

    @torch.no_grad()
    def update(self, draws: Tensor, rate: float | None = None) -> None:
        """One step of EM with draws (n, dim) of q."""
        rate = self.rate if rate is None else rate
        share = torch.softmax(self.component_log_probs(draws), -1)
        n = len(draws)
        self.counts.lerp_(share.mean(0), rate)
        self.first.lerp_(share.mT @ draws / n, rate)
        self.second.lerp_((share.mT[..., None] * draws).mT @ draws / n, rate)
        counts = self.counts.clamp_min(1e-8)
        locs = self.first / counts[:, None]
        self.center = self.first.sum(0)
        overall = self.second.sum(0) - self.center[:, None] * self.center
        covariances = self.second / counts[:, None, None] - locs[:, :, None] * locs[:, None, :]
        covariances = covariances + self.jitter * torch.diag_embed(overall.diagonal().clamp_min(1e-12))
        factors, info = torch.linalg.cholesky_ex(covariances)
        usable = ((info == 0) & (self.counts > 1e-4))[:, None]
        self.locs = torch.where(usable, locs, self.locs)
        self.factors = torch.where(usable[..., None], factors, self.factors)
        self.inverses = torch.linalg.solve_triangular(self.factors, self.eye.expand_as(self.factors), upper=False)
        self.log_weights = torch.log_softmax(counts.log(), 0)
        whitening, info = torch.linalg.cholesky_ex(overall)
        self.whitening = torch.where(info == 0, whitening, self.whitening)


class BoundedAdam:
    """Fused Adam (betas 0.5, 0.999); a gradient may be ten times as long as the running mean of those before.

    Args:
        parameters: what it moves.
        lr: its rate.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr
        self.adam = torch.optim.Adam(self.parameters, lr=lr, betas=(0.5, 0.999), fused=True)
        self.mean, self.count = 0.0, 0
        #: Gradients of the last step, as they were before they were bounded.
        self.gradients: list[Tensor] = []

    def descend(self, loss: Tensor, factor: float = 1.0) -> bool:
        """One step down the loss at ``factor`` times the rate; False, and no step, if the gradient is not finite."""
        self.gradients = list(torch.autograd.grad(loss, self.parameters))
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients))))
        if not math.isfinite(norm):
            return False
        bounded = min(norm, 10.0 * self.mean) if self.mean else norm
        decay = min(0.98, (1.0 + self.count) / (10.0 + self.count)) if self.mean else 0.0
        self.mean = decay * self.mean + (1.0 - decay) * bounded
        self.count += 1
        if bounded < norm:
            torch._foreach_mul_(self.gradients, bounded / norm)
        self.adam.param_groups[0]["lr"] = self.lr * factor
        for p, g in zip(self.parameters, self.gradients, strict=True):
            p.grad = g
        self.adam.step()
        return True


class ReferenceStep:
    """Adversarial training of one sampler on one fixed target, step by step.

    Args:
        log_prob: z (n, dim) -> log p(z) (n,).
        dim: width of z.
        loc, scale_tril: of the affine map z = loc + L e, (dim,) and (dim, dim); by default the identity.
        batch: draws of the sampler's step.
        adversary_batch: draws of q and of r in each step of the adversary.
        adversary_steps: steps of the adversary, and of the contrast, before one of the sampler.
        lr, adversary_lr: rates of the two Adams.
        components: of the contrast.
        dtype, device: of all tensors.
    """

    def __init__(
        self,
        log_prob: LogProb,
        dim: int,
        *,
        loc: Tensor | None = None,
        scale_tril: Tensor | None = None,
        batch: int = 512,
        adversary_batch: int = 256,
        adversary_steps: int = 2,
        lr: float = 2e-3,
        adversary_lr: float = 4e-3,
        components: int = 4,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._log_prob = log_prob
        self.batch, self.adversary_batch, self.adversary_steps = batch, adversary_batch, adversary_steps
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        self.loc = torch.zeros(dim, **kind) if loc is None else loc.to(**kind)
        self.scale_tril = torch.eye(dim, **kind) if scale_tril is None else scale_tril.to(**kind)
        self.log_det = self.scale_tril.diagonal().log().sum()
        self.sampler = Sampler(dim).to(**kind)
        self.adversary = Adversary(dim).to(**kind)
        self.contrast = Mixture(dim, components, 0.05, 1e-3, self.loc)
        self.adam = BoundedAdam(list(self.sampler.parameters()), lr)
        self.adversary_adam = BoundedAdam(list(self.adversary.parameters()), adversary_lr)
        #: Moving average of the sampler's weights, from which final draws would come.
        self.average = [p.detach().clone() for p in self.sampler.parameters()]
        self.count = 0

    def begin(self) -> None:
        """Fit the contrast to the untrained sampler's draws."""
        with torch.no_grad():
            draws = self.sampler(4096)
        self.contrast.begin(draws)

    def log_p(self, e: Tensor) -> Tensor:
        """log p in the coordinates e: (n, dim) -> (n,)."""
        return self._log_prob(self.loc + e @ self.scale_tril.mT) + self.log_det

    def step(self, factor: float = 1.0, adversary_factor: float = 1.0) -> float:
        """Steps of contrast and adversary, then one of the sampler, at these factors of their rates.

        Returns the mean of log q - log p, which the sampler minimises.
        """
        self.count += 1
        decay = min(0.999, (1.0 + self.count) / (10.0 + self.count))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.sampler.parameters()), 1.0 - decay)
        for _ in range(self.adversary_steps):
            self.step_adversary(adversary_factor)
        return self.step_sampler(factor)

    def step_adversary(self, factor: float = 1.0) -> Tensor:
        """One step of contrast and adversary; returns the logistic loss (AVB, eq. 3.3, minimised), a scalar."""
        n = self.adversary_batch
        with torch.no_grad():
            own = self.sampler(n)
            self.contrast.update(own)
            e = torch.cat([own, self.contrast.sample(n)])
            log_r = self.contrast.log_prob(e)
            features = self.contrast.features(e)
        e.requires_grad_()
        log_p = self.log_p(e)
        (score,) = torch.autograd.grad(log_p.sum(), e)
        log_ratio = log_p.detach() - log_r
        self.adversary.observe(log_ratio[:n])
        t = self.adversary(features, log_ratio, score)
        loss = functional.softplus(-t[:n]).mean() + functional.softplus(t[n:]).mean()
        self.adversary_adam.descend(loss, factor)
        return loss.detach()

    def step_sampler(self, factor: float = 1.0) -> float:
        """One step of the sampler down E_q[T + log r - log p], through its draws alone (AVB, Prop. 2)."""
        e = self.sampler(self.batch)
        log_p, log_r = self.log_p(e), self.contrast.log_prob(e)
        # Kept in the graph: the sampler moves its draws, and the score at them.
        (score,) = torch.autograd.grad(log_p.sum(), e, create_graph=True)
        t = self.adversary(self.contrast.features(e), log_p - log_r, score)
        loss = (t + log_r - log_p).mean()
        self.adam.descend(loss, factor)
        return float(loss.detach())

    @torch.no_grad()
    def draw(self, n: int) -> Tensor:
        """n draws z (n, dim) by the averaged weights."""
        averaged = copy.deepcopy(self.sampler)
        for p, mean in zip(averaged.parameters(), self.average, strict=True):
            p.copy_(mean)
        draws: Tensor = self.loc + averaged(n) @ self.scale_tril.mT
        return draws
