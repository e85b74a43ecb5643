"""The board of the judges: its cases have the divergence that they say, its backends agree."""

import math

import numpy as np
import pytest
import torch

from benchmarks import divergences as bench
from benchmarks.runner import Job, Options

OPTIONS = Options(seeds=3, minutes=1.0, workers=1)


@pytest.mark.parametrize("name", bench.CASES)
@pytest.mark.parametrize("dim", [1, 10])
def test_cases_have_the_stated_divergence(name: str, dim: int) -> None:
    case = bench.Case.named(name, dim)
    exact = bench.gaussian_kl(case.scale, dim) + 0.5 * case.shift**2
    assert exact == pytest.approx(case.exact, abs=1e-9)
    assert case.exact == (0.0 if name == "equal" else bench.DIVERGENCE)
    x, y = case.draws(20_000, dim, 0)
    assert float(y.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / (20_000 * dim)))
    # E_q[log q - log p] from q's draws.
    log_ratio = -0.5 * ((x - case.shift * torch.eye(dim)[0]) / case.scale).square().sum(1) - dim * math.log(case.scale)
    terms = log_ratio + 0.5 * x.square().sum(1)
    assert abs(float(terms.mean()) - case.exact) < 4 * float(terms.std()) / math.sqrt(20_000) + 1e-12


def test_backends_agree() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((500, 9)), 1.1 * rng.standard_normal((600, 9))
    values = {
        name: f(x, y, "cpu") for name, f in bench.BACKENDS.items() if bench.missing(Job("", name, 0, 1.0)) is None
    }
    assert {"avbvi", "scipy"} <= set(values)
    for name, value in values.items():
        assert value == pytest.approx(values["scipy"], abs=1e-5 if name == "faiss" else 1e-9)


def test_jobs() -> None:
    jobs = bench.jobs(OPTIONS, "cpu")
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.target for job in jobs} == set(bench.targets("cpu"))
    assert max(job.seed for job in jobs if job.method == "kl-bound") == 1
    assert Job("flow0-d10-n100000", "kl-bound-score", 2, 1.0) in jobs
    on_gpu = [job for job in bench.jobs(OPTIONS, "cuda") if job.target.startswith("speed")]
    assert {job.method for job in on_gpu} == {"avbvi"}
    assert "speed-d10-n1000000" in {job.target for job in on_gpu}


def test_an_accuracy_record_holds_estimate_and_truth() -> None:
    (row,) = bench.run(Job("wide-d2-n2000", "knn-kl", 1, 1.0))
    assert row["exact"] == bench.DIVERGENCE
    assert abs(row["value"] - 0.5) < 0.2
    assert row["error_in_stderr"] == pytest.approx((row["value"] - 0.5) / row["stderr"])
    assert {"target", "method", "seed", "device", "seconds", "dim", "draws"} <= set(row)
