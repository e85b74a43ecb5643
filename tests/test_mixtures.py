"""Gaussian mixtures: densities against scipy's."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import multivariate_normal

from avbvi.mixtures import component_log_probs, inverse_factors


def test_component_densities_are_those_of_scipy() -> None:
    locs = torch.tensor([[0.0, 1.0, -1.0], [3.0, -2.0, 0.5]], dtype=torch.float64)
    factors = torch.randn(2, 3, 3, dtype=torch.float64).tril(-1) + torch.diag_embed(
        torch.tensor([[0.3, 1.0, 2.0], [1.5, 0.2, 0.7]], dtype=torch.float64)
    )
    log_weights = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    e = torch.randn(4, 5, 3, dtype=torch.float64)
    found = component_log_probs(e, log_weights, locs, inverse_factors(factors))
    for k in range(2):
        covariance = (factors[k] @ factors[k].mT).numpy()
        expected = multivariate_normal(locs[k].numpy(), covariance).logpdf(e.numpy()) + float(log_weights[k])
        np.testing.assert_allclose(found[..., k].numpy(), expected, rtol=1e-10)
    assert found.shape == (4, 5, 2)
