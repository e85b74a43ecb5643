"""Figures from records show the figures that the records hold."""

from typing import Any

from benchmarks import figures

ROWS: list[dict[str, Any]] = [
    {"target": "t", "method": "default", "seed": 0, "knn_kl_qp": 0.01, "c2st": 0.502},
    {"target": "t", "method": "default", "seed": 1, "knn_kl_qp": -0.03, "c2st": None},
    {"target": "t", "method": "nsf", "seed": 0, "error": "lost"},
    {"target": "t", "method": "floor", "seed": 0, "knn_kl_qp": 0.002, "c2st": 0.501},
]


def test_methods_are_rows_and_seeds_are_dots() -> None:
    axes = figures.methods(ROWS, "t").axes
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == ["avbvi default", "zuko coupling NSF, path gradient", "exact draws (noise floor)"]
    assert [float(v) for v in axes[0].lines[0].get_xdata()] == [0.01, figures.LEAST_KL]
    assert [round(float(v), 6) for v in axes[1].lines[0].get_xdata()] == [0.002]


def test_curves_run_in_time_against_both_axes() -> None:
    rows = [
        {"target": "c", "method": "paper", "seed": 0, "seconds": s, "steps": 10 * s, "knn_kl_qp": kl}
        for s, kl in ((20.0, 0.5), (5.0, 2.0))
    ]
    left, right = figures.curves(rows, "c", [0.001, 0.02]).axes
    assert [list(map(float, line.get_xdata())) for line in left.lines] == [[50.0, 200.0]]
    assert [list(map(float, line.get_xdata())) for line in right.lines] == [[5.0, 20.0]]
    assert [float(v) for v in right.lines[0].get_ydata()] == [2.0, 0.5]


def test_board_has_a_panel_per_target_and_names_failures() -> None:
    (panel,) = figures.board(ROWS, "c2st", "accuracy", least=1e-3, above=0.5).axes
    assert panel.get_title() == "t"
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "avbvi default",
        "zuko coupling NSF, path gradient",
    ]
    assert [text.get_text().strip() for text in panel.texts] == ["failed"]
    assert round(float(panel.lines[-1].get_xdata()[0]), 6) == 0.001  # the floor
