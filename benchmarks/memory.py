"""Memory: does a long run grow, does a run grow with its data, and does reading them slow it down?

    python -m benchmarks.memory [--parts leak data throughput] [--steps 100000] [--megabytes 10 100 1000] [--quick]

`leak`: fits through all stages, an amortised one on minibatches (its steps read one by one, and ten
at a time as on a GPU), and SVI by hand, small networks all: resident memory,
live tensors and objects known to the garbage collector, from a tenth of the steps to the end. By design the record of
the loss grows, by three numbers for each ten steps (a megabyte in 100,000), and 64 moments of draws are kept along a
run; a stage brings tensors of its own. Beyond LIMITS nothing may grow.

`data`: one fit of so many steps on files of zeros (sparse, so that they take no disk): the peak of memory by their
size. For comparison: all data in memory, and the files in torch's own random order.

`throughput`: steps of a variational autoencoder of MNIST's size on batches from files, from tensors and from torch's
TensorDataset, against the same steps on one batch again and again: the ratio is 1 where the model alone limits. The
sources take turns, some steps each, and the ratio is that of medians.

Each piece has a process of its own. Saved to `benchmarks/results/memory.json`, where rows of other parts stay.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyro
import torch
from pyro.infer import SVI
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import avbvi
from avbvi import AdversarialELBO, ArrayFileDataset, AVBGuide, JointAdversary, SemiImplicitSampler, TensorLoader
from avbvi import fitting as fitting_module
from avbvi.amortised.runs import AmortisedRun
from avbvi.data.batches import LoaderBatches
from avbvi.schedules import Schedule
from avbvi.training import Trainer
from benchmarks import record
from benchmarks.peak_memory import PeakMemory, resident
from benchmarks.safety import banana, small_guide
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE

NAME = "memory"
PARTS = ("leak", "data", "throughput")
MIB = 2**20
#: Share of a run after which its memory is compared with that at its end, and looks in all.
SETTLED, LOOKS = 0.1, 50
#: Seconds' worth of other work on the machine moves a single round; a source is timed in so many rounds of steps.
ROUNDS, ROUND_STEPS = 40, 5
#: Most that a run may grow by, fixed before the long runs: one object kept for each ten steps would be 9,000. The
#: record of the draws' moments adds 64 tensors along a run.
LIMITS = {"rss_growth": 8 * MIB, "tensor_trend": 150, "object_trend": 300}
#: Most by which a run's peak may differ between the smallest and the largest data; runs that are the same differ by up
#: to 15 MiB, as pages of libraries count.
DATA_LIMIT = 32 * MIB
KEYS = {
    "leak": ("method", "steps", *LIMITS, "leaks", "peak_bytes", "seconds"),
    "data": ("method", "megabytes", "rows", "steps", "peak_bytes", "seconds"),
    "throughput": ("method", "steps_per_second", "ratio", "cpu_ratio", "batch_milliseconds", "peak_bytes"),
}
Row = dict[str, Any]


# -- leaks ------------------------------------------------------------------------------------------------------


class Census:
    """Counts what a process holds, now and then along a run.

    Args:
        steps: of the run.
        looks: how often.
    """

    def __init__(self, steps: int, looks: int = LOOKS) -> None:
        self._steps = steps
        self._due = itertools.count(max(steps // looks, 1), max(steps // looks, 1))
        self._next = next(self._due)
        self.looks: list[tuple[int, int, int, int]] = []

    def look(self, step: int) -> None:
        """Count if it is time: step, resident bytes, tensors, objects.

        Not after the last step, which chooses a stage with many draws.
        """
        if step < self._next or step >= self._steps:
            return
        while step >= self._next:
            self._next = next(self._due)
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(o), Tensor) for o in objects)
        count = len(objects)
        del objects
        self.looks.append((step, resident("RssAnon"), tensors, count))

    def growth(self, steps: int) -> dict[str, float]:
        """What was added since a tenth of the run; of tensors and objects also the part that is added all along.

        That is the median of what is added from look to look, times their number: a stage has tensors and recorded
        functions of its own, which come once.
        """
        settled = [look for look in self.looks if look[0] >= SETTLED * steps]
        found: dict[str, float] = {}
        for i, name in enumerate(("rss", "tensor", "object"), start=1):
            values = [look[i] for look in settled]
            found[f"{name}_growth"] = values[-1] - values[0]
            added = [b - a for a, b in itertools.pairwise(values)]
            found[f"{name}_trend"] = statistics.median(added) * len(added)
        return found


@contextmanager
def watched(census: Census) -> Iterator[None]:
    """Have fits looked at every ten steps."""

    def watching(kind: type[Trainer]) -> type[Trainer]:
        def record_and_look(self: Trainer, count: int, loss: float) -> None:
            kind._record(self, count, loss)
            census.look(count)

        return type(f"Watched{kind.__name__}", (kind,), {"_record": record_and_look})

    with (
        mock.patch.object(fitting_module, "Trainer", watching(Trainer)),
        mock.patch.object(fitting_module, "AmortisedRun", watching(AmortisedRun)),
    ):
        yield


def small_elbo(**options: Any) -> AdversarialELBO:
    """Few particles."""
    return AdversarialELBO(num_particles=32, adversary_steps=1, pretrain_steps=20, **options)


def stages(steps: int, census: Census) -> None:
    """Trunk (a flow), adversarial stage and polish of a fit, all after the first tenth but the trunk's beginning."""
    density = avbvi.LogDensity(banana, (2,))
    loss = small_elbo(schedule=Schedule(trunk=0.3, polish=0.2))
    with watched(census):
        avbvi.fit(density, guide=small_guide(density, flow=True), elbo=loss, steps=steps, seed=100, progress=False)


def amortised(steps: int, census: Census, **options: Any) -> None:
    """A small variational autoencoder on minibatches, the last of each pass smaller."""
    vae, guide = small_vae(pixels=8, latent=2, units=16)
    x = torch.bernoulli(torch.full((100, 8), 0.5))
    with watched(census):
        loader = TensorLoader(x, batch_size=32)
        elbo = AdversarialELBO(num_particles=2, adversary_steps=1, pretrain_steps=20)
        avbvi.fit(vae.model, loader, guide=guide, elbo=elbo, steps=steps, seed=100, progress=False, **options)


def by_hand(steps: int, census: Census) -> None:
    """Pyro's SVI with its parameter store, on fresh minibatches."""
    vae, guide = small_vae(pixels=8, latent=2, units=16)
    elbo = AdversarialELBO(steps=steps, num_particles=2, adversary_steps=1, pretrain_steps=20)
    svi = SVI(vae.model, guide, elbo.optimizer(), loss=elbo)
    for step in range(1, steps + 1):
        svi.step(torch.bernoulli(torch.full((32, 8), 0.5)), 100)
        census.look(step)


LEAKS: dict[str, Callable[[int, Census], None]] = {
    "stages": stages,
    "amortised": amortised,
    "amortised, read every ten steps": partial(amortised, capture=True),
    "svi": by_hand,
}


def leak(name: str, steps: int) -> Row:
    """One long run."""
    pyro.set_rng_seed(100)
    census = Census(steps)
    started, cpu = time.monotonic(), time.process_time()
    with PeakMemory() as peak:
        LEAKS[name](steps, census)
    growth = census.growth(steps)
    return {
        "target": "leak",
        "method": name,
        "leaks": any(growth[key] > limit for key, limit in LIMITS.items()),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak.bytes,
        "steps": steps,
        **growth,
    }


# -- the size of the data ---------------------------------------------------------------------------------------


def small_vae(pixels: int, latent: int, units: int) -> tuple[VAE, AVBGuide]:
    """A variational autoencoder with an implicit encoder, all networks with two layers of so many units."""
    shape = (1, 1, pixels)
    vae = VAE(FullyConnectedDecoder(latent, shape, hidden=(units, units)), latent)
    sampler = SemiImplicitSampler(context_dim=pixels, hidden=(units, units))
    return vae, AVBGuide(vae.model, sampler=sampler, adversary=JointAdversary((units, units)))


def _files(path: Path) -> DataLoader[Any]:
    return ArrayFileDataset(path).loader(256)


def _torchs_order(path: Path) -> DataLoader[Any]:
    return DataLoader(ArrayFileDataset(path), batch_size=256, shuffle=True)


def _in_memory(path: Path) -> DataLoader[Any]:
    return TensorLoader(torch.from_numpy(np.load(path)), batch_size=256)


LOADERS: dict[str, Callable[[Path], DataLoader[Any]]] = {
    "array-files": _files,
    "array-files, torch's shuffle": _torchs_order,
    "in memory": _in_memory,
}
PIXELS = 64


def data_size(method: str, megabytes: int, steps: int, folder: Path) -> Row:
    """One fit on so many megabytes of zeros."""
    rows = megabytes * MIB // (4 * PIXELS)
    path = folder / f"zeros-{megabytes}.npy"
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, PIXELS))

    def fit(loader: Any, count: int) -> None:
        pyro.clear_param_store()
        vae, guide = small_vae(PIXELS, latent=4, units=32)
        elbo = AdversarialELBO(num_particles=2, adversary_steps=1, pretrain_steps=5)
        avbvi.fit(vae.model, loader, guide=guide, elbo=elbo, steps=count, seed=100, progress=False)

    fit(TensorLoader(torch.zeros(512, PIXELS), batch_size=256), 5)  # loads what torch loads when it is first needed
    started = time.monotonic()
    with PeakMemory() as peak:
        fit(LOADERS[method](path), steps)
    return {
        "target": "data",
        "method": method,
        "seconds": time.monotonic() - started,
        "peak_bytes": peak.bytes,
        "megabytes": megabytes,
        "rows": rows,
        "steps": steps,
    }


# -- throughput -------------------------------------------------------------------------------------------------


def sources(path: Path, batch_size: int) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """Where batches come from, by name; the first gives one batch again and again."""
    x = torch.from_numpy(np.load(path)).float()
    data = ArrayFileDataset(path, dtype=torch.float32)
    loaders: dict[str, DataLoader[Any]] = {
        "TensorLoader": TensorLoader(x, batch_size=batch_size, drop_last=True),
        "TensorDataset": DataLoader(TensorDataset(x), batch_size=batch_size, shuffle=True, drop_last=True),
        "array-files": data.loader(batch_size, drop_last=True),
        "array-files, one worker": data.loader(batch_size, drop_last=True, num_workers=1),
    }
    found: dict[str, Callable[[], tuple[Any, ...]]] = {"one batch": lambda: (x[:batch_size],)}
    return found | {name: LoaderBatches(loader).next for name, loader in loaders.items()}


def throughput(rows: int, rounds: int, folder: Path, *, batch_size: int = 128, units: int = 300) -> list[Row]:
    """Steps on batches of every source, in turns."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(100)
    path = folder / "pixels.npy"
    np.save(path, np.random.default_rng(100).integers(0, 2, (rows, 784)).astype(np.uint8))
    vae, guide = small_vae(784, latent=32, units=units)
    total = rounds * ROUND_STEPS * 10
    elbo = AdversarialELBO(steps=total, num_particles=1, pretrain_steps=5)
    svi = SVI(vae.model, guide, elbo.optimizer(), loss=elbo)
    given = sources(path, batch_size)
    walls: dict[str, list[float]] = {name: [] for name in given}
    cpus: dict[str, list[float]] = {name: [] for name in given}
    fetches: dict[str, list[float]] = {name: [] for name in given}
    with PeakMemory() as peak, pyro.validation_enabled(False):
        for turn in range(rounds + 1):
            for name, fetch in given.items():
                wall, cpu, fetched = time.perf_counter(), time.process_time(), 0.0
                for _ in range(ROUND_STEPS):
                    begun = time.perf_counter()
                    args = fetch()
                    fetched += time.perf_counter() - begun
                    svi.step(*args, rows)
                if turn:  # the first one warms up
                    walls[name].append(time.perf_counter() - wall)
                    cpus[name].append(time.process_time() - cpu)
                    fetches[name].append(fetched)
    base = next(iter(given))
    walled, used = ({name: statistics.median(v) for name, v in values.items()} for values in (walls, cpus))
    return [
        {
            "target": "throughput",
            "method": name,
            "seconds": sum(walls[name]),
            "peak_bytes": peak.bytes,
            "rows": rows,
            "batch_size": batch_size,
            "baseline": base,
            "steps_per_second": ROUND_STEPS / walled[name],
            "ratio": walled[base] / walled[name],
            "cpu_ratio": used[base] / used[name],
            "batch_milliseconds": 1e3 * statistics.median(fetches[name]) / ROUND_STEPS,
        }
        for name in given
    ]


# -- the board --------------------------------------------------------------------------------------------------


def apart(work: Callable[[], Row | list[Row]]) -> list[Row]:
    """The rows of a piece of work, in a process of its own."""
    context = get_context("spawn")  # of the executor, whose processes may have workers of their own
    with ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.submit(work).result()
    return [{"seed": 100, "device": "cpu", **row} for row in (found if isinstance(found, list) else [found])]


def pieces(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Callable[[], Row | list[Row]]]]:
    """The work of the chosen parts."""
    if "leak" in options.parts:
        for name in options.leaks:
            yield "leak", partial(leak, name, options.steps)
    if "data" in options.parts:
        for method, size in itertools.product(LOADERS, options.megabytes):
            yield "data", partial(data_size, method, size, options.data_steps, folder)
    if "throughput" in options.parts:
        yield "throughput", partial(throughput, options.rows, options.rounds, folder)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the parts, print what they find, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--leaks", nargs="+", choices=LEAKS, default=list(LEAKS), help="runs that are searched")
    parser.add_argument("--steps", type=int, default=100_000, help="of each run that is searched for leaks")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000], help="sizes of data")
    parser.add_argument("--quick", action="store_true", help="short runs, nothing saved")
    options = parser.parse_args(arguments)
    options.data_steps, options.rows, options.rounds = 200, 60_000, ROUNDS
    if options.quick:
        options.steps, options.megabytes = 200, [1, 8]
        options.data_steps, options.rows, options.rounds = 20, 1000, 2
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for part, work in pieces(options, Path(folder)):
            found = apart(work)
            print(record.format_table(found, KEYS[part]), flush=True)
            rows += found
    if not options.quick:
        commit = record.git_commit()
        path = record.RESULTS / f"{NAME}.json"
        saved = record.load(NAME)["records"] if path.exists() else []
        others = [
            row
            for row in saved
            if row["target"] not in options.parts or (row["target"] == "leak" and row["method"] not in options.leaks)
        ]
        print(record.save(NAME, [*others, *({**row, "commit": commit} for row in rows)]))
    return rows


if __name__ == "__main__":
    main()
