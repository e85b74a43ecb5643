"""Binarised MNIST: Table 3a (fully connected decoder), 3c (shallow convolutional), 2 (DCGAN) of AVB, Figure 7.

``python -m benchmarks.mnist [--device cuda] [--targets table_3a ...] [--methods M ...] [--seeds N] [--steps N]
[--test-images N] [--temperatures N] [--folder F] [--piece-minutes 9] [--quick]``

On a GPU, one seed: ``python -m benchmarks.mnist --device cuda --targets table_3a --methods vae avb+ac``, again and
again until it prints its table; then ``--targets table_3c`` and ``table_2``. On a CPU, three seeds:
``python -m benchmarks.mnist --seeds 3 --test-images 256 --temperatures 200``.

All methods share decoder, optimiser, schedule, steps and minibatches; encoders have equally many parameters within
10 %. Training draws the pixels afresh in each epoch; the test set is one Bernoulli draw with seed 0. log p(x) is judged
by annealed importance sampling with 5 chains from the encoder's moments, 1000 temperatures and the first 2048 test
images unless told otherwise. A call works for ``--piece-minutes`` and saves its state, in training
and in annealing; the same command goes on from there. ``--steps`` sets the length of training: the default of each
device is meant for 8 minutes of AVB on a large GPU and 10 on a core.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.arguments import device_of
from benchmarks import image_figures, image_models, image_tables, record, runner
from benchmarks.image_models import AVB, Task
from benchmarks.judging import Row
from benchmarks.latent import Recipe
from benchmarks.peak_memory import PeakMemory
from benchmarks.pieces import Clock
from models.data import mnist
from models.data.binarisation import DynamicBinarisation, StaticBinarisation
from models.data.images import Split
from models.decoders import Decoder, FullyConnectedDecoder, dcgan, shallow_convolutional
from models.encoders import ConvBody, MLPBody

NAME = "mnist"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
RESULTS = record.RESULTS
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "images"
LATENT_DIM = 32
SHAPE = (1, 28, 28)
METHODS = ("vae", AVB, "aux-vae", "iaf-vae")
TRAINING, TESTING = DynamicBinarisation(), StaticBinarisation(seed=0)
#: Steps of training by device and target.
STEPS = {
    "cuda": {"table_3a": 50_000, "table_3c": 40_000, "table_2": 25_000},
    "cpu": {"table_3a": 7_000, "table_3c": 2_000, "table_2": 400},
}
#: Pictures in a step and learning rate by device: a GPU has room for more pictures in the same time.
BATCH_SIZE, RATE = {"cuda": 512, "cpu": 128}, {"cuda": 2e-3, "cpu": 1e-3}
#: Methods that run on fewer seeds than asked for.
MOST_SEEDS = {"aux-vae": 1, "iaf-vae": 1}
CHAINS = 5
#: Test images that are annealed at a time, for the memory: those of a convolutional decoder have large maps.
AT_ONCE = {"table_3a": 2048, "table_3c": 256, "table_2": 64}
KEYS = (
    *("target", "method", "seed", "device", "train_seconds", "steps", "ais", "ais_stderr", "ais_data_stderr"),
    *("ahead_of_vae", "ahead_of_vae_stderr", "elbo", "elbo_exact", "elbo_exact_upper", "active_units", "parameters"),
    "verdict",
)
#: The paper's log p(x) by AIS.
PUBLISHED = {
    "table_3a": {"vae": "-85.0", AVB: "-83.7", "aux-vae": "-83.8", "iaf-vae": "-84.9"},
    "table_3c": {"vae": "-81.9", AVB: "-81.7"},
    "table_2": {"vae": "-81.8", AVB: "-80.2"},
}


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    device: str = "cpu"
    targets: tuple[str, ...] = ("table_3a",)
    methods: tuple[str, ...] = METHODS
    seeds: int = 1
    steps: int | None = None
    test_images: int = 2048
    temperatures: int = 1000
    folder: Path | None = None
    piece_minutes: float = 9.0
    quick: bool = False

    @property
    def kind(self) -> str:
        """The kind of device, that settings go by."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def steps_for(self, target: str) -> int:
        """Steps of training."""
        return STEPS[self.kind][target] if self.steps is None else self.steps


def mlp_body(width: int) -> MLPBody:
    """Of the fully connected encoders."""
    return MLPBody(math.prod(SHAPE), (width, width))


def conv_body(width: int) -> ConvBody:
    """Of the convolutional encoders."""
    return ConvBody(SHAPE, hidden=width)


DECODERS: dict[str, Callable[[], Decoder]] = {
    "table_3a": partial(FullyConnectedDecoder, LATENT_DIM),
    "table_3c": partial(shallow_convolutional, LATENT_DIM),
    "table_2": partial(dcgan, LATENT_DIM),
}
BODIES: dict[str, Callable[[int], torch.nn.Module]] = {
    "table_3a": mlp_body,
    "table_3c": conv_body,
    "table_2": conv_body,
}


def task(target: str, steps: int, kind: str = "cpu") -> Task:
    """What the methods of a table share, on a kind of device."""
    body = BODIES[target]
    return Task(
        LATENT_DIM,
        pixels=math.prod(SHAPE),
        decoder=DECODERS[target],
        body=body,
        width=300,
        shape=(128, 128),
        adversary=lambda: InnerProductAdversary((256, 256), body=body(256)),
        recipe=Recipe(steps=steps, lr=RATE[kind], warm_up=0.25, average=0.999),
        batch_size=BATCH_SIZE[kind],
    )


@cache
def data(folder: Path | None) -> Split:
    """The pictures."""
    return mnist.load(folder)


def test_set(options: Options) -> Tensor:
    """The first test pictures, binarised, (n, 784)."""
    return TESTING(data(options.folder).test[: options.test_images].intensities()).to(options.device)


def run(target: str, method: str, seed: int, options: Options, clock: Clock) -> Row:
    """Train and judge, or go on with it.

    Raises:
        KeyboardInterrupt: the clock's time is over; what was done is saved.
    """
    shared = task(target, options.steps_for(target), options.kind)
    stem = f"{target}-{method}-{seed}-{options.device}-{shared.recipe.steps}"
    kept = not options.quick
    CACHE.mkdir(parents=True, exist_ok=True)
    images = data(options.folder).train.to(options.device)
    trained = image_models.train(
        shared,
        method,
        image_models.batches(images, shared, seed, TRAINING),
        seed,
        device=options.device,
        checkpoint=CACHE / f"{stem}.training.pt" if kept else None,
        clock=clock,
    )
    x = test_set(options)
    evidence = image_models.anneal(
        trained,
        x,
        temperatures=options.temperatures,
        chains=CHAINS,
        batch_size=AT_ONCE[target],
        checkpoint=CACHE / f"{stem}-{len(x)}-{options.temperatures}.annealing.pt" if kept else None,
        clock=clock,
    )
    if kept:
        torch.save(evidence.log_evidence.cpu(), evidence_file(target, method, seed, options))
    if kept and seed == 0 and method == AVB:
        torch.save(image_models.pictures(trained, x, LATENT_DIM), CACHE / f"{target}-pictures.pt")
    return {
        "target": target,
        "method": method,
        "seed": seed,
        "device": options.device,
        "data": "MNIST",
        "binarisation": f"training {TRAINING}, test {TESTING}",
        "test_images": len(x),
        "temperatures": options.temperatures,
        "seconds": trained.figures["train_seconds"] + evidence.seconds,
        "steps": shared.recipe.steps,
        "batch_size": shared.batch_size,
        "commit": record.git_commit(),
        **image_models.evidence_figures(evidence),
        **image_models.figures_of(trained, x),
        **trained.figures,
    }


def evidence_file(target: str, method: str, seed: int, options: Options) -> Path:
    """Where a run's log-evidence by picture is kept, for paired differences."""
    settings = f"{options.device}-{options.steps_for(target)}-{options.test_images}-{options.temperatures}"
    return CACHE / f"{target}-{method}-{seed}-{settings}.evidence.pt"


def read(arguments: list[str] | None) -> Options:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = Options()
    parser.add_argument("--device", default=known.device)
    parser.add_argument("--targets", nargs="+", default=known.targets, choices=DECODERS, metavar="TABLE")
    parser.add_argument("--methods", nargs="+", default=known.methods, choices=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=known.seeds)
    parser.add_argument("--steps", type=int, help="of training, for all targets")
    parser.add_argument("--test-images", type=int, default=known.test_images)
    parser.add_argument("--temperatures", type=int, default=known.temperatures)
    parser.add_argument("--folder", type=Path, help="of MNIST's four files")
    parser.add_argument("--piece-minutes", type=float, default=known.piece_minutes, help="length of a call")
    parser.add_argument("--quick", action="store_true", help="a few steps and images, nothing saved")
    found = vars(parser.parse_args(arguments))
    for name in ("seeds", "steps", "test_images", "temperatures", "piece_minutes"):
        if found[name] is not None and not found[name] > 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, found {found[name]}")
    if found["quick"]:
        found |= {"steps": 20, "test_images": 8, "temperatures": 5, "seeds": 1, "piece_minutes": math.inf}
    device_of(found["device"])
    return Options(**{**found, "targets": tuple(found["targets"]), "methods": tuple(found["methods"])})


def saved(options: Options, jobs: set[tuple[str, str, int]]) -> tuple[list[Row], list[Row]]:
    """Rows of these jobs that an interrupted board left, and saved rows of other jobs."""
    rows: list[Row] = []
    partial_file = RESULTS / f".{NAME}.partial.jsonl"
    if partial_file.exists():
        rows = [row for line in partial_file.read_text("utf-8").splitlines() for row in json.loads(line)]
    settings = (options.device, options.test_images, options.temperatures)
    mine = [
        row
        for row in rows
        if (row["target"], row["method"], row["seed"]) in jobs
        and (row["device"], row["test_images"], row["temperatures"]) == settings
        and row["steps"] == options.steps_for(row["target"])
    ]
    others: list[Row] = []
    if (RESULTS / f"{NAME}.json").exists():
        others = [
            row
            for row in record.load(NAME, RESULTS)["records"]
            if row["device"] != options.device or (row["target"], row["method"], row["seed"]) not in jobs
        ]
    return mine, others


def finished(records: list[Row], options: Options) -> list[Row]:
    """Records in the order of the board, with their paired differences from the Gaussian VAE of their seed."""
    for row in records:
        files = [evidence_file(row["target"], method, row["seed"], options) for method in (row["method"], "vae")]
        if options.quick or row["device"] != options.device:
            continue
        if row["method"] != "vae" and all(file.exists() for file in files):
            row.update(image_models.ahead(*(torch.load(file, weights_only=True) for file in files)))
    targets, methods = list(DECODERS), list(METHODS)
    return sorted(
        records, key=lambda r: (r["device"], targets.index(r["target"]), methods.index(r["method"]), r["seed"])
    )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Go on with the board for one piece; when all is done, save, print the tables, draw the pictures."""
    options = read(arguments)
    clock = Clock(60.0 * options.piece_minutes)
    jobs = [
        (t, m, seed)
        for t in options.targets
        for seed in range(options.seeds)
        for m in options.methods
        if seed < MOST_SEEDS.get(m, options.seeds)
    ]
    done, others = ([], []) if options.quick else saved(options, set(jobs))
    results = runner.Results(NAME, RESULTS)
    known = {(row["target"], row["method"], row["seed"]) for row in done}
    for job in jobs:
        if job in known:
            continue
        try:
            with PeakMemory(options.device) as peak:
                row = run(*job, options, clock)
        except KeyboardInterrupt:
            if clock.left:
                raise
            raise SystemExit(f"the piece is over at {' '.join(map(str, job))}; call again to go on") from None
        row["peak_bytes"] = peak.bytes  # of the piece in which the run ended
        done.append(row)
        print(runner.table([row], KEYS), flush=True)
        if not options.quick:
            results.append(runner.Job(*job, minutes=options.piece_minutes), [row])
    records = finished(done + others, options)
    print(runner.table(records, KEYS))
    for target in options.targets:
        mine = [row for row in records if row["device"] == options.device]
        print(f"\n{target}\n{image_tables.evidence(mine, target, PUBLISHED[target])}")
        print(f"{AVB} beside the VAE: {image_tables.order(mine, target, AVB)}")
        kept = CACHE / f"{target}-pictures.pt"
        if kept.exists() and not options.quick:
            path = PICTURES / f"benchmark_mnist_{target}.png"
            image_figures.sheet(torch.load(kept, weights_only=True), SHAPE).savefig(path, dpi=150)
            print(path)
    if not options.quick:
        print(record.save(NAME, records, RESULTS))
        results.clear()
    return records


if __name__ == "__main__":
    main()
