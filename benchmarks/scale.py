"""Judges at scale: neighbours among up to a million points, and annealed chains of thousands of pictures.

``python -m benchmarks.scale [--device cuda] [--targets knn-d10-n100000 ...] [--methods M ...] [--piece-minutes 9]
[--quick]``

On a GPU: ``python -m benchmarks.scale --device cuda``, again and again until it prints its table. A call works for
``--piece-minutes`` and saves its state; the same command goes on from there. ``--quick`` does small sizes, and saves
nothing.

``knn-dD-nN``: neighbours (k = 3) of standard normal draws among N others, and among N draws of N(0, 1.1^2 I). On a CPU
of a million points only ``queries`` many look for theirs; ``seconds`` are of these. ``value`` is the estimate of
KL(q, p) that comes of it, ``exact`` the truth, and ``checked_error`` the largest relative error of a k-th distance
against differences in float64, for 32 of the queries.

``ais-mnist``: log-evidence of pictures drawn from a fully connected decoder (32-300-300-784, Bernoulli pixels) with
random weights, 5 chains by picture, 10 leapfrog steps: 2048 pictures and 1000 temperatures on CUDA, 64 and 20 on a CPU.
``ais-linear``: the same with 784 Gaussian pixels and a linear decoder, whose log-evidence is known. Methods: full
precision, and products in TF32 or bfloat16. ``flop`` counts the decoder's products alone, forward and back to z.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

import avbvi
from avbvi.annealed import GaussianStart, SigmoidTemperatures
from avbvi.arguments import device_of
from avbvi.divergences.neighbours import nearest
from avbvi.precision import Precision
from benchmarks import record
from benchmarks.judging import Row
from benchmarks.peak_memory import PeakMemory
from benchmarks.pieces import Clock
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

NAME = "scale"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
RESULTS = record.RESULTS
K, SCALE = 3, 1.1
KNN = tuple(f"knn-d{dim}-n{n}" for dim in (10, 30) for n in (10_000, 100_000, 1_000_000))
AIS = ("ais-mnist", "ais-linear")
TARGETS = (*KNN, *AIS)
METHODS = {"full": Precision(), "tf32": Precision(tf32=True), "bf16": Precision(autocast=torch.bfloat16)}
#: Queries that look for neighbours, at most, by kind of device; and those whose neighbours are checked.
MOST_QUERIES, CHECKED = {"cuda": 10**6, "cpu": 20_000}, 32
#: Queries between two looks at the clock.
SLICE = {"cuda": 131_072, "cpu": 20_000}
LATENT_DIM, PIXELS, CHAINS, LEAPFROG_STEPS, NOISE = 32, 784, 5, 10, 0.5
IMAGES, TEMPERATURES = {"cuda": 2048, "cpu": 64}, {"cuda": 1000, "cpu": 20}
KEYS = (
    *("target", "method", "device", "seconds", "queries", "images", "temperatures", "peak_bytes", "pairs_per_second"),
    *("flop_per_second", "value", "exact", "checked_error", "ais", "ais_stderr", "ais_error", "log_weight_variance"),
    "notes",
)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    device: str = "cpu"
    targets: tuple[str, ...] = TARGETS
    methods: tuple[str, ...] = tuple(METHODS)
    piece_minutes: float = 9.0
    quick: bool = False
    folder: Path = field(default=CACHE)

    @property
    def kind(self) -> str:
        """The kind of device, that sizes go by."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    def jobs(self) -> list[tuple[str, str]]:
        """Targets and methods that were asked for; neighbours have one method, and TF32 is of CUDA alone."""
        chosen = [(target, "avbvi") for target in self.targets if target in KNN]
        chosen += [
            (target, method)
            for target in self.targets
            for method in self.methods
            if target in AIS and (method != "tf32" or self.kind == "cuda")
        ]
        return chosen


def sizes(target: str, options: Options) -> tuple[int, int, int]:
    """Dimension, points and queries of neighbours."""
    _, dim, n = target.split("-")
    points = 2000 if options.quick else int(n[1:])
    return int(dim[1:]), points, min(points, 500 if options.quick else MOST_QUERIES[options.kind])


def neighbours(target: str, options: Options, clock: Clock) -> Row:
    """Neighbours of draws in their own sample and in another.

    Raises:
        KeyboardInterrupt: the clock's time is over; what was found is kept.
    """
    dim, n, queries = sizes(target, options)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, dim, generator=generator, dtype=torch.float64).to(options.device) for _ in range(2))
    y = SCALE * y
    kept = options.folder / f"{target}-{options.kind}.pt"
    done: dict[str, Any] = {"rho": x.new_empty(0).cpu(), "nu": x.new_empty(0).cpu(), "seconds": 0.0, "peak": 0}
    if kept.exists() and not options.quick:
        done = torch.load(kept, weights_only=True)
    while (begin := len(done["rho"])) < queries:
        if not clock.left:
            raise KeyboardInterrupt
        part = slice(begin, min(begin + SLICE[options.kind], queries))
        _wait(options.device)
        with PeakMemory(options.device) as peak:
            started = time.perf_counter()
            own = nearest(x[part], x, K, same=True, first=begin).distance[:, -1]
            other = nearest(x[part], y, K).distance[:, -1]
            _wait(options.device)
            done["seconds"] += time.perf_counter() - started
        done["peak"] = max(done["peak"], peak.bytes or 0)
        done["rho"], done["nu"] = (torch.cat([done[k], v.cpu()]) for k, v in (("rho", own), ("nu", other)))
        if not options.quick:
            options.folder.mkdir(parents=True, exist_ok=True)
            torch.save(done, kept)
    kept.unlink(missing_ok=True)
    shown = torch.arange(0, queries, max(1, queries // CHECKED))[:CHECKED]
    exact = torch.stack([(x[i] - y).square().sum(1).sqrt().kthvalue(K).values for i in shown.tolist()]).cpu()
    terms = dim * (done["nu"].log() - done["rho"].log()) + math.log(n / (n - 1))
    return {
        "seconds": done["seconds"],
        "dim": dim,
        "points": n,
        "queries": queries,
        "peak_bytes": done["peak"],
        "pairs_per_second": 2.0 * queries * n / done["seconds"],
        "value": float(terms.mean()),
        "exact": dim * (math.log(SCALE) + 0.5 * (SCALE**-2 - 1.0)),
        "checked_error": float((done["nu"][shown] / exact - 1.0).abs().max()),
    }


class Linear:
    """x_i ~ N(W z_i, noise^2 I), z_i ~ N(0, I), for simulated x (B, 784): the log-evidence is known.

    Args:
        images: B.
        device: where.
    """

    dim = LATENT_DIM

    def __init__(self, images: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = images
        self.weight = torch.randn(PIXELS, LATENT_DIM, generator=generator).to(device)
        z = torch.randn(images, LATENT_DIM, generator=generator).to(device)
        self.x = z @ self.weight.mT + NOISE * torch.randn(images, PIXELS, generator=generator).to(device)

    def log_joint(self, z: Tensor) -> Tensor:
        """(*S, B, 32) -> (*S, B)."""
        white = (self.x - z @ self.weight.mT) / NOISE
        constant = PIXELS * math.log(NOISE) + 0.5 * (PIXELS + LATENT_DIM) * math.log(2.0 * math.pi)
        return -0.5 * (white.square().sum(-1) + z.square().sum(-1)) - constant

    def start(self) -> GaussianStart:
        """The posterior, moved by .3 standard deviations and widened."""
        weight = self.weight.double()
        precision = torch.eye(LATENT_DIM).to(weight) + weight.mT @ weight / NOISE**2
        covariance = torch.linalg.inv(precision)
        loc = self.x.double() @ weight @ covariance / NOISE**2 + 0.3 * covariance.diagonal().sqrt()
        return GaussianStart(loc.float(), covariance.float().expand(self.batch, -1, -1), inflation=1.3)

    def log_evidence(self) -> Tensor:
        """(B,), float64, on the CPU."""
        weight = self.weight.double().cpu()
        law = torch.distributions.LowRankMultivariateNormal(
            weight.new_zeros(PIXELS), weight, weight.new_full((PIXELS,), NOISE**2)
        )
        return law.log_prob(self.x.double().cpu())


def decoded(images: int, device: str) -> tuple[VAE, Tensor]:
    """A decoder with random weights, and pictures drawn from it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VAE(FullyConnectedDecoder(LATENT_DIM), LATENT_DIM).eval()
        with torch.no_grad():
            x = vae.sample(images, torch.zeros(()))
    return vae.to(device), x.to(device)


def annealed(target: str, method: str, options: Options, clock: Clock) -> Row:
    """Log-evidence of pictures by annealed importance sampling.

    Raises:
        KeyboardInterrupt: the clock's time is over and the run saved.
    """
    images = 4 if options.quick else IMAGES[options.kind]
    temperatures = 3 if options.quick else TEMPERATURES[options.kind]
    kept = options.folder / f"{target}-{method}-{options.kind}.pt"
    given: dict[str, Any] = {
        "temperatures": SigmoidTemperatures(temperatures), "chains": CHAINS, "leapfrog_steps": LEAPFROG_STEPS,
        "seed": 0, "device": options.device, "progress": False, "precision": METHODS[method],
        "checkpoint": None if options.quick else kept,
    }  # fmt: skip
    options.folder.mkdir(parents=True, exist_ok=True)
    known, macs = None, PIXELS * LATENT_DIM
    with PeakMemory(options.device) as peak, clock.interrupting(), Notes() as notes:
        if target == "ais-linear":
            density = Linear(images, options.device)
            known = density.log_evidence()
            result = avbvi.annealed_importance_sampling(density, start=density.start(), **given)
        else:
            pyro.clear_param_store()
            vae, x = decoded(images, options.device)
            macs = sum(p.numel() for p in vae.decoder.parameters() if p.dim() == 2)
            loc = x.new_zeros(images, LATENT_DIM)
            result = avbvi.annealed_importance_sampling(vae.model, x, start=GaussianStart(loc, loc + 1.0), **given)
    kept.unlink(missing_ok=True)
    # Of each gradient the products forward and those back to z, two operations each; the pilots' are not counted.
    flop = 4.0 * macs * images * CHAINS * temperatures * LEAPFROG_STEPS
    row: Row = {
        "seconds": result.seconds,
        "images": images,
        "chains": CHAINS,
        "temperatures": temperatures,
        "leapfrog_steps": LEAPFROG_STEPS,
        "peak_bytes": peak.bytes,
        "flop": flop,
        "flop_per_second": flop / result.seconds,
        "ais": result.mean.value,
        "ais_stderr": result.mean.stderr,
        "log_weight_variance": float(result.log_weights.var(0).mean()),
        "acceptance": float(result.acceptance.mean()),
        "notes": "; ".join(notes.lines) or None,
    }
    return row if known is None else row | {"ais_error": result.mean.value - float(known.mean())}


class Notes(logging.Handler):
    """Context that keeps what the library logs meanwhile: which fast path it could not take."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        self.lines.append(entry.getMessage())

    def __enter__(self) -> Notes:
        logger = logging.getLogger("avbvi")
        self._before = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *error: object) -> None:
        logger = logging.getLogger("avbvi")
        logger.removeHandler(self)
        logger.setLevel(self._before)


def run(target: str, method: str, options: Options, clock: Clock) -> Row:
    """One row of the board."""
    matmul = record.matmul_seconds(device=options.device)
    cpu = time.process_time()
    row = neighbours(target, options, clock) if target in KNN else annealed(target, method, options, clock)
    return {
        "target": target,
        "method": method,
        "seed": 0,
        "device": options.kind,
        **row,
        "cpu_seconds": time.process_time() - cpu,
        "matmul_seconds": matmul,
    }


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def read(arguments: list[str] | None) -> Options:
    """The command line."""
    known = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=known.device)
    parser.add_argument("--targets", nargs="+", default=known.targets, choices=TARGETS, metavar="TARGET")
    parser.add_argument("--methods", nargs="+", default=known.methods, choices=METHODS, metavar="METHOD")
    parser.add_argument("--piece-minutes", type=float, default=known.piece_minutes, help="length of a call")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing saved")
    found = parser.parse_args(arguments)
    if not found.piece_minutes > 0:
        parser.error(f"--piece-minutes must be positive, found {found.piece_minutes}")
    try:
        device_of(found.device)
    except ValueError as error:
        parser.error(str(error))
    return Options(found.device, tuple(found.targets), tuple(found.methods), found.piece_minutes, found.quick, CACHE)


def _key(row: Row) -> tuple[Any, ...]:
    return row["target"], row["method"], row["device"]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Run what is not yet done, save, print the table."""
    options = read(arguments)
    clock, rows = Clock(60.0 * options.piece_minutes), list[Row]()
    part = options.folder / f"rows-{options.kind}.jsonl"
    if part.exists() and not options.quick:
        rows = [json.loads(line) for line in part.read_text("utf-8").splitlines()]
    done = {_key(row) for row in rows}
    for target, method in options.jobs():
        if (target, method, options.kind) in done:
            continue
        try:
            row = {**run(target, method, options, clock), "commit": record.git_commit()}
        except KeyboardInterrupt:
            print(f"{target}, {method}: saved; run the same command again to go on")
            return rows
        rows.append(row)
        if not options.quick:
            options.folder.mkdir(parents=True, exist_ok=True)
            with part.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if not options.quick:
        rows = _merged(rows)
        record.save(NAME, rows, RESULTS)
        part.unlink(missing_ok=True)
    print(record.format_table(rows, [key for key in KEYS if any(row.get(key) is not None for row in rows)]))
    return rows


def _merged(rows: list[Row]) -> list[Row]:
    """The rows in the board's order, with those of other devices or targets that were saved before."""
    before = record.load(NAME, RESULTS)["records"] if (RESULTS / f"{NAME}.json").exists() else []
    new = {_key(row): row for row in (*before, *rows)}
    return sorted(new.values(), key=lambda row: (row["device"], TARGETS.index(row["target"]), row["method"]))


if __name__ == "__main__":
    main()
