"""The board of verdicts: what counts as bad, good, missed, and exact intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, multivariate_t

from benchmarks import verdicts
from models.toy_densities import TOYS


def row(kl: float | None, error: float = 0.0, verdict: str = "ok", **more: Any) -> dict[str, Any]:
    figures = {"kl": kl, "mean_error_sd": error, "sd_ratio_min": 0.95, "sd_ratio_max": 1.05, **more}
    made = {"target": "t", "method": "m", "seed": 0, "verdict": verdict, **figures}
    return {**made, "truth": verdicts.truth(made)}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (row(0.05, 0.05), "good"),
        (row(0.31, 0.05), "bad"),
        (row(0.05, 0.31), "bad"),
        (row(float("nan"), 0.0), "bad"),
        (row(0.2, 0.0), "between"),
        (row(0.05, 0.2), "between"),
        (row(0.05, 0.0, sd_ratio_min=0.8), "between"),
        (row(0.05, 0.0, sd_ratio_max=1.2), "between"),
        (row(None), "unknown"),
    ],
)
def test_truth_of_a_fit(made: dict[str, Any], expected: str) -> None:
    assert made["truth"] == expected


def test_verdicts_are_scored() -> None:
    records = [
        *(row(1.0, verdict="suspect") for _ in range(8)),
        row(1.0, verdict="failed"),
        row(1.0),  # missed
        row(1.0, missed_share=0.4),  # a mode that no start found
        row(1.0, missed_share=0.4, modes_found=2.0),  # missed: it was found
        row(1.0, missed_share=0.4, verdict="suspect"),
        *(row(0.0) for _ in range(18)),
        *(row(0.0, verdict=status) for status in ("suspect", "failed")),
        row(0.2),
        row(None),
    ]
    found = verdicts.summary(records)
    assert (found["bad"], found["found"], found["good"], found["false_alarms"]) == (12, 10, 20, 2)
    assert found["recall"] == pytest.approx(10 / 12)
    assert found["false_alarm_rate"] == pytest.approx(0.1)
    assert found["undetectable"] == ["t/m/0"]
    assert (found["between"], found["unknown"]) == (1, 1)
    nothing = verdicts.summary([])
    assert nothing["recall"] is None
    assert nothing["recall_interval"] == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 17), (57, 60)])
def test_intervals_are_those_of_scipy(k: int, n: int) -> None:
    exact = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert verdicts.clopper_pearson(k, n) == pytest.approx((exact.low, exact.high))


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="successes must lie in 0 to 3, found 4"):
        verdicts.clopper_pearson(4, 3)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        verdicts.clopper_pearson(1, 3, 1.0)


def test_a_lost_mode_is_a_missed_share() -> None:
    """Of two modes .7 and .3 a fit has the first; a fit that is merely too narrow misses nothing."""

    def modes(n: int) -> torch.Tensor:
        return torch.randn(n, 2) + 20.0 * (torch.rand(n, 1) < 0.3)

    reference = modes(2000)
    share = float((reference[:, 0] > 10.0).double().mean())
    assert verdicts.missed_share(torch.randn(2000, 2), reference) == pytest.approx(share, abs=0.005)
    assert verdicts.missed_share(modes(2000), reference) < 0.01
    assert verdicts.missed_share(0.7 * torch.randn(2000, 2), torch.randn(2000, 2)) < verdicts.MISSED_SHARE


def test_no_target_took_part_in_setting_the_limits() -> None:
    assert set(verdicts.TUNING) <= set(TOYS)
    assert not set(verdicts.TUNING) & set(verdicts.PROBLEMS)


def test_the_student_t_is_that_of_scipy() -> None:
    problem = verdicts.PROBLEMS["student_t_10"]()
    scales = np.logspace(-1.0, 1.0, 10)
    exact = multivariate_t(np.zeros(10), np.diag(scales**2), df=5.0, seed=0)
    draws = problem.exact(4000, 1)
    density = problem.model.log_prob(draws)  # type: ignore[union-attr]
    np.testing.assert_allclose(density.numpy(), exact.logpdf(draws.numpy()), rtol=1e-9)
    # Medians of |z| / scale: those of SciPy's own draws, to four standard errors of a median (density about .5 there).
    theirs = np.median(np.abs(exact.rvs(4000) / scales), axis=0)
    np.testing.assert_allclose(
        np.median(np.abs(draws.numpy() / scales), axis=0), theirs, atol=4.0 * (2.0 / 4000) ** 0.5
    )


def test_fits_are_cut_to_the_minutes_given() -> None:
    seen: list[float] = []
    problem = verdicts.PROBLEMS["gaussian_10"]()

    def fit(problem: Any, seed: int, minutes: float, snapshots: Any) -> Any:
        seen.append(minutes)

    verdicts.FITS["test-20s"] = (fit, 20.0)
    try:
        verdicts.method("test-20s").fit(problem, 0, 1.0, ())
        verdicts.method("test-20s").fit(problem, 0, 0.05, ())
    finally:
        del verdicts.FITS["test-20s"]
    assert seen == pytest.approx([20.0 / 60.0, 0.05])
