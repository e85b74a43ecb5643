"""The interface of methods, and the recorder of snapshots."""

import pytest
import torch

import avbvi
from benchmarks import fitting
from benchmarks.fitting import Fitted, Method, Recorder, mean_with_error
from benchmarks.problems import Draws, Problem, stacked

PROBLEM = Problem(
    "point",
    avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,)),
    exact=lambda n, seed: torch.zeros(n, 2),
    matrix=lambda draws: stacked(draws, "z"),
)


class Time:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(fitting, "time", clock)
    return clock


def test_snapshots_come_at_their_times_and_do_not_count(time: Time) -> None:
    def sample(n: int) -> Draws:
        time.now += 10.0  # slow, and not part of the run
        return {"z": torch.full((n, 2), time.now)}

    recorder = Recorder(PROBLEM, [2.0, 1.0, 1.5, 4.0], draws=3)
    time.now += 0.5
    assert recorder.look(1, sample) == 0.0
    time.now += 1.0  # 1.5 s: two times have passed at once
    assert recorder.look(2, sample) == 10.0
    assert recorder.seconds() == 1.5
    assert recorder.look(3, sample) == 0.0
    time.now += 1.0
    assert recorder.look(4, sample) == 10.0
    assert recorder.spent == 20.0
    time.now += 0.5
    snapshots = recorder.last(recorder.seconds(), 9, sample)
    assert [(s.seconds, s.steps) for s in snapshots] == [(1.5, 2), (2.5, 4), (3.0, 9)]
    assert snapshots[0].draws.tolist() == [[111.5, 111.5]] * 3


def test_a_recorder_without_times_takes_nothing(time: Time) -> None:
    recorder = Recorder(PROBLEM)
    time.now += 5.0
    assert recorder.look(1, lambda n: {}) == 0.0
    assert recorder.last(5.0, 1, lambda n: {}) == []


def test_looking_leaves_the_random_state_alone() -> None:
    recorder = Recorder(PROBLEM, [1e-9], draws=5)
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    assert recorder.look(1, lambda n: {"z": torch.randn(n, 2)}) > 0.0
    assert torch.equal(torch.randn(2), expected)


def test_a_method_checks_what_it_is_given() -> None:
    calls: list[tuple[str, int, float, tuple[float, ...]]] = []

    def fit(problem: Problem, seed: int, minutes: float, snapshots: object) -> Fitted:
        assert isinstance(snapshots, tuple)
        calls.append((problem.name, seed, minutes, snapshots))
        return Fitted(lambda n: {}, 0.0)

    method = Method("m", "M", fit)
    method(PROBLEM, 3, 0.5, [1.0, 2.0])
    assert calls == [("point", 3, 0.5, (1.0, 2.0))]
    with pytest.raises(ValueError, match=r"minutes must be positive, found 0\.0"):
        method(PROBLEM, 0, 0.0)
    with pytest.raises(ValueError, match=r"snapshots must be positive times in seconds, found \[1\.0, -1\.0\]"):
        method(PROBLEM, 0, 1.0, [1.0, -1.0])
    lacking = Method("m", "M", fit, missing=lambda problem: f"no {problem.name} here")
    with pytest.raises(RuntimeError, match="m can't run on point: no point here"):
        lacking(PROBLEM, 0, 1.0)


def test_mean_with_error() -> None:
    estimate = mean_with_error(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert estimate.value == 2.5
    # sd sqrt(5/3), over the root of four
    assert estimate.stderr == pytest.approx((5.0 / 3.0) ** 0.5 / 2.0)
