"""The benchmark's own arithmetic: what is judged, voided, discarded."""

import torch

from benchmarks import eight_schools as bench


def test_sd_ratios_are_those_of_all_directions() -> None:
    y = torch.randn(5000, 3, dtype=torch.float64)
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.5, 3.0]], dtype=torch.float64)
    # In y's own whitened coordinates x has standard deviations 0.5, 1 and 1.5 along rotated axes.
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(y.mT)), y.mT, upper=False).mT
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    x = white @ rotation @ torch.diag(torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)) @ rotation.mT
    ratios = bench._sd_ratios(x @ mix.mT, white @ mix.mT)
    assert torch.allclose(ratios.sort().values, torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64), atol=1e-8)


def test_a_missed_control_voids_the_classifier() -> None:
    base = {"target": "eight_schools_paper", "seed": 0, "knn_kl_qp": 0.0, "c2st": 0.502, "c2st_stderr": 0.0016}
    seen = [{**base, "method": "default"}, {**base, "method": "floor", "knn_kl_qp": 0.01},
            {**base, "method": "control-scaled", "c2st": 0.52}]  # fmt: skip
    assert [r["c2st"] for r in bench.finished(seen)] == [0.502, 0.502, 0.52]
    assert all(r["knn_floor"] == 0.01 for r in seen)
    missed = [{**base, "method": "default"}, {**base, "method": "control-scaled", "c2st": 0.503}]
    assert [r["c2st"] for r in bench.finished(missed)] == [None, None]


def test_a_run_without_its_core_is_discarded() -> None:
    assert bench.disturbed({"seconds": 60.0, "cpu_seconds_with_verdict": 31.0})
    assert not bench.disturbed({"seconds": 60.0, "cpu_seconds_with_verdict": 59.0})
    assert not bench.disturbed({"seconds": 7.0})
