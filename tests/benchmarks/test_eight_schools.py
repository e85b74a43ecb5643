"""The board's own arithmetic: which jobs, which controls, what is voided, in which order."""

from itertools import pairwise

import pytest
import torch

from benchmarks import eight_schools as bench
from benchmarks import judging, runner
from benchmarks.fitting import Fitted, Method, Snapshot
from benchmarks.problems import EIGHT_SCHOOLS_PAPER
from benchmarks.runner import Job, Options

OPTIONS = Options(seeds=5, minutes=1.0, workers=2)


def test_a_missed_control_voids_the_classifier() -> None:
    base = {"target": "eight_schools_paper", "seed": 0, "knn_kl_qp": 0.0, "c2st": 0.502, "c2st_stderr": 0.0016}
    seen = [{**base, "method": "default"}, {**base, "method": "floor", "knn_kl_qp": 0.01},
            {**base, "method": "control-scaled", "c2st": 0.52}]  # fmt: skip
    assert [r["c2st"] for r in bench.finished(seen)] == [0.502, 0.502, 0.52]
    assert all(r["knn_floor"] == 0.01 for r in seen)
    missed = [{**base, "method": "default"}, {**base, "method": "control-scaled", "c2st": 0.503}]
    assert [r["c2st"] for r in bench.finished(missed)] == [None, None]
    # Rows that were voided in an earlier run.
    assert [r["c2st"] for r in bench.finished(missed)] == [None, None]


def test_failed_rows_have_no_part_in_floor_and_controls() -> None:
    base = {"target": "eight_schools_paper", "seed": 0, "seconds": 1.0}
    rows = [
        {**base, "method": "floor", "error": "x"},
        {**base, "method": "control-scaled", "error": "x"},
        {**base, "method": "default", "error": "ValueError: y"},
    ]
    assert [r["knn_floor"] for r in bench.finished(rows)] == [None, None, None]


def test_curves_are_in_order_of_time_and_after_the_tables() -> None:
    curve = [{"target": bench.CURVE, "method": "iaf", "seed": 0, "seconds": s} for s in (9.0, 1.0, 3.0)]
    table = {"target": "eight_schools_paper", "method": "iaf", "seed": 0, "seconds": 60.0}
    assert [r["seconds"] for r in bench.finished([*curve, table])] == [60.0, 1.0, 3.0, 9.0]


def test_every_method_of_the_board_is_known() -> None:
    for methods in bench.BOARD.values():
        assert set(methods) <= set(bench.METHODS) | set(bench.CONTROLS)
    assert all(bench.METHODS[name].curves for name in bench.CURVE_METHODS)
    assert {target for target, _ in (*bench.MOST_SEEDS, *bench.LONGER)} <= set(bench.BOARD)


def test_jobs() -> None:
    jobs = bench.jobs(OPTIONS)
    assert len({job.key for job in jobs}) == len(jobs)
    count = {(t, m): sum(job.key[:2] == (t, m) for job in jobs) for t, methods in bench.BOARD.items() for m in methods}
    assert count["eight_schools_paper", "default"] == 5
    assert count["eight_schools_paper", "paper-prior-contrast"] == 1
    assert count[bench.CURVE, "paper"] == 1
    minutes = {job.method: job.minutes for job in jobs if job.target == bench.CURVE}
    assert (minutes["paper"], minutes["default"]) == (4.0, 1.0)
    # Long ones first.
    first = [job.method for job in jobs[:3]]
    assert set(first) <= {"paper-long", "nuts", "paper", "paper-prior-contrast"}
    chosen = bench.jobs(Options(seeds=2, minutes=1.0, workers=2, methods=("nsf", "floor"), targets=(bench.CURVE,)))
    assert chosen == [Job(bench.CURVE, "nsf", 0, 1.0)]


def test_scaled_control_changes_the_sd_of_mu_alone() -> None:
    draws = EIGHT_SCHOOLS_PAPER.exact(1000, 0)
    changed = bench.scaled(draws)
    assert torch.equal(changed[:, 1:], draws[:, 1:])
    assert float(changed[:, 0].std() / draws[:, 0].std()) == pytest.approx(1.1)
    assert float(changed[:, 0].mean()) == pytest.approx(float(draws[:, 0].mean()))


def test_uneven_control_weights_the_modes_60_to_40() -> None:
    draws = EIGHT_SCHOOLS_PAPER.exact(1000, 0)
    changed = bench.unevenly_weighted(draws, 0)
    assert float((changed[:, 1] > 0).double().mean()) == 0.6
    # Each draw is one of the exact ones or its mirror image, which the density does not tell apart.
    product = changed[:, 1:2] * changed[:, 2:]
    expected = draws[:, 1:2] * draws[:, 2:]
    assert torch.allclose(product.sort(0).values, expected.sort(0).values)
    assert torch.equal(changed[:, 0].sort().values, draws[:, 0].sort().values)


def test_a_quick_control_is_judged() -> None:
    (row,) = bench.run(Job("eight_schools_paper", "floor", 0, runner.QUICK_MINUTES))
    assert row["judged_draws"] == bench.QUICK_LARGE
    assert abs(row["knn_kl_qp"]) < 4 * row["knn_kl_qp_stderr"]
    assert abs(row["p_tau_positive"] - 0.5) < 4 * 0.5 / bench.QUICK_LARGE**0.5


def test_a_curve_job_asks_for_snapshots_up_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, ...]] = []

    def fit(problem: object, seed: int, minutes: float, snapshots: tuple[float, ...]) -> Fitted:
        asked.append(snapshots)
        return Fitted(lambda n: {}, 60.0, snapshots=[Snapshot(60.0, 5, EIGHT_SCHOOLS_PAPER.exact(500, 1))])

    monkeypatch.setitem(bench.METHODS, "iaf", Method("iaf", "I", fit))
    (row,) = bench.run(Job(bench.CURVE, "iaf", 0, 1.0))
    (marks,) = asked
    assert len(marks) == bench.CURVE_MARKS
    assert marks[0] == pytest.approx(1.0)
    assert marks[-1] == pytest.approx(60.0)
    ratios = [b / a for a, b in pairwise(marks)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert (row["target"], row["method"], row["steps"]) == (bench.CURVE, "iaf", 5)
    assert judging.REFERENCE_SEED != judging.CONTROL_SEED
