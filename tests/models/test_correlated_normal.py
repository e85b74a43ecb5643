"""The badly scaled normals: their stated scales, density and normaliser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from models.correlated_normal import CorrelatedNormal


@pytest.mark.parametrize(("dim", "condition"), [(20, 724.0), (50, 953.0)])
def test_scales_and_condition_number_are_as_stated(dim: int, condition: float) -> None:
    normal = CorrelatedNormal(dim)
    covariance = normal.covariance.numpy()
    sds = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(sds, np.geomspace(1e-2, 1e2, dim), rtol=1e-12)
    assert np.linalg.cond(covariance / np.outer(sds, sds)) == pytest.approx(condition, rel=1e-3)
    assert np.linalg.cond(covariance) == pytest.approx(3.3e9, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_density_and_evidence_are_those_of_scipy(seed: int) -> None:
    normal = CorrelatedNormal(20, seed)
    z = normal.sds * torch.randn(30, 20, dtype=torch.float64)
    sds = np.geomspace(1e-2, 1e2, 20)
    standard = stats.multivariate_normal(cov=normal.covariance.numpy() / np.outer(sds, sds))
    expected = standard.logpdf(z.numpy() / sds) - np.log(sds).sum()
    np.testing.assert_allclose((normal.log_prob(z) - normal.log_evidence).numpy(), expected, rtol=1e-10)
    single = normal.log_prob(z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), normal.log_prob(z), rtol=1e-4, atol=1e-4)


def test_other_seeds_are_other_normals_of_the_same_scales() -> None:
    first, second = CorrelatedNormal(20, 0), CorrelatedNormal(20, 1)
    assert torch.equal(first.sds, second.sds)
    assert float((first.correlation - second.correlation).abs().max()) > 0.5


def test_errors() -> None:
    with pytest.raises(ValueError, match="dim must be at least 2"):
        CorrelatedNormal(1)
    with pytest.raises(ValueError, match=r"z must have shape \(\*batch, 20\)"):
        CorrelatedNormal(20).log_prob(torch.zeros(3, 19))
