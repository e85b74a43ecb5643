"""Is the verdict right? Fits good and bad, on targets that took no part in setting its limits.

``python -m benchmarks.verdicts [--seeds 1] [--minutes 1] [--methods M ...] [--targets T ...] [--keep] [--quick]``

The limits (``avbvi.diagnostics.limits``) were set on the toy densities named in ``TUNING``; every other toy density,
both Eight Schools problems, posteriordb's entries, a correlated Gaussian, a Student-t and six targets of the robust
board are scored. All failures arise
by themselves: fits that were too short, or without trunk or whitening. ``--minutes`` is the most that a fit gets.

A fit is bad with KL > 0.3 (exact where log q and log Z are known, else by nearest neighbours) or a mean error > 0.3 sd,
and good with KL <= 0.1, mean errors <= 0.1 sd and sd ratios in 0.85 to 1.15 over all directions; what lies between may
be either. Bad fits called "ok" because of a mode that no start found are undetectable: listed, and left out of the
recall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

import avbvi
from avbvi.targets import Model
from benchmarks import judging, posteriordb, robust, runner
from benchmarks.fitting import Fitted, Method
from benchmarks.methods import AVB_SOURCES, METHODS, avb, trunk_elbo
from benchmarks.problems import EIGHT_SCHOOLS_CLASSIC, EIGHT_SCHOOLS_PAPER, Problem
from benchmarks.runner import Job
from benchmarks.toy_densities import problem as toy_problem
from models import posteriordb as entries
from models.correlated_normal import CorrelatedNormal
from models.toy_densities import TOYS, ToyDensity

NAME = "verdicts"
LARGE, SMALL = 10_000, 5_000
#: Toy densities on which the limits were set.
TUNING = (
    *("figure_1", "banana", "ring", "eight_modes", "cross", "two_moons", "funnel"),
    *("gaussian_20", "gaussian_50"),
)
BAD_KL, BAD_MEAN_ERROR = 0.3, 0.3
GOOD_KL, GOOD_MEAN_ERROR, GOOD_SD_RATIOS = 0.1, 0.1, (0.85, 1.15)
#: Share of the reference draws far from all of q's above which a region counts as missed, and how far is far.
MISSED_SHARE, FAR = 0.05, 5.0
KEYS = (
    *("target", "method", "seed", "seconds", "truth", "verdict", "right", "kl", "mean_error_sd", "sd_ratio_min"),
    *("sd_ratio_max", "c2st", "missed_share", "modes_lost"),
)


def _identity_guide(model: Model) -> avbvi.AVBGuide:
    """The default guide in the latent coordinates as they are: neither whitened nor given a flow."""
    return avbvi.AVBGuide(model, trunk=avbvi.IdentityTrunk())


#: Name of a way to fit -> how, and seconds. Draws are the guide's own, which are what a verdict speaks of.
FITS: dict[str, tuple[Callable[..., Fitted], float]] = {
    "default-5s": (partial(avb, raw=True), 5.0),
    "default-20s": (partial(avb, raw=True), 20.0),
    "trunk-only-5s": (partial(avb, elbo=trunk_elbo, raw=True), 5.0),
    "avb-pure-5s": (METHODS["avb-pure"].fit, 5.0),
    "avb-pure-20s": (METHODS["avb-pure"].fit, 20.0),
    "identity-5s": (partial(avb, guide=_identity_guide, raw=True), 5.0),
    "paper-20s": (METHODS["paper"].fit, 20.0),
}
#: Targets of the robust board that are scored too.
ROBUST = ("bananas_10d", "thin_ring", "soft_square", "logistic_31", "hierarchical", "student_50")


# -- targets ------------------------------------------------------------------------------------------------


def _student_t(dim: int, freedom: float) -> Problem:
    """A Student-t with independent scales from 0.1 to 10, normalised."""
    scales = torch.logspace(-1.0, 1.0, dim, dtype=torch.float64)

    log_z = math.lgamma(0.5 * freedom) - math.lgamma(0.5 * (freedom + dim)) + 0.5 * dim * math.log(freedom * math.pi)
    log_z += float(scales.log().sum())

    def log_prob(z: Tensor) -> Tensor:
        square = (z / scales.to(z)).square().sum(-1) / freedom
        return -0.5 * (freedom + dim) * square.log1p() - log_z

    def draw(n: int, generator: torch.Generator) -> Tensor:
        normal = torch.randn(n, dim, generator=generator, dtype=torch.float64)
        gamma = torch._standard_gamma(torch.full((n, 1), 0.5 * freedom, dtype=torch.float64), generator=generator)
        return scales * normal * (0.5 * freedom / gamma).sqrt()

    return toy_problem(ToyDensity(f"student_t_{dim}", dim, log_prob, draw, 0.0))


def _correlated(dim: int) -> Problem:
    normal = CorrelatedNormal(dim)
    return toy_problem(ToyDensity(f"gaussian_{dim}", dim, normal.log_prob, normal.draw, normal.log_evidence))


#: Targets by name; a new one needs nothing but an entry here, and a new toy density not even that.
PROBLEMS: dict[str, Callable[[], Problem]] = {
    **{name: partial(toy_problem, toy) for name, toy in TOYS.items() if name not in TUNING},
    "eight_schools_paper": lambda: EIGHT_SCHOOLS_PAPER,
    "eight_schools_classic": lambda: EIGHT_SCHOOLS_CLASSIC,
    "gaussian_10": partial(_correlated, 10),
    "student_t_10": partial(_student_t, 10, 5.0),
    **{name: partial(robust.problem, name) for name in ROBUST},
}


def problems() -> dict[str, Callable[[], Problem]]:
    """All targets, posteriordb's among them where the folder is there."""
    try:
        names = posteriordb.entries()
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        names = []
    return PROBLEMS | {name: partial(_entry, name) for name in names}


def _entry(name: str) -> Problem:
    return posteriordb.problem(entries.load(name))


# -- truth --------------------------------------------------------------------------------------------------


def truth(row: judging.Row) -> str:
    """ "bad", "good" or "between", from a record's figures; "unknown" if it was not judged."""
    kl, error = row.get("kl"), row.get("mean_error_sd")
    if kl is None or error is None:
        return "unknown"
    if not (kl <= BAD_KL and error <= BAD_MEAN_ERROR):
        return "bad"
    low, high = GOOD_SD_RATIOS
    close = low <= row["sd_ratio_min"] and row["sd_ratio_max"] <= high
    return "good" if kl <= GOOD_KL and error <= GOOD_MEAN_ERROR and close else "between"


def missed_share(x: Tensor, y: Tensor, most: int = 2000) -> float:
    """Share of the reference draws y (m, d) five times as far from draws x (n, d) of a fit as from their own kind.

    Distances are to the nearest neighbour, in coordinates in which y is white; the median over y's own is the unit.
    """
    u, v = judging.whitened(x[:most].double(), y[:most].double())
    own = torch.cdist(v, v).fill_diagonal_(torch.inf).amin(1)
    return float((torch.cdist(v, u).amin(1) > FAR * torch.maximum(own, own.median())).double().mean())


def right(row: judging.Row) -> str:
    """ "yes", "missed", "undetectable", "false alarm", or "" where there is no telling."""
    doubted = row.get("verdict") != "ok"
    if row.get("truth") == "bad" and not doubted:
        # Modes that the start had found count: the verdict was told of them.
        unseen = row.get("missed_share", 0.0) > MISSED_SHARE and row.get("modes_found", 0.0) < 2.0
        return "undetectable" if unseen else "missed"
    if row.get("truth") == "good" and doubted:
        return "false alarm"
    return "yes" if row.get("truth") in ("good", "bad") else ""


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact confidence interval of a proportion (Clopper and Pearson 1934); (0, 1) without trials.

    Raises:
        ValueError: more successes than trials, or a level outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0 to {trials}, found {successes}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    tail = 0.5 * (1.0 - level)
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1.0 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def summary(records: Sequence[judging.Row]) -> dict[str, Any]:
    """Recall among bad fits and false alarms among good ones, each with its exact 95 % interval, and the counts."""
    outcomes = [(row.get("truth"), right(row)) for row in records]
    bad = sum(kind == "bad" and outcome != "undetectable" for kind, outcome in outcomes)
    found = sum(kind == "bad" and outcome == "yes" for kind, outcome in outcomes)
    good = sum(kind == "good" for kind, _ in outcomes)
    alarms = sum(outcome == "false alarm" for _, outcome in outcomes)
    return {
        "bad": bad,
        "found": found,
        "recall": found / bad if bad else None,
        "recall_interval": clopper_pearson(found, bad),
        "good": good,
        "false_alarms": alarms,
        "false_alarm_rate": alarms / good if good else None,
        "false_alarm_interval": clopper_pearson(alarms, good),
        "undetectable": [
            f"{row['target']}/{row['method']}/{row['seed']}" for row in records if right(row) == "undetectable"
        ],
        "between": sum(kind == "between" for kind, _ in outcomes),
        "unknown": sum(kind in ("unknown", None) for kind, _ in outcomes),
    }


# -- the board ----------------------------------------------------------------------------------------------


def method(name: str) -> Method:
    """A way to fit, for its own seconds or the minutes given, whichever is less."""
    fit, seconds = FITS[name]

    def timed(problem: Problem, seed: int, minutes: float, snapshots: Sequence[float]) -> Fitted:
        return fit(problem, seed, min(minutes, seconds / 60.0), snapshots)

    return Method(name, name, timed, sources=AVB_SOURCES)


def run(job: Job) -> list[judging.Row]:
    """One job of the board."""
    make = PROBLEMS.get(job.target, partial(_entry, job.target))
    problem, done = make(), list[Fitted]()
    ways = method(job.method)

    def remembered(problem: Problem, seed: int, minutes: float, snapshots: Sequence[float]) -> Fitted:
        done.append(ways.fit(problem, seed, minutes, snapshots))
        return done[0]

    row = judging.measured(
        problem, Method(ways.name, ways.label, remembered), job.seed, job.minutes, large=LARGE, small=SMALL
    )
    if "knn_kl_qp" in row:
        row["kl"] = row.get("kl_exact", row["knn_kl_qp"])
        draws = problem.matrix(done[0].sample(LARGE))
        row["missed_share"] = missed_share(draws, problem.exact(LARGE, judging.REFERENCE_SEED + job.seed))
    row["truth"] = truth(row)
    row["right"] = right(row)
    return [row]


def finished(records: list[judging.Row]) -> list[judging.Row]:
    """Records in the order of the board."""
    methods = {name: i for i, name in enumerate(FITS)}
    return sorted(records, key=lambda r: (r["target"], methods[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table and the summary."""
    targets = problems()
    settings = runner.options(
        __doc__, methods=tuple(FITS), targets=tuple(targets), seeds=1, minutes=1.0, arguments=arguments
    )
    jobs = settings.jobs(targets, FITS)
    records = runner.run_jobs(
        NAME,
        jobs,
        run,
        settings,
        keys=KEYS,
        finish=finished,
        sources=lambda job: AVB_SOURCES,
    )
    for name, value in summary(records).items():
        print(f"{name}: {value}")
    return records


if __name__ == "__main__":
    main()
