"""Fuzz tests draw the same examples every time, and say at the end how many bad inputs were refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz.cases import tally

settings.register_profile(
    "avbvi",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("avbvi")


@pytest.fixture(autouse=True)
def _counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Report what this test refused with its result, so that it also arrives from another process."""
    before = Counter(tally)
    yield
    request.node.user_properties += [("refused", list(item)) for item in (tally - before).items()]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    total: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for name, item in report.user_properties:
                    if name == "refused":
                        total[item[0]] += item[1]
    if total:
        counts = ", ".join(f"{family} {count}" for family, count in sorted(total.items()))
        terminalreporter.write_line(f"bad inputs refused: {total.total()} ({counts})")
