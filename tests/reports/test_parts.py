"""Figures of a report against closed forms: choice of coordinates, predictive checks, limits, number formats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avbvi import Verdict
from avbvi.diagnostics import limits
from avbvi.diagnostics.evidence import LEAST_DRAWS, MOST_NUMBERS, Evidence
from avbvi.diagnostics.movement import Movement
from avbvi.reports.blocks import number, with_error
from avbvi.reports.checks import MOST_ELEMENTS, predictive_check, read_check
from avbvi.reports.coordinates import MOST_COORDINATES, flattened, read_coordinates, select
from avbvi.reports.drawing import label
from avbvi.reports.figures import figures_table
from avbvi.reports.sections import split_reasons


def test_coordinates_are_named_by_site_and_place() -> None:
    values = {"a": torch.arange(3.0), "b": torch.arange(12.0).reshape(3, 2, 2), "empty": torch.zeros(3, 0)}
    names, flat = flattened(values)
    assert names == ["a", "b[0, 0]", "b[0, 1]", "b[1, 0]", "b[1, 1]"]
    assert flat[1].tolist() == [1.0, 4.0, 5.0, 6.0, 7.0]


def test_the_worst_coordinates_are_those_that_moved_most() -> None:
    n, dim, moved = 500, MOST_COORDINATES + 20, [61, 7, 33]
    before = torch.randn(n, dim)
    after = before.clone()
    for rank, i in enumerate(moved):
        after[:, i] += 1.0 - 0.3 * rank
    found = select({"z": before, "late": before[:, 0]}, ({"z": before}, {"z": after}))
    assert found.names[:3] == [f"z[{i}]" for i in moved]
    assert found.order[:3] == [0, 1, 2]
    assert (len(found.names), found.total) == (MOST_COORDINATES, dim + 1)
    assert "late" not in found.names
    assert found.changes is not None
    assert found.changes[0, 0] == pytest.approx(1.0 / float(after[:, 61].std(correction=0)), rel=1e-5)
    assert found.before is not None
    assert torch.equal(found.before[:, 1], before[:, 7])
    # Few of them stay in the model's order, and know which is the worst.
    few = select({"z": before[:, 5:9]}, ({"z": before[:, 5:9]}, {"z": after[:, 5:9]}))
    assert few.names == ["z[0]", "z[1]", "z[2]", "z[3]"]
    assert few.order[0] == 2


def test_without_chains_the_most_skewed_come_first() -> None:
    draws = torch.randn(2000, MOST_COORDINATES + 5)
    draws[:, 52] = draws[:, 52].exp()
    found = select({"z": draws}, None)
    assert found.names[0] == "z[52]"
    assert found.before is None


def test_coordinates_survive_a_file_and_damage_is_found() -> None:
    made = select({"z": torch.randn(50, 3)}, None)
    read = read_coordinates(made.to_dict())
    assert read.names == made.names
    assert torch.equal(read.draws, made.draws)
    for wrong in ({"names": ["a"]}, {"order": [0, 0, 1]}, {"draws": 3}, {"before": "x"}):
        with pytest.raises((TypeError, ValueError)):
            read_coordinates({**made.to_dict(), **wrong})


def test_a_predictive_check_counts_right() -> None:
    replications = torch.arange(100.0)[:, None] + torch.tensor([0.0, 1000.0])
    check = predictive_check("y", torch.tensor([24.5, 1050.0]), replications)
    expected = np.quantile(replications.numpy(), [0.05, 0.25, 0.5, 0.75, 0.95], axis=0).T
    np.testing.assert_allclose(check.quantiles.numpy(), expected, rtol=1e-6)
    # The replicated mean is 500 + i: 62 of 100 are above 537.25.
    assert check.statistics["mean"] == pytest.approx([537.25, 504.95, 549.5, 594.05, 0.62])
    assert check.statistics["smallest"][4] == pytest.approx(0.75)
    # All ties: half of them.
    assert predictive_check("y", torch.ones(4), torch.ones(10, 4)).statistics["mean"][4] == 0.5
    assert read_check(check.to_dict()).name == "y"
    with pytest.raises(ValueError, match="quantiles"):
        read_check({**check.to_dict(), "observed": torch.zeros(3)})


def test_large_sites_are_thinned_and_statistics_are_of_all() -> None:
    y = torch.zeros(10 * MOST_ELEMENTS + 1)
    y[1] = 7.0  # not among those that are kept
    check = predictive_check("y", y, torch.zeros(20, len(y)))
    assert len(check.observed) <= MOST_ELEMENTS
    assert float(check.observed.max()) == 0.0
    assert check.statistics["largest"][0] == 7.0
    assert check.size == len(y)


@pytest.mark.parametrize(
    ("figures", "marks"),
    [
        ({"mean_shift": 0.5, "mean_shift_stderr": 0.1}, ["bad"]),
        ({"mean_shift": 0.5, "mean_shift_stderr": 0.2}, ["good"]),  # within three standard errors of zero
        ({"mean_shift": math.nan, "mean_shift_stderr": 0.1}, ["bad"]),
        ({"energy_shift": -0.6, "energy_shift_stderr": 0.01}, ["bad"]),
        ({"sd_ratio_narrow": 0.7, "sd_ratio_narrow_stderr": 0.01}, ["bad"]),
        ({"sd_ratio_narrow": 0.7, "sd_ratio_narrow_stderr": 0.2}, ["good"]),
        ({"sd_ratio_wide": 1.3, "sd_ratio_wide_stderr": 0.01}, ["bad"]),
        ({"k_hat": 0.69, "modes_lost": 1.0}, ["good", "bad"]),
        ({"elbo": 1.0, "elbo_stderr": 0.1}, [""]),
    ],
)
def test_limits_are_kept_as_the_verdict_keeps_them(figures: dict[str, float], marks: list[str]) -> None:
    table = figures_table(Verdict("ok", [], figures), is_amortised=False, exact=True)
    assert table is not None
    assert table.marks == marks
    words = {"good": "within", "bad": "beyond", "": ""}
    assert [row[-1] for row in table.rows] == [words[mark] for mark in marks]


def test_the_limit_is_the_verdict_s_own() -> None:
    table = figures_table(Verdict("ok", [], {"mean_shift": 0.0}), is_amortised=False, exact=True)
    assert table is not None
    assert table.rows[0][2] == f"≤\u00a0{limits.MEAN_SHIFT}"
    assert figures_table(Verdict("ok", []), is_amortised=False, exact=True) is None


def test_reasons_are_split_as_the_verdict_orders_them() -> None:
    doubtful = Verdict("suspect", ["a doubt", "try: this; or that, too", "a remark"])
    assert split_reasons(doubtful) == (["a doubt"], ["this", "that, too"], ["a remark"])
    assert split_reasons(Verdict("ok", ["a remark"])) == ([], [], ["a remark"])
    assert split_reasons(Verdict("failed", ["it broke"])) == (["it broke"], [], [])


def test_figures_are_written_with_their_errors() -> None:
    assert with_error(-1.23456, 0.0123) == "−1.235 ±\u00a00.012"
    assert with_error(1234.5, 20.0) == "1234 ±\u00a020"
    assert with_error(1.5, math.nan) == "1.5"
    assert with_error(math.nan, 1.0) == "not known"
    assert [number(x) for x in (0.0, 12345.6, -0.5, math.inf, 1e-9)] == ["0", "12346", "−0.5", "∞", "1e−09"]


def test_names_beside_axes_are_no_formulas() -> None:
    assert label("a$b$") == r"a\$b\$"
    assert label("x" * 30, 10) == "x" * 9 + "…"


def test_evidence_is_bounded() -> None:
    def movement(n: int, dim: int) -> Movement:
        z, none = torch.zeros(n, dim), torch.zeros(n)
        return Movement(z, z, none, none, none, none, 1.0, z, z)

    kept = Evidence()
    kept.note_movement(movement(2000, 4))
    assert kept.before is not None
    assert kept.before.shape == (2000, 4)
    kept.note_movement(movement(1000, MOST_NUMBERS // 500))
    assert kept.before.shape[0] == 500
    none = Evidence()
    none.note_movement(movement(LEAST_DRAWS, MOST_NUMBERS // LEAST_DRAWS + 1))
    assert none.before is None
