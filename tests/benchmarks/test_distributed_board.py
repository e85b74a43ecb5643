"""The comparison of one process and two: its figures are those of the fits."""

import math

import pytest
import torch

from benchmarks import distributed


def fake(losses: list[float], parameter: float, speed: float, peak: int | None = None) -> dict[str, object]:
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "state": [torch.tensor([1.0, parameter]).numpy()],
        "steps_per_second": speed,
        "peak_bytes": peak,
    }


def test_differences_and_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {1: [fake([-2.0, 4.0], 0.5, 10.0)], 2: [fake([-2.0, 4.4], 0.25, 15.0, 5), fake([-2.0, 4.4], 0.75, 14.0, 7)]}
    monkeypatch.setattr(distributed, "run", lambda target, size, steps, device: runs[size])
    one, two = distributed.compare("digits", 2, 1, "cpu")
    assert (one["loss_difference"], one["parameter_difference"], one["same_in_all"]) == (0.0, 0.0, True)
    assert math.isclose(two["loss_difference"], 0.1)
    assert (two["parameter_difference"], two["same_in_all"]) == (0.25, False)
    assert (two["processes"], two["ratio"], two["steps"]) == (2, 1.5, 2)
    assert (one["peak_bytes"], two["peak_bytes"]) == (None, 7)


@pytest.mark.slow
def test_quick_run_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.record, "save", lambda *a: pytest.fail("saved"))
    rows = distributed.main(["--quick"])
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[1]["same_in_all"]
    assert all(row["peak_bytes"] is None or row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["loss_difference"] < 1e-9
