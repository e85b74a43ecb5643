"""Adversarial training without a trunk, as a plain torch loop: the recipe that avbvi's time to an accuracy is told by.

It was the best recipe without a flow before this package was written ("recipe B" of docs/benchmarks): a residual
sampler that starts at N(0, I), a contrast of four Gaussians fitted by maximum likelihood, an adversary of two residual
blocks of 64 units that sees log p - log r centred and squashed, but no score. Adam with betas 0.5 and 0.999, two
adversary steps of 512 draws each, cosine decay to zero, annealing of beta log p + (1 - beta) log N(0, 2^2 I), an
average of the sampler's weights, all by the clock.

>>> fit(EIGHT_SCHOOLS.by_hand(), 10, seconds=60.0, seed=0)(10_000)  # draws (10000, 10)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from avbvi.rng import seeded
from benchmarks.fitting import Fitted, Method, Recorder
from benchmarks.problems import EIGHT_SCHOOLS_PAPER, Draws, Problem
from benchmarks.reference_step import LOG_2PI, BoundedAdam, LogProb, Mixture, ResidualNet
from benchmarks.step_problems import EIGHT_SCHOOLS

__all__ = ["RECIPE_B", "RecipeB", "fit"]

SOURCES = ("benchmarks/rivals/recipe_b.py", "benchmarks/reference_step.py", "models/eight_schools.py")
#: Share of the run in which beta rises, and where it begins; sd of what the target is mixed with.
ANNEAL, BETA, SPREAD = 0.3, 0.1, 2.0
SQUASH = 20.0


class RecipeB(nn.Module):
    """The recipe's networks and their steps.

    Args:
        log_prob: z (n, dim) -> log p (n,).
        dim: width of z.
        batch: draws of the sampler's step, and of q and r in the adversary's.
        lr, adversary_lr: rates at the start.
    """

    def __init__(
        self, log_prob: LogProb, dim: int, *, batch: int = 512, lr: float = 2e-3, adversary_lr: float = 4e-3
    ) -> None:
        super().__init__()
        self._log_prob, self.dim, self.batch = log_prob, dim, batch
        self.linear = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dim, 2 * dim))
        self.network = ResidualNet(2 * dim, dim, 64, 2)
        self.adversary = ResidualNet(dim, 1, 64, 2)
        #: A tenth of the feature's multiple, so that Adam moves it ten times as fast as a weight.
        self.multiple = nn.Parameter(torch.tensor(0.1))
        self.contrast = Mixture(dim, 4, 0.05, 1e-3, self.linear.weight.detach())
        self.center: Tensor | None = None
        self.weights: list[Tensor] = [*self.linear.parameters(), *self.network.parameters()]
        self.average = [p.detach().clone() for p in self.weights]
        self.adam = BoundedAdam([*self.linear.parameters(), *self.network.parameters()], lr)
        self.adversary_adam = BoundedAdam([*self.adversary.parameters(), self.multiple], adversary_lr)
        self.count = 0

    def draw(self, n: int) -> Tensor:
        """n draws z (n, dim), differentiable."""
        noise = torch.randn(n, 2 * self.dim)
        draws: Tensor = self.linear(noise) + self.network(noise)
        return draws

    def log_p(self, z: Tensor, beta: float) -> Tensor:
        """The annealed target: (n, dim) -> (n,)."""
        log_p = self._log_prob(z)
        if beta < 1.0:
            broad = -0.5 * (z / SPREAD).square().sum(-1) - self.dim * (math.log(SPREAD) + 0.5 * LOG_2PI)
            log_p = beta * log_p + (1.0 - beta) * broad
        return log_p

    def log_ratio(self, z: Tensor, feature: Tensor) -> Tensor:
        """T at z (n, dim), with log p - log r (n,) as a feature."""
        squashed = SQUASH * torch.tanh((feature - (0.0 if self.center is None else self.center)) / SQUASH)
        out: Tensor = self.adversary(self.contrast.features(z)).squeeze(-1) + 10.0 * self.multiple * squashed
        return out

    def begin(self) -> None:
        """Fit the contrast to the sampler's first draws."""
        with torch.no_grad():
            self.contrast.begin(self.draw(4096))

    def step(self, progress: float) -> None:
        """One step at a point of the run, in [0, 1)."""
        beta = 1.0 if progress >= ANNEAL else BETA + (1.0 - BETA) * progress / ANNEAL
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        for _ in range(2):
            self._step_adversary(beta, factor)
        z = self.draw(self.batch)
        log_p, log_r = self.log_p(z, beta), self.contrast.log_prob(z)
        self.adam.descend((self.log_ratio(z, log_p - log_r) + log_r - log_p).mean(), factor)
        self.count += 1
        decay = min(0.999, (1.0 + self.count) / (10.0 + self.count))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1.0 - decay)

    def _step_adversary(self, beta: float, factor: float) -> None:
        n = self.batch
        with torch.no_grad():
            own = self.draw(n)
            self.contrast.update(own)
            z = torch.cat([own, self.contrast.sample(n)])
            feature = self.log_p(z, beta) - self.contrast.log_prob(z)
            mean = feature[:n].mean()
            self.center = mean if self.center is None else self.center.lerp(mean, 0.05)
        t = self.log_ratio(z, feature)
        loss = functional.softplus(-t[:n]).mean() + functional.softplus(t[n:]).mean()
        self.adversary_adam.descend(loss, factor)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """n draws z (n, dim) by the averaged weights."""
        now = [p.clone() for p in self.weights]
        for p, mean in zip(self.weights, self.average, strict=True):
            p.copy_(mean)
        try:
            return self.draw(n)
        finally:
            for p, value in zip(self.weights, now, strict=True):
                p.copy_(value)


def fit(
    log_prob: LogProb,
    dim: int,
    *,
    seconds: float,
    seed: int,
    look: Callable[[RecipeB], float] = lambda recipe: 0.0,
) -> RecipeB:
    """Train for so many seconds.

    Args:
        log_prob: z (n, dim) -> log p (n,).
        dim: width of z.
        seconds: of the run by the clock.
        seed: of weights and noise.
        look: called after each step; what it returns are seconds that do not count.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if not seconds > 0.0:
        raise ValueError(f"seconds must be positive, found {seconds}")
    with seeded(seed):
        started = time.monotonic()
        recipe = RecipeB(log_prob, dim)
        recipe.begin()
        while (progress := (time.monotonic() - started) / seconds) < 1.0:
            recipe.step(progress)
            started += look(recipe)
    return recipe


def _sites(z: Tensor) -> Draws:
    return {"mu": z[:, 0], "tau": z[:, 1], "eta": z[:, 2:]}


def _method(problem: Problem, seed: int, minutes: float, snapshots: Sequence[float]) -> Fitted:
    recorder = Recorder(problem, snapshots)

    def look(recipe: RecipeB) -> float:
        return recorder.look(recipe.count, lambda n: _sites(recipe.sample(n)))

    recipe = fit(EIGHT_SCHOOLS.by_hand(), EIGHT_SCHOOLS.dim, seconds=60.0 * minutes, seed=seed, look=look)
    seconds = recorder.seconds()

    def sample(n: int) -> Draws:
        return _sites(recipe.sample(n))

    return Fitted(
        sample, seconds, figures={"steps": recipe.count}, snapshots=recorder.last(seconds, recipe.count, sample)
    )


def _missing(problem: Problem) -> str | None:
    return None if problem.name == EIGHT_SCHOOLS_PAPER.name else "its log-density is written by hand for Eight Schools"


RECIPE_B = Method("recipe-b", "recipe B (mixture contrast, plain loop)", _method, missing=_missing, sources=SOURCES)
