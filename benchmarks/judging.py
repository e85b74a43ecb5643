"""Judges that all boards share: a sample against reference draws, one fit as a flat record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import avbvi
from avbvi.divergences import kl_lower_bound, mmd2, sliced_wasserstein
from benchmarks import record
from benchmarks.fitting import Fitted, Method, Snapshot
from benchmarks.peak_memory import PeakMemory
from benchmarks.problems import Draws, Problem

LARGE, SMALL, MMD_DRAWS = 50_000, 10_000, 2_000
#: Added to a run's seed for the reference draws that it is judged against, and for exact draws judged as a method.
REFERENCE_SEED, CONTROL_SEED = 10_000, 20_000

Row = dict[str, Any]


def judged(
    problem: Problem,
    draws: Draws | Tensor,
    seed: int,
    *,
    large: int = LARGE,
    small: int = SMALL,
    bound: bool = False,
    reference: Tensor | None = None,
    moments: int = 0,
) -> Row:
    """Figures of a sample against the problem's reference draws, equally many of each.

    The classifier, the moments and the sliced distance see up to ``large`` draws, the nearest neighbours up to
    ``small``, MMD up to 2000. The moments and the problem's own figures see up to ``moments``, if that is more: in d
    dimensions the extreme sd ratios of n exact draws stray from 1 by about sqrt(2 d / n). Unless the problem asks for
    whitening, the nearest neighbours see the judging coordinates as they are, and sliced distance and MMD see them in
    units of the reference draws' standard deviations.

    A Markov chain repeats points where it rejects, which makes nearest-neighbour distances zero and lets the
    classifier learn points by heart: these judges and MMD see each point once (``distinct_share`` tells how many
    there are), the moments and the sliced distance all of them.

    Args:
        problem: the target.
        draws: by site on the constrained scale, or (n, d) in judging coordinates.
        seed: of reference draws, folds and projections.
        large, small: sample sizes.
        bound: whether to add the held-out lower bound of KL(q, p), which takes longer than all the rest.
        reference: (m, d) to judge against instead of the problem's own draws.
        moments: draws for the moments where more than ``large`` are wanted.

    Raises:
        ValueError: draws are not finite, or too few for a judge.
    """
    most = max(large, moments)
    x = (draws if isinstance(draws, Tensor) else problem.matrix(draws))[:most].double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{int((~torch.isfinite(x)).any(-1).sum())} of {len(x)} draws are not finite")
    y = problem.exact(most, REFERENCE_SEED + seed) if reference is None else reference.double()
    x, y = x[: len(y)], y[: len(x)]
    ratios = sd_ratios(x, y)
    own = {
        "mean_error_sd": float(((x.mean(0) - y.mean(0)) / y.std(0)).abs().max()),
        "sd_ratio_min": float(ratios.min()),
        "sd_ratio_max": float(ratios.max()),
        **problem.figures(x),
    }
    x, y = x[:large], y[:large]
    if problem.whitened:
        u, v = whitened(x, y)
        scaled_u, scaled_v = u, v
    else:
        u, v = x, y
        scaled_u, scaled_v = x / y.std(0), y / y.std(0)
    # The same rows in both coordinates: the maps are one to one.
    once = distinct_rows(x)
    near, few = min(small, len(once)), min(MMD_DRAWS, len(once))
    qp, pq = avbvi.knn_kl(u[once[:near]], v[:near]), avbvi.knn_kl(v[:near], u[once[:near]])
    c2st = avbvi.classifier_two_sample_test(u[once].float(), v[: len(once)].float(), seed=seed)
    sliced = sliced_wasserstein(scaled_u, scaled_v, seed=seed)
    mmd = mmd2(scaled_u[once[:few]], scaled_v[:few], seed=seed)
    figures: Row = {
        "knn_kl_qp": qp.value,
        "knn_kl_qp_stderr": qp.stderr,
        "knn_kl_pq": pq.value,
        "c2st": c2st.value,
        "c2st_stderr": c2st.stderr,
        "sliced_w2": sliced.value,
        "sliced_w2_stderr": sliced.stderr,
        "mmd2": mmd.value,
        "mmd2_stderr": mmd.stderr,
        "mmd_p_value": mmd.p_value,
        "judged_draws": len(x),
        "distinct_share": len(once) / len(x),
    }
    if bound:
        lower = kl_lower_bound(u[once], v[: len(once)], seed=seed)
        figures |= {"kl_bound": lower.value, "kl_bound_stderr": lower.stderr}
    return figures | own


def distinct_rows(x: Tensor) -> Tensor:
    """Indices of the rows of x (n, d), the first of each kind, in the order in which they come."""
    unique, kind = torch.unique(x, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(x)).scatter_reduce(0, kind, torch.arange(len(x)), "amin")
    return first.sort().values


def whitened(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples after the affine map that gives y (m, d) mean zero and the identity as covariance."""
    dim = y.shape[1]
    factor, mean = torch.linalg.cholesky(torch.cov(y.mT).reshape(dim, dim)), y.mean(0)
    u, v = (torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT.contiguous() for z in (x, y))
    return u, v


def sd_ratios(x: Tensor, y: Tensor) -> Tensor:
    """Standard deviations of x (n, d) relative to those of y (m, d), extremes over all directions included: (d,).

    Roots of the generalised eigenvalues of the two covariances, ascending.
    """
    dim = x.shape[1]
    factor = torch.linalg.cholesky(torch.cov(y.mT).reshape(dim, dim))
    half = torch.linalg.solve_triangular(factor, torch.cov(x.mT).reshape(dim, dim), upper=False)
    both = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return torch.linalg.eigvalsh(0.5 * (both + both.mT)).clamp_min(0.0).sqrt()


def measured(
    problem: Problem,
    method: Method,
    seed: int,
    minutes: float,
    *,
    large: int = LARGE,
    small: int = SMALL,
    bound: bool = False,
    moments: int = 0,
) -> Row:
    """One fit, judged: a flat record. If only the judges fail the fit's own figures stay, with ``error``."""
    matmul = record.matmul_seconds()
    cpu = time.process_time()
    with PeakMemory() as peak:
        fitted = method(problem, seed, minutes)
    cpu = time.process_time() - cpu
    row: Row = {
        "target": problem.name,
        "method": method.name,
        "seed": seed,
        "device": "cpu",
        "seconds": fitted.seconds,
        "cpu_seconds_with_verdict": cpu,
        "matmul_seconds": matmul,
        "peak_bytes": peak.bytes,
        **_elbo_figures(problem, fitted),
        **fitted.figures,
    }
    try:
        row |= judged(
            problem, fitted.sample(max(large, moments)), seed, large=large, small=small, bound=bound, moments=moments
        )
    except Exception as error:
        row["error"] = f"not judged: {described(error)}"
    return row


def _elbo_figures(problem: Problem, fitted: Fitted) -> Row:
    figures: Row = {}
    if problem.log_z is not None:
        figures["log_z"] = problem.log_z
    if fitted.elbo is not None:
        figures |= {
            "elbo": fitted.elbo.value,
            "elbo_stderr": fitted.elbo.stderr,
            "elbo_is_bound": fitted.exact,
        }
        if problem.log_z is not None:
            figures["elbo_error"] = fitted.elbo.value - problem.log_z
            if fitted.exact:
                figures["kl_exact"] = problem.log_z - fitted.elbo.value
    return figures


def floor(problem: Problem, seed: int, *, large: int = LARGE, small: int = SMALL, moments: int = 0) -> Row:
    """The noise floor: independent reference draws judged as if a method had made them."""
    draws = problem.exact(max(large, moments), CONTROL_SEED + seed)
    return control(problem, "floor", draws, seed, large=large, small=small, moments=moments)


def control(
    problem: Problem,
    name: str,
    draws: Tensor,
    seed: int,
    *,
    large: int = LARGE,
    small: int = SMALL,
    reference: Tensor | None = None,
    moments: int = 0,
) -> Row:
    """A record of draws (n, d) with a known defect or none, by which the judges are judged."""
    started = time.monotonic()
    figures = judged(problem, draws, seed, large=large, small=small, reference=reference, moments=moments)
    seconds = time.monotonic() - started
    return {"target": problem.name, "method": name, "seed": seed, "device": "cpu", "seconds": seconds, **figures}


def add_floors(records: Sequence[Row]) -> None:
    """Write the mean k-NN figure of a target's ``floor`` records into all of its records, None if it has none."""
    floors: dict[str, list[float]] = {}
    for row in records:
        if row["method"] == "floor" and row.get("knn_kl_qp") is not None:
            floors.setdefault(row["target"], []).append(row["knn_kl_qp"])
    for row in records:
        mine = floors.get(row["target"])
        row["knn_floor"] = sum(mine) / len(mine) if mine else None


def curve(
    problem: Problem, method: Method, seed: int, minutes: float, marks: Sequence[float], target: str
) -> list[Row]:
    """k-NN KL along one run: a record per snapshot, at about the times ``marks`` in seconds and at the end.

    The last record carries the processor time of the whole run, each its peak of memory.
    """
    cpu = time.process_time()
    with PeakMemory() as peak:
        fitted = method(problem, seed, minutes, marks)
    cpu = time.process_time() - cpu
    rows = [_snapshot_row(problem, method.name, seed, snapshot, target) for snapshot in fitted.snapshots]
    rows[-1]["cpu_seconds_with_verdict"] = cpu
    for row in rows:
        row["peak_bytes"] = peak.bytes
    return rows


def _snapshot_row(problem: Problem, method: str, seed: int, snapshot: Snapshot, target: str) -> Row:
    row: Row = {
        "target": target,
        "method": method,
        "seed": seed,
        "device": "cpu",
        "seconds": snapshot.seconds,
        "steps": snapshot.steps,
    }
    try:
        y = problem.exact(len(snapshot.draws), REFERENCE_SEED + seed)
        qp = avbvi.knn_kl(snapshot.draws[: len(y)], y)
    except ValueError as error:
        return {**row, "error": f"not judged: {described(error)}"}
    return {**row, "knn_kl_qp": qp.value, "knn_kl_qp_stderr": qp.stderr, **problem.figures(snapshot.draws)}


def described(error: BaseException) -> str:
    """An error on one line of a record."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:297]}..."
