"""AS-VAE on linear-Gaussian data, where all laws and optimal adversaries are closed forms (Pu et al. 2017, eq. 7).

``python -m benchmarks.linear_gaussian [--seeds 3] [--methods M ...] [--keep] [--quick]``

Decoder and encoder are linear; the scales of the noise are known, as three coordinates do not tell them from two
factors. The data are draws of a model of the same family, so that the optimum is 0 in each of the divergences.
Adversaries are the losses' defaults. Their errors are means of |T - f*| over fresh draws of the two laws that each of
them tells apart, f* being that of the modules as they are.
``--quick`` trains for few steps; ``--minutes`` is of no effect. Each run has one thread; see ``benchmarks.runner`` for
interrupted runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor

from avbvi.joint import (
    GenerationELBO,
    JointAdversarialLoss,
    JointDraws,
    Pairs,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from benchmarks import latent, record, runner
from benchmarks.judging import Row
from benchmarks.runner import Job
from models.linear_gaussian import Laws, LinearConditional, LinearDecoder, LinearEncoder, laws_of, linear_vae

NAME = "linear_gaussian"
TARGET = "linear_gaussian_3_2"
SEEDS = 3
STEPS, QUICK_STEPS = 1500, 100
DATA, BATCH, RATE = 10_240, 256, 2e-2
JUDGED = 100_000
#: x | z of the data: z explains .43, .24 and .17 of the variance of the coordinates, .49 nats in all.
WEIGHT = ((1.0, 0.3), (-0.5, 0.8), (0.2, -0.6))
BIAS = (0.5, -1.0, 0.3)
SCALES = (1.2, 1.7, 1.4)
LOSSES: dict[str, Callable[[int], ELBO]] = {
    "vae": lambda steps: Trace_ELBO(),
    "as-vae-r": lambda steps: ReconstructionELBO(steps=steps),
    "as-vae-g": lambda steps: GenerationELBO(steps=steps),
    "as-vae": lambda steps: SymmetricAdversarialELBO(steps=steps),
}
Asked = Callable[[Tensor], JointDraws]
#: Which of f1 and f2 the games of a loss learn.
RATIOS = {"vae": (), "as-vae-r": ("f1",), "as-vae-g": ("f2",), "as-vae": ("f1", "f2")}
KEYS = (
    *("method", "seed", "seconds", "kl_data", "kl_posterior", "kl_aggregate"),
    *("error_f1_joint", "error_f1_product", "error_f2_joint", "error_f2_product"),
)


def truth() -> LinearConditional:
    """p(x | z) of the data."""
    return LinearConditional(torch.tensor(WEIGHT), torch.tensor(BIAS), torch.tensor(SCALES).square().diag())


def data_law() -> MultivariateNormal:
    """q(x), the truth's marginal."""
    d = len(WEIGHT[0])
    return truth().marginal(MultivariateNormal(torch.zeros(d), torch.eye(d)))


def adversary_errors(
    loss: JointAdversarialLoss, ratios: Sequence[str], laws: Laws, draws: int, asked: Asked | None = None
) -> Row:
    """Mean |T - f*| of each game, over the joint law and the product of marginals that it tells apart.

    ``asked`` gives a loss that knows densities its modules' draws for data.
    """
    x, prior = laws.data.sample((draws,)), laws.prior.sample((draws,))
    encoded = Pairs(x, laws.encoding.given(x).sample())
    decoded = Pairs(laws.decoding.given(prior).sample(), prior)
    samples = {
        "f1": (laws.encoded_ratio, encoded, Pairs(decoded.x, laws.prior.sample((draws,)))),
        "f2": (laws.decoded_ratio, decoded, Pairs(x, laws.aggregate.sample((draws,)))),
    }
    row: Row = {}
    there = None if asked is None else asked(x.float())
    for game, name in zip(loss.games, ratios, strict=True):
        exact, joint, product = samples[name]
        for kind, pairs in (("joint", joint), ("product", product)):
            t = game.log_ratio(Pairs(pairs.x.float(), pairs.z.float()), there)
            row[f"error_{name}_{kind}"] = float((t.double() - exact(*pairs)).abs().mean())
    return row


def divergences(laws: Laws) -> Row:
    """What is left between the two joints, exactly."""
    return {
        "kl_data": float(laws.kl_data()),
        "kl_posterior": float(laws.kl_posterior()),
        "kl_aggregate": float(laws.kl_aggregate()),
    }


def train(method: str, seed: int, steps: int) -> Row:
    """Train a method on fresh data of the truth and judge it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    data = data_law()
    x: Tensor = data.sample((DATA,))
    n, d = len(WEIGHT), len(WEIGHT[0])
    decoder, encoder = LinearDecoder(d, n, torch.tensor(SCALES)), LinearEncoder(n, d)
    vae, loss = linear_vae(decoder), LOSSES[method](steps)
    parameters = [*decoder.parameters(), *encoder.parameters()]
    latent.train(loss, vae.model, encoder.guide, x.split(BATCH), parameters, latent.Recipe(steps, lr=RATE), seed=seed)
    with torch.no_grad():
        laws = laws_of(decoder, data, encoder)
        row = divergences(laws)
        if isinstance(loss, JointAdversarialLoss):
            asked = partial(loss.draws, vae.model, encoder.guide)
            row |= adversary_errors(loss, RATIOS[method], laws, JUDGED, asked)
    return row


def run(job: Job) -> list[Row]:
    """One job of the board."""
    steps = QUICK_STEPS if job.minutes <= runner.QUICK_MINUTES else STEPS
    matmul = record.matmul_seconds()
    started, cpu = time.monotonic(), time.process_time()
    figures = train(job.method, job.seed, steps)
    return [
        {
            "target": TARGET,
            "method": job.method,
            "seed": job.seed,
            "device": "cpu",
            "seconds": time.monotonic() - started,
            "cpu_seconds_with_verdict": time.process_time() - cpu,
            "matmul_seconds": matmul,
            "steps": steps,
            **figures,
        }
    ]


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board."""
    order = {name: i for i, name in enumerate(LOSSES)}
    return sorted(records, key=lambda r: (order[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    settings = runner.options(
        __doc__, methods=tuple(LOSSES), targets=(TARGET,), seeds=SEEDS, minutes=1.0, arguments=arguments
    )
    jobs = [
        Job(TARGET, method, seed, settings.minutes)
        for method in reversed(LOSSES)  # the longest first
        for seed in range(settings.seeds)
        if settings.wants(TARGET, method)
    ]
    return runner.run_jobs(NAME, jobs, run, settings, keys=KEYS, finish=finished)


if __name__ == "__main__":
    main()
