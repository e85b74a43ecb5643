"""The common judges: what they give for equal laws, known defects and repeated points."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import avbvi
from benchmarks import judging
from benchmarks.fitting import Fitted, Method, Snapshot
from benchmarks.problems import Draws, Problem, stacked


def _normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PROBLEM = Problem(
    "normal",
    avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,)),
    exact=_normal,
    matrix=lambda draws: stacked(draws, "z"),
    log_z=math.log(2 * math.pi),
    figures=lambda matrix: {"share": float((matrix[:, 0] > 0).double().mean())},
)
KEYS = {
    *("knn_kl_qp", "knn_kl_qp_stderr", "knn_kl_pq", "c2st", "c2st_stderr", "mean_error_sd", "sd_ratio_min"),
    *("sd_ratio_max", "sliced_w2", "sliced_w2_stderr", "mmd2", "mmd2_stderr", "mmd_p_value"),
    *("judged_draws", "distinct_share", "share"),
}


def _judged(x: Draws | Tensor, **options: Tensor) -> judging.Row:
    return judging.judged(PROBLEM, x, 0, large=2000, small=1000, **options)  # type: ignore[arg-type]


def test_sd_ratios_are_those_of_all_directions() -> None:
    y = torch.randn(5000, 3, dtype=torch.float64)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 3.0]], dtype=torch.float64)
    # In y's own whitened coordinates x has standard deviations 0.5, 1 and 1.5 along rotated axes.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(y.mT)), y.mT, upper=False).mT
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    x = white @ rotation @ torch.diag(torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)) @ rotation.mT
    ratios = judging.sd_ratios(x @ mix.mT, white @ mix.mT)
    assert torch.allclose(ratios, torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64), atol=1e-8)


def test_sd_ratio_in_one_dimension() -> None:
    y = torch.randn(100, 1, dtype=torch.float64)
    assert judging.sd_ratios(3.0 * y + 1.0, y).tolist() == pytest.approx([3.0])


def test_equal_laws_pass_all_judges() -> None:
    figures = _judged(_normal(2000, 1))
    assert set(figures) == KEYS
    assert abs(figures["knn_kl_qp"]) < 4 * figures["knn_kl_qp_stderr"]
    assert abs(figures["c2st"] - 0.5) < 4 * figures["c2st_stderr"]
    assert figures["mmd_p_value"] > 1e-3
    assert figures["mean_error_sd"] < 4 * math.sqrt(2 / 2000)
    assert figures["distinct_share"] == 1.0
    assert figures["judged_draws"] == 2000


def test_moments_and_own_figures_can_see_more_draws_than_the_other_judges() -> None:
    x, y = _normal(8000, 1) * 1.5, _normal(8000, 2)
    few = judging.judged(PROBLEM, x, 0, large=2000, small=1000, reference=y)
    more = judging.judged(PROBLEM, x, 0, large=2000, small=1000, reference=y, moments=6000)
    ratios = judging.sd_ratios(x[:6000], y[:6000])
    assert (more["sd_ratio_min"], more["sd_ratio_max"]) == (float(ratios.min()), float(ratios.max()))
    assert more["share"] == float((x[:6000, 0] > 0).double().mean())
    assert more["sd_ratio_min"] != few["sd_ratio_min"]
    moved = {"mean_error_sd", "sd_ratio_min", "sd_ratio_max", "share"}
    assert {key: more[key] for key in KEYS - moved} == {key: few[key] for key in KEYS - moved}
    # Fewer than ``large`` change nothing.
    assert judging.judged(PROBLEM, x, 0, large=2000, small=1000, reference=y, moments=100) == few
    floor = judging.floor(PROBLEM, 3, large=500, small=300, moments=2000)
    exact = _normal(2000, judging.CONTROL_SEED + 3)
    assert floor["share"] == float((exact[:, 0] > 0).double().mean())


def test_a_shift_has_its_exact_size() -> None:
    # In units of the reference's sds all figures of a shifted sample are known.
    y = _normal(2000, 1) * torch.tensor([10.0, 0.1], dtype=torch.float64)
    x = y + torch.tensor([5.0, 0.0], dtype=torch.float64)
    figures = _judged(x + 1e-9 * _normal(2000, 2), reference=y)
    shift = 5.0 / float(y[:, 0].std())
    assert figures["mean_error_sd"] == pytest.approx(shift, abs=1e-6)
    assert figures["sd_ratio_min"] == pytest.approx(1.0, abs=1e-6)
    # On a direction u of the plane both samples differ by shift * cos; its mean square is shift^2 / 2.
    assert figures["sliced_w2"] == pytest.approx(shift / math.sqrt(2.0), rel=0.15)
    assert figures["mmd_p_value"] < 0.01
    assert figures["c2st"] > 0.55


def test_repeated_points_count_once_for_the_local_judges_and_in_full_for_moments() -> None:
    once = _normal(1000, 1)
    x = torch.cat([once, once[:500]])
    figures = _judged(x)
    assert figures["distinct_share"] == pytest.approx(1000 / 1500)
    assert figures["knn_kl_qp"] == _judged(once)["knn_kl_qp"]
    y = _normal(2000, judging.REFERENCE_SEED)[:1500]
    assert figures["mean_error_sd"] == pytest.approx(float(((x.mean(0) - y.mean(0)) / y.std(0)).abs().max()))


def test_distinct_rows_are_the_first_of_each_in_order() -> None:
    x = torch.tensor([[2.0], [1.0], [2.0], [0.0], [1.0]])
    assert judging.distinct_rows(x).tolist() == [0, 1, 3]


def test_whitening_makes_the_reference_standard_and_follows_it_with_the_sample() -> None:
    mix = torch.tensor([[1e3, 0.0], [990.0, 1.0]], dtype=torch.float64)
    white, other = _normal(500, 1), _normal(400, 2)
    v_expected, shift = white - white.mean(0), white.mean(0)
    u, v = judging.whitened(other @ mix.mT + 7.0, white @ mix.mT + 7.0)
    assert torch.allclose(v.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(torch.cov(v.mT), torch.eye(2, dtype=torch.float64), atol=1e-6)
    # The two maps are one affine map: distances relative to the reference's own whitening agree.
    own = torch.linalg.cholesky(torch.cov(white.mT))
    expected = torch.linalg.solve_triangular(own, (other - shift).mT, upper=False).mT
    assert torch.allclose(u, expected, atol=1e-6)
    assert torch.allclose(v, torch.linalg.solve_triangular(own, v_expected.mT, upper=False).mT, atol=1e-6)


def test_a_whitened_problem_is_judged_alike_in_all_coordinates() -> None:
    mix = torch.tensor([[1e3, 0.0], [990.0, 1.0]], dtype=torch.float64)
    plain = dataclasses.replace(PROBLEM, whitened=True)
    mixed = dataclasses.replace(plain, exact=lambda n, seed: _normal(n, seed) @ mix.mT)
    a = judging.judged(plain, _normal(800, 1), 0, large=800, small=800)
    b = judging.judged(mixed, _normal(800, 1) @ mix.mT, 0, large=800, small=800)
    for key in ("knn_kl_qp", "knn_kl_pq", "sliced_w2", "mmd2", "sd_ratio_min", "sd_ratio_max"):
        assert a[key] == pytest.approx(b[key], abs=1e-5), key


def test_floors_stand_in_all_records_of_their_target() -> None:
    rows: list[judging.Row] = [
        {"target": "a", "method": "floor", "knn_kl_qp": 0.01},
        {"target": "a", "method": "floor", "knn_kl_qp": 0.03},
        {"target": "a", "method": "floor", "error": "x"},
        {"target": "a", "method": "m", "knn_kl_qp": 5.0},
        {"target": "b", "method": "m"},
    ]
    judging.add_floors(rows)
    assert [r["knn_floor"] for r in rows] == [0.02, 0.02, 0.02, 0.02, None]


def test_draws_that_are_not_finite_are_refused() -> None:
    x = _normal(2000, 1)
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 2000 draws are not finite"):
        _judged(x)


def _method(fitted: Fitted) -> Method:
    return Method("m", "M", lambda problem, seed, minutes, snapshots: fitted)


def test_measured_adds_the_exact_kl_only_to_an_exact_density() -> None:
    draws = {"z": _normal(2000, 1)}
    elbo = avbvi.Estimate(PROBLEM.log_z - 0.25, 0.01)  # type: ignore[operator]
    row = judging.measured(
        PROBLEM, _method(Fitted(lambda n: draws, 2.0, elbo, True, {"steps": 7})), 0, 1.0, large=2000, small=1000
    )
    assert row["kl_exact"] == pytest.approx(0.25)
    assert row["elbo_error"] == pytest.approx(-0.25)
    assert (row["target"], row["method"], row["seed"], row["seconds"], row["steps"]) == ("normal", "m", 0, 2.0, 7)
    learned = judging.measured(PROBLEM, _method(Fitted(lambda n: draws, 2.0, elbo)), 0, 1.0, large=2000, small=1000)
    assert "kl_exact" not in learned
    assert learned["elbo_is_bound"] is False
    chain = judging.measured(PROBLEM, _method(Fitted(lambda n: draws, 2.0)), 0, 1.0, large=2000, small=1000)
    assert "elbo" not in chain


def test_a_fit_that_cannot_be_judged_keeps_its_own_figures() -> None:
    bad = {"z": torch.full((2000, 2), math.nan)}
    row = judging.measured(
        PROBLEM, _method(Fitted(lambda n: bad, 2.0, figures={"steps": 7})), 0, 1.0, large=2000, small=1000
    )
    assert row["steps"] == 7
    assert row["error"] == "not judged: ValueError: 2000 of 2000 draws are not finite"


def test_a_curve_has_a_record_per_snapshot() -> None:
    snapshots = [Snapshot(1.0, 10, 2.0 + _normal(1000, 1)), Snapshot(3.0, 30, _normal(1000, 2))]
    rows = judging.curve(PROBLEM, _method(Fitted(lambda n: {}, 3.0, snapshots=snapshots)), 0, 1.0, [1.0], "a_curve")
    assert [(r["target"], r["seconds"], r["steps"]) for r in rows] == [("a_curve", 1.0, 10), ("a_curve", 3.0, 30)]
    # KL of N((2, 2), I) from N(0, I) is 4; nearest neighbours read low.
    assert 2.5 < rows[0]["knn_kl_qp"] < 4.5
    assert abs(rows[1]["knn_kl_qp"]) < 4 * rows[1]["knn_kl_qp_stderr"]
    assert ["cpu_seconds_with_verdict" in r for r in rows] == [False, True]


def test_errors_fit_on_a_line() -> None:
    assert judging.described(ValueError("a\n  b")) == "ValueError: a b"
    assert len(judging.described(ValueError("x" * 1000))) == 300


def test_the_bound_is_added_on_request_and_stays_below_the_divergence() -> None:
    x = _normal(2000, 1) + torch.tensor([1.0, 0.0], dtype=torch.float64)
    figures = judging.judged(PROBLEM, x, 0, large=2000, small=500, bound=True)
    # KL of a shift by one standard deviation is 1/2.
    assert 0.2 < figures["kl_bound"] < 0.5 + 4 * figures["kl_bound_stderr"]
