"""Tables from records."""

from typing import Any

import pytest

from benchmarks import tables

RECORDS: list[dict[str, Any]] = [
    {"target": "t", "method": "default", "seed": 0, "knn_kl_qp": 0.01, "c2st": 0.502, "elbo_error": -0.02,
     "elbo_is_bound": False, "seconds": 60.4, "stage_kept": "adversarial", "stage_difference": -0.002,
     "stage_difference_stderr": 0.0005, "verdict": "ok"},
    {"target": "t", "method": "default", "seed": 1, "knn_kl_qp": 0.03, "c2st": None, "elbo_error": -0.04,
     "elbo_is_bound": True, "seconds": 60.2, "stage_kept": "trunk", "stage_difference": 0.001,
     "stage_difference_stderr": 0.0005, "verdict": "suspect"},
    *(
        {"target": "t", "method": "trunk-only", "seed": s, "knn_kl_qp": 0.02, "c2st": 0.51, "kl_exact": 0.0304,
         "elbo_error": -0.0304, "elbo_is_bound": True, "seconds": 60.0}
        for s in (0, 1)
    ),
    {"target": "t", "method": "hmc", "seed": 0, "knn_kl_qp": 0.0, "seconds": 2.0, "rhat_max": 1.003},
    {"target": "t", "method": "nsf", "seed": 0, "seconds": 1.0, "error": "ValueError: lost"},
    {"target": "u", "method": "default", "seed": 0, "knn_kl_qp": 0.5, "c2st": 0.6, "seconds": 60.0},
]  # fmt: skip


def rows(table: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_by_method_shows_median_and_range_and_flags_a_learned_elbo() -> None:
    default, trunk, nsf, hmc = sorted(
        rows(tables.by_method(RECORDS, "t", tables.EIGHT_SCHOOLS)),
        key=lambda r: (
            ["avbvi default", "trunk alone", "zuko coupling NSF, path gradient"].index(r["method"])
            if r["method"] != "avbvi batched HMC"
            else 9
        ),
    )
    assert default["k-NN KL(q, p)"] == "0.020 (0.010 to 0.030)"
    assert default["C2ST"] == "0.502"
    assert default["ELBO - log Z"] == "-0.030 (-0.040 to -0.020) †"
    assert default["exact KL"] == "-"
    assert default["remarks"] == "1 x adversarial; 1 x trunk; verdict 1 x suspect"
    assert "†" not in trunk["ELBO - log Z"]
    assert trunk["remarks"] == "-"
    assert hmc["remarks"] == "R-hat 1.003"
    assert nsf["k-NN KL(q, p)"] == "-"
    assert nsf["remarks"] == "failed 1 x: ValueError: lost"


def test_stages_stand_beside_the_trunk_alone() -> None:
    records = [{**r, "c2st": r.get("c2st") or 0.5} for r in RECORDS]
    row = tables.stages(records, "t").splitlines()[2]
    expected = ["0", "adversarial", "-0.0020 ± 0.0005", "0.010", "0.502", "-0.020", "0.020", "0.510", "0.030"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected


def test_across_has_a_column_per_target_and_shows_failures() -> None:
    table = {row["method"]: row for row in rows(tables.across(RECORDS, "knn_kl_qp", ".2f"))}
    assert table["avbvi default"] == {"method": "avbvi default", "t": "0.02", "u": "0.50"}
    assert table["zuko coupling NSF, path gradient"]["t"] == "failed"
    assert table["avbvi batched HMC"]["u"] == "-"
    # A figure that a method does not have is no failure.
    exact = {row["method"]: row["t"] for row in rows(tables.across(RECORDS, "kl_exact", ".3f"))}
    assert exact["trunk alone"] == "0.030"
    assert "avbvi batched HMC" not in exact
    assert exact["zuko coupling NSF, path gradient"] == "failed"


def test_accuracy_gives_mean_and_spread_beside_the_truth() -> None:
    records = [
        {"target": "wide-d2-n10", "method": "knn-kl", "seed": s, "dim": 2, "draws": 10, "exact": 0.5, "value": v}
        for s, v in enumerate((0.4, 0.6))
    ]
    (row,) = rows(tables.accuracy(records, 10))
    assert row["exact KL"] == "0.500"
    assert row["k-NN, k = 3"] == "0.500 ± 0.141"
    assert "held-out bound" not in row


def test_speed_compares_with_the_fastest_other() -> None:
    records = [
        {"target": "speed-d2-n10000", "method": m, "seed": 0, "device": "cpu", "seconds": s, "peak_bytes": 2**21}
        for m, s in (("avbvi", 0.5), ("scipy", 0.25), ("faiss", 1.0))
    ]
    (row,) = rows(tables.speed(records))
    assert row["avbvi"] == "0.5 s (2 MiB)"
    assert row["scikit-learn"] == "-"
    assert row["avbvi / best other"] == "2.00"
    assert row["draws each"] == "10,000"


@pytest.mark.parametrize(("found", "text"), [([], "-"), ([0.25], "0.2"), ([1.0, 3.0, 2.0], "2.0 (1.0 to 3.0)")])
def test_spread(found: list[float], text: str) -> None:
    assert tables.spread(found, ".1f") == text


def _runs(target: str, **readings: list[float]) -> list[dict[str, Any]]:
    return [
        {"target": target, "method": method.replace("_", "-"), "seed": seed, "knn_kl_qp": value}
        for method, found in readings.items()
        for seed, value in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("default", "reads"),
    [
        ([0.10, 0.11, 0.12], "better"),
        ([0.10, 0.11, 0.41], "equal"),  # one seed is no better than the flow's worst
        ([-0.60, -0.55, -0.50], "worse"),  # as wrong below zero as above
        ([0.29, 0.30, 0.31], "equal"),  # within the judge's noise
        ([0.36, 0.37, 0.38], "worse"),
    ],
)
def test_the_default_against_the_better_flow(default: list[float], reads: str) -> None:
    records = _runs("t", default=default, nsf=[0.31, 0.33], iaf_stl=[0.50, 0.52], floor=[-0.02, 0.01])
    (row,) = rows(tables.against_flows(records, "knn_kl_qp"))
    assert row["reads"] == reads
    assert row["best flow"] == "zuko coupling NSF, path gradient"
    assert row["judge's noise"] == "0.030"
    middle = sorted(abs(v) for v in default)[1]
    assert row["difference"] == f"{middle - 0.32:+.3f}"


def test_failures_and_missing_runs_are_named_against_flows() -> None:
    records = _runs("t", default=[0.1, 0.1], nsf=[0.3], floor=[0.0, 0.01])
    records[1] = {"target": "t", "method": "default", "seed": 1, "error": "ValueError: lost"}
    records += _runs("u", default=[0.1], floor=[0.0, 0.01]) + _runs("v", default=[0.1], nsf=[0.3])
    found = {row["target"]: row["reads"] for row in rows(tables.against_flows(records, "knn_kl_qp"))}
    assert found == {"t": "failed 1 x", "u": "no flow", "v": "no noise floor"}
    assert tables.against_flows([], "knn_kl_qp").count("\n") == 1


def test_modes_have_a_row_per_target_and_method() -> None:
    records = [
        {"target": "t", "method": "default", "seed": s, "mode_weight_error": e, "modes_lost": 0}
        for s, e in enumerate((0.02, 0.04))
    ] + [{"target": "t", "method": "nsf", "seed": 0, "mode_weight_error": 1.0, "modes_lost": 3}]
    default, nsf = rows(tables.modes([*records, {"target": "u", "method": "nsf", "seed": 0}]))
    assert default["largest relative error of a weight"] == "0.030 (0.020 to 0.040)"
    assert (nsf["target"], nsf["modes lost"]) == ("t", "3")


def test_forced_stages_stand_beside_the_trunk() -> None:
    def row(method: str, **figures: Any) -> dict[str, Any]:
        return {"target": "a_ring", "method": method, "seed": 0, "stage_kept": "trunk", **figures}

    records = [
        row("all-stages", stage_difference=0.01, stage_difference_stderr=0.002, c2st=0.51, knn_kl_qp=0.02),
        row("trunk-only", c2st=0.5, knn_kl_qp=0.0),
        {"target": "other", "method": "trunk-only", "seed": 0},
    ]
    (line,) = tables.forced_stages(records, "all-stages", "trunk-only").splitlines()[2:]
    assert line == "| a ring | trunk | 0.0100 ± 0.0020 | 0.510 | 0.500 | 0.020 | 0.000 |"
