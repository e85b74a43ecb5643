"""What the papers say, beside what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import record, report, reproduction
from benchmarks.reproduction import LESS, Statement


@pytest.mark.parametrize("name", reproduction.STATEMENTS)
def test_the_page_is_up_to_date(name: str) -> None:
    assert name in report.BOARDS
    records = record.load(name)["records"]
    pages = {page: page.read_text("utf-8") for page in report.PAGES}
    assert report.fill(pages, reproduction.parts(name, records)) == pages


@pytest.mark.parametrize("name", reproduction.STATEMENTS)
def test_each_statement_is_about_records_that_there_are(name: str) -> None:
    records = record.load(name)["records"]
    for statement in reproduction.STATEMENTS[name]:
        assert "not run" not in reproduction.row(statement, records), statement


def rows(method: str, values: dict[int, float], **more: Any) -> list[dict[str, Any]]:
    return [{"target": "t", "method": method, "seed": seed, "figure": value, **more} for seed, value in values.items()]


@pytest.mark.parametrize(
    ("best", "first", "second", "said"),
    [
        (None, {0: 3.0, 1: 4.0}, {0: 2.0, 1: 1.0}, "yes; 2 of 2 seeds"),
        (None, {0: 3.0, 1: 0.0}, {0: 2.0, 1: 1.5}, "open; 1 of 2 seeds"),
        (None, {0: 1.0}, {0: 2.0, 1: 0.0}, "no; 0 of 1 seeds"),
        (None, {0: 1.0, 1: 9.0}, {0: 2.0}, "open; 0 of 1 seeds"),  # by the medians alone
        (None, {0: 3.0, 1: 1.0}, {0: 2.5, 2: 9.0}, "open; 1 of 1 seeds"),  # by the seed alone
        (LESS, {0: 3.0}, {0: 2.0}, "no; 0 of 1 seeds"),
        (LESS, {0: 1.0}, {0: 2.0}, "yes; 1 of 1 seeds"),
        (0.5, {0: 0.4}, {0: 1.0}, "yes; 1 of 1 seeds"),
        (0.5, {0: 0.0}, {0: 0.6}, "no; 0 of 1 seeds"),
    ],
)
def test_a_statement_holds_by_medians_and_on_each_seed(
    best: float | None, first: dict[int, float], second: dict[int, float], said: str
) -> None:
    statement = Statement("a beats b", "1 / 2", "t", "a", "b", "figure", ".1f", best)
    records = rows("a", first) + rows("b", second) + rows("a", {7: -99.0}, error="lost")
    assert reproduction.row(statement, records)[-1] == said


def test_what_was_not_run_says_so() -> None:
    statement = Statement("a beats b", "1 / 2", "t", "a", "b", "figure", ".1f")
    assert reproduction.row(statement, rows("a", {0: 1.0})) == ["a beats b", "1 / 2", "-", "not run"]
    assert reproduction.parts("speed", []) == {}
