"""Every method of the family on four one-hot images of 2 x 2 pixels with latents in the plane, judged exactly.

``python -m benchmarks.family [--seeds 3] [--methods M ...] [--targets T ...] [--keep] [--quick]``

VAE, flow, AVB, AS-VAE and its halves, adversarial autoencoder, ALI and GAN share decoder, optimiser, schedule, steps
and data (``benchmarks.family_methods``). One recipe serves all relatives: none is tuned by itself. With two latents
and 16 possible images all is known: the law of the model's images, p(z | x), the ELBO of any encoder
(``models.synthetic_images``).

The target ``unsure_2x2`` has the same images and pixels that are right with a probability of .8 at most, so that x
leaves z unsure: there an adversarial autoencoder and AVB aim at different encoders. On ``one_hot_2x2`` they do not.

Pictures show the first seed. ``--quick`` trains for few steps; ``--minutes`` is of no effect. Each run has one thread.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avbvi import Estimate
from benchmarks import figures, latent_tables, record, runner
from benchmarks import synthetic_vae as example
from benchmarks.family_methods import METHODS, TARGET, UNSURE, Coder, Fitted
from benchmarks.judging import Row
from benchmarks.runner import Job
from models.synthetic_images import ImageLaw, PlanarTruth, kl_to_standard_normal, one_hot_images

NAME = "family"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "images"
SEEDS = 3
STEPS, QUICK_STEPS = 1000, 100
#: Of the grid that the model is integrated over: models that lose an image have its posterior far out.
REACH, POINTS, QUICK_POINTS = 9.0, 415, 101
#: Draws for each image that the judges see where there is a density: errors are smaller, and evaluations dearer.
DENSE_JUDGED = 10_000
#: Methods in a line of the picture.
PER_LINE = 4
KEYS = (
    *("target", "method", "seed", "seconds", "cpu_seconds_with_verdict", "log_likelihood", "elbo_exact", "gap"),
    *("kl_aggregate", "reconstruction_error", "share_of_data", "js_data", "kl_data"),
)


@torch.no_grad()
def judged(fitted: Fitted, draws: int, points: int = POINTS) -> Row:
    """Figures of a trained model: its images, and its encoder if there is one, against the true posterior."""
    x = one_hot_images()
    truth, law = PlanarTruth(fitted.vae, x, points, REACH), ImageLaw.of(fitted.vae, points, REACH)
    log_likelihood = float(truth.log_likelihood.mean())
    row: Row = {
        "log_likelihood": log_likelihood,
        "kl_data": law.kl_from_data,
        "js_data": law.jensen_shannon,
        "share_of_data": law.share_of_data,
    }
    if fitted.coder is None:
        return row
    z = fitted.coder.sample(draws if fitted.coder.log_q is None else min(draws, DENSE_JUDGED))
    elbo, aggregate = exact(fitted.coder, truth, z)
    log_likelihood_of_reconstructions = fitted.vae.likelihood(fitted.vae.decoder(z)).log_prob(x)
    return row | {
        "elbo_exact": elbo.value,
        "elbo_exact_stderr": elbo.stderr,
        "gap": log_likelihood - elbo.value,
        "reconstruction_error": -float(log_likelihood_of_reconstructions.mean()) / x.shape[1],
        "kl_aggregate": aggregate.value,
        "kl_aggregate_stderr": aggregate.stderr,
    }


def exact(coder: Coder, truth: PlanarTruth, z: Tensor) -> tuple[Estimate, Estimate]:
    """ELBO and KL(q(z), p(z)) at draws z (n, 4, 2): by the density where there is one, else by neighbours."""
    if coder.log_q is None:
        return truth.elbo(z), kl_to_standard_normal(z.flatten(0, 1))
    n = len(z)
    elbo = (truth.log_joint(z) - coder.log_q(z).double()).mean(1)
    # Every image's draws under every image's density: (n * 4, 4).
    log_q = coder.log_q(z.flatten(0, 1)[:, None].expand(-1, z.shape[1], -1)).double().logsumexp(-1) - math.log(
        z.shape[1]
    )
    log_prior = -0.5 * z.flatten(0, 1).double().square().sum(-1) - math.log(2.0 * math.pi)
    ratio = (log_q - log_prior).reshape(n, -1).mean(1)
    return (
        Estimate(float(elbo.mean()), float(elbo.std()) / math.sqrt(n)),
        Estimate(float(ratio.mean()), float(ratio.std()) / math.sqrt(n)),
    )


def drawn(fitted: Fitted, n: int) -> dict[str, Tensor]:
    """What the picture shows: draws of the encoder, if there is one, and of the model's posterior."""
    posterior = PlanarTruth(fitted.vae, one_hot_images(), POINTS, REACH).sample_posterior(n)
    return (
        {"posterior": posterior}
        if fitted.coder is None
        else {"encoder": fitted.coder.sample(n), "posterior": posterior}
    )


def run(job: Job) -> list[Row]:
    """One job of the board; the first seed leaves draws for the picture."""
    quick = job.minutes <= runner.QUICK_MINUTES
    steps = QUICK_STEPS if quick else STEPS
    matmul = record.matmul_seconds()
    started, cpu = time.monotonic(), time.process_time()
    fitted = METHODS[job.target][job.method](job.seed, steps)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    found = judged(fitted, example.QUICK_JUDGED, QUICK_POINTS) if quick else judged(fitted, example.JUDGED)
    if job.seed == 0 and not quick:
        path = draws_of(job.target, job.method)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(drawn(fitted, example.SHOWN), path)
    return [
        {
            "target": job.target,
            "method": job.method,
            "seed": job.seed,
            "device": "cpu",
            "seconds": seconds,
            "cpu_seconds_with_verdict": cpu,
            "matmul_seconds": matmul,
            "steps": steps,
            **found,
        }
    ]


def draws_of(target: str, method: str) -> Path:
    """Where a run leaves draws for the picture."""
    return CACHE / target / f"{method}.pt"


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board."""
    places = [(target, name) for target, methods in METHODS.items() for name in methods]
    return sorted(records, key=lambda r: (places.index((r["target"], r["method"])), r["seed"]))


def draw() -> None:
    """A picture of each target whose methods have all left their draws."""
    titles = latent_tables.FAMILY_LABELS | example.LAWS
    for target, name in ((TARGET, NAME), (UNSURE, f"{NAME}_unsure")):
        paths = {method: draws_of(target, method) for method in METHODS[target]}
        if all(path.exists() for path in paths.values()):
            columns = {method: torch.load(path, weights_only=True) for method, path in paths.items()}
            PICTURES.mkdir(parents=True, exist_ok=True)
            to = PICTURES / f"benchmark_{name}.png"
            figures.planes(columns, titles, min(PER_LINE, len(columns))).savefig(to, dpi=100)
            print(to)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table, draw the pictures."""
    settings = runner.options(
        __doc__, methods=tuple(METHODS[TARGET]), targets=tuple(METHODS), seeds=SEEDS, minutes=1.0, arguments=arguments
    )
    jobs = [
        Job(target, method, seed, settings.minutes)
        for target, methods in METHODS.items()
        for method in methods
        for seed in range(settings.seeds)
        if settings.wants(target, method)
    ]
    records = runner.run_jobs(NAME, jobs, run, settings, keys=KEYS, finish=finished)
    if not settings.quick:
        draw()
    return records


if __name__ == "__main__":
    main()
