"""The stopping rule: exact cases, false alarms on noisy curves of known limit, state."""

import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from avbvi import Stopping
from avbvi.stopping import WINDOWS, _still_to_come, _welch

STEPS = 40_000
N = np.arange(1, STEPS + 1.0)


def fed(rule: Stopping, trace: np.ndarray) -> int | None:
    """The index, from 1, at which ``update`` first says so."""
    return next((i for i, elbo in enumerate(trace.tolist(), 1) if rule.update(elbo)), None)


# -- exact cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("minimum", "first_look"), [(1024, 1024), (1000, 1008), (16, 16), (1, 16)])
def test_a_constant_stops_at_the_first_look(minimum: int, first_look: int) -> None:
    rule = Stopping(minimum=minimum)
    assert fed(rule, np.full(2000, -3.0)) == rule.stopped_at == first_look
    assert rule.remaining == (0.0, 0.0)
    assert rule.bound == 0.0


@pytest.mark.parametrize("slope", [1e-4, -1e-4])
def test_a_line_never_stops(slope: float) -> None:
    assert Stopping().first_stop(slope * N) is None


def test_looks_are_where_the_docstring_says() -> None:
    rule, looks = Stopping(tolerance=1e-9, minimum=32), []
    for n in range(1, 257):
        before = rule.bound
        rule.update(float(n))
        if rule.bound != before:
            looks.append(n)
    assert looks == [size * b for size in (2, 4, 8) for b in (16, 20, 24, 28)] + [256]


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("window", WINDOWS)
def test_what_remains_of_a_power_law(exponent: float, window: tuple[float, float]) -> None:
    begin, border = window
    earlier = integrate.quad(lambda x: x**-exponent, begin, border)[0] / (border - begin)
    later = integrate.quad(lambda x: x**-exponent, border, 1.0)[0] / (1.0 - border)
    assert _still_to_come(begin, border, exponent) == pytest.approx(1.0 / (earlier - later), rel=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_remaining_gain_of_a_noiseless_power_law_is_exact(exponent: float) -> None:
    curve = 5.0 - 20.0 * (N / 100.0) ** -exponent
    rule = Stopping(exponent=exponent, tolerance=2.0)
    stop = fed(rule, curve)
    assert stop is not None
    assert rule.remaining is not None
    # The windows' sums differ from integrals by about 1/(2 n u) relative to what remains.
    assert rule.remaining.value == pytest.approx(5.0 - curve[stop - 1], rel=0.01)
    assert 5.0 - curve[stop - 1] < rule.bound < 2.0


def test_a_faster_approach_than_the_guarded_is_bounded_as_well() -> None:
    for curve in (-50.0 * np.exp(-N / 700.0), -300.0 / N, -3.0 / (1.0 + N / 50.0) ** 0.9):
        stop = Stopping().first_stop(curve)
        assert stop is not None
        assert -curve[stop - 1] < 0.05


def test_welch_agrees_with_scipy(rng: np.random.Generator) -> None:
    a, b = rng.normal(0.0, 3.0, 7), rng.normal(1.0, 0.5, 14)
    difference, quantile = _welch(a, b, 0.975)
    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert difference.value - quantile * difference.stderr == pytest.approx(interval.low, rel=1e-9)
    assert difference.value + quantile * difference.stderr == pytest.approx(interval.high, rel=1e-9)


# -- noise --------------------------------------------------------------------------------------------------


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.mark.parametrize("noise", ["normal", "t3", "ar"])
def test_false_alarms_on_the_slowest_guarded_curve(noise: str, rng: np.random.Generator) -> None:
    traces, false, stopped = 300, 0, 0
    for _ in range(traces):
        curve = -(10.0 ** rng.uniform(0.0, 1.0)) * N**-0.5
        if noise == "normal":
            errors = rng.normal(0.0, 0.2, STEPS)
        elif noise == "t3":
            errors = rng.standard_t(3.0, STEPS) * 0.1
        else:
            # As noisy in the long run as independent errors of standard deviation 0.4.
            errors = np.convolve(rng.normal(0.0, 0.02, STEPS + 99), 0.95 ** np.arange(100.0), "valid")
        stop = Stopping().first_stop(curve + errors)
        stopped += stop is not None
        false += stop is not None and -curve[stop - 1] > 0.05
    assert false <= 0.05 * traces
    assert stopped > 0.5 * traces


def test_noise_that_hides_the_tolerance_does_not_stop(rng: np.random.Generator) -> None:
    assert all(Stopping().first_stop(rng.normal(0.0, 10.0, STEPS)) is None for _ in range(50))


@pytest.mark.parametrize("period", [1_000.0, 5_000.0, 20_000.0])
def test_a_swing_of_the_order_of_the_run_is_not_taken_for_convergence(period: float, rng: np.random.Generator) -> None:
    for _ in range(20):
        curve = 10.0 * np.sin(2.0 * math.pi * N / period + rng.uniform(0.0, 2.0 * math.pi))
        assert Stopping().first_stop(curve + rng.normal(0.0, 0.1, STEPS)) is None


def test_shifts_and_scales_change_no_decision(rng: np.random.Generator) -> None:
    stops = []
    for _ in range(20):
        trace = -10.0 * np.exp(-N / 800.0) + rng.normal(0.0, 0.2, STEPS)
        stops.append(Stopping().first_stop(trace))
        assert Stopping().first_stop(trace - 1234.5) == stops[-1]
        assert Stopping(tolerance=0.05 * 64.0).first_stop(64.0 * trace) == stops[-1]
    assert len(set(stops)) > 2  # the noise matters, and yet the decisions agree


# -- interface ----------------------------------------------------------------------------------------------


def test_a_whole_trace_and_its_steps_give_the_same(rng: np.random.Generator) -> None:
    for _ in range(10):
        trace = -10.0 * np.exp(-N / 800.0) + rng.normal(0.0, 0.2, STEPS)
        trace[rng.integers(0, STEPS, 50)] = math.nan
        rule = Stopping()
        assert fed(rule, trace) is not None
        assert Stopping().first_stop(trace) == rule.stopped_at == rule.count


@pytest.mark.parametrize("at", [0, 1, 1000, 1024, 5000])
def test_the_state_continues_the_run(at: int, rng: np.random.Generator) -> None:
    trace = -10.0 * np.exp(-N / 800.0) + rng.normal(0.0, 0.2, STEPS)
    first, second = Stopping(), Stopping()
    fed(first, trace[:at])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert fed(second, trace[at:]) == fed(first, trace[at:])
    assert second.stopped_at is not None
    assert second.state_dict() == first.state_dict()


def test_a_stopped_rule_stays_stopped() -> None:
    rule = Stopping(minimum=16)
    assert fed(rule, np.zeros(16)) == 16
    assert rule.update(1e9)
    assert rule.update(math.nan)
    assert rule.count == 16


def test_skipped_steps_are_left_out() -> None:
    rule = Stopping(minimum=16)
    assert not any(rule.update(bad) for bad in (math.nan, math.inf, -math.inf) for _ in range(16))
    assert rule.count == 0


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'tolerance': 0\.1"):
        Stopping().load_state_dict(Stopping(tolerance=0.1).state_dict())


@pytest.mark.parametrize(
    "arguments",
    [
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"exponent": -1.0},
        {"minimum": 0},
        {"confidence": 0.5},
        {"confidence": 1.0},
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"Stopping\({name}="):
        Stopping(**arguments)  # type: ignore[arg-type]
