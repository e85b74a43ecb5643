"""A user's sampler without density: a generator network of 64-d noise on Eight Schools, judged against exact draws.

``python -m benchmarks.own_sampler [--seeds 3] [--minutes 2] [--methods M ...] [--keep] [--quick]``

Once as a user gets it, behind an affine trunk, where the network has all the work; once behind a flow trunk, where
the flow may be kept instead; beside them the default sampler behind an affine trunk. Each run has one thread; see
``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

from typing import Any

from benchmarks import judging, runner
from benchmarks.methods import METHODS
from benchmarks.problems import EIGHT_SCHOOLS_PAPER, Problem
from benchmarks.runner import Job

NAME = "own_sampler"
QUICK_LARGE, QUICK_SMALL = 4_000, 2_000
BOARD_METHODS = ("own-sampler", "own-sampler-flow", "avb-pure")
FLOOR = "floor"
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "knn_kl_qp", "knn_kl_pq", "c2st", "elbo_error", "p_tau_positive"),
    *("mean_error_sd", "sd_ratio_min", "sd_ratio_max", "sliced_w2", "mmd_p_value", "stage_kept", "verdict"),
)
PROBLEMS: dict[str, Problem] = {EIGHT_SCHOOLS_PAPER.name: EIGHT_SCHOOLS_PAPER}


def run(job: Job) -> list[judging.Row]:
    """One job of the board."""
    quick = job.minutes <= runner.QUICK_MINUTES
    large, small = (QUICK_LARGE, QUICK_SMALL) if quick else (judging.LARGE, judging.SMALL)
    problem = PROBLEMS[job.target]
    if job.method == FLOOR:
        return [judging.floor(problem, job.seed, large=large, small=small)]
    return [judging.measured(problem, METHODS[job.method], job.seed, job.minutes, large=large, small=small)]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board, each with the noise floor."""
    judging.add_floors(records)
    methods = {name: i for i, name in enumerate((*BOARD_METHODS, FLOOR))}
    return sorted(records, key=lambda r: (r["target"], methods[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    settings = runner.options(
        __doc__,
        methods=(*BOARD_METHODS, FLOOR),
        targets=tuple(PROBLEMS),
        seeds=3,
        minutes=2.0,
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
