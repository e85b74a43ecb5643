"""What fresh draws say of an amortised guide: against Gaussians whose moments, densities and divergences are known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from avbvi import AVBGuide, PriorContrast
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.amortised.evaluation import (
    DrawTerms,
    activity,
    draw_terms,
    gaussian_log_prob,
    held_out_logits,
    likelihood_is_discrete,
    mean_over_data,
    moment_bound,
    moment_draws,
)
from avbvi.amortised.guide import AmortisedAVBGuide

from .known import LinearGaussian, LinearSampler, exact_guide
from .test_verdict import Silent

K = 4.5


def correlated(dim: int) -> Tensor:
    """A Cholesky factor with strong correlations."""
    return torch.eye(dim) + 0.8 * torch.ones(dim, dim).tril(-1)


def silent_guide(known: LinearGaussian, contrast: object, x: Tensor) -> AmortisedAVBGuide:
    """Correlated draws, and an adversary that says 0 of them."""
    guide = AVBGuide(known.model, sampler=LinearSampler(known.width), contrast=contrast, adversary=Silent())
    guide.setup(x)
    with torch.no_grad():
        guide.part("sampler").l.copy_(correlated(known.dim))
    assert isinstance(guide, AmortisedAVBGuide)
    return guide


def test_terms_are_the_densities_of_the_draws() -> None:
    known = LinearGaussian()
    guide, x = exact_guide(known.model, known.width), known.data(5)
    guide.setup(x)
    terms = draw_terms(guide, guide.minibatch(x), 23)
    assert terms.z.shape == (23, 5, 2)
    torch.testing.assert_close(terms.log_p, known.log_joint(terms.z, x).detach().double(), rtol=1e-5, atol=1e-5)
    log_q = guide.part("sampler").log_prob(terms.z, x).double()
    torch.testing.assert_close(terms.log_q, log_q, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.elbo, terms.log_p - log_q, rtol=1e-4, atol=1e-5)
    log_prior = dist.Normal(0.0, 1.0).log_prob(terms.z).sum(-1)
    torch.testing.assert_close(terms.log_r, log_prior.double(), rtol=1e-5, atol=1e-5)


def test_held_out_logits_are_of_q_and_of_the_contrast() -> None:
    """With the exact adversary E_q[T] = KL(q, r) and E_r[exp(T)] = 1."""
    known = LinearGaussian()
    guide, x, n = exact_guide(known.model, known.width), known.data(4), 3000
    guide.setup(x)
    t_q, t_r = held_out_logits(guide, guide.minibatch(x), n)
    sampler = guide.part("sampler")
    l = sampler.l.detach()
    q = MultivariateNormal(sampler.loc(x).detach(), l @ l.mT)
    expected = float(kl_divergence(q, MultivariateNormal(torch.zeros(2), torch.eye(2))).mean())
    assert abs(float(t_q.mean()) - expected) < K * float(t_q.std()) / math.sqrt(4 * n)
    weight = t_r.exp()
    assert abs(float(weight.mean()) - 1.0) < K * float(weight.std()) / math.sqrt(4 * n)


def test_gaussian_of_given_moments() -> None:
    fitted = torch.randn(4000, 3, 4, dtype=torch.float64) @ correlated(4).double().mT + 1.0
    z = torch.randn(5, 3, 4, dtype=torch.float64)
    found = gaussian_log_prob(fitted, z)
    for i in range(3):
        covariance = torch.cov(fitted[:, i].mT)
        expected = MultivariateNormal(fitted[:, i].mean(0), covariance).log_prob(z[:, i])
        torch.testing.assert_close(found[:, i], expected)


def test_mean_and_its_error() -> None:
    """Data that differ by far count as given: the error is that of the draws."""
    offset = torch.tensor([0.0, 100.0, -50.0])
    found = [mean_over_data(torch.randn(40, 3).double() + offset) for _ in range(200)]
    spread = float(torch.tensor([e.value for e in found]).std())
    assert spread == pytest.approx(1.0 / math.sqrt(120), rel=0.2)
    # The larger of two estimates of it, the second from ten pieces, lies above by some 10 %.
    assert 0.95 < sum(e.stderr for e in found) / 200 / spread < 1.35


@pytest.mark.parametrize("dim", [2, 5])
def test_moments_prove_the_correlation_that_a_diagonal_contrast_lacks(dim: int) -> None:
    """-1/2 log det corr(q), the figure by which the paper's contrast is optimistic if the adversary sees nothing."""
    known = LinearGaussian(width=6, dim=dim)
    x = known.data(20)
    guide = silent_guide(known, ConditionalGaussianContrast(full=False, draws=2000), x)
    n = 1000
    data = guide.minibatch(x)
    bound = moment_bound(draw_terms(guide, data, n), draw_terms(guide, data, n).z)
    covariance = correlated(dim) @ correlated(dim).mT
    sd = covariance.diagonal().sqrt()
    truth = -0.5 * float(torch.logdet(covariance / sd / sd[:, None]))
    cost = dim * (dim + 3) / (4 * n)
    assert abs(bound.proved.value + cost - truth) < K * bound.proved.stderr + 2e-3  # the contrast's own estimates
    assert bound.claimed.value == 0.0
    assert bound.missed.value == pytest.approx(bound.proved.value)


def test_moments_prove_the_divergence_from_a_prior() -> None:
    known = LinearGaussian()
    x = known.data(10)
    guide = silent_guide(known, PriorContrast(), x)
    data = guide.minibatch(x)
    bound = moment_bound(draw_terms(guide, data, 2000), moment_draws(guide, data))
    l = guide.part("sampler").l.detach()
    q = MultivariateNormal(guide.part("sampler").loc(x).detach(), l @ l.mT)
    truth = float(kl_divergence(q, MultivariateNormal(torch.zeros(2), torch.eye(2))).mean())
    assert abs(bound.missed.value + 2 * 5 / (4 * 512) - truth) < K * bound.missed.stderr


def test_moments_of_many_data_are_those_of_the_first() -> None:
    known = LinearGaussian()
    x = known.data(300)
    guide = silent_guide(known, PriorContrast(), x)
    data = guide.minibatch(x)
    fitted = moment_draws(guide, data)
    assert fitted.shape == (512, 256, 2)
    assert math.isfinite(moment_bound(draw_terms(guide, data, 20), fitted).missed.value)


def test_moments_prove_nothing_of_what_they_do_not_see() -> None:
    """Two narrow peaks with the contrast's mean and variance: KL(q, r) is large, and no moment knows."""
    z = torch.randint(0, 2, (4000, 6, 1)).double() * 2.0 - 1.0 + 0.01 * torch.randn(4000, 6, 1).double()
    log_r = dist.Normal(0.0, 1.0).log_prob(z).sum(-1).double()
    halves = DrawTerms(*(values[:2000] for values in (z, torch.zeros_like(log_r), log_r, torch.zeros_like(log_r))))
    bound = moment_bound(halves, z[2000:])
    assert abs(bound.missed.value) < 0.01


def test_activity() -> None:
    loc = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 2.0], [0.0, 1.0, -2.0], [0.0, -1.0, 0.0]])
    z = loc + torch.tensor([1.0, 0.5, 1e-3]) * torch.randn(3000, 4, 3)
    between = loc.double().var(0)
    within = torch.tensor([1.0, 0.25, 1e-6]).double()
    torch.testing.assert_close(activity(z), between / (between + within), rtol=0.05, atol=2e-3)
    assert float(activity(torch.randn(20, 2000, 1))) < 0.01  # few draws: the noise of the means is taken off


def likelihood(kind: str) -> object:
    def model(x: Tensor) -> None:
        pyro.sample("outside", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if kind in ("bernoulli", "with a factor", "mixed"):
                pyro.sample("x", dist.Bernoulli(logits=z[..., :1].expand_as(x)).to_event(1), obs=x)
            if kind == "counts":
                pyro.sample("x", dist.Poisson(z[..., 0].exp()), obs=x[:, 0])
            if kind == "with a factor":
                pyro.factor("more", z[..., 0])
            if kind in ("normal", "mixed"):
                pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=x[:, 0])
            pyro.deterministic("twice", 2.0 * z, event_dim=1)

    return model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("bernoulli", True), ("counts", True), ("normal", False), ("mixed", False), ("with a factor", False)],
)
def test_discrete_likelihoods(kind: str, expected: bool) -> None:
    model, x = likelihood(kind), torch.ones(4, 3)
    guide = exact_guide(model, 3)
    guide.setup(x)
    assert likelihood_is_discrete(model, guide.minibatch(x)) is expected  # type: ignore[arg-type]
