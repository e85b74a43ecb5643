"""The calibration board: exact draws pass, narrow ones do not, summaries are those of the rows."""

from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor

from avbvi.simulations import Simulation
from benchmarks import calibration as bench
from benchmarks import record
from benchmarks.judging import Row
from benchmarks.runner import Job, Options

OPTIONS = Options(seeds=3, minutes=1.0, workers=1)


def rounds(target: str, method: str, n: int) -> list[Row]:
    return [row for i in range(n) for row in bench.run(Job(target, method, i, 1.0))]


@pytest.mark.parametrize("target", list(bench.TARGETS))
def test_exact_draws_pass_and_narrow_ones_do_not(target: str) -> None:
    n = 60
    whole, *_ = bench.summaries(target, bench.EXACT, rounds(target, bench.EXACT, n))
    assert whole["statistic"] == "all"
    assert whole["flagged"] == ""
    assert (whole["simulations"], whole["failures"]) == (n, 0)
    narrow, *by_statistic = bench.summaries(target, bench.NARROW, rounds(target, bench.NARROW, n))
    assert narrow["p_adjusted"] < 0.05
    assert "distance" in narrow["flagged"]
    distance = next(row for row in by_statistic if row["statistic"] == "distance")
    assert distance["coverage_80_high"] < 0.8


def test_the_control_pulls_draws_towards_their_mean() -> None:
    target = bench.TARGETS["conjugate_normal"]
    y = torch.ones(2, 3)
    conditioned = poutine.condition(target.model, {"y": y})
    narrow, exact = (bench.Exact(target, conditioned, 5, scale).sample(100)["mu"] for scale in (0.8, 1.0))
    torch.testing.assert_close(exact, target.exact(100, 5, y)["mu"])
    torch.testing.assert_close(narrow.std(0), 0.8 * exact.std(0))
    torch.testing.assert_close(narrow.mean(0), exact.mean(0))


def row(method: str, seed: int, ranks: dict[str, int], **more: Any) -> Row:
    named = {f"{bench.RANK}{name}": rank for name, rank in ranks.items()}
    base = {"target": "conjugate_normal", "method": method, "seed": seed, "device": "cpu", "seconds": 2.0}
    return {**base, "verdict": "ok", "failure": None, **named, **more}


def test_summaries_are_made_anew_from_the_rows() -> None:
    rows = [row("default", i, {"mu": 100 * i, "log_joint": 500}) for i in range(8)]
    rows[2]["verdict"] = "suspect"
    rows[3] = row("default", 3, {}, verdict="failed", failure="NonFiniteError: x")
    records = bench.finished(list(reversed(rows)))
    assert [r["seed"] for r in records[:8]] == list(range(8))
    summaries = records[8:]
    assert [(r["fits"], r["statistic"]) for r in summaries] == [
        *(("all", "all"), ("all", "mu"), ("all", "log_joint")),
        *(("ok", "all"), ("ok", "mu"), ("ok", "log_joint")),
    ]
    first = summaries[0]
    assert (first["failures"], first["verdict_ok"], first["verdict_suspect"], first["verdict_failed"]) == (1, 6, 1, 1)
    assert first["seconds"] == 16.0
    # Ranks 0, 100, 200, 400, 500, 600, 700: those from 250 to 749 lie in the central half.
    assert summaries[1]["coverage_50"] == pytest.approx(4 / 7)
    assert summaries[4]["coverage_50"] == pytest.approx(4 / 6)
    again = bench.finished(records)
    assert again == records


def test_records_can_be_saved(tmp_path: Any) -> None:
    rows = bench.finished(rounds("conjugate_normal", bench.EXACT, 2))
    record.save("calibration", rows, tmp_path)
    saved = record.load("calibration", tmp_path)["records"]
    found = bench.study([r for r in saved if "statistic" not in r])
    assert isinstance(found.simulations[0], Simulation)
    assert set(found.ranks) == {
        *("mu[0]", "mu[1]", "mu[2]"),
        *("log_joint", "log_likelihood", "distance", "tarp_distance"),
    }


def test_jobs() -> None:
    jobs = bench.jobs(OPTIONS)
    assert len(jobs) == len({job.key for job in jobs}) == 3 * 3 * 2
    assert [job.method for job in jobs[:6]] == ["default"] * 6
    chosen = bench.jobs(Options(seeds=3, minutes=1.0, workers=1, methods=("exact",), targets=("conjugate_normal",)))
    assert {job.key[:2] for job in chosen} == {("conjugate_normal", "exact")}
    assert len(bench.jobs(Options(seeds=1, minutes=0.05, workers=1, quick=True))) == 2 * 3 * 2


def test_every_source_exists() -> None:
    for job in bench.jobs(OPTIONS):
        for path in bench.sources(job):
            assert (record.RESULTS.parents[1] / path).exists()


def test_exact_draws_of_other_data_are_those_of_the_density() -> None:
    """Stein's identity -E[score (z - E z)^T] = I for Eight Schools with other effects."""
    from models import eight_schools

    n, y = 40_000, torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)
    draws = eight_schools.exact_posterior(n, 0, y)
    z = torch.cat([draws["mu"][:, None], draws["tau"][:, None], draws["eta"]], -1).requires_grad_()
    density = eight_schools.log_density(z, y, eight_schools.SIGMA.double())
    (score,) = torch.autograd.grad(density.sum(), z)
    centred: Tensor = (z - z.mean(0)).detach()
    found = -score.mT @ centred / n
    se = ((score.square().mT @ centred.square() / n - found.square()) / n).sqrt()
    assert np.abs(((found - torch.eye(10)) / se).numpy()).max() < 4.5
