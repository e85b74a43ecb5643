"""Contrasts per datum: densities against torch's own, whitening, moments, what gets a gradient."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from avbvi.amortised.contrasts import ConditionalGaussianContrast, LearnedGaussianContrast
from avbvi.amortised.samplers import (
    AmortisedSampler,
    ConditionalGaussianSampler,
    ConditionalSampler,
    NoiseBasisSampler,
)
from avbvi.amortised.semi_implicit import SemiImplicitSampler
from avbvi.contrasts import Contrast, GaussianContrast, GivenContrast, MixtureContrast, PriorContrast
from avbvi.parts import rebuild

CONTEXT_DIM, DIM, BATCH = 5, 3, 4


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


class NormalPrior:
    """Each datum's own normal prior."""

    def __init__(self) -> None:
        self.density = Independent(Normal(torch.randn(BATCH, DIM), torch.rand(BATCH, DIM) + 0.5), 1)

    def sample_prior(self, n: int) -> Tensor:
        return self.density.sample(torch.Size((n,)))

    def log_prior(self, z: Tensor) -> Tensor:
        return self.density.log_prob(z)


class Linear(AmortisedSampler):
    """z = M x + K n, correlated, without telling its moments."""

    def _build(self, dim: int) -> None:
        self.noise_dim = dim
        self.location = nn.Linear(self.context_dim, dim)
        self.matrix = nn.Parameter(torch.eye(dim) + 0.7 * torch.ones(dim, dim).tril(-1))

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        draws: Tensor = self.location(context) + context[:, :1].exp() * (noise @ self.matrix.mT)
        return draws

    def truth(self, context: Tensor) -> MultivariateNormal:
        factor = context[:, :1, None].exp() * self.matrix
        return MultivariateNormal(self.location(context), factor @ factor.mT)


def built(sampler: AmortisedSampler) -> Any:
    sampler.build(DIM)
    sampler.double()
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return sampler


def contexts() -> Tensor:
    return torch.randn(BATCH, CONTEXT_DIM)


def given(contrast: Contrast, sampler: AmortisedSampler, context: Tensor) -> GivenContrast:
    contrast.build_for(DIM, CONTEXT_DIM, sampler)
    contrast.double()
    assert contrast.feature_dim == DIM
    return contrast.given(sampler, context, NormalPrior())


def draws_of(sampler: AmortisedSampler, n: int, context: Tensor) -> Tensor:
    return sampler(sampler.sample_noise(torch.Size((n, len(context))), like=context), context)


def diagonal(covariance: Tensor) -> Tensor:
    return torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_density_is_that_of_the_analytic_moments(full: bool, jitter: float) -> None:
    sampler, context = built(ConditionalGaussianSampler(CONTEXT_DIM, full=True)), contexts()
    r = given(ConditionalGaussianContrast(full=full, jitter=jitter), sampler, context)
    loc, covariance = sampler.moments(context)
    ridge = covariance + jitter * diagonal(covariance)
    expected = MultivariateNormal(loc, ridge if full else diagonal(ridge))
    z = loc + 2.0 * torch.randn(3, 6, BATCH, DIM)
    torch.testing.assert_close(r.log_prob(z), expected.log_prob(z).detach())
    torch.testing.assert_close(r.log_prob(z[0, 0]), expected.log_prob(z[0, 0]).detach())


@pytest.mark.parametrize("full", [False, True])
def test_sample_has_the_moments_of_the_density(full: bool) -> None:
    sampler, context, n = built(ConditionalGaussianSampler(CONTEXT_DIM, full=True)), contexts(), 40_000
    r = given(ConditionalGaussianContrast(full=full), sampler, context)
    loc, covariance = (m.detach() for m in sampler.moments(context))
    if not full:
        covariance = diagonal(covariance)
    sample = r.sample(n)
    assert sample.shape == (n, BATCH, DIM)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((sample.mean(0) - loc).abs() < 5.0 * (variance / n).sqrt()).all())
    centred = sample - sample.mean(0)
    found = torch.einsum("nbk,nbl->bkl", centred, centred) / (n - 1)
    stderr = ((covariance.square() + variance[:, :, None] * variance[:, None, :]) / n).sqrt()
    assert bool(((found - covariance).abs() < 5.0 * stderr).all())


@pytest.mark.parametrize("full", [False, True])
def test_features_of_the_samplers_draws_are_standard(full: bool) -> None:
    n = 20_000
    sampler, context = built(NoiseBasisSampler(CONTEXT_DIM, bases=2, moment_draws=n, offset=0.0)), contexts()
    with torch.no_grad():
        r = given(ConditionalGaussianContrast(full=full), sampler, context)
        features = r.features(draws_of(sampler, n, context))
    # Bases that are not normal: standard errors from the draws; twice the variance, for the moments are estimates too.
    assert bool((features.mean(0).abs() < 5.0 * (2.0 / n) ** 0.5).all())
    products = features[..., :, None] * features[..., None, :]
    error = (products.mean(0) - torch.eye(DIM)).abs()
    within = error < 5.0 * products.std(0) * (2.0 / n) ** 0.5
    assert bool((within if full else within.diagonal(dim1=-2, dim2=-1)).all())
    # The diagonal one leaves correlations to the adversary.
    assert bool((error.tril(-1) > 0.1).any()) != full


@pytest.mark.parametrize("full", [False, True])
def test_estimated_moments_approach_the_true_ones(full: bool) -> None:
    sampler, context, n = built(Linear(CONTEXT_DIM)), contexts(), 40_000
    truth = sampler.truth(context)
    covariance = truth.covariance_matrix if full else diagonal(truth.covariance_matrix)
    with torch.no_grad():
        r = given(ConditionalGaussianContrast(full=full, draws=n), sampler, context)
        z = truth.sample(torch.Size((2000,)))
        difference = MultivariateNormal(truth.loc, covariance).log_prob(z) - r.log_prob(z)
    # KL(true, estimated) is about (number of parameters) / (2 n) nats per datum; the difference's mean estimates it.
    parameters = DIM + (DIM * (DIM + 1) // 2 if full else DIM)
    bound = 20.0 * parameters / (2 * n)
    error = 5.0 * difference.std(0) / 2000**0.5
    assert bool((difference.mean(0).abs() < bound + error).all())
    assert float(difference.std(0).max()) < 0.05


@pytest.mark.parametrize("full", [False, True])
def test_moments_come_from_one_noise_with_correlations_shrunk_by_the_stated_share(full: bool) -> None:
    sampler, context, n = built(Linear(CONTEXT_DIM)), contexts(), 6
    contrast = ConditionalGaussianContrast(full=full, draws=n, jitter=0.0)
    r = given(contrast, sampler, context)
    assert contrast.noise.shape == (n, DIM)
    z = torch.stack([sampler(contrast.noise, context[b].expand(n, -1)) for b in range(BATCH)], 1).detach()
    expected = []
    for b in range(BATCH):
        covariance = torch.cov(z[:, b].mT)
        share = DIM / (n + DIM) if full else 1.0
        expected.append((1.0 - share) * covariance + share * torch.diag(covariance.diagonal()))
    reference = MultivariateNormal(z.mean(0), torch.stack(expected))
    torch.testing.assert_close(r.log_prob(z), reference.log_prob(z))
    # r is a function of x alone: neither a second time nor in another minibatch does it change.
    other = contrast.given(sampler, context.flip(0), NormalPrior())
    assert torch.equal(other.log_prob(z.flip(1)).flip(1), r.log_prob(z))


@pytest.mark.parametrize("make", [NoiseBasisSampler, SemiImplicitSampler])
def test_analytic_moments_do_not_change_from_call_to_call(make: Any) -> None:
    sampler, context, z = built(make(CONTEXT_DIM)), contexts(), torch.randn(7, BATCH, DIM)
    contrast = ConditionalGaussianContrast()
    before = torch.get_rng_state()
    r = given(contrast, sampler, context)
    assert not hasattr(contrast, "noise")
    again = contrast.given(sampler, context.flip(0), NormalPrior()).log_prob(z.flip(1)).flip(1)
    torch.testing.assert_close(again, r.log_prob(z))
    torch.randn(3)
    torch.set_rng_state(before)
    # Another sampler of the class, with the same weights, has the same ones.
    twin = make(CONTEXT_DIM)
    twin.build(DIM)
    twin.double()
    weights = {k: v for k, v in sampler.state_dict().items() if k != "moment_noise"}
    assert set(twin.load_state_dict(weights, strict=False).missing_keys) == {"moment_noise"}
    torch.testing.assert_close(contrast.given(twin, context, NormalPrior()).log_prob(z), r.log_prob(z))


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_fewer_draws_than_coordinates_give_a_density(dim: int) -> None:
    sampler = ConditionalSampler(CONTEXT_DIM)
    sampler.build(dim)
    contrast = ConditionalGaussianContrast(full=True, draws=2)
    contrast.build_for(dim, CONTEXT_DIM, sampler)
    context = contexts()
    r = contrast.given(sampler, context, NormalPrior())
    z = draws_of(sampler, 2, context)
    assert bool(torch.isfinite(r.log_prob(z)).all())
    assert bool(torch.isfinite(r.sample(2)).all())


def test_draws_unless_told() -> None:
    before = torch.get_rng_state()
    for dim, draws in ((1, 64), (10, 80), (100, 256)):
        sampler = Linear(CONTEXT_DIM)
        sampler.build(dim)
        torch.set_rng_state(before)
        contrast = ConditionalGaussianContrast(full=False)
        contrast.build_for(dim, CONTEXT_DIM, sampler)
        assert contrast.noise.shape == (draws, dim)
        assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone


@pytest.mark.parametrize("full", [False, True])
def test_collapsed_posteriors_keep_a_density(full: bool) -> None:
    sampler, context = built(Linear(CONTEXT_DIM)), contexts()
    with torch.no_grad():
        sampler.matrix[1:] = 0.0  # two coordinates are constants
    r = given(ConditionalGaussianContrast(full=full, draws=50), sampler, context)
    z = draws_of(sampler, 10, context).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(r.log_prob(z).sum(), z)
    assert bool(torch.isfinite(r.log_prob(z)).all())
    assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(r.features(r.sample(5))).all())


def test_one_datum_without_a_factor_does_not_touch_the_others() -> None:
    contrast = ConditionalGaussianContrast(jitter=0.0)
    good, bad = torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    factor = contrast._factor(torch.stack([good, bad]))
    torch.testing.assert_close(factor[0], torch.linalg.cholesky(good))
    torch.testing.assert_close(factor[1], torch.eye(2))


def contrasts() -> list[tuple[Contrast, AmortisedSampler]]:
    return [
        (ConditionalGaussianContrast(full=True), NoiseBasisSampler(CONTEXT_DIM)),
        (ConditionalGaussianContrast(full=False), NoiseBasisSampler(CONTEXT_DIM)),
        (ConditionalGaussianContrast(full=True), ConditionalSampler(CONTEXT_DIM)),
        (LearnedGaussianContrast(full=True), ConditionalSampler(CONTEXT_DIM)),
        (LearnedGaussianContrast(full=False), ConditionalSampler(CONTEXT_DIM)),
        (ConditionalGaussianContrast(), SemiImplicitSampler(CONTEXT_DIM)),
        (LearnedGaussianContrast(), SemiImplicitSampler(CONTEXT_DIM)),
        (PriorContrast(), ConditionalSampler(CONTEXT_DIM)),
    ]


@pytest.mark.parametrize("index", range(len(contrasts())))
def test_gradient_reaches_the_point_alone(index: int) -> None:
    contrast, sampler = contrasts()[index]
    context = contexts()
    r = given(contrast, built(sampler), context)
    z = draws_of(sampler, 5, context)  # connected to the sampler's parameters: the path gradient
    log_r, features = r.log_prob(z), r.features(z)
    (at_point,) = torch.autograd.grad((log_r.sum() + features.sum()), z, retain_graph=True)
    assert float(at_point.abs().min()) > 0.0
    through = torch.autograd.grad(
        log_r.sum() + features.sum(), list(sampler.parameters()), allow_unused=True, retain_graph=True
    )
    # The same vector-Jacobian product, through z alone.
    expected = torch.autograd.grad(z, list(sampler.parameters()), at_point, allow_unused=True)
    for a, b in zip(through, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)
    if list(contrast.parameters()):
        assert all(
            g is None
            for g in torch.autograd.grad(
                r.log_prob(draws_of(sampler, 5, context)).sum(), list(contrast.parameters()), allow_unused=True
            )
        )
    assert not r.sample(3).requires_grad
    assert r.features(z).shape == (5, BATCH, DIM)


# -- learned ---------------------------------------------------------------------------------------------


SAMPLERS = pytest.mark.parametrize("make", [ConditionalSampler, SemiImplicitSampler])


@SAMPLERS
def test_the_learned_contrast_loses_the_negative_log_likelihood(make: Any) -> None:
    contrast, sampler, context = LearnedGaussianContrast(), built(make(CONTEXT_DIM)), contexts()
    r = given(contrast, sampler, context)
    z = draws_of(sampler, 7, context)
    loss = contrast.loss(z, context, sampler)
    torch.testing.assert_close(loss, -r.log_prob(z).mean())
    loss.backward()
    assert all(p.grad is None for p in sampler.parameters())
    # The head starts at zero; what lies before it learns from the next step on.
    assert all(float(p.grad.abs().sum()) > 0.0 for p in contrast.head.parameters())
    with torch.no_grad():
        for p in contrast.parameters():
            p.add_(0.1 * torch.randn_like(p))
    contrast.loss(z, context, sampler).backward()
    assert all(float(p.grad.abs().sum()) > 0.0 for p in contrast.parameters())


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("base_full", [False, True])
def test_the_learned_contrast_starts_at_the_samplers_gaussian(full: bool, base_full: bool) -> None:
    sampler, context = built(SemiImplicitSampler(CONTEXT_DIM, full=base_full)), contexts()
    contrast = LearnedGaussianContrast(full=full)
    z = torch.randn(5, BATCH, DIM)
    own = sampler.gaussians(context)
    torch.testing.assert_close(given(contrast, sampler, context).log_prob(z), own.log_prob(z).detach())
    # Away from the start it is the Gaussian of loc + L e.
    with torch.no_grad():
        for p in contrast.parameters():
            p.add_(0.2 * torch.randn_like(p))
        outer, inner = sampler.gaussians(context), contrast.head.gaussians(contrast.own_body(context))
        factor = outer.matrices()
        loc = outer.loc + (factor @ inner.loc[..., None])[..., 0]
        covariance = factor @ inner.matrices() @ inner.matrices().mT @ factor.mT
    expected = MultivariateNormal(loc, covariance)
    torch.testing.assert_close(contrast.given(sampler, context, NormalPrior()).log_prob(z), expected.log_prob(z))
    # A sampler that departs from no Gaussian: N(0, start_scale^2 I).
    fresh = given(LearnedGaussianContrast(full=full, start_scale=0.3), built(ConditionalSampler(CONTEXT_DIM)), context)
    torch.testing.assert_close(fresh.log_prob(z), Independent(Normal(torch.zeros(DIM), 0.3), 1).log_prob(z))


def test_the_learned_contrast_finds_the_moments() -> None:
    sampler = built(Linear(CONTEXT_DIM))
    with torch.no_grad():
        sampler.location.weight.mul_(0.5)
    contrast = LearnedGaussianContrast(hidden=(48,))
    contrast.build_for(DIM, CONTEXT_DIM, sampler)
    contrast.double()
    steps = 600
    optimiser = torch.optim.Adam(contrast.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        context = torch.rand(32, CONTEXT_DIM) - 0.5
        optimiser.zero_grad()
        contrast.loss(draws_of(sampler, 8, context), context, sampler).backward()
        optimiser.step()
        schedule.step()
    context = torch.rand(200, CONTEXT_DIM) - 0.5
    with torch.no_grad():
        truth = sampler.truth(context)
        r = contrast.given(sampler, context, NormalPrior()).gaussians
        kl = torch.distributions.kl_divergence(truth, MultivariateNormal(r.loc, scale_tril=r.scale))
    assert float(kl.mean()) < 0.03


def test_contrasts_that_are_not_learned_lose_nothing() -> None:
    context, sampler = contexts(), built(ConditionalSampler(CONTEXT_DIM))
    for contrast in (ConditionalGaussianContrast(), PriorContrast()):
        contrast.build_for(DIM, CONTEXT_DIM, sampler)
        assert contrast.loss(torch.randn(2, BATCH, DIM), context, sampler) is None


def test_a_users_body_takes_the_place_of_the_learned_contrasts_layers() -> None:
    body = nn.Linear(CONTEXT_DIM, 4)
    contrast = LearnedGaussianContrast(body=body)
    assert not contrast.is_rebuildable
    sampler = built(ConditionalSampler(CONTEXT_DIM))
    r = given(contrast, sampler, contexts())
    contrast.loss(r.sample(3), contexts(), sampler).backward()
    assert body.weight.grad is not None


# -- the others ------------------------------------------------------------------------------------------


def test_the_prior_contrast_is_the_prior() -> None:
    contrast, sampler, context, prior = (
        PriorContrast(),
        built(ConditionalSampler(CONTEXT_DIM)),
        contexts(),
        NormalPrior(),
    )
    contrast.build_for(DIM, CONTEXT_DIM, sampler)
    r = contrast.given(sampler, context, prior)
    z = torch.randn(5, BATCH, DIM)
    assert torch.equal(r.log_prob(z), prior.density.log_prob(z))
    assert r.features(z) is z
    torch.manual_seed(3)
    sample = r.sample(7)
    torch.manual_seed(3)
    assert torch.equal(sample, prior.density.sample(torch.Size((7,))))


@pytest.mark.parametrize("contrast", [GaussianContrast(), MixtureContrast()])
def test_contrasts_of_one_posterior_refuse_a_context(contrast: Contrast) -> None:
    with pytest.raises(ValueError, match=f"{type(contrast).__name__}.*use ConditionalGaussianContrast"):
        given(contrast, built(ConditionalSampler(CONTEXT_DIM)), contexts())


@pytest.mark.parametrize(
    "contrast",
    [
        ConditionalGaussianContrast(full=False, draws=9, jitter=0.5),
        LearnedGaussianContrast(hidden=(5,), full=False, start_scale=0.25, slope=0.1),
    ],
)
def test_a_contrast_is_made_again_from_its_configuration(contrast: Contrast) -> None:
    sampler, context = built(ConditionalSampler(CONTEXT_DIM)), contexts()
    r = given(contrast, sampler, context)
    assert contrast.is_rebuildable
    configuration = json.loads(json.dumps(contrast.configuration()))
    again = rebuild(configuration)
    assert isinstance(again, type(contrast))
    again.build_for(DIM, CONTEXT_DIM, sampler)
    again.double()
    assert json.loads(json.dumps(again.configuration())) == configuration
    again.load_state_dict(contrast.state_dict())
    z = torch.randn(2, BATCH, DIM)
    assert torch.equal(again.given(sampler, context, NormalPrior()).log_prob(z), r.log_prob(z))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ConditionalGaussianContrast, {"full": 1}, "full must be True or False"),
        (ConditionalGaussianContrast, {"draws": 1}, "draws must be at least 2"),
        (ConditionalGaussianContrast, {"jitter": -1e-3}, r"jitter must be in \[0, 1\)"),
        (LearnedGaussianContrast, {"start_scale": -1.0}, "start_scale must be positive"),
        (LearnedGaussianContrast, {"hidden": 3}, "hidden must be a tuple"),
        (LearnedGaussianContrast, {"body": 3}, "body must be a torch.nn.Module"),
    ],
)
def test_bad_arguments_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(**arguments)
