"""Tables of verdicts, stopping and safety: the counts are those of the records."""

from __future__ import annotations

from benchmarks import trust_tables


def fit(truth: str, verdict: str, method: str = "default-5s", **figures: object) -> dict[str, object]:
    return {"target": "some_target", "method": method, "truth": truth, "verdict": verdict, "kl": 0.5, **figures}


def test_verdicts_are_counted_by_way_and_in_all() -> None:
    records = [
        fit("bad", "suspect"),
        fit("bad", "ok"),
        fit("good", "ok"),
        fit("good", "failed", "paper-20s"),
        fit("between", "ok", "paper-20s"),
    ]
    lines = trust_tables.verdicts(records).splitlines()
    assert lines[2].startswith("| default-5s | 1 of 2: 50% (1% to 99%) | 0 of 1: 0% (0% to 98%) | 0 |")
    assert lines[3].startswith("| paper-20s | - | 1 of 1: 100% (3% to 100%) | 1 |")
    assert lines[4].startswith("| **all** | 1 of 2: 50% (1% to 99%) | 1 of 2: 50% (1% to 99%) | 1 |")
    wrong = trust_tables.wrong_verdicts(records).splitlines()
    assert wrong[2:] == [
        "| some target | default-5s | missed | 0.50 | - | - |",
        "| some target | paper-20s | false alarm | 0.50 | - | - |",
    ]
    assert trust_tables.wrong_verdicts(records[:1]) == "None."


def test_stopping_rates_are_of_all_noises_of_a_family() -> None:
    def row(method: str, alarms: int) -> dict[str, object]:
        return {"family": "damped", "method": method, "traces": 50, "false_alarms": alarms, "guarded": True}

    records = [
        row("stopping", 0),
        row("stopping", 1),
        row("moving-average", 20),
        {"family": "real", "method": "stopping"},
    ]
    (line,) = trust_tables.stopping(records).splitlines()[2:]
    assert line == "| damped | 1 of 100: 1% (0% to 5%) | 20 of 50: 40% (26% to 55%) | yes |"


def test_safety_and_calibration() -> None:
    records = [{"method": "kill-resume", "equal": True}, {"method": "kill-resume", "equal": False}]
    records += [
        {
            "method": "million-steps",
            "steps": 1_000_000,
            "states_looked_at": 100,
            "states_not_finite": 0,
            "rollbacks": 1,
            "skipped_steps": 2,
        }
    ]
    lines = trust_tables.safety(records).splitlines()[2:]
    assert lines == [
        "| kills resumed to the same result, bit for bit | 1 of 2 |",
        "| non-finite states in 1,000,000 steps | 0 of 100 looked at |",
        "| rollbacks and skipped steps there | 1 and 2 |",
    ]
    study = {"target": "a_model", "method": "exact", "statistic": "mu", "fits": "all", "p_adjusted": 0.25}
    found = trust_tables.calibration([study | {"coverage_50": 0.52, "coverage_80": 0.79}, study | {"fits": "ok"}])
    assert found.splitlines()[2:] == ["| a model | exact | mu | 0.25 | 52% / 79% / - |"]
