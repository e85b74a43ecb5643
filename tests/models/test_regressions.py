"""Regressions against scipy, and the hierarchical model against its closed form given the scales."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from avbvi.reference import unconstrained_target
from models import regressions
from models.regressions import breast_cancer, counties, hierarchical_model, logistic_model


@pytest.mark.parametrize(("squares", "dim"), [(False, 31), (True, 61)])
def test_logistic_density_is_scipys(squares: bool, dim: int) -> None:
    pytest.importorskip("sklearn")
    x, y = breast_cancer(squares=squares, dtype=torch.float64)
    assert x.shape == (569, dim)
    assert bool((x[:, 0] == 1.0).all())
    assert float(x[:, 1:].mean(0).abs().max()) < 1e-12
    assert float((x[:, 1:].std(0, correction=0) - 1.0).abs().max()) < 1e-12
    assert int(y.sum()) == 357  # benign tumours, as the data's documentation states
    target = unconstrained_target(logistic_model, (x, y))
    w = (0.5 * torch.randn(6, dim, dtype=torch.float64)).requires_grad_()
    value = target.log_prob(w)
    odds = w.detach().numpy() @ x.numpy().T
    likelihood = np.where(y.numpy() == 1.0, stats.logistic.logcdf(odds), stats.logistic.logsf(odds)).sum(-1)
    prior = stats.norm.logpdf(w.detach().numpy()).sum(-1)
    np.testing.assert_allclose(value.detach().numpy(), likelihood + prior, rtol=1e-9)
    (score,) = torch.autograd.grad(value.sum(), w)
    expected = (y.numpy() - stats.logistic.cdf(odds)) @ x.numpy() - w.detach().numpy()
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-7, atol=1e-7)


def test_squares_follow_the_measurements() -> None:
    pytest.importorskip("sklearn")
    x, _ = breast_cancer(squares=True, dtype=torch.float64)
    square = x[:, 1:31].numpy() ** 2
    for column, expected in zip(x[:, 31:].numpy().T, square.T, strict=True):
        np.testing.assert_allclose(column, stats.zscore(expected), atol=1e-9)
    assert breast_cancer()[0].dtype == torch.get_default_dtype()


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="install scikit-learn"):
        breast_cancer()


def test_hierarchical_model_integrates_to_its_closed_form_given_the_scales() -> None:
    """Given tau and sigma all else is Gaussian: the 62-dimensional integral equals scipy's density of y."""
    data = counties(dtype=torch.float64)
    target = unconstrained_target(hierarchical_model, data.arguments)
    assert target.layout.dim == 65
    scales = {"tau_intercept": 0.5, "tau_slope": 0.3, "sigma": 0.8}
    names = target.layout.coordinate_names
    at = {name: names.index(name) for name in scales}
    fixed = torch.zeros(65, dtype=torch.float64)
    for name, value in scales.items():
        fixed[at[name]] = math.log(value)
    free = torch.tensor([i for i in range(65) if i not in at.values()])

    def joint(values: torch.Tensor) -> torch.Tensor:
        return target.log_prob(fixed.index_copy(0, free, values)[None])[0]

    zero = torch.zeros(62, dtype=torch.float64)
    gradient = torch.func.grad(joint)(zero)
    hessian = torch.autograd.functional.hessian(joint, zero)
    optimum = torch.linalg.solve(-hessian, gradient)
    log_det = torch.linalg.slogdet(-hessian).logabsdet
    value = float(joint(optimum) + 31.0 * math.log(2.0 * math.pi) - 0.5 * log_det)

    x, group = data.x.numpy(), data.group.numpy()
    same = (group[:, None] == group[None, :]).astype(float)
    covariance = 4.0 + 4.0 * np.outer(x, x) + 0.25 * same + 0.09 * same * np.outer(x, x) + 0.64 * np.eye(len(x))
    # The coordinates are logarithms: each half-normal prior brings its Jacobian.
    prior = sum(stats.halfnorm.logpdf(value) + math.log(value) for value in scales.values())
    expected = stats.multivariate_normal(cov=covariance).logpdf(data.y.numpy()) + prior
    assert value == pytest.approx(expected, rel=1e-9)


def test_counties_are_those_that_were_simulated() -> None:
    data = counties(dtype=torch.float64)
    sizes = data.group.bincount()
    assert (len(sizes), int(sizes.sum()), int(sizes.min()), int(sizes.max())) == (30, 240, 2, 49)
    again, other = counties(dtype=torch.float64), counties(1, dtype=torch.float64)
    assert torch.equal(data.y, again.y)
    assert not torch.equal(data.y, other.y)
    # Generalised least squares finds the slope and the intercept that the data were made with.
    truth = regressions._TRUTH
    x, group = data.x.numpy(), data.group.numpy()
    same = (group[:, None] == group[None, :]).astype(float)
    noise = truth["sigma"] ** 2 * np.eye(len(x))
    covariance = truth["tau_intercept"] ** 2 * same + truth["tau_slope"] ** 2 * same * np.outer(x, x) + noise
    design = np.stack([np.ones_like(x), x], -1)
    weighted = np.linalg.solve(covariance, design)
    spread = np.linalg.inv(design.T @ weighted)
    found = spread @ weighted.T @ data.y.numpy()
    errors = (found - [truth["mu_intercept"], truth["mu_slope"]]) / np.sqrt(np.diag(spread))
    assert np.abs(errors).max() < 4.0
