"""Separated modes, thin shapes, many dimensions: the untuned default beside the best flows, at equal time.

``python -m benchmarks.robust [--seeds 5] [--minutes M] [--methods M ...] [--targets T ...] [--keep] [--quick]``

The default runs on all seeds, its rivals on two, for a quarter of a minute in the plane and a third in more
dimensions unless ``--minutes`` says otherwise. Targets without exact draws are judged against a long HMC run, made on
first use and kept in ``benchmarks/.cache``; ``--quick`` takes some targets that need none. Each run has one thread;
see ``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import avbvi
from benchmarks import judging, runner, tables
from benchmarks.methods import METHODS
from benchmarks.problems import Draws, Problem, no_figures, stacked
from benchmarks.references import HMCReference
from benchmarks.runner import Job
from models.high_dimensional import HIGH_DIMENSIONAL
from models.regressions import breast_cancer, counties, hierarchical_model, logistic_model
from models.toy_densities import TOYS, ToyDensity
from models.toy_shapes import MODES, SHAPES

NAME = "robust"
LARGE, SMALL = 20_000, 10_000
#: Draws for moments and weights of modes: with as many, exact draws hold the sd ratios of 100 dimensions to 1 +- .07.
MOMENTS = 50_000
BOARD_METHODS = ("default", "all-stages", "trunk-only", "avb-pure", "nsf", "iaf-stl", "hmc")
FLOOR = "floor"
#: Methods that run on fewer seeds than the board's.
MOST_SEEDS = {"all-stages": 2, "trunk-only": 2, "avb-pure": 2, "nsf": 2, "iaf-stl": 2, "hmc": 1}
PLANE_MINUTES, HIGH_MINUTES = 0.25, 1.0 / 3.0
SEPARATED = ("eight_modes_05", "eight_modes_02", "bananas_10d")
IN_THE_PLANE = ("two_moons", "cross", "thin_ring", "soft_square")
LOGISTIC = ("logistic_31", "logistic_61")
HIGH = (*LOGISTIC, "hierarchical", "gaussian_100", "student_50", "funnel")
TARGETS = (*SEPARATED, *IN_THE_PLANE, *HIGH)
MINUTES = dict.fromkeys(("bananas_10d", *HIGH), HIGH_MINUTES)
QUICK_TARGETS = ("eight_modes_05", "bananas_10d", "thin_ring", "gaussian_100")
QUICK_METHODS = ("default", "trunk-only", "nsf", "iaf-stl", FLOOR)
KEYS = (
    *("target", "method", "seed", "seconds", "steps", "knn_kl_qp", "knn_kl_pq", "c2st", "kl_exact", "elbo_error"),
    *("mean_error_sd", "sd_ratio_min", "sd_ratio_max", "mode_weight_error", "modes_lost", "stage_kept"),
    *("stage_difference", "stage_difference_stderr", "k_hat", "rhat_max", "verdict"),
)
_SCALES = ("tau_intercept", "tau_slope", "sigma")
_REGRESSION_SOURCES = ("models/regressions.py",)


def density_problem(toy: ToyDensity) -> Problem:
    """A density with exact draws, as a log-density that a user hands over, judged in whitened coordinates."""
    modes = MODES.get(toy.name)
    module = "high_dimensional" if toy.name in HIGH_DIMENSIONAL else "toy_shapes"
    return Problem(
        toy.name,
        avbvi.LogDensity(toy.log_prob, event_shape=(toy.dim,)),
        exact=toy.sample,
        matrix=lambda draws: stacked(draws, "z"),
        log_z=toy.log_evidence,
        figures=no_figures if modes is None else modes.figures,
        columns=tuple(f"z[{i + 1}]" for i in range(toy.dim)),
        whitened=True,
        sources=("models/toy_densities.py", f"models/{module}.py"),
    )


def logistic_matrix(draws: Draws) -> Tensor:
    """The coefficients, (n, d)."""
    return stacked(draws, "w")


def hierarchical_matrix(draws: Draws) -> Tensor:
    """Means, logarithms of the scales, standardised intercepts and slopes of the groups: (n, 65)."""
    scales = stacked(draws, *_SCALES).log()
    return torch.cat([stacked(draws, "mu_intercept", "mu_slope"), scales, stacked(draws, "intercept", "slope")], -1)


@cache
def reference(target: str) -> HMCReference | None:
    """Where a posterior's reference draws come from; None for a target with exact ones.

    Raises:
        ImportError: it needs scikit-learn's data, which is not installed.
    """
    if target in LOGISTIC:
        data = breast_cancer(squares=target == "logistic_61")
        return HMCReference(target, logistic_model, data, logistic_matrix, _REGRESSION_SOURCES)
    if target == "hierarchical":
        arguments = counties().arguments
        return HMCReference(target, hierarchical_model, arguments, hierarchical_matrix, _REGRESSION_SOURCES)
    return None


@cache
def problem(target: str) -> Problem:
    """A target of the board by name.

    Raises:
        KeyError: there is no such target.
        ImportError: it needs scikit-learn's data, which is not installed.
    """
    known = reference(target)
    if known is None:
        return density_problem({**TOYS, **SHAPES, **HIGH_DIMENSIONAL}[target])
    return Problem(
        target,
        known.model,
        exact=known,
        matrix=known.matrix,
        args=known.args,
        whitened=True,
        sources=known.sources,
    )


def missing(job: Job) -> str | None:
    """What a job lacks here."""
    if job.target in LOGISTIC and find_spec("sklearn") is None:
        return "scikit-learn, which has the data, is not installed"
    method = METHODS.get(job.method)
    return None if method is None else method.missing(problem(job.target))


def run(job: Job) -> list[judging.Row]:
    """One job of the board."""
    target = problem(job.target)
    if job.method != FLOOR:
        method = METHODS[job.method]
        return [judging.measured(target, method, job.seed, job.minutes, large=LARGE, small=SMALL, moments=MOMENTS)]
    known = reference(job.target)
    if known is None:
        return [judging.floor(target, job.seed, large=LARGE, small=SMALL, moments=MOMENTS)]
    first, second = known.halves(job.seed)
    row = judging.control(target, FLOOR, first, job.seed, large=LARGE, small=SMALL, reference=second)
    return [row | known.figures]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board, each with its target's noise floor."""
    judging.add_floors(records)
    targets = {name: i for i, name in enumerate(TARGETS)}
    methods = {name: i for i, name in enumerate((*BOARD_METHODS, FLOOR))}
    return sorted(records, key=lambda r: (targets[r["target"]], methods[r["method"]], r["seed"]))


def chosen(settings: runner.Options) -> list[Job]:
    """The jobs that the command line asks for, those of the longest fits first."""
    targets = QUICK_TARGETS if settings.quick and not settings.targets else TARGETS
    methods = QUICK_METHODS if settings.quick and not settings.methods else (*BOARD_METHODS, FLOOR)
    jobs = settings.jobs(targets, methods, MOST_SEEDS)
    return sorted(jobs, key=lambda job: (job.method == FLOOR, -job.minutes))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print all figures and how the default compares with the best flow."""
    settings = runner.options(
        __doc__,
        methods=(*BOARD_METHODS, FLOOR),
        targets=TARGETS,
        seeds=5,
        minutes=PLANE_MINUTES,
        minutes_by_target=MINUTES,
        arguments=arguments,
    )
    jobs = chosen(settings)
    possible = [name for name in TARGETS if any(job.target == name and missing(job) is None for job in jobs)]
    for name in possible:  # here, and not by several workers at once
        known = reference(name)
        if known is not None:
            known.prepare()
    records = runner.run_jobs(
        NAME,
        jobs,
        run,
        settings,
        keys=KEYS,
        finish=finished,
        missing=missing,
        sources=runner.sources_for(METHODS, {name: problem(name) for name in possible}),
    )
    for judge, (title, _, _) in tables.RIVAL_JUDGES.items():
        print(f"\n{title}\n{tables.against_flows(records, judge)}")
    return records


if __name__ == "__main__":
    main()
