"""The check of what needs a GPU: its own logic, on small cases on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_courses import course, relative_difference


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("no CUDA device here: nothing was checked")


def test_quick_checks_pass_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS  ") == 7
    assert "FAIL" not in out
    assert "7 of 7 checks passed" in out
    for case in gpu.CASES:
        assert f"{case}: losses uncaptured and step by step are the same" in out
        assert f"{case}: losses in bfloat16 are near those in float32" in out


def test_a_check_that_fails_is_told_and_counts(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def failing(case: str, device: torch.device, quick: bool) -> Iterator[gpu.Check]:
        yield gpu.Check("losses", False, "they differ by 2")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "same_losses", failing)
    monkeypatch.setattr(gpu, "precisions", lambda *_: iter(()))
    monkeypatch.setattr(gpu, "times", lambda *_: ([], []))
    assert gpu.main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  losses: they differ by 2" in out
    assert "1 of 3 checks passed" in out


def test_differences_of_losses() -> None:
    assert relative_difference([1.0, 2.0, 9.0], [1.0, 2.3]) == pytest.approx(0.3 / 3.3)
    assert relative_difference([math.nan], [1.0]) == math.inf


def test_a_course_is_the_same_each_time() -> None:
    found = []
    for _ in range(2):
        with course("eight_schools", "uncaptured", torch.device("cpu"), quick=True) as run:
            found.append(run.losses(10))
            assert run.seconds(1) > 0.0
    assert found[0] == found[1]
