"""The stopping rule: false alarms and overshoot on synthetic and real ELBO traces.

``python -m benchmarks.stopping [--traces 300] [--steps 5000] [--seeds 1] [--quick]``

A synthetic trace is a known mean curve, LENGTH steps long, plus noise. A rule that stops at a step where the mean is
more than TOLERANCE nats from its limit gives a false alarm; the share is of all traces, with a Clopper-Pearson
interval. Overshoot is the steps used over those needed: the step after which the mean stays within TOLERANCE of its
limit, or the rule's first look if that is later; medians are over the traces of a cell, and in the printed tables over
cells. "decided" is the share of traces with a stop among those that needed at most a quarter of their length.

Families ``power-quarter``, ``drift``, ``swing`` and ``plateau`` break what the rule assumes (an approach no slower
than n^-1/2, begun at once) and are reported apart: a curve that has been flat so far can't be told from one at its
limit. ``moving-average``, the usual rule, stops when the means of two successive blocks of 500 steps differ by less
than TOLERANCE.

Windows, number of batches and confidence were chosen on other seeds of the families exponential, two-rates, power-half,
power-one and damped with normal, t3 and ar noise; all else was first seen with the constants fixed.

Real traces: trunks fitted by the plain ELBO at a constant learning rate, the target annealed over the first ANNEALED
steps, which the rule does not see. Their limit is the mean over the last quarter, their level at the stop the mean over
the 500 steps around it; the difference is given with its standard error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer import SVI
from scipy.signal import lfilter
from scipy.stats import beta

import avbvi
from benchmarks import record
from benchmarks.peak_memory import PeakMemory
from benchmarks.problems import EIGHT_SCHOOLS_PAPER, Problem
from benchmarks.toy_densities import PROBLEMS

Array = NDArray[np.float64]
Random = np.random.Generator
Row = dict[str, Any]

NAME = "stopping"
LENGTH = 40_000
TOLERANCE = 0.05
ANNEALED = 1000
BLOCK = 500
REAL = (EIGHT_SCHOOLS_PAPER, PROBLEMS["banana"], PROBLEMS["two_moons"])
STEPS = np.arange(1, LENGTH + 1.0)
KEYS = ("target", "method", "traces", "false_alarms", "rate", "rate_low", "rate_high", "decided", "overshoot")
REAL_KEYS = ("target", "method", "seed", "seconds", "steps", "stopped_at", "gap", "gap_stderr", "noise_sd", "kl")


# -- synthetic traces: what is missing to the limit, as a function of the step -------------------------------


def _height(random: Random) -> float:
    return float(10.0 ** random.uniform(0.0, 2.0))


def exponential(random: Random) -> Array:
    return _height(random) * np.exp(-STEPS / 10.0 ** random.uniform(2.0, 3.5))


def two_rates(random: Random) -> Array:
    """A twentieth of the gain, give or take, comes three to ten times more slowly."""
    rate, slower = 10.0 ** random.uniform(2.0, 3.0), 10.0 ** random.uniform(0.5, 1.0)
    share = 0.05 * 10.0 ** random.uniform(-0.5, 0.5)
    return _height(random) * (np.exp(-STEPS / rate) + share * np.exp(-STEPS / (slower * rate)))


def stretched(random: Random) -> Array:
    return _height(random) * np.exp(-np.sqrt(STEPS / 10.0 ** random.uniform(1.0, 2.5)))


def power(exponent: float) -> Callable[[Random], Array]:
    """C (n + n0)^-exponent, C between 1 and 10 times .05 n^exponent at n = 1000."""

    def curve(random: Random) -> Array:
        scale = TOLERANCE * 10.0 ** random.uniform(0.0, 1.0)
        return scale * ((STEPS + 10.0 ** random.uniform(0.0, 2.0)) / 1000.0) ** -exponent

    return curve


def damped(random: Random) -> Array:
    rate = 10.0 ** random.uniform(2.5, 3.5)
    phase = 2.0 * math.pi * STEPS / (rate * 10.0 ** random.uniform(-1.0, 0.5)) + random.uniform(0.0, 2.0 * math.pi)
    return _height(random) * np.exp(-STEPS / rate) * 0.5 * (1.0 + np.cos(phase))


def settling(random: Random) -> Array:
    """Rises above its limit, and comes back down more slowly."""
    rate = 10.0 ** random.uniform(2.0, 3.0)
    return _height(random) * (1.5 * np.exp(-STEPS / rate) - 0.5 * np.exp(-STEPS / (3.0 * rate)))


def drift(random: Random) -> Array:
    """A straight line up to the limit."""
    return _height(random) * np.maximum(0.0, 1.0 - STEPS / 10.0 ** random.uniform(3.5, 4.5))


def swing(random: Random) -> Array:
    period = 10.0 ** random.uniform(2.0, 5.0)
    return _height(random) * np.sin(2.0 * math.pi * STEPS / period + random.uniform(0.0, 2.0 * math.pi))


def plateau(random: Random) -> Array:
    """Converged but for a last gain that comes at once, late."""
    return exponential(random) + _height(random) * np.less(STEPS, 10.0 ** random.uniform(3.5, 4.5))


GUARDED: dict[str, Callable[[Random], Array]] = {
    "exponential": exponential,
    "two-rates": two_rates,
    "stretched": stretched,
    "power-half": power(0.5),
    "power-one": power(1.0),
    "damped": damped,
    "settling": settling,
}
BEYOND: dict[str, Callable[[Random], Array]] = {
    "power-quarter": power(0.25),
    "drift": drift,
    "swing": swing,
    "plateau": plateau,
}


def _normal(random: Random, sd: float) -> Array:
    return random.normal(0.0, sd, LENGTH)


def _autoregressive(random: Random, sd: float, correlation: float) -> Array:
    """Stationary from the first step on."""
    steps = random.normal(0.0, sd * math.sqrt(1.0 - correlation**2), LENGTH)
    steps[0] = random.normal(0.0, sd)
    filtered: Array = lfilter([1.0], [1.0, -correlation], steps)
    return filtered


#: (what is missing, generator) -> errors; standard deviations are in the names.
NOISES: dict[str, Callable[[Array, Random], Array]] = {
    "normal-.03": lambda missing, random: _normal(random, 0.03),
    "normal-.3": lambda missing, random: _normal(random, 0.3),
    "normal-1": lambda missing, random: _normal(random, 1.0),
    "normal-100": lambda missing, random: _normal(random, 100.0),
    "t3-.3": lambda missing, random: random.standard_t(3.0, LENGTH) * (0.3 / math.sqrt(3.0)),
    "ar.9-.1": lambda missing, random: _autoregressive(random, 0.1, 0.9),
    "ar.99-.03": lambda missing, random: _autoregressive(random, 0.03, 0.99),
    "shrinking": lambda missing, random: random.normal(0.0, 1.0, LENGTH) * np.hypot(0.05, 0.3 * np.sqrt(abs(missing))),
}


# -- rules and figures ----------------------------------------------------------------------------------------


def moving_average(trace: Array) -> int | None:
    """The step at which two successive blocks differ by less than TOLERANCE."""
    means = trace[: len(trace) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(1)
    close = np.flatnonzero(np.abs(np.diff(means)) < TOLERANCE)
    return int(close[0] + 2) * BLOCK if len(close) else None


#: Rule -> (step at which it stops on a trace, its first look).
RULES: dict[str, tuple[Callable[[Array], int | None], int]] = {
    "stopping": (lambda trace: avbvi.Stopping(TOLERANCE).first_stop(trace), 1024),
    "moving-average": (moving_average, 2 * BLOCK),
}


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial probability (Clopper and Pearson 1934)."""
    tail = 0.5 * (1.0 - level)
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1.0 - tail, hits + 1, trials - hits))
    return low, high


def needed(missing: Array) -> int:
    """The first step from which on the mean stays within TOLERANCE of its limit; LENGTH + 1 where there is none."""
    off = np.flatnonzero(np.abs(missing) > TOLERANCE)
    return int(off[-1]) + 2 if len(off) else 1


def measured(family: str, noise: str, traces: int, seed: int) -> list[Row]:
    """One cell of the board: false alarms and overshoot of each rule."""
    curves = GUARDED | BEYOND
    start = time.perf_counter()
    outcomes: dict[str, list[tuple[int | None, bool, int]]] = {rule: [] for rule in RULES}
    with PeakMemory() as peak:
        for i in range(traces):
            random = np.random.default_rng([seed, list(curves).index(family), list(NOISES).index(noise), i])
            missing = curves[family](random)
            trace = NOISES[noise](missing, random) - missing
            for rule, (stops, first) in RULES.items():
                stop = stops(trace)
                false = stop is not None and abs(missing[stop - 1]) > TOLERANCE
                outcomes[rule].append((stop, false, max(needed(missing), first)))
    seconds = time.perf_counter() - start
    return [
        {
            "target": f"{family} {noise}",
            "family": family,
            "noise": noise,
            "guarded": family in GUARDED,
            "method": rule,
            "seed": seed,
            "device": "cpu",
            "seconds": seconds,
            "peak_bytes": peak.bytes,
            **_figures(outcomes[rule]),
        }
        for rule in RULES
    ]


def _figures(outcomes: list[tuple[int | None, bool, int]]) -> Row:
    false = sum(is_false for _, is_false, _ in outcomes)
    over = [stop / need for stop, is_false, need in outcomes if stop is not None and not is_false]
    early = [stop is not None for stop, _, need in outcomes if need <= LENGTH // 4]
    low, high = clopper_pearson(false, len(outcomes))
    return {
        "traces": len(outcomes),
        "false_alarms": false,
        "rate": false / len(outcomes),
        "rate_low": low,
        "rate_high": high,
        "stops": len(over) + false,
        "early": len(early),
        "decided": float(np.mean(early)) if early else None,
        "overshoot": float(np.median(over)) if over else None,
        "overshoot_90": float(np.quantile(over, 0.9)) if over else None,
    }


def pooled(rows: Sequence[Row], key: str) -> list[Row]:
    """Rates over all cells that agree in ``key`` and rule."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row[key], row["method"]), []).append(row)
    table = []
    for (target, rule), group in groups.items():
        false, traces, early = (sum(row[name] for row in group) for name in ("false_alarms", "traces", "early"))
        low, high = clopper_pearson(false, traces)
        decided = sum(row["decided"] * row["early"] for row in group if row["early"])
        overshoots = [row["overshoot"] for row in group if row["overshoot"] is not None]
        table.append(
            {
                "target": target,
                "method": rule,
                "traces": traces,
                "false_alarms": false,
                "rate": false / traces,
                "rate_low": low,
                "rate_high": high,
                "decided": decided / early if early else None,
                "overshoot": float(np.median(overshoots)) if overshoots else None,
            }
        )
    return table


# -- real traces ----------------------------------------------------------------------------------------------


def real_trace(problem: Problem, steps: int, seed: int) -> Array:
    """ELBO estimates of a trunk's fit at a constant learning rate, after annealing, (steps,)."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    schedule = avbvi.Schedule(trunk=1.0, anneal=ANNEALED / (steps + ANNEALED), decay=False)
    elbo = avbvi.AdversarialELBO(steps=steps + ANNEALED, schedule=schedule)
    svi = SVI(problem.model, avbvi.AVBGuide(problem.model), elbo.optimizer(), elbo)
    with pyro.validation_enabled(False):
        return np.array([-svi.step(*problem.args) for _ in range(steps + ANNEALED)])[ANNEALED:]


def judged(problem: Problem, steps: int, seed: int) -> list[Row]:
    """What each rule makes of one real trace."""
    start = time.perf_counter()
    with PeakMemory() as peak:
        trace = real_trace(problem, steps, seed)
    seconds = time.perf_counter() - start
    limit = trace[-len(trace) // 4 :]
    rows = []
    for rule, (stops, _) in RULES.items():
        stop = stops(trace)
        row = {
            "target": problem.name,
            "family": "real",
            "method": rule,
            "seed": seed,
            "device": "cpu",
            "seconds": seconds,
            "peak_bytes": peak.bytes,
            "steps": steps,
            "stopped_at": stop,
            "limit": limit.mean(),
            "noise_sd": limit.std(),
            "kl": None if problem.log_z is None else problem.log_z - limit.mean(),
        }
        if stop is not None:
            near = trace[max(stop - 250, 0) : stop + 250]
            gap = limit.mean() - near.mean()
            error = math.hypot(_batch_stderr(near), _batch_stderr(limit))
            row |= {"gap": gap, "gap_stderr": error, "false_alarm": bool(abs(gap) > TOLERANCE)}
        rows.append(row)
    return rows


def _batch_stderr(values: Array, batches: int = 10) -> float:
    means = values[: len(values) // batches * batches].reshape(batches, -1).mean(1)
    return float(means.std(ddof=1)) / math.sqrt(batches)


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=300, help="per family and noise")
    parser.add_argument("--steps", type=int, default=5000, help="length of the real traces")
    parser.add_argument("--seeds", type=int, default=1, help="real traces per target")
    parser.add_argument("--quick", action="store_true", help="20 traces per cell, no real ones, nothing saved")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    traces = 20 if options.quick else options.traces
    rows = [row for family in GUARDED | BEYOND for noise in NOISES for row in measured(family, noise, traces, 2026)]
    guarded = [row for row in rows if row["guarded"]]
    for title, table in (
        ("By family", pooled(guarded, "family")),
        ("By noise", pooled(guarded, "noise")),
        ("Beyond what is assumed", pooled([row for row in rows if not row["guarded"]], "family")),
    ):
        print(f"\n{title}\n{record.format_table(table, KEYS)}", flush=True)
    if options.quick:
        return rows
    record.save(NAME, rows)
    real = [row for problem in REAL for seed in range(options.seeds) for row in judged(problem, options.steps, seed)]
    print(f"\nReal traces\n{record.format_table(real, REAL_KEYS)}")
    print(f"\nSaved to {record.save(NAME, rows + real)}")
    return rows + real


if __name__ == "__main__":
    main()
