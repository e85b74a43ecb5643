"""AVB and its relatives on one decoder, one data set, one budget: likelihood, reconstruction, samples, seconds.

``python -m benchmarks.relatives [--targets digits mnist cifar10] [--methods M ...] [--seeds 3] [--device cuda]
[--folder F] [--piece-minutes 9] [--keep] [--quick]``

Without ``--targets`` it runs the digits of 8 x 8 pixels, which a CPU can. MNIST and CIFAR-10, with DCGAN's networks
(AS-VAE, Tables 1 and 2), are for a GPU: ``--device cuda --targets mnist --methods as-vae --seeds 1 --piece-minutes 9``,
again and again until it prints its table. The same command goes on from where a piece ended. ``--folder`` has the files
of the one target that is asked for.

All methods share decoder, likelihood, optimiser, schedule, steps, minibatches, and the adversaries' size, rate and
steps; encoders have equally many parameters within 10 %. Pixels of digits are binary, drawn afresh in each epoch;
CIFAR-10 is dequantised, its likelihood that of bins. log p(x) is judged by annealed importance sampling: of digits from
the encoder's moments and from the prior, of which the larger counts, as both are low on average. The inception score
takes draws of p(x) (``inception_score_means``: means of p(x | z)) and a small classifier trained on such pixels; the
row ``data`` has the score of as many held-out pictures. A GAN, having no encoder, has neither ELBO nor RMSE.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avbvi.annealed import AnnealedEvidence
from avbvi.arguments import device_of
from avbvi.sample_figures import bits_per_dimension, inception_score, rmse
from benchmarks import image_figures, image_models, record, relative_tables, runner
from benchmarks.image_models import AVB, Task, Trained
from benchmarks.judging import Row
from benchmarks.pieces import Clock
from benchmarks.relative_targets import TARGETS, Target
from benchmarks.runner import Job
from models.data.images import Split
from models.digit_classifier import train_classifier
from models.vaes import VAE

NAME = "relatives"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "images"
SEEDS = 3
#: The held-out pictures as a method: their score.
DATA = "data"
METHODS = (DATA, "vae", "iaf-vae", "avb", AVB, "as-vae-r", "as-vae-g", "as-vae", "aae", "ali", "dcgan")
#: Methods that run on fewer seeds than the board's.
MOST_SEEDS = {DATA: 1, "iaf-vae": 1, "avb": 1, "aae": 1, "ali": 1, "dcgan": 1}
DEFAULT_TARGETS = ("digits",)
QUICK_STEPS, QUICK_BATCH, QUICK_CLASSIFIER = 10, 8, 30
QUICK_TEMPERATURES, QUICK_TEST, QUICK_SAMPLES = 5, 8, 40
SPLITS = 10
#: Pictures of each method in the figure.
SHOWN = 20
KEYS = (
    *("target", "method", "seed", "seconds", "ais", "ais_stderr", "ahead_of_vae", "elbo", "elbo_exact"),
    *("bits_per_dim", "rmse", "inception_score", "inception_score_means", "parameters", "verdict"),
)


@dataclass(frozen=True)
class Setting:
    """What the command line says beside what every board offers.

    Args:
        device: where to train and judge.
        folder: of the data, where it is not the usual one.
        end: time of the clock at which the piece is over.
    """

    device: str = "cpu"
    folder: Path | None = None
    end: float = math.inf

    @property
    def kind(self) -> str:
        """The kind of device, that the steps go by."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def in_pieces(self) -> bool:
        """Whether runs save their state on the way."""
        return math.isfinite(self.end)


@cache
def data(target: str, folder: Path | None) -> Split:
    """The pictures."""
    return TARGETS[target].load(folder)


@cache
def classifier(target: str, folder: Path | None, device: str, quick: bool) -> nn.Module:
    """What tells the classes of a target's pictures, as they are drawn in training."""
    images = data(target, folder).train.to(device)
    rule = TARGETS[target].pixels[0]
    return train_classifier(images, rule, steps=QUICK_CLASSIFIER) if quick else train_classifier(images, rule)


def score(classify: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """Inception score of pictures in random order, with its standard error over splits."""
    return inception_score(classify, x.clamp(0.0, 1.0), splits=min(SPLITS, len(x) // 4))


def run(job: Job, setting: Setting) -> list[Row]:
    """One job of the board.

    Raises:
        KeyboardInterrupt: the piece is over; what was done is saved.
    """
    quick = job.minutes <= runner.QUICK_MINUTES
    target = TARGETS[job.target]
    split = data(job.target, setting.folder)
    matmul = record.matmul_seconds()
    row: Row = {
        "target": job.target,
        "method": job.method,
        "seed": job.seed,
        "device": setting.device,
        "data": target.data,
        "binarisation": f"training {target.pixels[0]}, test {target.pixels[1]}",
        "matmul_seconds": matmul,
    }
    count = QUICK_SAMPLES if quick else target.samples
    classify = classifier(job.target, setting.folder, setting.device, quick)
    started, cpu = time.monotonic(), time.process_time()
    if job.method == DATA:
        pictures = held_out(target, split, count).to(setting.device)
        row["inception_score"], row["inception_score_stderr"] = score(classify, pictures)
    else:
        row |= judged_run(job, target, split, classify, count, setting, quick)
    row["seconds"] = row.get("train_seconds", 0.0) + row.get("ais_seconds", 0.0)
    if setting.kind == "cpu" and not setting.in_pieces:
        row["seconds"], row["cpu_seconds_with_verdict"] = time.monotonic() - started, time.process_time() - cpu
    return [row]


def judged_run(
    job: Job, target: Target, split: Split, classify: nn.Module, count: int, setting: Setting, quick: bool
) -> Row:
    """Train a model and judge it."""
    task = shared(target, setting.kind, quick)
    temperatures = min(target.temperatures, QUICK_TEMPERATURES) if quick else target.temperatures
    x = target.pixels[1](split.test[: QUICK_TEST if quick else target.test_images].intensities()).to(setting.device)
    clock = Clock(max(setting.end - time.time(), 0.0))
    checkpoint = None
    if setting.in_pieces:
        CACHE.mkdir(parents=True, exist_ok=True)
        checkpoint = CACHE / f"{job.target}-{job.method}-{job.seed}-{setting.kind}-{task.recipe.steps}"
    batches = image_models.batches(split.train.to(setting.device), task, job.seed, target.pixels[0])
    trained = image_models.train(
        *(task, job.method, batches, job.seed),
        device=setting.device,
        checkpoint=_with(checkpoint, "training.pt"),
        clock=clock,
    )
    # Images of finitely many levels are judged by the probability of their bins.
    judge = trained if target.levels is None else replace(trained, vae=trained.vae.quantised(target.levels))
    row: Row = {"steps": task.recipe.steps, **trained.figures}
    evidence = None
    if temperatures:
        evidence = annealed(judge, x, target, temperatures, checkpoint, clock)
        row |= image_models.evidence_figures(evidence)
    if trained.encodes:
        row |= image_models.figures_of(judge, x)
        with torch.no_grad():
            mean = torch.cat([trained.vae.mean(trained.draw(part, 1)[0][0]) for part in x.split(image_models.CHUNK)])
        row["rmse"], row["rmse_stderr"] = rmse(x, mean, target.scale)
    if target.levels is not None and "elbo_exact" in row:
        row["bits_per_dim"] = bits_per_dimension(-row["elbo_exact"], x[0].numel())
    draws, means = samples(trained.vae, count, x)
    row["inception_score"], row["inception_score_stderr"] = score(classify, draws)
    row["inception_score_means"], _ = score(classify, means)
    if not quick:
        keep(job, setting, evidence, {"samples": draws[:SHOWN].cpu(), "means": means[:SHOWN].cpu()})
    for suffix in ("training.pt", "encoder.annealing.pt", "prior.annealing.pt"):
        if checkpoint is not None:
            Path(f"{checkpoint}.{suffix}").unlink(missing_ok=True)
    return row


def shared(target: Target, kind: str, quick: bool) -> Task:
    """The target's task, with the steps of a kind of device."""
    steps = QUICK_STEPS if quick else target.steps[kind]
    task = replace(target.task, recipe=replace(target.task.recipe, steps=steps))
    return replace(task, batch_size=QUICK_BATCH) if quick else task


def annealed(
    trained: Trained, x: Tensor, target: Target, temperatures: int, checkpoint: Path | None, clock: Clock
) -> AnnealedEvidence:
    """log p(x) by annealed importance sampling; where both starts are asked for, the larger.

    An encoder that is off starts its chains where the posterior is not: that must not count against the decoder.
    """

    def anneal(start: Trained, name: str) -> AnnealedEvidence:
        return image_models.anneal(
            *(start, x),
            temperatures=temperatures,
            batch_size=target.at_once,
            checkpoint=_with(checkpoint, f"{name}.annealing.pt"),
            clock=clock,
        )

    found = anneal(trained, "encoder")
    if not target.both_starts or not trained.encodes:
        return found
    blind = replace(trained, draw=partial(image_models.draws_of_prior, trained.vae))
    return max(found, anneal(blind, "prior"), key=lambda evidence: evidence.mean.value)


@torch.no_grad()
def samples(vae: VAE, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of p(x), and means of p(x | z) at draws of p(z), (count, pixels), the same on each call."""
    draws, means = [], []
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        torch.manual_seed(0)
        for start in range(0, count, 256):
            z = vae.prior(like).sample((min(256, count - start),))
            p = vae.likelihood(vae.decoder(z))
            draws.append(p.sample())
            means.append(p.mean)
    return torch.cat(draws), torch.cat(means)


def held_out(target: Target, split: Split, count: int) -> Tensor:
    """Held-out pictures as they come in training, each as often as it takes, in random order: (count, pixels)."""
    generator = torch.Generator().manual_seed(0)
    x = split.test.intensities()
    rows = torch.cat([torch.randperm(len(x), generator=generator) for _ in range(-(-count // len(x)))])[:count]
    return target.pixels[0](x[rows], generator)


def keep(job: Job, setting: Setting, evidence: AnnealedEvidence | None, pictures: dict[str, Tensor]) -> None:
    """Keep a run's log-evidence by picture, for paired differences, and the first seed's samples, for the figure."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if evidence is not None:
        torch.save(evidence.log_evidence.cpu(), evidence_file(job.target, job.method, job.seed))
    if job.seed == 0:
        torch.save(pictures, CACHE / f"{job.target}-{job.method}-samples.pt")


def evidence_file(target: str, method: str, seed: int) -> Path:
    """Where a run's log-evidence by picture is kept."""
    return CACHE / f"{target}-{method}-{seed}.evidence.pt"


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board, each with its paired difference from the Gaussian VAE of its seed."""
    for row in records:
        files = [evidence_file(row["target"], method, row["seed"]) for method in (row["method"], "vae")]
        if "error" not in row and row["method"] not in ("vae", DATA) and all(file.exists() for file in files):
            mine, theirs = (torch.load(file, weights_only=True) for file in files)
            if len(mine) == len(theirs):
                row.update(image_models.ahead(mine, theirs))
    targets, methods = list(TARGETS), list(METHODS)
    return sorted(records, key=lambda r: (targets.index(r["target"]), methods.index(r["method"]), r["seed"]))


def figure(target: str, split: Split) -> Path | None:
    """Draw the samples of all methods that have kept some, below held-out pictures; None where there are none."""
    shown: dict[str, Tensor] = {}
    for method in METHODS:
        kept = CACHE / f"{target}-{method}-samples.pt"
        if kept.exists():
            pictures = torch.load(kept, weights_only=True)
            shown[relative_tables.LABELS[method]] = pictures["samples" if TARGETS[target].levels is None else "means"]
    if not shown:
        return None
    shown = {"data": held_out(TARGETS[target], split, SHOWN), **shown}
    path = PICTURES / f"benchmark_relatives_{target}.png"
    image_figures.rows(shown, split.train.image_shape).savefig(path, dpi=150)
    return path


def missing(job: Job, folder: Path | None) -> str | None:
    """Why a job can't run: its data are not there."""
    try:
        TARGETS[job.target].place(folder)
    except (FileNotFoundError, ImportError) as error:
        return str(error)
    return None


def read(arguments: list[str] | None) -> tuple[runner.Options, Setting]:
    """The command line's options."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--piece-minutes", type=float, default=math.inf)
    own, rest = parser.parse_known_args(arguments)
    if not own.piece_minutes > 0:
        parser.error(f"--piece-minutes must be positive, found {own.piece_minutes}")
    settings = runner.options(
        __doc__, methods=METHODS, targets=tuple(TARGETS), seeds=SEEDS, minutes=1.0, arguments=rest
    )
    if own.folder is not None and len(settings.targets) != 1:
        parser.error("--folder goes with one of --targets, whose files it has")
    device_of(own.device)
    return settings, Setting(own.device, own.folder, time.time() + 60.0 * own.piece_minutes)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the tables, draw the pictures."""
    settings, setting = read(arguments)
    if setting.kind == "cuda":
        settings = replace(settings, workers=1)
    targets = settings.targets or DEFAULT_TARGETS
    jobs = [
        Job(target, method, seed, settings.minutes)
        for method in reversed(METHODS)  # the longest first
        for target in targets
        for seed in range(settings.seeds)
        if settings.wants(target, method) and seed < MOST_SEEDS.get(method, settings.seeds)
    ]
    records = runner.run_jobs(
        *(NAME, jobs, partial(run, setting=setting), replace(settings, targets=tuple(targets))),
        keys=KEYS,
        finish=finished,
        missing=partial(missing, folder=setting.folder),
    )
    for target in targets:
        if any(r["target"] == target for r in records):
            print(f"\n{target}\n{relative_tables.table(records, target)}\n\n{relative_tables.order(records, target)}")
            if not settings.quick:
                print(figure(target, data(target, setting.folder)))
    return records


def _with(checkpoint: Path | None, suffix: str) -> Path | None:
    return None if checkpoint is None else Path(f"{checkpoint}.{suffix}")


if __name__ == "__main__":
    main()
