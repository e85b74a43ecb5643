"""The robust board: its targets, jobs and rows."""

from __future__ import annotations

import pytest
import torch

from avbvi import LogDensity
from benchmarks import judging, robust, runner
from benchmarks.runner import Job, Options

OPTIONS = Options(seeds=5, minutes=0.25, workers=1, minutes_by_target=robust.MINUTES)
EXACT = tuple(t for t in robust.TARGETS if t not in robust.LOGISTIC and t != "hierarchical")


def test_the_default_has_all_seeds_and_rivals_fewer() -> None:
    jobs = robust.chosen(OPTIONS)
    assert len(set(jobs)) == len(jobs)
    for target in robust.TARGETS:
        seeds = {m: [j.seed for j in jobs if (j.target, j.method) == (target, m)] for m in robust.BOARD_METHODS}
        assert sorted(seeds["default"]) == [0, 1, 2, 3, 4]
        assert sorted(seeds["nsf"]) == sorted(seeds["iaf-stl"]) == sorted(seeds["trunk-only"]) == [0, 1]
        assert seeds["hmc"] == [0]
        assert {j.minutes for j in jobs if j.target == target} == {robust.MINUTES.get(target, 0.25)}
    assert robust.MINUTES["bananas_10d"] == pytest.approx(1 / 3)
    assert "two_moons" not in robust.MINUTES


def test_minutes_on_the_command_line_hold_for_all_targets() -> None:
    def read(*arguments: str) -> Options:
        return runner.options(
            None, methods=("m",), targets=("t", "u"), minutes=1.0, minutes_by_target={"t": 2.0}, arguments=arguments
        )

    assert [read().minutes_for(t) for t in ("t", "u")] == [2.0, 1.0]
    assert [read("--minutes", "1").minutes_for(t) for t in ("t", "u")] == [1.0, 1.0]
    assert {read("--quick").minutes_for(t) for t in ("t", "u")} == {runner.QUICK_MINUTES}


def test_the_quick_form_needs_no_long_reference_run() -> None:
    quick = Options(seeds=1, minutes=0.05, workers=1, quick=True)
    jobs = robust.chosen(quick)
    assert {job.target for job in jobs} == set(robust.QUICK_TARGETS)
    assert not {job.target for job in jobs} - set(EXACT)
    asked = robust.chosen(Options(seeds=1, minutes=0.05, workers=1, quick=True, targets=("funnel",)))
    assert {job.target for job in asked} == {"funnel"}


@pytest.mark.parametrize("name", EXACT)
def test_exact_targets_hand_over_their_density_and_draws(name: str) -> None:
    problem = robust.problem(name)
    assert problem.name == name
    draws = problem.exact(50, 1)
    assert draws.shape == (50, len(problem.columns))
    assert isinstance(problem.model, LogDensity)
    assert torch.equal(problem.matrix({"z": draws}), draws)
    # Importance weights of the target's own draws are constant: log_prob less log_z is their log density.
    assert bool(torch.isfinite(problem.model.evaluate({"z": draws})).all())
    assert problem.log_z is not None
    assert ("mode_weight_error" in problem.figures(draws)) == (name in (*robust.SEPARATED, "two_moons"))


def test_regressions_are_judged_in_unconstrained_coordinates() -> None:
    draws = {
        "mu_intercept": torch.tensor([1.0, 2.0]),
        "mu_slope": torch.tensor([3.0, 4.0]),
        "tau_intercept": torch.tensor([1.0, torch.e]),
        "tau_slope": torch.tensor([1.0, 1.0]),
        "sigma": torch.tensor([1.0, 1.0 / torch.e]),
        "intercept": torch.full((2, 30), 5.0),
        "slope": torch.full((2, 30), 6.0),
    }
    matrix = robust.hierarchical_matrix(draws)
    assert matrix.shape == (2, 65)
    torch.testing.assert_close(matrix[1, :5], torch.tensor([2.0, 4.0, 1.0, 0.0, -1.0], dtype=torch.float64))
    assert matrix[0, 5:35].tolist() == [5.0] * 30
    assert matrix[0, 35:].tolist() == [6.0] * 30
    reference = robust.reference("hierarchical")
    assert reference is not None
    assert robust.reference("funnel") is None


def test_targets_without_their_package_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "find_spec", lambda name: None)
    assert robust.missing(Job("logistic_31", "default", 0, 1.0)) == (
        "scikit-learn, which has the data, is not installed"
    )
    assert robust.missing(Job("funnel", "default", 0, 1.0)) is None


def test_the_floor_reads_no_difference_and_all_modes() -> None:
    (row,) = robust.run(Job("bananas_10d", "floor", 0, 1.0))
    assert row["modes_lost"] == 0
    # Five standard errors of the smallest weight's share.
    assert row["mode_weight_error"] < 5 * (0.9 / (0.1 * robust.MOMENTS)) ** 0.5
    assert abs(row["knn_kl_qp"]) < 0.1
    assert abs(row["c2st"] - 0.5) < 5 * row["c2st_stderr"]
    # The bend of the lightest banana gives its coordinate a kurtosis of 32, and the ratio of two sds from so many draws
    # each a standard error of sqrt(2 * 31 / 50,000) / 2 = .0176; four of them.
    assert 0.93 < row["sd_ratio_min"] <= row["sd_ratio_max"] < 1.07


def test_rows_come_in_the_order_of_the_board_with_floors() -> None:
    rows: list[judging.Row] = [
        {"target": "funnel", "method": "floor", "seed": 0, "knn_kl_qp": 0.1},
        {"target": "eight_modes_05", "method": "nsf", "seed": 0, "knn_kl_qp": 0.3},
        {"target": "eight_modes_05", "method": "default", "seed": 1, "knn_kl_qp": 0.2},
        {"target": "funnel", "method": "floor", "seed": 1, "knn_kl_qp": 0.3},
    ]
    done = robust.finished(rows)
    assert [(r["target"], r["method"], r["seed"]) for r in done] == [
        ("eight_modes_05", "default", 1),
        ("eight_modes_05", "nsf", 0),
        ("funnel", "floor", 0),
        ("funnel", "floor", 1),
    ]
    assert [r["knn_floor"] for r in done] == [None, None, pytest.approx(0.2), pytest.approx(0.2)]
