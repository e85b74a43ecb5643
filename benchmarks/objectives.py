"""f-divergences as objectives of the adversary, side by side (AVB, eq. 6.6-6.10).

``python -m benchmarks.objectives [--seeds 3] [--methods M ...] [--targets T ...] [--keep] [--quick]``

Methods are objectives. Targets are AVB on the synthetic example with the prior as contrast (``avb``) and with adaptive
contrast (``avb+ac``), by the recipe of ``benchmarks.synthetic_vae`` in fewer steps, and the log-ratio of two normals
alone (``gaussians``): nothing moves there but the adversary, and its answer is known. Gradients are watched before
their bound shortens them; ``gaussians-unbounded`` does without the bound. ``--quick`` trains for few steps;
``--minutes`` is of no effect. Each run has one thread; see ``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pyro
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.nn.utils import get_total_norm

from avbvi import PriorContrast
from avbvi.adversaries import MLPAdversary
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.contrasts import Contrast
from avbvi.gradients import LONGEST, GradientBound
from avbvi.objectives import (
    KullbackLeibler,
    Logistic,
    NeymanChiSquared,
    Objective,
    PearsonChiSquared,
    ReverseKullbackLeibler,
    SquaredHellinger,
    TriangularDiscrimination,
)
from avbvi.rng import rng_untouched
from benchmarks import latent, record, runner, synthetic_vae
from benchmarks.judging import Row
from benchmarks.runner import Job

NAME = "objectives"
SEEDS = 3
STEPS, QUICK_STEPS = 700, 20
GAUSSIANS, UNBOUNDED = "gaussians", "gaussians-unbounded"
OBJECTIVES: dict[str, Objective] = {
    "logistic": Logistic(),
    "triangular": TriangularDiscrimination(),
    "hellinger": SquaredHellinger(),
    "kl": KullbackLeibler(),
    "reverse-kl": ReverseKullbackLeibler(),
    "pearson": PearsonChiSquared(),
    "neyman": NeymanChiSquared(),
}
CONTRASTS: dict[str, Callable[[], Contrast]] = {
    "avb": PriorContrast,
    "avb+ac": lambda: ConditionalGaussianContrast(draws=synthetic_vae.MOMENT_DRAWS),
}
#: What is tried where: fits take longest, and the adaptive contrast is left what the prior as contrast does not break.
TRIED: dict[str, tuple[str, ...]] = {
    "avb": ("logistic", "hellinger", "kl", "reverse-kl", "pearson", "neyman"),
    "avb+ac": ("logistic", "hellinger", "kl", "reverse-kl"),
    GAUSSIANS: tuple(OBJECTIVES),
    UNBOUNDED: ("logistic", "hellinger", "kl"),
}
#: With so many nats between two normals gradients get long enough for the bound to matter.
FAR = 8.0
#: Draws for each image that judge a fit.
JUDGED_FIT, QUICK_JUDGED_FIT = 20_000, 1_000
#: Pairs of normals: dimensions, and KL(q, r) in nats, of which a tenth is in the scale.
DIMS, KLS, OF_SCALE = (1, 4, 8), (0.5, 2.0, 8.0), 0.1
#: The adversary alone: widths, steps, draws of each law in a step, learning rate, draws that judge it.
HIDDEN, TRIAL_STEPS, QUICK_TRIAL_STEPS, BATCH, RATE, JUDGED = (64, 64), 500, 20, 512, 4e-3, 20_000
KEYS = (
    *("target", "method", "seed", "dim", "kl", "cpu_seconds_with_verdict", "log_likelihood", "elbo_exact", "gap"),
    *("elbo_error", "error_q", "error_r", "skipped_steps", "rollbacks", "gradient_spread", "gradient_shortened"),
    *("gradient_lost", "verdict"),
)


Result = TypeVar("Result")


class WatchedAdversary(InnerProductAdversary):
    """Notes how long each gradient of its loss is, before anything is done to it."""

    def _build(self, dim: int) -> None:
        super()._build(dim)
        self._squares: list[float] = []
        for p in self.parameters():
            p.register_hook(self._note)

    def _note(self, gradient: Tensor) -> None:
        self._squares.append(float(gradient.double().square().sum()))

    @property
    def norms(self) -> list[float]:
        """The norm of each step's gradient."""
        n = len(list(self.parameters()))
        return [math.sqrt(sum(self._squares[i : i + n])) for i in range(0, len(self._squares), n)]


def steadiness(norms: Sequence[float]) -> Row:
    """What the norms of a run's gradients tell of it.

    ``gradient_spread`` is the longest in units of the median, ``gradient_shortened`` the share of steps at which a fit
    shortens the gradient to ten times its running mean, ``gradient_lost`` that of gradients that are not finite.
    """
    finite = [norm for norm in norms if math.isfinite(norm)]
    bound = GradientBound()
    shortened = sum(bound.factor(norm) < 1.0 for norm in finite)
    return {
        "gradient_spread": max(finite) / statistics.median(finite)
        if finite and statistics.median(finite) > 0
        else None,
        "gradient_shortened": shortened / len(norms),
        "gradient_lost": 1.0 - len(finite) / len(norms),
    }


def timed(task: Callable[[], Result]) -> tuple[Result, Row]:
    """What a task gives, and the seconds that it took."""
    started, cpu = time.monotonic(), time.process_time()
    result = task()
    return result, {
        "seconds": time.monotonic() - started,
        "cpu_seconds_with_verdict": time.process_time() - cpu,
    }


def fit_avb(job: Job, quick: bool) -> Row:
    """AVB on the synthetic example with one objective."""
    steps = QUICK_STEPS if quick else STEPS
    adversary = synthetic_vae.make_adversary(WatchedAdversary, objective=OBJECTIVES[job.method])
    assert isinstance(adversary, WatchedAdversary)
    trained, seconds = timed(lambda: synthetic_vae.train_avb(job.seed, steps, CONTRASTS[job.target](), adversary))
    if quick:
        figures = synthetic_vae.judged(trained, QUICK_JUDGED_FIT, synthetic_vae.QUICK_POINTS)
    else:
        figures = synthetic_vae.judged(trained, JUDGED_FIT)
    return {**seconds, "steps": steps, **figures, **trained.figures, **steadiness(adversary.norms)}


def pair(dim: int, kl: float) -> tuple[Independent, Independent]:
    """Normals q and r = N(0, I) with this KL(q, r): q is shifted along the diagonal, and narrower."""
    per_axis = OF_SCALE * kl / dim
    log_scale = brentq(lambda s: 0.5 * math.expm1(2.0 * s) - s - per_axis, -per_axis - 1.0, 0.0)
    shift = math.sqrt(2.0 * (1.0 - OF_SCALE) * kl / dim)
    q = Normal(torch.full((dim,), shift), math.exp(log_scale))
    return Independent(q, 1), Independent(Normal(torch.zeros(dim), 1.0), 1)


def learn_ratio(objective: Objective, dim: int, kl: float, seed: int, steps: int, longest: float = LONGEST) -> Row:
    """Train an adversary on fresh draws of two normals as a fit does; mean absolute errors of its log-ratio.

    A gradient may be ``longest`` times as long as those before.
    """
    pyro.set_rng_seed(seed)
    q, r = pair(dim, kl)
    adversary = MLPAdversary(HIDDEN, objective=objective)
    adversary.build_for(dim, dim)
    recipe = latent.Recipe(steps, lr=RATE)
    optimiser = torch.optim.Adam(adversary.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True)
    bound, norms, skipped, shape = GradientBound(longest), list[float](), 0, torch.Size((BATCH,))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = recipe.lr * recipe.factor(step)
        optimiser.zero_grad()
        t = adversary(torch.cat([q.sample(shape), r.sample(shape)]))
        objective.loss(t[:BATCH], t[BATCH:]).backward()
        gradients = [p.grad for p in adversary.parameters() if p.grad is not None]
        norms.append(float(get_total_norm(gradients)))
        if bound.apply(gradients):
            optimiser.step()
        else:
            skipped += 1
    errors = {}
    with torch.no_grad():
        for name, law in (("error_q", q), ("error_r", r)):
            x = law.sample((JUDGED,))
            learned = objective.log_ratio(adversary(x))
            errors[name] = float((learned - (q.log_prob(x) - r.log_prob(x))).abs().mean())
    return {"dim": dim, "kl": kl, "steps": steps, "skipped_steps": skipped, **errors, **steadiness(norms)}


def learn_ratios(job: Job, quick: bool) -> list[Row]:
    """The log-ratio of every pair of normals with one objective."""
    steps, rows = QUICK_TRIAL_STEPS if quick else TRIAL_STEPS, []
    kls, longest = (KLS, LONGEST) if job.target == GAUSSIANS else ((FAR,), math.inf)
    for dim, kl in itertools.product(DIMS, kls):
        figures, seconds = timed(partial(learn_ratio, OBJECTIVES[job.method], dim, kl, job.seed, steps, longest))
        rows.append({**seconds, **figures})
    return rows


def run(job: Job) -> list[Row]:
    """One job of the board: a fit, or all pairs of normals."""
    quick = job.minutes <= runner.QUICK_MINUTES
    matmul = record.matmul_seconds()
    with rng_untouched():
        rows = [fit_avb(job, quick)] if job.target in CONTRASTS else learn_ratios(job, quick)
    common = {"target": job.target, "method": job.method, "seed": job.seed, "device": "cpu", "matmul_seconds": matmul}
    return [{**common, **row} for row in rows]


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board."""
    targets, methods = ({name: i for i, name in enumerate(names)} for names in (TRIED, OBJECTIVES))
    return sorted(
        records,
        key=lambda r: (targets[r["target"]], r.get("dim", 0), r.get("kl", 0.0), methods[r["method"]], r["seed"]),
    )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    settings = runner.options(
        __doc__, methods=tuple(OBJECTIVES), targets=tuple(TRIED), seeds=SEEDS, minutes=1.0, arguments=arguments
    )
    jobs = [job for job in settings.jobs(TRIED, OBJECTIVES) if job.method in TRIED[job.target]]
    return runner.run_jobs(NAME, jobs, run, settings, keys=KEYS, finish=finished)


if __name__ == "__main__":
    main()
