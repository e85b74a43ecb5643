"""Eight Schools: AVB against ADVI, a flow and a mixture at equal wall time, judged against exact draws.

``python -m benchmarks.eight_schools [--seeds 5] [--minutes 1] [--methods default ...] [--quick]``

Each run has one thread. Finished runs are kept in a partial file, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import avbvi
from benchmarks import record
from models import eight_schools

NAME = "eight_schools"
PARTIAL = record.RESULTS / f".{NAME}.partial.jsonl"
SMALL, LARGE = 10_000, 50_000
#: A fit that got less of its core than this is measured again.
LEAST_CPU_SHARE = 0.8
PAPER_METHODS = (
    "default",
    "avb-pure",
    "trunk-only",
    "mixture-4",
    "iaf",
    "paper",
    "paper-long",
    "paper-prior-contrast",
    "advi-meanfield",
    "advi-fullrank",
)
CLASSIC_METHODS = ("default", "avb-pure", "advi-fullrank")
#: Methods that are slow or only for orientation get fewer seeds.
MOST_SEEDS = {"paper-prior-contrast": 1}
MOST_CLASSIC_SEEDS = {"avb-pure": 1, "advi-fullrank": 1}
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "knn_kl_qp", "knn_kl_pq", "c2st", "kl_exact", "elbo_error"),
    *("p_tau_positive", "mean_error_sd", "sd_ratio_min", "sd_ratio_max", "stage_kept", "verdict"),
)


@dataclass(frozen=True)
class Problem:
    """A target with exact draws, as a matrix in the coordinates in which it is judged."""

    model: Callable[..., Any]
    exact: Callable[[int, int], dict[str, Tensor]]
    log_z: float
    log_tau: bool

    def matrix(self, draws: dict[str, Tensor]) -> Tensor:
        """(n, 10): mu, tau (its logarithm in the classic problem), eta."""
        tau = draws["tau"].log() if self.log_tau else draws["tau"]
        return torch.cat([draws["mu"][:, None], tau[:, None], draws["eta"]], -1).double()


PROBLEMS = {
    "eight_schools_paper": Problem(
        eight_schools.model, eight_schools.exact_posterior, eight_schools.exact_log_evidence(), False
    ),
    "eight_schools_classic": Problem(
        eight_schools.classic_model,
        eight_schools.classic_exact_posterior,
        eight_schools.classic_exact_log_evidence(),
        True,
    ),
}


def judged(problem: Problem, draws: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """Figures of a sample of LARGE draws against exact ones."""
    x, y = problem.matrix(draws), problem.matrix(problem.exact(LARGE, 10_000 + seed))
    qp, pq = avbvi.knn_kl(x[:SMALL], y[:SMALL]), avbvi.knn_kl(y[:SMALL], x[:SMALL])
    c2st = avbvi.classifier_two_sample_test(x.float(), y.float(), seed=seed)
    ratios = _sd_ratios(x, y)
    return {
        "knn_kl_qp": qp.value,
        "knn_kl_qp_stderr": qp.stderr,
        "knn_kl_pq": pq.value,
        "c2st": c2st.value,
        "c2st_stderr": c2st.stderr,
        "mean_error_sd": float(((x.mean(0) - y.mean(0)) / y.std(0)).abs().max()),
        "sd_ratio_min": float(ratios.min()),
        "sd_ratio_max": float(ratios.max()),
        "p_tau_positive": float((draws["tau"] > 0).double().mean()),
    }


def _sd_ratios(x: Tensor, y: Tensor) -> Tensor:
    """Ratios of standard deviations over all directions: roots of the generalised eigenvalues of the covariances."""
    factor = torch.linalg.cholesky(torch.cov(y.mT))
    half = torch.linalg.solve_triangular(factor, torch.cov(x.mT), upper=False)
    both = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return torch.linalg.eigvalsh(0.5 * (both + both.mT)).clamp_min(0.0).sqrt()


def run(target: str, method: str, seed: int, minutes: float) -> dict[str, Any]:
    """One fit, judged: a flat record."""
    from benchmarks.methods import METHODS

    torch.set_num_threads(1)
    problem = PROBLEMS[target]
    matmul = record.matmul_seconds()
    cpu = time.process_time()
    fitted = METHODS[method](problem.model, seed, minutes)
    cpu = time.process_time() - cpu
    draws = fitted.sample(LARGE)
    result: dict[str, Any] = {
        "target": target,
        "method": method,
        "seed": seed,
        "device": "cpu",
        "seconds": fitted.seconds,
        "cpu_seconds_with_verdict": cpu,
        "matmul_seconds": matmul,
        "elbo": fitted.elbo.value,
        "elbo_stderr": fitted.elbo.stderr,
        "log_z": problem.log_z,
        "elbo_error": fitted.elbo.value - problem.log_z,
        "elbo_is_bound": fitted.exact,
        **fitted.figures,
        **judged(problem, draws, seed),
    }
    if fitted.exact:
        result["kl_exact"] = problem.log_z - fitted.elbo.value
    if target == "eight_schools_classic":
        result.update(_against_reference(draws))
    return result


def _against_reference(draws: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of mean and sd over theta, mu, tau against posteriordb's reference draws, if present."""
    try:
        reference = eight_schools.classic_reference()
    except FileNotFoundError:
        return {}
    theta = draws["mu"][:, None] + draws["tau"][:, None] * draws["eta"]
    q = torch.cat([theta, draws["mu"][:, None], draws["tau"][:, None]], -1).double()
    p = torch.cat([reference["theta"], reference["mu"][:, None], reference["tau"][:, None]], -1).double()
    ratio = q.std(0) / p.std(0)
    return {
        "reference_mean_error_sd": float(((q.mean(0) - p.mean(0)) / p.std(0)).abs().max()),
        "reference_sd_ratio_min": float(ratio.min()),
        "reference_sd_ratio_max": float(ratio.max()),
    }


def control(target: str, method: str, seed: int, minutes: float) -> dict[str, Any]:
    """The judges' own controls: exact draws, whole, with one coordinate scaled by 1.1, with modes weighted 60/40."""
    torch.set_num_threads(1)
    problem = PROBLEMS[target]
    started = time.monotonic()
    draws = problem.exact(LARGE, 20_000 + seed)
    if method == "control-scaled":
        mean = draws["mu"].mean()
        draws["mu"] = mean + 1.1 * (draws["mu"] - mean)
    elif method == "control-modes":
        sign = torch.where(torch.arange(LARGE) < 0.6 * LARGE, 1.0, -1.0) * draws["tau"].sign()
        draws["tau"], draws["eta"] = draws["tau"] * sign, draws["eta"] * sign[:, None]
        order = torch.randperm(LARGE, generator=torch.Generator().manual_seed(seed))
        draws = {name: value[order] for name, value in draws.items()}
    figures = judged(problem, draws, seed)
    seconds = time.monotonic() - started
    return {"target": target, "method": method, "seed": seed, "device": "cpu", "seconds": seconds, **figures}


CONTROLS = ("floor", "control-scaled", "control-modes")


def finished(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records with the noise floor beside every figure; void classifier figures where a control was missed."""
    for target in PROBLEMS:
        mine = [r for r in records if r["target"] == target]
        floors = [r["knn_kl_qp"] for r in mine if r["method"] == "floor"]
        seen = all(r["c2st"] > 0.5 + 3 * r["c2st_stderr"] for r in mine if r["method"].startswith("control"))
        for r in mine:
            r["knn_floor"] = sum(floors) / len(floors) if floors else None
            r["c2st_controls_seen"] = seen
            if not seen:
                r["c2st"] = None
    order = {m: i for i, m in enumerate((*PAPER_METHODS, *CONTROLS))}
    return sorted(records, key=lambda r: (r["target"] != "eight_schools_paper", order[r["method"]], r["seed"]))


def disturbed(result: dict[str, Any]) -> bool:
    """Whether other work on the machine took so much of a fit's core that its wall time says nothing."""
    return bool(result.get("cpu_seconds_with_verdict", math.inf) < LEAST_CPU_SHARE * result["seconds"])


def _jobs(arguments: argparse.Namespace) -> list[tuple[str, str, int, float]]:
    jobs = []
    for seed in range(arguments.seeds):
        for target, methods in (
            ("eight_schools_paper", (*PAPER_METHODS, *CONTROLS)),
            ("eight_schools_classic", (*CLASSIC_METHODS, "floor", "control-scaled")),
        ):
            chosen = [m for m in methods if not arguments.methods or m in arguments.methods or m in CONTROLS]
            most = MOST_SEEDS if target == "eight_schools_paper" else MOST_CLASSIC_SEEDS
            chosen = [m for m in chosen if seed < most.get(m, arguments.seeds)]
            jobs += [(target, m, seed, arguments.minutes) for m in chosen]
    # Long jobs first, so that no worker idles at the end.
    return sorted(jobs, key=lambda job: job[1] != "paper-long")


def main() -> None:
    """Run what is not yet done, save, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=1.0, help="wall time of each fit")
    parser.add_argument("--methods", nargs="*", help="only these methods")
    parser.add_argument("--workers", type=int, default=2, help="fits at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, three seconds a fit, nothing saved")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.minutes = 1, 0.05
    done = [] if arguments.quick else _partial(arguments.minutes)
    known = {(r["target"], r["method"], r["seed"]) for r in done}
    waiting = [job for job in _jobs(arguments) if job[:3] not in known]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(control if job[1] in CONTROLS else run, *job): job for job in waiting}
        failed = []
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                # The other runs go on; what they find is kept.
                failed.append(futures[future][:3])
                print(f"failed: {futures[future][:3]}: {error!r}", flush=True)
                continue
            result = future.result()
            if disturbed(result):
                failed.append(futures[future][:3])
                print(f"discarded: {futures[future][:3]} got less than {LEAST_CPU_SHARE:.0%} of a core", flush=True)
                continue
            done.append(result)
            print(record.format_table([result], [k for k in KEYS if k in result]), flush=True)
            if not arguments.quick:
                _keep(result, arguments.minutes)
    if failed:
        raise SystemExit(f"{len(failed)} runs are to be repeated, nothing saved yet; call again for them: {failed}")
    records = finished(done)
    print(record.format_table(records, KEYS))
    if not arguments.quick:
        print(record.save(NAME, records))
        PARTIAL.unlink(missing_ok=True)


def _partial(minutes: float) -> list[dict[str, Any]]:
    if not PARTIAL.exists():
        return []
    rows = [json.loads(line) for line in Path(PARTIAL).read_text().splitlines()]
    return [row for row in rows if math.isclose(row.pop("minutes"), minutes) and not disturbed(row)]


def _keep(result: dict[str, Any], minutes: float) -> None:
    PARTIAL.parent.mkdir(exist_ok=True)
    with PARTIAL.open("a") as file:
        file.write(json.dumps({**result, "minutes": minutes}) + "\n")


if __name__ == "__main__":
    main()
