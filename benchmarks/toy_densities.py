"""Small known densities: every method on the field's usual shapes, judged against exact draws.

``python -m benchmarks.toy_densities [--seeds 2] [--minutes .25] [--methods M ...] [--targets T ...] [--keep]``

The targets are those of ``models.toy_densities``; the AVB paper's Figure 1 is represented by a stand-in, as its
formula was not published. Each run has one thread; see ``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

from typing import Any

import avbvi
from benchmarks import judging, runner
from benchmarks.methods import METHODS
from benchmarks.problems import Problem, stacked
from benchmarks.runner import Job
from models.toy_densities import TOYS, ToyDensity

NAME = "toy_densities"
LARGE, SMALL = 20_000, 10_000
BOARD_METHODS = (
    *("default", "avb-pure", "trunk-only", "nsf", "iaf-stl"),
    *("advi-fullrank", "advi-meanfield", "hmc"),
)
FLOOR = "floor"
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "knn_kl_qp", "knn_kl_pq", "c2st", "kl_exact", "elbo_error"),
    *("mean_error_sd", "sd_ratio_min", "sd_ratio_max", "sliced_w2", "mmd_p_value", "stage_kept", "verdict"),
)


def problem(toy: ToyDensity) -> Problem:
    """A toy density as a log-density that a user hands over, judged in its own coordinates."""
    return Problem(
        toy.name,
        avbvi.LogDensity(toy.log_prob, event_shape=(toy.dim,)),
        exact=toy.sample,
        matrix=lambda draws: stacked(draws, "z"),
        log_z=toy.log_evidence,
        columns=tuple(f"z[{i + 1}]" for i in range(toy.dim)),
        whitened=True,
        sources=("models/toy_densities.py", "models/correlated_normal.py"),
    )


PROBLEMS: dict[str, Problem] = {toy.name: problem(toy) for toy in TOYS.values()}


def run(job: Job) -> list[judging.Row]:
    """One job of the board."""
    target = PROBLEMS[job.target]
    if job.method == FLOOR:
        return [judging.floor(target, job.seed, large=LARGE, small=SMALL)]
    return [judging.measured(target, METHODS[job.method], job.seed, job.minutes, large=LARGE, small=SMALL)]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board, each with its target's noise floor."""
    judging.add_floors(records)
    targets = {name: i for i, name in enumerate(PROBLEMS)}
    methods = {name: i for i, name in enumerate((*BOARD_METHODS, FLOOR))}
    return sorted(records, key=lambda r: (targets[r["target"]], methods[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    settings = runner.options(
        __doc__,
        methods=(*BOARD_METHODS, FLOOR),
        targets=tuple(PROBLEMS),
        seeds=2,
        minutes=0.25,
        arguments=arguments,
    )
    jobs = settings.jobs(PROBLEMS, (*BOARD_METHODS, FLOOR))
    return runner.run_jobs(
        NAME,
        jobs,
        run,
        settings,
        keys=KEYS,
        finish=finished,
        missing=runner.missing_for(METHODS, PROBLEMS),
        sources=runner.sources_for(METHODS, PROBLEMS),
    )


if __name__ == "__main__":
    main()
