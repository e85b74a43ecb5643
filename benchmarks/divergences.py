"""The judges judged: estimates of KL(q, p) of known Gaussians, and the speed of the nearest-neighbour search.

``python -m benchmarks.divergences [--seeds 3] [--methods M ...] [--targets T ...] [--keep] [--quick]``

Accuracy: targets ``<case>-d<dim>-n<draws>``; bias and spread of each estimator where the divergence is known. Cases:
Gaussians, and ``flow<steps>``: flows fitted to Eight Schools for so many steps, whose exact density gives their KL
divergence to the posterior (``flow0``: exact draws).
Speed: targets ``speed-d<dim>-n<draws>``; ``knn_kl`` beside the same figure by SciPy's k-d tree, scikit-learn and
faiss where installed, one thread each, every measurement in a process of its own. Use ``--workers 1`` for these.
"""

from __future__ import annotations

import importlib.util
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from torch import Tensor

import avbvi
from avbvi import Estimate, divergences
from benchmarks import judging, record, runner
from benchmarks.problems import EIGHT_SCHOOLS_PAPER
from benchmarks.runner import Job
from models import eight_schools

NAME = "divergences"
DIMENSIONS = (2, 10, 32, 100)
DRAWS = (2_000, 10_000)
#: The KL divergence of all cases but "equal", in nats.
DIVERGENCE = 0.5
#: (dimension, draws) of the speed comparison; the last ones only on a GPU.
SPEED = ((2, 10_000), (10, 10_000), (32, 10_000), (2, 100_000), (10, 100_000), (2, 1_000_000))
SPEED_CUDA = (*SPEED, (32, 100_000), (10, 1_000_000))
KEYS = ("target", "method", "seed", "seconds", "exact", "value", "stderr", "error_in_stderr", "peak_bytes")


# -- accuracy ---------------------------------------------------------------------------------------------


def gaussian_kl(scale: float, dim: int) -> float:
    """KL(N(0, scale^2 I), N(0, I)) in nats."""
    return dim * (0.5 * (scale**2 - 1.0) - math.log(scale))


@dataclass(frozen=True)
class Case:
    """q = N(shift e_1, scale^2 I) against p = N(0, I)."""

    shift: float
    scale: float
    exact: float

    @classmethod
    def named(cls, name: str, dim: int) -> Case:
        """One of CASES in ``dim`` dimensions."""
        if name == "equal":
            return cls(0.0, 1.0, 0.0)
        if name == "shift":
            return cls(math.sqrt(2.0 * DIVERGENCE), 1.0, DIVERGENCE)
        low, high = (1e-3, 1.0) if name == "narrow" else (1.0, 1e3)
        scale = brentq(lambda s: gaussian_kl(s, dim) - DIVERGENCE, low, high)
        return cls(0.0, scale, DIVERGENCE)

    def draws(self, n: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
        """n draws each of q and p, (n, dim)."""
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, n, dim, generator=generator, dtype=torch.float64)
        x = self.scale * x
        x[:, 0] += self.shift
        return x, y


CASES = ("equal", "shift", "narrow", "wide")
FLOWS = ("flow0", "flow4500", "flow1200")
FLOW_DRAWS = 100_000


def flow_draws(steps: int, n: int, seed: int) -> tuple[Tensor, float]:
    """n draws (n, 10) of a flow fitted to Eight Schools for so many steps, and its exact KL divergence."""
    problem = EIGHT_SCHOOLS_PAPER
    if not steps:
        return problem.exact(n, judging.CONTROL_SEED + seed), 0.0
    loss = avbvi.AdversarialELBO(schedule=avbvi.Schedule(trunk=1.0))
    posterior = avbvi.fit(problem.model, elbo=loss, seed=seed, steps=steps, progress=False)
    torch.manual_seed(seed)
    assert problem.log_z is not None
    return problem.matrix(posterior.sample(n)), problem.log_z - posterior.elbo(200_000).value


def _sqrt_n(x: Tensor, y: Tensor) -> Estimate:
    return divergences.knn_kl(x, y, math.isqrt(len(x)))


def _bound(x: Tensor, y: Tensor) -> Estimate:
    return divergences.kl_lower_bound(x, y)


def _bound_with_score(x: Tensor, y: Tensor) -> Estimate:
    """The bound with what is known of p on Eight Schools."""
    return divergences.kl_lower_bound(x, y, features=divergences.density_features(eight_schools.log_density))


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Estimate]] = {
    "knn-kl": divergences.knn_kl,
    "knn-kl-1": partial(divergences.knn_kl, k=1),
    "knn-kl-sqrt-n": _sqrt_n,
    "knn-kl-adaptive": divergences.knn_kl_adaptive,
    "kl-bound": _bound,
    "kl-bound-score": _bound_with_score,
}
GAUSSIAN_ESTIMATORS = ("knn-kl", "knn-kl-1", "knn-kl-sqrt-n", "knn-kl-adaptive", "kl-bound")
FLOW_ESTIMATORS = ("kl-bound-score", "kl-bound", "knn-kl")
#: The learned bound takes minutes where the others take seconds, and so do the flows.
MOST_SEEDS = {"kl-bound": 2}
MOST_FLOW_SEEDS = {"kl-bound": 1, "knn-kl": 1}


def accuracy(job: Job) -> judging.Row:
    """One estimate of a known divergence."""
    name, dim, n = parsed(job.target)
    if name in FLOWS:
        x, exact = flow_draws(int(name.removeprefix("flow")), n, job.seed)
        y = EIGHT_SCHOOLS_PAPER.exact(n, judging.REFERENCE_SEED + job.seed)
    else:
        case = Case.named(name, dim)
        exact, (x, y) = case.exact, case.draws(n, dim, job.seed)
    started, cpu = time.monotonic(), time.process_time()
    estimate = ESTIMATORS[job.method](x, y)
    return {
        **_row(job, time.monotonic() - started, dim, n),
        "cpu_seconds_with_verdict": time.process_time() - cpu,
        "exact": exact,
        "value": estimate.value,
        "stderr": estimate.stderr,
        "error_in_stderr": (estimate.value - exact) / estimate.stderr if estimate.stderr > 0 else None,
    }


# -- speed ------------------------------------------------------------------------------------------------


def _ours(x: np.ndarray, y: np.ndarray, device: str) -> float:
    return divergences.knn_kl(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)).value


def _from_distances(rho: np.ndarray, nu: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(x.shape[1] * np.mean(np.log(nu / rho)) + math.log(len(y) / (len(x) - 1)))


def _scipy(x: np.ndarray, y: np.ndarray, device: str) -> float:
    rho, nu = cKDTree(x).query(x, [4])[0][:, 0], cKDTree(y).query(x, [3])[0][:, 0]
    return _from_distances(rho, nu, x, y)


def _sklearn(x: np.ndarray, y: np.ndarray, device: str) -> float:
    from sklearn.neighbors import NearestNeighbors

    rho = NearestNeighbors(n_neighbors=4, n_jobs=1).fit(x).kneighbors(x)[0][:, 3]
    nu = NearestNeighbors(n_neighbors=3, n_jobs=1).fit(y).kneighbors(x)[0][:, 2]
    return _from_distances(rho, nu, x, y)


def _faiss(x: np.ndarray, y: np.ndarray, device: str) -> float:
    import faiss

    faiss.omp_set_num_threads(1)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    own, other = faiss.IndexFlatL2(x.shape[1]), faiss.IndexFlatL2(x.shape[1])
    own.add(x32)
    other.add(y32)
    rho, nu = own.search(x32, 4)[0][:, 3], other.search(x32, 3)[0][:, 2]
    return _from_distances(np.sqrt(rho), np.sqrt(nu), x, y)


BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray, str], float]] = {
    "avbvi": _ours,
    "scipy": _scipy,
    "scikit-learn": _sklearn,
    "faiss": _faiss,
}
#: What takes more than some minutes on one core is left out.
TOO_SLOW = {("scipy", 10, 100_000), ("scikit-learn", 10, 100_000), ("faiss", 2, 100_000), ("faiss", 2, 1_000_000)}


def _timed(name: str, dim: int, n: int, seed: int, device: str) -> tuple[float, float, int]:
    """Best seconds of some repetitions, the value, and the peak memory beyond what data and imports need."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, dim)), rng.standard_normal((n, dim))
    BACKENDS[name](x[:500], y[:500], device)
    before = _peak(device)
    best = math.inf
    for _ in range(3 if n <= 10_000 else 1):
        started = time.perf_counter()
        value = BACKENDS[name](x, y, device)
        best = min(best, time.perf_counter() - started)
    return best, value, _peak(device) - before


def _peak(device: str) -> int:
    """Peak bytes: of the GPU's allocator, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def speed(job: Job, device: str) -> judging.Row:
    """One backend on one size, in a process of its own."""
    _, dim, n = parsed(job.target)
    with get_context("spawn").Pool(1) as pool:
        seconds, value, peak = pool.apply(_timed, (job.method, dim, n, job.seed, device))
    row = {**_row(job, seconds, dim, n), "value": value, "peak_bytes": peak}
    return {**row, "device": device, "matmul_seconds": record.matmul_seconds()}


# -- the board --------------------------------------------------------------------------------------------


def parsed(target: str) -> tuple[str, int, int]:
    """Case, dimension and number of draws of a target's name."""
    name, dim, n = target.split("-")
    return name, int(dim[1:]), int(n[1:])


def _row(job: Job, seconds: float, dim: int, n: int) -> judging.Row:
    base: judging.Row = {"target": job.target, "method": job.method, "seed": job.seed, "device": "cpu"}
    return {**base, "seconds": seconds, "dim": dim, "draws": n}


def run(job: Job, device: str = "cpu") -> list[judging.Row]:
    """One job of the board."""
    return [speed(job, device) if job.target.startswith("speed") else accuracy(job)]


def missing(job: Job) -> str | None:
    """A backend's package, where it is not installed."""
    module = {"scikit-learn": "sklearn", "faiss": "faiss"}.get(job.method)
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"{job.method} is not installed"


def targets(device: str) -> tuple[str, ...]:
    """Names of all targets."""
    known = tuple(f"{case}-d{dim}-n{n}" for case in CASES for dim in DIMENSIONS for n in DRAWS)
    known += tuple(f"{flow}-d10-n{FLOW_DRAWS}" for flow in FLOWS)
    return known + tuple(f"speed-d{dim}-n{n}" for dim, n in (SPEED_CUDA if device == "cuda" else SPEED))


def jobs(settings: runner.Options, device: str) -> list[Job]:
    """The board's jobs that were asked for."""
    chosen = []
    for target in targets(device):
        name, dim, n = parsed(target)
        if name == "speed":
            methods = [b for b in BACKENDS if (b, dim, n) not in TOO_SLOW and (device == "cpu" or b == "avbvi")]
            chosen += [Job(target, method, 0, settings.minutes) for method in methods]
        else:
            on_flow = name in FLOWS
            chosen += [
                Job(target, method, seed, settings.minutes)
                for method in (FLOW_ESTIMATORS if on_flow else GAUSSIAN_ESTIMATORS)
                for seed in range(
                    min(settings.seeds, (MOST_FLOW_SEEDS if on_flow else MOST_SEEDS).get(method, settings.seeds))
                )
            ]
    if settings.quick:
        chosen = [job for job in chosen if parsed(job.target)[2] <= min(DRAWS) and job.method != "kl-bound"]
    return [job for job in chosen if settings.wants(job.target, job.method)]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board."""
    order = {target: i for i, target in enumerate(targets("cuda"))}
    methods = {name: i for i, name in enumerate((*ESTIMATORS, *BACKENDS))}
    return sorted(records, key=lambda r: (order[r["target"]], methods[r["method"]], r["device"], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = runner.options(
        __doc__, methods=(*ESTIMATORS, *BACKENDS), targets=targets("cuda"), seeds=3, arguments=arguments
    )
    return runner.run_jobs(
        NAME,
        jobs(settings, device),
        partial(run, device=device),
        settings,
        keys=KEYS,
        finish=finished,
        missing=missing,
        sources=lambda job: ("avbvi/divergences",),
    )


if __name__ == "__main__":
    main()
