"""The board of training steps: its figures' arithmetic, its rows, and that every step trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import record, speed
from benchmarks.interleaved import Times
from benchmarks.speed import Settings, Timing, measured, others, ratio_figures, settings_of, split_figures, time_figures
from benchmarks.step_bounds import Work
from benchmarks.step_problems import EIGHT_SCHOOLS
from benchmarks.step_split import PARTS, Split
from benchmarks.steps import EXECUTIONS, TRUNKS, Step, bare_step, fit_step, reference_step, svi_step, vae_step

CPU = torch.device("cpu")


def test_time_figures() -> None:
    found = time_figures(Times(wall=[0.02, 0.01, 0.03], cpu=[0.01, 0.01, 0.02]))
    assert found["step_seconds"] == 0.02
    assert found["steps_per_second"] == pytest.approx(50.0)
    assert found["step_milliseconds"] == pytest.approx(20.0)
    assert found["step_cpu_seconds"] == 0.01


def test_ratio_is_the_yardsticks_time_by_ones_own() -> None:
    times = {"eager": Times([2.0, 2.0], [1.0, 1.0]), "reference_step": Times([3.0, 5.0], [4.0, 2.0])}
    found = ratio_figures("eager", times)
    assert found == {"ratio": 2.0, "cpu_ratio": 3.0, "baseline": "reference_step"}
    assert ratio_figures("reference_step", times) == {}
    assert ratio_figures("eager", {"eager": Times([1.0], [1.0])}) == {}


def test_baseline_of_a_captured_step_is_the_same_uncaptured() -> None:
    times = {name: Times([s], [s]) for name, s in (("captured", 1.0), ("uncaptured", 4.0), ("reference_step", 2.0))}
    assert ratio_figures("captured", times) == {"ratio": 4.0, "cpu_ratio": 4.0, "baseline": "uncaptured"}
    assert ratio_figures("uncaptured", times)["ratio"] == 0.5


def test_bound_of_a_captured_step_is_that_of_the_same_uncaptured() -> None:
    rows: list[dict[str, Any]] = [
        {"method": "uncaptured", "step_seconds": 8.0, "bound_seconds": 0.5, "bound_ratio": 16.0, "flops": 7},
        {"method": "captured", "step_seconds": 1.0},
    ]
    speed.copy_bounds(rows)
    assert rows[1] == {"method": "captured", "step_seconds": 1.0, "bound_seconds": 0.5, "bound_ratio": 2.0, "flops": 7}


def test_svi_overhead_is_the_paired_difference() -> None:
    times = {"svi": Times([0.011, 0.022], [0.01, 0.01]), "bare": Times([0.01, 0.02], [0.008, 0.008])}
    found = ratio_figures("svi", times)
    assert found["svi_overhead_seconds"] == pytest.approx(0.0015)
    assert found["svi_overhead_milliseconds"] == pytest.approx(1.5)
    assert found["svi_overhead_cpu_seconds"] == pytest.approx(0.002)


def test_bound_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "bandwidth", lambda device, size: 50.0)
    monkeypatch.setattr(speed, "product_rate", lambda device: 100.0)
    monkeypatch.setattr(speed, "product_seconds", lambda work, device: 5.0)
    found = speed.work_figures(Work(flops=400, kernels=3, bytes=700, other_bytes=300), 22.0, CPU, quick=True)
    assert found["bound_seconds"] == 11.0
    assert found["bound_ratio"] == 2.0
    assert found["bound_seconds_large"] == 18.0


def test_parts_are_in_proportion_to_the_timed_step() -> None:
    found = split_figures(Split(2.0, dict.fromkeys(PARTS, 0.1), {"log p": 0.5}, 10), 4.0)
    assert found["sampler_seconds"] == pytest.approx(0.2)
    assert found["log_p_python_seconds"] == pytest.approx(1.0)
    # The step's seconds less five parts of 0.2 each.
    assert found["python_seconds"] == pytest.approx(3.0)


def loss_of(result: Any) -> float:
    """The loss of a step, or that of a fit's, which gives its number too."""
    if isinstance(result, list):
        ((_, loss),) = result
        return float(loss)
    assert isinstance(result, float)
    return result


STEPS: dict[str, Any] = {
    **{f"fit {stage}": lambda e, s=stage: fit_step(EIGHT_SCHOOLS, s, e, CPU) for stage in TRUNKS},
    "vae": lambda e: vae_step(8, e, CPU),
    "svi": lambda e: svi_step(EIGHT_SCHOOLS, CPU),
    "bare": lambda e: bare_step(EIGHT_SCHOOLS, CPU),
    "reference": lambda e: reference_step(EIGHT_SCHOOLS, CPU),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_gives_a_finite_loss_and_goes_on(name: str) -> None:
    step: Step = STEPS[name](EXECUTIONS["eager"])
    losses = [loss_of(step.run()) for _ in range(3)]
    assert all(isinstance(loss, float) and abs(loss) < 1e5 for loss in losses)
    assert len(set(losses)) == 3


def test_bare_step_and_svi_step_are_the_same_but_for_pyro() -> None:
    losses = []
    for make in (svi_step, bare_step):
        step = make(EIGHT_SCHOOLS, CPU)
        torch.manual_seed(3)
        losses.append([step.run() for _ in range(10)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_recorded_model_is_what_the_traced_step_runs() -> None:
    eager, traced = (fit_step(EIGHT_SCHOOLS, "adversarial", EXECUTIONS[name], CPU) for name in ("eager", "traced"))
    losses = []
    for step in (eager, traced):
        torch.manual_seed(0)
        losses.append([loss_of(step.run()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    works = [speed.work_of(step.run) for step in (eager, traced)]
    # The context must still be in force: recorded graphs have merged what the model computes twice.
    assert works[1].kernels < works[0].kernels


def test_steps_that_read_nothing_back_are_counted_one_by_one() -> None:
    eager = fit_step(EIGHT_SCHOOLS, "adversarial", EXECUTIONS["traced"], CPU)
    some = fit_step(EIGHT_SCHOOLS, "adversarial", EXECUTIONS["uncaptured"], CPU)
    assert some.count > 1
    for _ in range(3):
        eager.run()
    assert len(some.run()) == some.count  # type: ignore[arg-type]
    # The same products in each of its steps as where they are taken one by one.
    one, each = speed.work_of(eager.run), speed.work_of(some.run, some.count)
    assert each.flops == pytest.approx(one.flops, rel=0.05)
    some.context.close()


def test_rows_of_a_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(EXECUTIONS, "compiled")  # half a minute of a compiler
    rows = {row["method"]: row for row in measured(Timing("eight_schools", "mixture", EIGHT_SCHOOLS), 1, "cpu", True)}
    assert set(rows) == {name for name, execution in EXECUTIONS.items() if execution.missing(CPU) is None}
    row = rows["eager"]
    parts = sum(row[f"{part.replace(' ', '_')}_seconds"] for part in PARTS) + row["python_seconds"]
    assert parts == pytest.approx(row["step_seconds"], rel=1e-9)
    assert row["bound_ratio"] == pytest.approx(row["step_seconds"] / row["bound_seconds"])
    assert row["bound_ratio"] > 1.0
    assert row["execution"] == "step by step"
    assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
    assert row["flops"] > 0
    assert "ratio" not in row


def test_other_rows_are_kept(tmp_path: Path) -> None:
    base = {"method": "eager", "seed": 0, "seconds": 1.0}
    rows = [
        {**base, "target": "eight_schools", "device": "cpu"},
        {**base, "target": "eight_schools", "device": "cuda"},
        {**base, "target": "regression", "device": "cpu"},
    ]
    assert others(Settings(), tmp_path) == []
    record.save("speed", rows, tmp_path)
    kept = others(Settings(targets=("eight_schools",)), tmp_path)
    assert [(r["target"], r["device"]) for r in kept] == [("eight_schools", "cuda"), ("regression", "cpu")]


def test_command_line() -> None:
    assert settings_of([]) == Settings()
    assert settings_of(["--threads", "1", "--targets", "regression", "--quick"]) == Settings(
        "cpu", (1,), ("regression",), True
    )
    with pytest.raises(SystemExit):
        settings_of(["--threads", "0"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            settings_of(["--device", "cuda"])
