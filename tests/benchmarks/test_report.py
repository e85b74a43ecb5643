"""Tables and figures from records."""

import pytest

from benchmarks import report

RECORDS = [
    {"target": "t", "method": "default", "seed": 0, "knn_kl_qp": 0.01, "c2st": 0.502, "elbo_error": -0.02,
     "elbo_is_bound": False, "seconds": 60.4, "stage_kept": "adversarial", "stage_difference": -0.002,
     "stage_difference_stderr": 0.0005},
    {"target": "t", "method": "default", "seed": 1, "knn_kl_qp": 0.03, "c2st": None, "elbo_error": -0.04,
     "elbo_is_bound": True, "seconds": 60.2, "stage_kept": "trunk", "stage_difference": 0.001,
     "stage_difference_stderr": 0.0005},
    *(
        {"target": "t", "method": "trunk-only", "seed": s, "knn_kl_qp": 0.02, "c2st": 0.51, "kl_exact": 0.0304,
         "elbo_error": -0.0304, "elbo_is_bound": True, "seconds": 60.0}
        for s in (0, 1)
    ),
]  # fmt: skip


def test_table_shows_median_and_range_and_flags_a_learned_elbo() -> None:
    header, _, default, trunk, *_ = report.table(RECORDS, "t").splitlines()
    cells = [cell.strip() for cell in default.strip("|").split("|")]
    titles = [cell.strip() for cell in header.strip("|").split("|")]
    row = dict(zip(titles, cells, strict=True))
    assert row["k-NN KL(q, p)"] == "0.020 (0.010 to 0.030)"
    assert row["C2ST"] == "0.502 (0.502 to 0.502)"
    assert row["ELBO - log Z"] == "-0.030 (-0.040 to -0.020) †"
    assert row["exact KL"] == "-"
    assert row["stage kept"] == "1 x adversarial, 1 x trunk"
    assert "†" not in trunk


def test_stages_stand_beside_the_trunk_alone() -> None:
    records = [{**r, "c2st": r["c2st"] or 0.5} for r in RECORDS]
    row = report.stages(records, "t").splitlines()[2]
    expected = ["0", "adversarial", "-0.0020 ± 0.0005", "0.010", "0.502", "-0.020", "0.020", "0.510", "0.030"]
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected


def test_insert_replaces_only_between_its_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    assert report.insert(text, "x", "new") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="markers"):
        report.insert(text, "y", "new")


def test_figure_has_a_row_per_method() -> None:
    axes = report.figure(RECORDS, "t").axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["avbvi default", "trunk alone"]
    assert [float(v) for v in axes[0].lines[0].get_xdata()] == [0.01, 0.03]
