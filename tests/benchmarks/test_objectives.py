"""The board of objectives: its pairs of normals, what it notes of gradients, its jobs and tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import kl_divergence

from avbvi.gradients import GradientBound
from avbvi.objectives import KullbackLeibler, Logistic, PearsonChiSquared
from benchmarks import objective_tables, objectives, report, runner, synthetic_vae
from benchmarks.runner import Job


@pytest.mark.parametrize("kl", objectives.KLS)
@pytest.mark.parametrize("dim", objectives.DIMS)
def test_pairs_are_as_far_apart_as_they_say(dim: int, kl: float) -> None:
    q, r = objectives.pair(dim, kl)
    assert float(kl_divergence(q, r)) == pytest.approx(kl, rel=1e-5)
    assert float(kl_divergence(q, r)) - 0.5 * float(q.mean.square().sum()) == pytest.approx(0.1 * kl, rel=1e-4)
    assert bool((q.variance < r.variance).all())
    assert q.event_shape == r.event_shape == (dim,)


def test_a_learned_ratio_is_judged_by_the_exact_one() -> None:
    # Two normals a quarter of a nat apart: an adversary that has learned nothing is off by what the log-ratio is.
    q, r = objectives.pair(2, 0.25)
    x = q.sample((50_000,))
    nothing = float((q.log_prob(x) - r.log_prob(x)).abs().mean())
    untrained = objectives.learn_ratio(Logistic(), 2, 0.25, seed=0, steps=1)
    assert untrained["error_q"] == pytest.approx(nothing, rel=0.1)
    for objective in (Logistic(), KullbackLeibler()):  # T of the second is higher by one
        learned = objectives.learn_ratio(objective, 2, 0.25, seed=0, steps=100)
        assert learned["error_q"] < 0.3 * nothing
        assert learned["skipped_steps"] == 0
        assert learned["gradient_lost"] == 0.0


def test_gradients_that_are_not_finite_are_counted_and_move_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # exp(2 T) overflows from T = 45 on.
    build = objectives.MLPAdversary._build

    def far(self: objectives.MLPAdversary, dim: int) -> None:
        build(self, dim)
        with torch.no_grad():
            self.network[-1].bias.fill_(60.0)

    monkeypatch.setattr(objectives.MLPAdversary, "_build", far)
    row = objectives.learn_ratio(PearsonChiSquared(), 1, 0.5, seed=0, steps=7)
    assert row["skipped_steps"] == 7
    assert row["gradient_lost"] == 1.0
    assert row["gradient_spread"] is None
    assert row["error_q"] == pytest.approx(60.0, abs=1.0)


def test_what_norms_of_gradients_tell() -> None:
    norms = [1.0] * 60 + [100.0] + [1.0] * 37 + [math.inf, math.nan]
    assert objectives.steadiness(norms) == {
        "gradient_spread": 100.0,
        "gradient_shortened": 0.01,
        "gradient_lost": pytest.approx(0.02),
    }


def test_the_watched_adversary_notes_every_gradient_in_full() -> None:
    adversary = synthetic_vae.make_adversary(objectives.WatchedAdversary, objective=KullbackLeibler())
    assert isinstance(adversary, objectives.WatchedAdversary)
    adversary.build_for(2, 2, 4)
    parameters, expected = list(adversary.parameters()), []
    for _ in range(3):
        t = adversary(torch.randn(6, 4, 2), torch.eye(4))
        gradients = torch.autograd.grad(adversary.objective.loss(t[:3], t[3:]), parameters)  # as a fit does
        expected.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
    assert adversary.norms == pytest.approx(expected, rel=1e-5)
    assert adversary.objective == KullbackLeibler()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "QUICK_STEPS", 5)
    monkeypatch.setattr(objectives, "QUICK_TRIAL_STEPS", 3)
    monkeypatch.setattr(objectives, "QUICK_JUDGED_FIT", 300)
    monkeypatch.setattr(synthetic_vae, "QUICK_POINTS", 41)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("target", "method"), [("avb", "kl"), ("avb+ac", "hellinger")])
def test_a_short_fit_fills_a_record(target: str, method: str) -> None:
    before = torch.get_rng_state()
    (row,) = objectives.run(Job(target, method, 0, runner.QUICK_MINUTES))
    assert torch.equal(torch.get_rng_state(), before)
    assert (row["target"], row["method"], row["steps"]) == (target, method, 5)
    assert all(math.isfinite(row[key]) for key in ("log_likelihood", "elbo_exact", "gap", "elbo_error"))
    assert row["gradient_spread"] > 1.0
    assert {"verdict", "skipped_steps", "rollbacks"} <= set(row)


@pytest.mark.usefixtures("short")
def test_without_the_bound_gradients_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = []
    monkeypatch.setattr(
        objectives,
        "GradientBound",
        lambda *of: longest.append(of) or GradientBound(*of),  # the watched norms' too
    )
    rows = objectives.run(Job(objectives.UNBOUNDED, "kl", 0, runner.QUICK_MINUTES))
    assert {(row["dim"], row["kl"]) for row in rows} == {(d, 8.0) for d in objectives.DIMS}
    assert longest.count((math.inf,)) == len(rows)
    factors = GradientBound(math.inf)
    assert [factors.factor(norm) for norm in (1.0, 1e6, 1e30)] == [1.0, 1.0, 1.0]


@pytest.mark.usefixtures("short")
def test_the_normals_fill_a_record_for_each_pair() -> None:
    rows = objectives.run(Job(objectives.GAUSSIANS, "reverse-kl", 0, runner.QUICK_MINUTES))
    assert {(row["dim"], row["kl"]) for row in rows} == {(d, k) for d in objectives.DIMS for k in objectives.KLS}
    shuffled = [{**row, "seed": seed} for seed in (1, 0) for row in reversed(rows)]
    ordered = objectives.finished(shuffled)
    keys = [(row["dim"], row["kl"], row["seed"]) for row in ordered]
    assert keys == sorted(keys)


def test_every_method_of_every_target_is_known() -> None:
    assert set(objective_tables.LABELS) == set(objectives.OBJECTIVES)
    for target, methods in objectives.TRIED.items():
        assert set(methods) <= set(objectives.OBJECTIVES)
        assert target in (*objectives.CONTRASTS, objectives.GAUSSIANS, objectives.UNBOUNDED)


def test_tables_show_medians_failures_and_verdicts() -> None:
    fits = [
        {"target": "avb", "method": "kl", "seed": seed, "gap": gap, "verdict": verdict, "skipped_steps": 3}
        for seed, gap, verdict in ((0, 0.02, "ok"), (1, 0.04, "suspect"))
    ]
    fits.append({"target": "avb", "method": "kl", "seed": 2, "error": "FitFailed: it broke down"})
    *_, row = objective_tables.avb(fits, "avb").splitlines()
    assert row == (
        "| KL(q, r), eq. (6.10) (1 of 3 failed) | - | - | 0.0300 (0.0200 to 0.0400) | - | - | - | 3 (3 to 3) | - "
        "| ok, suspect, failed |"
    )
    normals = [
        {"target": "gaussians", "method": method, "seed": seed, "dim": dim, "kl": 2.0, "error_q": error}
        for method, dim, errors in (
            ("logistic", 4, (0.1, 0.3, 0.2)),
            ("logistic", 1, (0.05, 0.05, 0.05)),
            ("pearson", 4, (0.1, None, 0.2)),
            ("pearson", 1, (0.1, 0.2, 40.0)),
        )
        for seed, error in enumerate(errors)
    ]
    header, _, logistic, pearson = objective_tables.gaussians(normals, "gaussians").splitlines()
    assert header == "| objective | 1-d, 2 nats | 4-d, 2 nats |"
    assert logistic == "| logistic (Jensen-Shannon) | 0.05 (0.05 to 0.05) | 0.2 (0.1 to 0.3) |"
    assert pearson == "| Pearson's chi^2(q, r) | 0.2 (0.1 to 40) | not finite |"


def test_the_board_has_its_places() -> None:
    pages = {page: page.read_text("utf-8") for page in report.PAGES}
    parts, _ = report.BOARDS["objectives"]([])
    assert set(parts) == {f"objectives {target}" for target in objectives.TRIED}
    report.fill(pages, parts)
