"""Real posteriors: every method on posteriordb's entries on disk, judged against its reference draws.

``python -m benchmarks.posteriordb [--seeds 2] [--minutes .5] [--methods M ...] [--targets T ...] [--keep] [--quick]``

Any entry in the folder that ``models.posteriordb.MODELS`` has a model for takes part. The noise floor is what the
first half of the reference chains reads against the second. Each run has one thread; see ``benchmarks.runner``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import judging, runner
from benchmarks.methods import METHODS
from benchmarks.problems import Problem
from benchmarks.runner import Job
from models import posteriordb

NAME = "posteriordb"
BOARD_METHODS = (
    *("default", "avb-pure", "trunk-only", "nsf", "iaf-stl"),
    *("advi-fullrank", "advi-lowrank", "advi-meanfield", "hmc", "nuts"),
)
FLOOR = "floor"
MOST_SEEDS = {"nuts": 1, FLOOR: 1}
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "mean_error_sd", "sd_ratio_min", "sd_ratio_max", "knn_kl_qp"),
    *("knn_kl_pq", "sliced_w2", "mmd_p_value", "c2st", "rhat_max", "ess_min", "stage_kept", "verdict"),
)


class References:
    """The reference draws of an entry in judging coordinates, in random order."""

    def __init__(self, entry: posteriordb.Entry) -> None:
        self.matrix = entry.matrix(entry.reference)

    def __call__(self, n: int, seed: int) -> Tensor:
        """At most n of them (m, d)."""
        order = torch.randperm(len(self.matrix), generator=torch.Generator().manual_seed(seed))
        return self.matrix[order[:n]]


def problem(entry: posteriordb.Entry) -> Problem:
    """An entry of posteriordb as a problem, judged in unconstrained coordinates."""
    return Problem(
        entry.name,
        entry.model,
        exact=References(entry),
        matrix=entry.matrix,
        args=entry.args,
        columns=entry.columns,
        whitened=True,
        sources=("models/posteriordb.py", "models/eight_schools.py"),
    )


def entries() -> list[str]:
    """Names of the entries on disk that have a model."""
    return [name for name in posteriordb.names() if name in posteriordb.MODELS]


def run(job: Job) -> list[judging.Row]:
    """One job of the board."""
    entry = posteriordb.load(job.target)
    target = problem(entry)
    if job.method == FLOOR:
        first, second = (entry.matrix(half) for half in entry.chains)
        return [judging.control(target, FLOOR, first, job.seed, reference=second)]
    return [judging.measured(target, METHODS[job.method], job.seed, job.minutes)]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board, each with its target's noise floor."""
    judging.add_floors(records)
    methods = {name: i for i, name in enumerate((*BOARD_METHODS, FLOOR))}
    return sorted(records, key=lambda r: (r["target"], methods[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    try:
        targets = entries()
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        return []
    settings = runner.options(
        __doc__, methods=(*BOARD_METHODS, FLOOR), targets=targets, seeds=2, minutes=0.5, arguments=arguments
    )
    jobs = settings.jobs(targets, (*BOARD_METHODS, FLOOR), MOST_SEEDS)
    problems = {name: problem(posteriordb.load(name)) for name in targets}
    return runner.run_jobs(
        NAME,
        sorted(jobs, key=lambda job: job.method != "nuts"),
        run,
        settings,
        keys=KEYS,
        finish=finished,
        missing=runner.missing_for(METHODS, problems),
        sources=runner.sources_for(METHODS, problems),
    )


if __name__ == "__main__":
    main()
