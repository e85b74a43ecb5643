"""Contrasts: densities against torch's and NumPy's own, moments against recursions, textbook EM."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from avbvi.contrasts import GaussianContrast, MixtureContrast, PriorContrast
from avbvi.errors import ModelError
from avbvi.layout import LatentLayout
from avbvi.log_density import LogDensity
from avbvi.targets import UnconstrainedTarget


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def correlated(n: int, dim: int = 3) -> Tensor:
    mix = torch.eye(dim) + 0.7 * torch.ones(dim, dim).tril(-1)
    return torch.randn(n, dim) @ mix.mT + torch.arange(dim)


def gaussian(full: bool, dim: int = 3, momentum: float = 0.0, jitter: float = 1e-6) -> GaussianContrast:
    contrast = GaussianContrast(full=full, momentum=momentum, jitter=jitter)
    contrast.build(dim)
    return contrast


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("jitter", [1e-6, 0.3])
def test_gaussian_has_the_batch_moments(full: bool, jitter: float) -> None:
    draws = correlated(50)
    contrast = gaussian(full, jitter=jitter)
    contrast.update(draws)
    covariance = np.cov(draws.numpy().T)
    if not full:
        covariance = np.diag(np.diag(covariance))
    covariance = covariance + jitter * np.eye(3)
    e = 3.0 * torch.randn(4, 5, 3)
    expected = multivariate_normal(draws.mean(0).numpy(), covariance).logpdf(e.numpy())
    np.testing.assert_allclose(contrast.log_prob(e).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_momentum_recursion(full: bool) -> None:
    contrast = gaussian(full, momentum=0.8)
    first, second = correlated(30), 2.0 * correlated(30) + 1.0
    contrast.update(first)  # from N(0, I)
    contrast.update(second)

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        covariance = x.mT.cov()
        return x.mean(0), covariance if full else torch.diag(covariance.diagonal())

    (m1, c1), (m2, c2) = moments(first), moments(second)
    torch.testing.assert_close(contrast.loc, 0.8 * 0.2 * m1 + 0.2 * m2)
    torch.testing.assert_close(contrast.covariance, 0.64 * torch.eye(3) + 0.16 * c1 + 0.2 * c2)
    ridge = contrast.covariance + 1e-6 * torch.eye(3)
    torch.testing.assert_close(contrast.scale_tril @ contrast.scale_tril.mT, ridge)
    # A reset forgets the past.
    contrast.reset(second)
    torch.testing.assert_close(contrast.loc, m2)
    torch.testing.assert_close(contrast.covariance, c2)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_features_are_white(full: bool) -> None:
    draws = correlated(200)
    contrast = gaussian(full, jitter=0.0)
    contrast.update(draws)
    features = contrast.features(draws)
    torch.testing.assert_close(features.mean(0), torch.zeros(3), atol=1e-12, rtol=0.0)
    covariance = features.mT.cov()
    if not full:
        assert float(covariance.tril(-1).abs().max()) > 0.1  # the diagonal one leaves correlations
        covariance = torch.diag(covariance.diagonal())
    torch.testing.assert_close(covariance, torch.eye(3), atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_gives_gradient_to_the_point_alone(full: bool) -> None:
    contrast = gaussian(full, jitter=0.0)
    draws = correlated(40).requires_grad_()
    contrast.update(draws)
    assert list(contrast.parameters()) == []
    assert not any(b.requires_grad for b in contrast.buffers())
    e = torch.randn(6, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(contrast.log_prob(e).sum(), e)
    covariance = contrast.covariance
    torch.testing.assert_close(gradient, -torch.linalg.solve(covariance, (e - contrast.loc).detach().mT).mT)
    # Even where the point is one of the draws, the moments count as constants.
    (gradient,) = torch.autograd.grad(contrast.log_prob(draws).sum(), draws)
    torch.testing.assert_close(gradient, -torch.linalg.solve(covariance, (draws - contrast.loc).detach().mT).mT)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_sample_has_its_moments(full: bool) -> None:
    contrast = gaussian(full)
    contrast.update(correlated(60))
    n = 20_000
    sample = contrast.sample(n)
    covariance = contrast.scale_tril @ contrast.scale_tril.mT
    variance = covariance.diagonal()
    assert bool(((sample.mean(0) - contrast.loc).abs() < 4.0 * (variance / n).sqrt()).all())
    stderr = ((covariance.square() + variance[:, None] * variance) / n).sqrt()
    assert bool(((sample.mT.cov() - covariance).abs() < 4.0 * stderr).all())


def test_gaussian_survives_collapsed_draws() -> None:
    contrast = gaussian(True, jitter=0.0)
    contrast.update(correlated(40))
    factor = contrast.scale_tril.clone()
    contrast.update(torch.ones(40, 3))
    assert torch.equal(contrast.scale_tril, factor)  # no Cholesky factor: the last one stays
    assert bool(torch.isfinite(contrast.log_prob(torch.ones(2, 3))).all())
    contrast.update(correlated(40))
    assert not torch.equal(contrast.scale_tril, factor)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum must be"):
        GaussianContrast(momentum=1.0)
    with pytest.raises(ValueError, match="components must be"):
        MixtureContrast(components=0)
    with pytest.raises(ValueError, match="rate must be"):
        MixtureContrast(rate=0.0)


# -- mixture -----------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
LOCS = torch.tensor([[-2.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.8]]], dtype=torch.float64)


def two_gaussians() -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal(LOCS, COVARIANCES))


def mixture(components: int = 2, rate: float = 1.0, jitter: float = 1e-9, dim: int = 2) -> MixtureContrast:
    contrast = MixtureContrast(components=components, rate=rate, jitter=jitter)
    contrast.build(dim)
    return contrast


def as_distribution(contrast: MixtureContrast) -> MixtureSameFamily:
    return MixtureSameFamily(
        Categorical(logits=contrast.log_weights), MultivariateNormal(contrast.locs, scale_tril=contrast.scale_trils)
    )


def test_mixture_density_is_that_of_its_parameters() -> None:
    contrast = mixture(components=3, rate=0.3)
    contrast.reset(two_gaussians().sample((300,)))
    contrast.update(two_gaussians().sample((300,)))
    e = 2.0 * torch.randn(4, 5, 2)
    torch.testing.assert_close(contrast.log_prob(e), as_distribution(contrast).log_prob(e))
    assert float(contrast.log_weights.exp().sum()) == pytest.approx(1.0)


def test_mixture_sample_has_its_moments() -> None:
    contrast = mixture()
    contrast.reset(two_gaussians().sample((500,)))
    n = 40_000
    sample = contrast.sample(n)
    w = contrast.log_weights.exp()
    mean = w @ contrast.locs
    within = contrast.scale_trils @ contrast.scale_trils.mT
    shift = contrast.locs - mean
    covariance = torch.einsum("k,kij->ij", w, within + shift[:, :, None] * shift[:, None, :])
    assert bool(((sample.mean(0) - mean).abs() < 4.0 * (covariance.diagonal() / n).sqrt()).all())
    products = (sample - mean)[:, :, None] * (sample - mean)[:, None, :]
    assert bool(((products.mean(0) - covariance).abs() < 4.0 * products.std(0) / math.sqrt(n)).all())


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_mixture_update_at_rate_one_is_a_textbook_em_step(jitter: float) -> None:
    contrast = mixture(components=3, jitter=jitter)
    contrast.reset(two_gaussians().sample((200,)))
    weights, locs = contrast.log_weights.exp().numpy(), contrast.locs.numpy().copy()
    covariances = (contrast.scale_trils @ contrast.scale_trils.mT).numpy()
    draws = two_gaussians().sample((150,))
    x = draws.numpy()
    contrast.update(draws)

    density = np.stack(
        [w * multivariate_normal(m, c).pdf(x) for w, m, c in zip(weights, locs, covariances, strict=True)], 1
    )
    r = density / density.sum(1, keepdims=True)
    mass = r.sum(0)
    new_locs = (r.T @ x) / mass[:, None]
    new_covariances = np.stack(
        [(r[:, k, None] * (x - new_locs[k])).T @ (x - new_locs[k]) / mass[k] for k in range(3)]
    ) + jitter * np.diag(x.var(0))
    np.testing.assert_allclose(contrast.log_weights.exp().numpy(), mass / len(x), rtol=1e-8)
    np.testing.assert_allclose(contrast.locs.numpy(), new_locs, rtol=1e-8, atol=1e-10)
    found = (contrast.scale_trils @ contrast.scale_trils.mT).numpy()
    np.testing.assert_allclose(found, new_covariances, rtol=1e-7, atol=1e-9)


def test_mixture_running_statistics_are_stepwise() -> None:
    contrast = mixture(rate=0.25)
    contrast.reset(two_gaussians().sample((200,)))
    counts, first, second = contrast.counts.clone(), contrast.first.clone(), contrast.second.clone()
    draws = two_gaussians().sample((100,))
    joint = contrast.log_weights + MultivariateNormal(contrast.locs, scale_tril=contrast.scale_trils).log_prob(
        draws[:, None]
    )
    r = torch.softmax(joint, 1)
    contrast.update(draws)
    torch.testing.assert_close(contrast.counts, 0.75 * counts + 0.25 * r.mean(0))
    torch.testing.assert_close(contrast.first, 0.75 * first + 0.25 * torch.einsum("nk,ni->ki", r, draws) / 100)
    products = torch.einsum("nk,ni,nj->kij", r, draws, draws) / 100
    torch.testing.assert_close(contrast.second, 0.75 * second + 0.25 * products)


def test_mixture_recovers_two_gaussians() -> None:
    n = 20_000
    draws = two_gaussians().sample((n,))
    contrast = mixture()
    contrast.reset(draws)
    order = contrast.locs[:, 0].argsort()
    weights, locs = contrast.log_weights.exp()[order], contrast.locs[order]
    scales = contrast.scale_trils[order]
    mass = n * WEIGHTS
    # The components hardly overlap, so errors are those of moments of n w_k draws.
    assert bool(((weights - WEIGHTS).abs() < 4.0 * (WEIGHTS * (1.0 - WEIGHTS) / n).sqrt()).all())
    sd = COVARIANCES.diagonal(dim1=1, dim2=2).sqrt()
    assert bool(((locs - LOCS).abs() < 4.0 * sd / mass[:, None].sqrt()).all())
    stderr = ((COVARIANCES.square() + (sd[:, :, None] * sd[:, None, :]).square()) / mass[:, None, None]).sqrt()
    assert bool(((scales @ scales.mT - COVARIANCES).abs() < 4.0 * stderr).all())


def test_likelihood_never_falls_over_em_steps() -> None:
    draws = torch.cat([two_gaussians().sample((300,)), 3.0 * torch.randn(100, 2)])
    contrast = mixture(components=4, jitter=0.0)
    contrast.reset(two_gaussians().sample((100,)))
    values = []
    for _ in range(30):
        contrast.update(draws)
        values.append(float(contrast.log_prob(draws).mean()))
    steps = np.diff(values)
    assert steps.min() > -1e-10
    assert values[-1] - values[0] > 1e-3


def test_mixture_follows_a_moving_sample() -> None:
    contrast = mixture(rate=0.05, jitter=1e-3)
    contrast.reset(two_gaussians().sample((500,)))
    moved = two_gaussians()
    shift = torch.tensor([3.0, -2.0])
    for t in torch.linspace(0.0, 1.0, 150):
        contrast.update(moved.sample((500,)) + t * shift)
    for _ in range(150):
        contrast.update(moved.sample((500,)) + shift)
    x = moved.sample((20_000,)) + shift
    # The excess of the exact density over the fitted one is KL(q, r), here by paired differences.
    excess = moved.log_prob(x - shift) - contrast.log_prob(x)
    assert float(excess.mean()) - 4.0 * float(excess.std()) / math.sqrt(len(x)) < 0.01
    # Without following, it would be about as large as the shift's Mahalanobis distance.
    assert float((moved.log_prob(x - shift) - moved.log_prob(x)).mean()) > 5.0


def test_mixture_features_are_white_under_the_running_moments() -> None:
    draws = two_gaussians().sample((400,))
    contrast = mixture()
    contrast.reset(draws)
    contrast.update(draws)
    features = contrast.features(draws)
    torch.testing.assert_close(features.mean(0), torch.zeros(2), atol=1e-10, rtol=0.0)
    torch.testing.assert_close(features.mT.cov(correction=0), torch.eye(2), atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_survives_collapsed_and_repeated_draws(dim: int, dtype: torch.dtype) -> None:
    contrast = mixture(components=4, rate=0.5, jitter=1e-3, dim=dim).to(dtype)
    collapsed = torch.ones(64, dim, dtype=dtype)
    repeated = torch.randn(2, dim, dtype=dtype).repeat(32, 1)
    for batch in (collapsed, repeated, collapsed, torch.randn(64, dim, dtype=dtype)):
        contrast.reset(batch)
        for other in (repeated, collapsed, torch.randn(64, dim, dtype=dtype)):
            contrast.update(other)
            for value in contrast.buffers():
                assert bool(torch.isfinite(value).all())
            e = torch.randn(5, dim, dtype=dtype)
            assert bool(torch.isfinite(contrast.log_prob(e)).all())
            assert bool(torch.isfinite(contrast.features(e)).all())
            assert bool(torch.isfinite(contrast.sample(5)).all())


def test_mixture_gives_gradient_to_the_point_alone() -> None:
    contrast = mixture()
    contrast.reset(two_gaussians().sample((200,)))
    draws = two_gaussians().sample((20,)).requires_grad_()
    contrast.update(draws)
    assert list(contrast.parameters()) == []
    assert not any(b.requires_grad for b in contrast.buffers())
    (gradient,) = torch.autograd.grad(contrast.log_prob(draws).sum(), draws)
    e = draws.detach().requires_grad_()
    (expected,) = torch.autograd.grad(as_distribution(contrast).log_prob(e).sum(), e)
    torch.testing.assert_close(gradient, expected)


# -- prior -------------------------------------------------------------------------------------------


def scale_model() -> None:
    with pyro.plate("groups", 2):
        s = pyro.sample("s", dist.Gamma(3.0, 2.0))
        pyro.sample("y", dist.Normal(0.0, s), obs=torch.tensor([0.5, -1.0]))
    pyro.sample("m", dist.Normal(1.0, 2.0))


def prior_contrast() -> PriorContrast:
    trace = prune_subsample_sites(poutine.trace(scale_model).get_trace())
    contrast = PriorContrast()
    contrast.build(3)
    contrast.bind(UnconstrainedTarget(scale_model, LatentLayout.from_trace(trace)))
    return contrast


def test_prior_contrast_is_the_prior_in_unconstrained_coordinates() -> None:
    contrast = prior_contrast()
    e = torch.randn(4, 5, 3, requires_grad=True)
    s = e[..., :2].exp()
    # The likelihood does not count; log|ds/du| = u does.
    gamma, normal = torch.distributions.Gamma(3.0, 2.0), torch.distributions.Normal(1.0, 2.0)
    expected = gamma.log_prob(s).sum(-1) + e[..., :2].sum(-1) + normal.log_prob(e[..., 2])
    torch.testing.assert_close(contrast.log_prob(e), expected)
    torch.testing.assert_close(
        torch.autograd.grad(contrast.log_prob(e).sum(), e)[0], torch.autograd.grad(expected.sum(), e)[0]
    )


def test_prior_contrast_samples_the_prior() -> None:
    n = 20_000
    sample = prior_contrast().sample(n)
    assert sample.shape == (n, 3)
    # s = exp(u) ~ Gamma(3, 2): mean 1.5, sd sqrt(3)/2; E log s = digamma(3) - log 2, var trigamma(3).
    u = sample[:, :2]
    three = torch.tensor(3.0)
    for value, mean, sd in (
        (u.exp(), 1.5, math.sqrt(3.0) / 2.0),
        (u, float(torch.digamma(three)) - math.log(2.0), float(torch.polygamma(1, three).sqrt())),
        (sample[:, 2:], 1.0, 2.0),
    ):
        assert bool(((value.mean(0) - mean).abs() < 4.0 * sd / math.sqrt(n)).all())


def test_prior_contrast_needs_a_prior() -> None:
    contrast = PriorContrast()
    contrast.build(1)
    with pytest.raises(RuntimeError, match="not bound"):
        contrast.sample(3)
    with pytest.raises(ValueError, match="AutoGuideList"):
        contrast.bind(None)
    model = LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(1,))
    layout = LatentLayout.from_trace(poutine.trace(poutine.block(model, hide=["log_density"])).get_trace())
    with pytest.raises(ModelError, match="needs a prior"):
        contrast.bind(UnconstrainedTarget(model, layout))
