"""Eight Schools: AVB against ADVI, flows, a mixture and Markov chains, judged against exact draws.

``python -m benchmarks.eight_schools [--seeds 5] [--minutes 1] [--methods M ...] [--targets T ...] [--keep] [--quick]``

Targets: the AVB paper's problem (its Table 1 and Figure 3), Rubin's, and ``eight_schools_paper_curve``: k-NN KL
along one run, as in the paper's Figure 3. Each run has one thread; see ``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import judging, runner
from benchmarks.fitting import Method
from benchmarks.methods import METHODS as ALL_METHODS
from benchmarks.problems import EIGHT_SCHOOLS_CLASSIC, EIGHT_SCHOOLS_PAPER, Problem
from benchmarks.rivals import chains
from benchmarks.runner import Job

NAME = "eight_schools"
CURVE = "eight_schools_paper_curve"
CURVE_MARKS = 12
#: With --quick.
QUICK_LARGE, QUICK_SMALL = 4_000, 2_000
PAPER_METHODS = (
    "default",
    "avb-pure",
    "trunk-only",
    "mixture-4",
    "nsf",
    "iaf",
    "iaf-stl",
    "numpyro-iaf",
    "paper",
    "paper-long",
    "paper-prior-contrast",
    "advi-fullrank",
    "advi-lowrank",
    "advi-meanfield",
    "nuts",
    "numpyro-nuts",
    "hmc",
    "hmc-paper",
)
CLASSIC_METHODS = ("default", "avb-pure", "nsf", "numpyro-iaf", "advi-fullrank", "nuts", "numpyro-nuts", "hmc")
CURVE_METHODS = (
    "default",
    "avb-pure",
    "nsf",
    "iaf",
    "paper",
    "paper-prior-contrast",
    "advi-fullrank",
    "advi-meanfield",
)
CONTROLS = ("floor", "control-scaled", "control-modes")
BOARD = {
    "eight_schools_paper": (*PAPER_METHODS, *CONTROLS),
    "eight_schools_classic": (*CLASSIC_METHODS, "floor", "control-scaled"),
    CURVE: CURVE_METHODS,
}
#: Methods that are slow or only for orientation get fewer seeds.
MOST_SEEDS = {
    **{("eight_schools_paper", method): 3 for method in ("trunk-only", "nsf", "iaf-stl", "hmc-paper")},
    ("eight_schools_paper", "advi-lowrank"): 2,
    ("eight_schools_paper", "paper-prior-contrast"): 1,
    ("eight_schools_paper", "nuts"): 1,
    ("eight_schools_classic", "default"): 3,
    ("eight_schools_classic", "hmc"): 3,
    ("eight_schools_classic", "avb-pure"): 1,
    ("eight_schools_classic", "nsf"): 1,
    ("eight_schools_classic", "advi-fullrank"): 1,
    ("eight_schools_classic", "nuts"): 1,
    **{(CURVE, method): 1 for method in CURVE_METHODS},
}
#: The paper's networks are large and its rates small: its curves are longer.
LONGER = {(CURVE, "paper"): 4.0, (CURVE, "paper-prior-contrast"): 4.0}
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "knn_kl_qp", "knn_kl_pq", "c2st", "kl_exact", "elbo_error"),
    *("p_tau_positive", "mean_error_sd", "sd_ratio_min", "sd_ratio_max", "sliced_w2", "mmd_p_value"),
    *("rhat_max", "ess_min", "stage_kept", "verdict"),
)

PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (EIGHT_SCHOOLS_PAPER, EIGHT_SCHOOLS_CLASSIC)}
#: The ground truth of the paper's section 6.1: HMC of 500,000 transitions in all, warm-up included.
HMC_PAPER = Method(
    "hmc-paper",
    "HMC, 500,000 transitions (the paper's ground truth)",
    chains.hmc_paper,
    timed=False,
    curves=False,
    sources=chains.HMC_SOURCES,
)
METHODS: dict[str, Method] = ALL_METHODS | {HMC_PAPER.name: HMC_PAPER}


def run(job: Job) -> list[judging.Row]:
    """One job of the board: a fit judged, a control, or a curve."""
    quick = job.minutes <= runner.QUICK_MINUTES
    large, small = (QUICK_LARGE, QUICK_SMALL) if quick else (judging.LARGE, judging.SMALL)
    if job.target == CURVE:
        method = METHODS[job.method]
        seconds = 60.0 * job.minutes
        marks = np.geomspace(min(1.0, seconds / 20.0), seconds, CURVE_MARKS).tolist()
        return judging.curve(EIGHT_SCHOOLS_PAPER, method, job.seed, job.minutes, marks, CURVE)
    problem = PROBLEMS[job.target]
    if job.method in CONTROLS:
        return [control(problem, job.method, job.seed, large, small)]
    return [judging.measured(problem, METHODS[job.method], job.seed, job.minutes, large=large, small=small)]


def control(problem: Problem, name: str, seed: int, large: int, small: int) -> judging.Row:
    """The judges' own controls: exact draws, whole, with mu scaled by 1.1, with the modes weighted 60/40."""
    draws = problem.exact(large, judging.CONTROL_SEED + seed)
    if name == "control-scaled":
        draws = scaled(draws)
    elif name == "control-modes":
        draws = unevenly_weighted(draws, seed)
    return judging.control(problem, name, draws, seed, large=large, small=small)


def scaled(draws: Tensor) -> Tensor:
    """Draws (n, 10) with mu's deviations from its mean multiplied by 1.1."""
    mu = draws[:, :1]
    return torch.cat([mu.mean() + 1.1 * (mu - mu.mean()), draws[:, 1:]], -1)


def unevenly_weighted(draws: Tensor, seed: int) -> Tensor:
    """Draws (n, 10) of the paper's problem with 60 % of them in the mode of positive tau, in random order."""
    n = len(draws)
    sign = torch.where(torch.arange(n) < 0.6 * n, 1.0, -1.0) * draws[:, 1].sign()
    mirrored = torch.cat([draws[:, :1], draws[:, 1:] * sign[:, None]], -1)
    return mirrored[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records with the noise floor beside every figure; void classifier figures where a control was missed."""
    judging.add_floors(records)
    for target in PROBLEMS:
        mine = [r for r in records if r["target"] == target]
        controls = [r for r in mine if r["method"].startswith("control") and "error" not in r]
        # Asked of the figure as measured, since a saved row may have been voided before.
        seen = all(r["c2st"] is not None and r["c2st"] > 0.5 + 3 * r["c2st_stderr"] for r in controls)
        for r in mine:
            r["c2st_controls_seen"] = seen
            if not seen and "c2st" in r:
                r["c2st"] = None
    targets = {target: i for i, target in enumerate(BOARD)}
    methods = {method: i for i, method in enumerate((*PAPER_METHODS, *CONTROLS))}
    return sorted(records, key=lambda r: (targets[r["target"]], methods[r["method"]], r["seed"], _time(r)))


def _time(row: judging.Row) -> float:
    """Seconds within a curve; other rows have no order in time."""
    return float(row["seconds"]) if row["target"] == CURVE else 0.0


def jobs(settings: runner.Options) -> list[Job]:
    """The board's jobs that were asked for, long ones first."""
    chosen = [
        Job(target, method, seed, settings.minutes * LONGER.get((target, method), 1.0))
        for seed in range(settings.seeds)
        for target, methods in BOARD.items()
        for method in methods
        if settings.wants(target, method) and seed < MOST_SEEDS.get((target, method), settings.seeds)
    ]
    long = ("paper-long", "nuts")
    return sorted(chosen, key=lambda job: job.method not in long and (job.target, job.method) not in LONGER)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    settings = runner.options(__doc__, methods=(*PAPER_METHODS, *CONTROLS), targets=tuple(BOARD), arguments=arguments)
    return runner.run_jobs(
        NAME,
        jobs(settings),
        run,
        settings,
        keys=KEYS,
        finish=finished,
        missing=runner.missing_for(METHODS, PROBLEMS),
        sources=runner.sources_for(METHODS, PROBLEMS | {CURVE: EIGHT_SCHOOLS_PAPER}),
    )


if __name__ == "__main__":
    main()
