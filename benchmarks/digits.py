"""scikit-learn's digits, 8 x 8, with latents of 2, 8 and 16 dimensions: AVB's encoder beside encoders with a density.

``python -m benchmarks.digits [--seeds 3] [--methods M ...] [--targets T ...] [--keep] [--quick]``

All methods share decoder, optimiser, schedule, steps and minibatches; encoders have equally many parameters within
10 %. Training draws the pixels afresh in each epoch; the test set is one Bernoulli draw with seed 0. ``threshold_8d``
has pixels by threshold in both: its likelihoods can't be compared with the others'. log p(x) is judged by annealed
importance sampling, in two dimensions by quadrature too. The pictures show AVB on the first seed. ``--quick`` trains
for few steps; ``--minutes`` is of no effect. Each run has one thread; see ``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from avbvi.amortised.adversaries import JointAdversary
from benchmarks import image_figures, image_models, image_tables, record, runner
from benchmarks.image_models import AVB, Task
from benchmarks.judging import Row
from benchmarks.latent import Recipe
from benchmarks.runner import Job
from models.data import digits
from models.data.binarisation import Binarisation, DynamicBinarisation, StaticBinarisation, ThresholdBinarisation
from models.decoders import FullyConnectedDecoder
from models.encoders import MLPBody
from models.quadrature import LatentPlane
from models.vaes import VAE

NAME = "digits"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "images"
SEEDS = 3
#: Methods and targets that run on fewer seeds than the board's.
MOST_SEEDS = {"aux-vae": 1, "iaf-vae": 1, "threshold_8d": 1}
METHODS = ("vae", "full-vae", "aux-vae", "iaf-vae", AVB)
#: Latent dimensions, training and test pixels of a target.
DYNAMIC: tuple[Binarisation, Binarisation] = (DynamicBinarisation(), StaticBinarisation(seed=0))
THRESHOLD: tuple[Binarisation, Binarisation] = (ThresholdBinarisation(), ThresholdBinarisation())
TARGETS: dict[str, tuple[int, tuple[Binarisation, Binarisation]]] = {
    "digits_2d": (2, DYNAMIC),
    "digits_8d": (8, DYNAMIC),
    "digits_16d": (16, DYNAMIC),
    "threshold_8d": (8, THRESHOLD),
}
SHAPE = (1, 8, 8)
RECIPE = Recipe(steps=3000, lr=2e-3, warm_up=0.25, average=0.999)
TEMPERATURES = 100
QUICK_STEPS, QUICK_TEMPERATURES, QUICK_TEST = 40, 10, 20
#: Points of the quadrature along each axis.
POINTS = 201
KEYS = (
    *("target", "method", "seed", "seconds", "ais", "ais_stderr", "log_likelihood", "ahead_of_vae"),
    *("ahead_of_vae_stderr", "elbo", "elbo_exact", "elbo_exact_upper", "reconstruction_error", "active_units"),
    *("parameters", "verdict"),
)


def decoder(latent_dim: int) -> FullyConnectedDecoder:
    """The decoder of all methods."""
    return FullyConnectedDecoder(latent_dim, SHAPE, hidden=(200, 200))


def body(width: int) -> MLPBody:
    """What an encoder makes of a picture first."""
    return MLPBody(math.prod(SHAPE), (width, width))


def task(latent_dim: int) -> Task:
    """What the methods share."""
    return Task(
        latent_dim,
        pixels=math.prod(SHAPE),
        decoder=lambda: decoder(latent_dim),
        body=body,
        width=200,
        shape=(100, 100),
        adversary=lambda: JointAdversary((128, 128)),
        recipe=RECIPE,
        batch_size=128,
    )


@torch.no_grad()
def log_evidence_2d(vae: VAE, x: Tensor, points: int = POINTS) -> Tensor:
    """log p(x) of Bernoulli pixels x (B, 64) by quadrature over two latents, (B,)."""

    def log_joint(z: Tensor) -> Tensor:
        z = z[:, 0]  # the same points for all data: decoded once
        logits = vae.decoder(z)
        constant = vae.prior(z).log_prob(z) - functional.softplus(logits).sum(-1)
        return logits @ x.T + constant[:, None]

    return LatentPlane.of(log_joint, len(x), n=points, like=x).log_evidence


def evidence_file(target: str, method: str, seed: int) -> Path:
    """Where a run's log-evidence by picture is kept, for paired differences."""
    return CACHE / f"{target}-{method}-{seed}.pt"


def run(job: Job) -> list[Row]:
    """One job of the board."""
    quick = job.minutes <= runner.QUICK_MINUTES
    latent_dim, (train_pixels, test_pixels) = TARGETS[job.target]
    shared = task(latent_dim)
    if quick:
        shared = replace(shared, recipe=replace(RECIPE, steps=QUICK_STEPS))
    split = digits.load()
    x = test_pixels(split.test.intensities())[: QUICK_TEST if quick else None]
    matmul = record.matmul_seconds()
    started, cpu = time.monotonic(), time.process_time()
    trained = image_models.train(
        shared, job.method, image_models.batches(split.train, shared, job.seed, train_pixels), job.seed
    )
    evidence = image_models.anneal(trained, x, temperatures=QUICK_TEMPERATURES if quick else TEMPERATURES)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    row: Row = {
        "target": job.target,
        "method": job.method,
        "seed": job.seed,
        "device": "cpu",
        "data": "digits 8x8",
        "binarisation": f"training {train_pixels}, test {test_pixels}",
        "seconds": seconds,
        "cpu_seconds_with_verdict": cpu,
        "matmul_seconds": matmul,
        "steps": shared.recipe.steps,
        **image_models.evidence_figures(evidence),
        **image_models.figures_of(trained, x),
        **trained.figures,
    }
    if latent_dim == 2:
        row["log_likelihood"] = float(log_evidence_2d(trained.vae, x).mean())
    if not quick:
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(evidence.log_evidence, evidence_file(job.target, job.method, job.seed))
        if job.seed == 0 and job.method == AVB:
            torch.save(image_models.pictures(trained, x, latent_dim), CACHE / f"{job.target}-pictures.pt")
    return [row]


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board, each with its paired difference from the Gaussian VAE of its seed."""
    for row in records:
        files = [evidence_file(row["target"], method, row["seed"]) for method in (row["method"], "vae")]
        if "error" not in row and row["method"] != "vae" and all(file.exists() for file in files):
            row.update(image_models.ahead(*(torch.load(file, weights_only=True) for file in files)))
    targets, methods = list(TARGETS), list(METHODS)
    return sorted(records, key=lambda r: (targets.index(r["target"]), methods.index(r["method"]), r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the tables, draw the pictures."""
    settings = runner.options(
        __doc__, methods=METHODS, targets=tuple(TARGETS), seeds=SEEDS, minutes=1.0, arguments=arguments
    )
    jobs = [
        Job(target, method, seed, settings.minutes)
        for method in reversed(METHODS)  # the longest first
        for target in TARGETS
        for seed in range(settings.seeds)
        if settings.wants(target, method)
        and seed < min(MOST_SEEDS.get(name, settings.seeds) for name in (target, method))
    ]
    records = runner.run_jobs(NAME, jobs, run, settings, keys=KEYS, finish=finished)
    for target in TARGETS:
        if any(r["target"] == target for r in records):
            print(f"\n{target}\n{image_tables.evidence(records, target)}")
        kept = CACHE / f"{target}-pictures.pt"
        if not settings.quick and kept.exists():
            path = PICTURES / f"benchmark_{target}.png"
            image_figures.sheet(torch.load(kept, weights_only=True), SHAPE).savefig(path, dpi=150)
            print(path)
    return records


if __name__ == "__main__":
    main()
