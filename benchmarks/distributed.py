"""Do two processes what one does, and how fast? The same fits by one process and by two, with the same global batch.

    python -m benchmarks.distributed [--steps 100] [--repeats 3] [--device cuda] [--quick]

Fits are in double precision: what differs then is the order of sums. `loss_difference` is the largest relative
difference of a step's loss between one process and two, `parameter_difference` the largest absolute one of a parameter
afterwards, `same_in_all` tells whether the two processes hold the same bits. Speed is that of the steps alone (without
start and verdict), the median of repeats in turns, one thread in each process; `ratio` is two processes over one. On a
GPU each process has one of its own (NCCL).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi import (
    AdversarialELBO,
    AffineTrunk,
    AVBGuide,
    JointAdversary,
    MixtureTrunk,
    Posterior,
    Schedule,
    SemiImplicitSampler,
    Verdict,
    fitting,
)
from avbvi.amortised.runs import AmortisedRun
from avbvi.training import Trainer
from benchmarks import record
from benchmarks.peak_memory import PeakMemory
from models import eight_schools
from models.data import digits
from models.data.binarisation import StaticBinarisation
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

NAME = "distributed"
PROCESSES = (1, 2)
#: Steps before the clock starts.
WARM_UP = 5
Row = dict[str, Any]


class _Noted:
    """A run that keeps each step's loss and time, and ends before the verdict."""

    losses: list[float]
    times: list[float]

    def _note(self, count: int, loss: float, bar: Any) -> None:
        self.losses = [*getattr(self, "losses", []), loss]
        self.times = [*getattr(self, "times", []), time.perf_counter()]
        super()._note(count, loss, bar)  # type: ignore[misc]

    def _judged(self) -> Posterior:
        posterior: Posterior = self._posterior(Verdict("ok", []))  # type: ignore[attr-defined]
        posterior.noted = (self.losses, self.times)  # type: ignore[attr-defined]
        return posterior


class _NotedTrainer(_Noted, Trainer):
    pass


class _NotedAmortisedRun(_Noted, AmortisedRun):
    pass


def schools(trunk: Callable[[], Any], steps: int, device: torch.device) -> tuple[Posterior, list[nn.Module]]:
    """Eight Schools of the paper: with a trainable trunk both stages, by halves."""
    guide = AVBGuide(eight_schools.model, trunk=trunk())
    elbo = AdversarialELBO(schedule=Schedule(trunk=0.8, settle=0.0))
    data = eight_schools.Y.double(), eight_schools.SIGMA.double()
    fit = avbvi.fit(
        eight_schools.model, *data, guide=guide, elbo=elbo, seed=0, steps=steps, device=device, progress=False
    )
    return fit, [guide]


def vae(hidden: int, batch_size: int, steps: int, device: torch.device) -> tuple[Posterior, list[nn.Module]]:
    """A variational autoencoder of 8 x 8 digits whose decoder has two layers of ``hidden`` units."""
    pyro.set_rng_seed(0)
    x = StaticBinarisation(seed=0)(digits.load().train.intensities()).double()
    decoder = VAE(FullyConnectedDecoder(8, (1, 8, 8), hidden=(hidden, hidden)), 8)
    guide = AVBGuide(decoder.model, sampler=SemiImplicitSampler(context_dim=64), adversary=JointAdversary((128, 128)))
    loader = DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True)
    fit = avbvi.fit(decoder.model, loader, guide=guide, seed=0, steps=steps, device=device, progress=False)
    return fit, [guide, decoder]


#: name -> fit(steps, device).
TARGETS: dict[str, Callable[[int, torch.device], tuple[Posterior, list[nn.Module]]]] = {
    "eight_schools_adversarial": partial(schools, AffineTrunk),
    "eight_schools_trunk": partial(schools, MixtureTrunk),
    "digits": partial(vae, 200, 128),
    "digits_wide": partial(vae, 1000, 512),
}


def _fit(target: str, rank: int, size: int, steps: int, device_type: str, meeting: str) -> dict[str, Any]:
    """One process's part of a fit."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    with (
        mock.patch.object(fitting, "Trainer", _NotedTrainer),
        mock.patch.object(fitting, "AmortisedRun", _NotedAmortisedRun),
        PeakMemory(device) as peak,
    ):
        posterior, modules = TARGETS[target](steps, device)
    losses, times = posterior.noted  # type: ignore[attr-defined]
    if size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    first = min(WARM_UP, len(times) - 2)
    return {
        "losses": torch.tensor(losses),
        "peak_bytes": peak.bytes,
        "state": [t.double().cpu().numpy() for m in modules for t in m.state_dict().values() if t.numel()],
        "steps_per_second": (len(times) - 1 - first) / (times[-1] - times[first]),
    }


def run(target: str, size: int, steps: int, device: str) -> list[dict[str, Any]]:
    """A fit by so many processes; what each of them found."""
    pool = get_context("spawn").Pool(size)
    try:
        with tempfile.TemporaryDirectory() as folder:
            parts = [(target, rank, size, steps, device, str(Path(folder) / "meeting")) for rank in range(size)]
            found = pool.starmap(_fit, parts, chunksize=1)
    except BaseException:
        pool.terminate()
        raise
    pool.close()
    pool.join()
    return found


def compare(target: str, steps: int, repeats: int, device: str) -> list[Row]:
    """Rows of one process and of two."""
    found: dict[int, list[list[dict[str, Any]]]] = {size: [] for size in PROCESSES}
    seconds: dict[int, list[float]] = {size: [] for size in PROCESSES}
    for _ in range(repeats):
        for size in PROCESSES:
            started = time.perf_counter()
            found[size].append(run(target, size, steps, device))
            seconds[size].append(time.perf_counter() - started)
    speeds = {size: statistics.median(parts[0]["steps_per_second"] for parts in found[size]) for size in PROCESSES}
    one = found[1][0][0]
    rows = []
    for size in PROCESSES:
        first, *others = found[size][0]
        rows.append(
            {
                "target": target,
                "method": "default",
                "processes": size,
                "seed": 0,
                "device": device,
                "steps": len(first["losses"]),
                "loss_difference": _largest((first["losses"] - one["losses"]).abs() / one["losses"].abs()),
                "parameter_difference": max(
                    float(abs(a - b).max()) for a, b in zip(first["state"], one["state"], strict=True)
                ),
                "same_in_all": all(
                    bool((a == b).all()) for o in others for a, b in zip(first["state"], o["state"], strict=True)
                ),
                "steps_per_second": speeds[size],
                "ratio": speeds[size] / speeds[1],
                "seconds": statistics.median(seconds[size]),
                # Of one process, the one that needs the most.
                "peak_bytes": max(
                    (p["peak_bytes"] for p in found[size][0] if p["peak_bytes"] is not None), default=None
                ),
                "matmul_seconds": record.matmul_seconds(device=device),
            }
        )
    return rows


def _largest(x: Tensor) -> float:
    return float(x.max())


def main(arguments: list[str] | None = None, *, save: bool = True) -> list[Row]:
    """Run the comparison, print and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--quick", action="store_true", help="ten steps of one target, saved nowhere")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.repeats, options.targets, save = 10, 1, ["digits"], False
    if options.device == "cuda" and torch.cuda.device_count() < max(PROCESSES):
        parser.error(f"{max(PROCESSES)} processes need a GPU each, and this machine has {torch.cuda.device_count()}")
    rows: list[Row] = []
    for target in options.targets:
        rows += compare(target, options.steps, options.repeats, options.device)
        shown = [key for key in rows[0] if key not in ("method", "seed", "device", "matmul_seconds")]
        print(record.format_table(rows[-len(PROCESSES) :], shown), flush=True)
    if save:
        print(record.save(NAME, rows))
    return rows


if __name__ == "__main__":
    main()
