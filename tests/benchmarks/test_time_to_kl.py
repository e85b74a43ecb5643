"""The time to an accuracy: how the ladder is climbed, what the shortest budget is, what the rows say."""

import pytest

from benchmarks import time_to_kl
from benchmarks.time_to_kl import BASELINE, LADDER, Row, Settings, climb, meets, results, settings_of, shortest

RUNGS = (1.0, 2.0, 4.0, 8.0)


def row(budget: float, seed: int, kl: float, method: str = "default") -> Row:
    return {
        "method": method,
        "kind": "run",
        "threads": 2,
        "budget_seconds": budget,
        "seed": seed,
        "seconds": budget + 0.1 * seed,
        "knn_kl_qp": kl,
    }


class Runs:
    """Made results by budget and seed, and which of them were asked for."""

    def __init__(self, kl: dict[float, list[float]]) -> None:
        self.kl = kl
        self.asked: list[tuple[float, int]] = []

    def __call__(self, budget: float, seed: int) -> Row:
        self.asked.append((budget, seed))
        return row(budget, seed, self.kl[budget][seed])


def test_the_ladder_is_left_when_two_budgets_in_a_row_are_enough() -> None:
    runs = Runs({1.0: [0.04, 0.06], 2.0: [0.05, 0.01], 4.0: [0.03, 0.04], 8.0: [0.0, 0.0]})
    rows = climb(runs, RUNGS, 2)
    assert runs.asked == [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1), (4.0, 0), (4.0, 1)]
    assert shortest(rows, RUNGS, 2) == 2.0


def test_a_budget_is_given_up_at_the_first_seed_that_it_is_not_enough_for() -> None:
    runs = Runs({1.0: [0.2, 0.0], 2.0: [0.2, 0.0], 4.0: [0.2, 0.0], 8.0: [0.2, 0.0]})
    rows = climb(runs, RUNGS, 2)
    assert runs.asked == [(b, 0) for b in RUNGS]
    assert shortest(rows, RUNGS, 2) is None


def test_a_budget_that_the_next_does_not_confirm_was_luck() -> None:
    runs = Runs({1.0: [0.01], 2.0: [0.07], 4.0: [0.02], 8.0: [0.02]})
    rows = climb(runs, RUNGS, 1)
    assert len(rows) == 4
    assert shortest(rows, RUNGS, 1) == 4.0


def test_the_longest_budget_needs_no_other() -> None:
    runs = Runs({1.0: [0.1], 2.0: [0.1], 4.0: [0.1], 8.0: [0.05]})
    assert shortest(climb(runs, RUNGS, 1), RUNGS, 1) == 8.0


def test_a_seed_that_was_not_run_is_not_met() -> None:
    assert shortest([row(b, 0, 0.0) for b in RUNGS], RUNGS, 2) is None


def test_a_run_that_failed_is_not_accurate() -> None:
    assert meets(row(1.0, 0, 0.05))
    assert not meets(row(1.0, 0, 0.0501))
    assert not meets({**row(1.0, 0, 0.0), "error": "broke down"})


def made(method: str, good: float | None) -> list[Row]:
    """A climb of one seed that is accurate from a budget on."""
    return climb(lambda b, s: row(b, s, 0.0 if good is not None and b >= good else 1.0, method), LADDER, 1)


def test_ratio_is_by_the_slowest_seed_at_the_shortest_budget() -> None:
    two = [row(b, s, 0.0, "default") for b in (2.0, 3.0) for s in (0, 1)]
    slow = [row(b, s, 0.0 if b >= 60.0 else 1.0, BASELINE) for b in LADDER for s in (0, 1)]
    found = {r["method"]: r for r in results([*two, *slow], Settings(seeds=2))}
    assert found["default"]["time_to_kl_seconds"] == 2.1
    assert found[BASELINE]["time_to_kl_seconds"] == 60.1
    assert found["default"]["ratio"] == pytest.approx(60.1 / 2.1)
    assert found["default"]["ratio_is_bound"] is False
    assert "ratio" not in found[BASELINE]


def test_a_baseline_that_is_never_accurate_gives_a_bound() -> None:
    found = {r["method"]: r for r in results([*made("default", 5.0), *made(BASELINE, None)], Settings(seeds=1))}
    assert found[BASELINE]["time_to_kl_seconds"] is None
    assert found["default"]["ratio"] == pytest.approx(90.0 / 5.0)
    assert found["default"]["ratio_is_bound"] is True


def test_a_method_that_is_never_accurate_has_no_ratio() -> None:
    found = {r["method"]: r for r in results([*made("default", None), *made(BASELINE, 60.0)], Settings(seeds=1))}
    assert found["default"]["reached"] is False
    assert "ratio" not in found["default"]


def test_table_names_budgets_and_what_came_before() -> None:
    rows = [*made("default", 3.0), *made(BASELINE, None)]
    text = time_to_kl.table([*results(rows, Settings(seeds=1)), *rows])
    default, rival = text.splitlines()[2:]
    assert "| 3 s | 3.0 | 0.000 | 2 s: 1.000 |" in default
    assert "more than 90 s" in rival
    assert "45 s: 1.000; 60 s: 1.000; 90 s: 1.000" in rival


def test_a_run_is_judged_against_exact_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_to_kl, "SNAPSHOT_DRAWS", 3000)
    found = time_to_kl.run(BASELINE, 0.3, 100, 1)
    # A third of a second is not enough, and exact draws against each other tell nothing apart.
    assert found["knn_kl_qp"] > 0.3
    assert abs(found["knn_floor"]) < 0.15
    assert found["fit_seconds"] >= 0.3
    assert found["peak_bytes"] is None or found["peak_bytes"] > 0
    assert found["seconds"] > found["fit_seconds"]


def test_a_run_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setitem(time_to_kl.METHODS, "default", broken)  # type: ignore[arg-type]
    found = time_to_kl.run("default", 1.0, 0, 1)
    assert found["error"] == "RuntimeError: out of luck"
    assert not meets(found)


def test_trajectory_has_the_judge_at_every_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_to_kl, "MARKS", 3)
    rows = time_to_kl.trajectory(BASELINE, 0.4, 100, 1)
    assert len(rows) >= 2
    assert [r["seconds"] for r in rows] == sorted(r["seconds"] for r in rows)
    assert all(r["kind"] == "trajectory" and r["knn_kl_qp"] > 0.0 for r in rows)
    assert rows[-1]["steps"] > rows[0]["steps"]


def test_command_line() -> None:
    assert settings_of([]) == Settings(3, 2, ("default", BASELINE))
    assert settings_of(["--quick"]).ladder == time_to_kl.QUICK_LADDER
    with pytest.raises(SystemExit):
        settings_of(["--threads", "0"])
