"""Simulation-based calibration of the default fit, on a conjugate model and on Eight Schools.

``python -m benchmarks.calibration [--seeds 100] [--minutes M] [--methods M ...] [--targets T ...] [--keep] [--quick]``

A "seed" is the number of a simulation: latents and data are drawn from the model, the data are fitted for so many
minutes, and the latents ranked among 999 draws (``avbvi.sbc``). Controls are ranked in the same way: exact draws, and
exact draws pulled towards their mean by a fifth. The file has a row for each simulation, and for each target and
method rows with ``statistic``: p-values, adjusted p-values and coverage of each statistic, and a total ("all").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

import avbvi
from avbvi.calibration import simulated
from avbvi.ranks import Calibration
from avbvi.simulations import Experiment, Simulation
from benchmarks import runner
from benchmarks.judging import Row
from benchmarks.methods import AVB_SOURCES
from benchmarks.runner import Job
from models import conjugate_normal, eight_schools

NAME = "calibration"
STUDY_SEED = 0
DRAWS = 999
QUICK_SIMULATIONS = 2
LEVELS = (0.5, 0.8, 0.95)
CONTROL_SCALE = 0.8
DEFAULT, EXACT, NARROW = "default", "exact", "control-narrow"
METHODS = (DEFAULT, EXACT, NARROW)
RANK = "rank "
KEYS = (
    *("target", "method", "fits", "statistic", "p", "p_adjusted", "coverage_50", "coverage_80", "coverage_95"),
    *("seed", "seconds", "steps", "verdict", "failure", "flagged"),
)


class Target(NamedTuple):
    """A model with its arguments, and exact draws (n, seed, y) of its posterior."""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    exact: Callable[[int, int, Tensor], dict[str, Tensor]]
    source: str


TARGETS = {
    "conjugate_normal": Target(
        conjugate_normal.model, (conjugate_normal.Y,), conjugate_normal.exact_posterior, "models/conjugate_normal.py"
    ),
    "eight_schools_paper": Target(
        eight_schools.model, eight_schools.paper_data(), eight_schools.exact_posterior, "models/eight_schools.py"
    ),
}


class Exact:
    """Exact draws of a target's posterior given the data in a conditioned model, pulled towards their mean."""

    def __init__(self, target: Target, conditioned: Callable[..., Any], seed: int, scale: float) -> None:
        trace = poutine.trace(conditioned).get_trace(*target.args)
        self._y: Tensor = trace.nodes["y"]["value"]
        self._target, self._seed, self._scale = target, seed, scale

    def sample(self, n: int) -> dict[str, Tensor]:
        """n draws by site."""
        draws = self._target.exact(n, self._seed, self._y)
        return {name: x.mean(0) + self._scale * (x - x.mean(0)) for name, x in draws.items()}


def run(job: Job) -> list[Row]:
    """One simulation of a study."""
    target = TARGETS[job.target]
    figures: Row = {}

    def fit(conditioned: Callable[..., Any], *args: Any, seed: int) -> Any:
        if job.method != DEFAULT:
            return Exact(target, conditioned, seed, CONTROL_SCALE if job.method == NARROW else 1.0)
        posterior = avbvi.fit(conditioned, *args, seed=seed, minutes=job.minutes, progress=False)
        figures["steps"] = posterior.run.steps
        figures["stage_kept"] = "adversarial" if posterior.guide.is_adversarial else "trunk"
        figures["k_hat"] = posterior.verdict.figures.get("k_hat")
        return posterior

    experiment = Experiment.prepare(
        target.model,
        target.args,
        {},
        observed=None,
        fit=fit,
        draws=DRAWS,
        seed=STUDY_SEED,
        statistics={},
        vectorize=True,
    )
    cpu = time.process_time()
    found = simulated(experiment, job.seed)
    cpu = time.process_time() - cpu
    if job.method == DEFAULT:
        # Controls are not timed, and a disturbed one is no worse.
        figures["cpu_seconds_with_verdict"] = cpu
    return [
        {
            "target": job.target,
            "method": job.method,
            "seed": job.seed,
            "device": "cpu",
            "seconds": found.seconds,
            "verdict": found.verdict,
            "failure": found.failure,
            **figures,
            **{f"{RANK}{name}": rank for name, rank in found.ranks.items()},
        }
    ]


def study(rows: Sequence[Row]) -> Calibration:
    """The rounds of one target and method as what ``avbvi.sbc`` returns (without the true values)."""
    rounds = []
    for row in sorted(rows, key=lambda row: row["seed"]):
        ranks = {name.removeprefix(RANK): rank for name, rank in row.items() if name.startswith(RANK)}
        failure = row.get("failure") or row.get("error")
        rounds.append(Simulation(row["seed"], {}, ranks, row.get("verdict"), failure, row["seconds"]))
    return Calibration(tuple(rounds), DRAWS, {}, STUDY_SEED)


def summaries(target: str, method: str, rows: Sequence[Row]) -> list[Row]:
    """Rows with ``statistic``: of all fits, and of those that called themselves ok."""
    whole = study(rows)
    parts = {"all": whole}
    if "ok" in whole.verdicts:
        parts["ok"] = whole.only("ok")
    found = []
    for fits, part in parts.items():
        if not part.completed:
            continue
        common = {
            "target": target,
            "method": method,
            "seed": None,
            "device": "cpu",
            "seconds": sum(s.seconds for s in part.simulations),
            "fits": fits,
            "simulations": len(part.simulations),
            "failures": len(part.failures),
            **{f"verdict_{status}": part.verdicts.get(status, 0) for status in ("ok", "suspect", "failed")},
        }
        smallest = min(part.adjusted_p_values.values())
        found.append({**common, "statistic": "all", "p_adjusted": smallest, "flagged": ", ".join(part.flagged)})
        for name in part.ranks:
            row = {**common, "statistic": name, "p": part.p_values[name], "p_adjusted": part.adjusted_p_values[name]}
            for level, covered in zip(LEVELS, part.coverage(LEVELS, [name]), strict=True):
                key = f"coverage_{100 * level:.0f}"
                row |= {key: covered.share, f"{key}_low": covered.low, f"{key}_high": covered.high}
            found.append(row)
    return found


def finished(records: list[Row]) -> list[Row]:
    """All simulations in order, and the summaries anew."""
    rounds = [row for row in records if "statistic" not in row]
    result = []
    for target in TARGETS:
        for method in METHODS:
            mine = [row for row in rounds if (row["target"], row["method"]) == (target, method)]
            if mine:
                result += sorted(mine, key=lambda row: row["seed"]) + summaries(target, method, mine)
    return result


def sources(job: Job) -> tuple[str, ...]:
    """The files that a simulation depends on."""
    own = (TARGETS[job.target].source, "avbvi/simulations.py")
    return (*own, *AVB_SOURCES) if job.method == DEFAULT else own


def jobs(settings: runner.Options) -> list[Job]:
    """The simulations that were asked for, fits first."""
    count = QUICK_SIMULATIONS if settings.quick else settings.seeds
    return [
        Job(target, method, i, settings.minutes)
        for method in METHODS
        for i in range(count)
        for target in TARGETS
        if settings.wants(target, method)
    ]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table."""
    torch.set_num_threads(1)
    settings = runner.options(
        __doc__, methods=METHODS, targets=tuple(TARGETS), seeds=100, minutes=1.0 / 6.0, arguments=arguments
    )
    return runner.run_jobs(NAME, jobs(settings), run, settings, keys=KEYS, finish=finished, sources=sources)


if __name__ == "__main__":
    main()
