"""Likelihoods against closed forms: laws of draws, their gradients, bins' probabilities, learned scales."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from scipy import integrate, stats
from torch import Tensor, nn

from avbvi.annealed import SigmoidTemperatures, annealed_importance_sampling
from models.encoders import GaussianEncoder
from models.likelihoods import (
    LearnedNormalLikelihood,
    NormalLikelihood,
    QuantisedLikelihood,
    RelaxedBernoulliLikelihood,
    RelaxedPixels,
    bernoulli,
    log_normal_interval,
)
from models.vaes import VAE

LOGITS = torch.tensor([-2.5, -0.4, 0.0, 1.0, 3.0])


def test_straight_through_draws_are_bernoulli_pixels() -> None:
    n = 40_000
    d = RelaxedBernoulliLikelihood()(LOGITS.expand(n, 5))
    for draws in (d.rsample(), d.sample(), RelaxedBernoulliLikelihood(straight_through=False)(LOGITS).sample((n,))):
        assert bool(((draws == 0.0) | (draws == 1.0)).all())  # to the last bit
        p = torch.sigmoid(LOGITS)
        assert bool(((draws.mean(0) - p).abs() < 4.0 * (p * (1.0 - p) / n).sqrt()).all())
        correlation = draws.mT.corrcoef()
        assert float((correlation - torch.eye(5)).abs().max()) < 4.5 / math.sqrt(n)
    assert d.has_rsample
    torch.testing.assert_close(d.mean[0], torch.sigmoid(LOGITS))


def test_relaxed_draws_have_the_concrete_distribution() -> None:
    temperature = 0.7
    d = RelaxedBernoulliLikelihood(temperature, straight_through=False)(LOGITS.expand(4000, 5))
    draws = d.rsample()
    # The cdf of Maddison et al. (2017): P(y < v) = sigmoid(temperature logit(v) - logits).
    for i, logit in enumerate(LOGITS):
        uniform = torch.sigmoid(temperature * torch.logit(draws[:, i].double()) - logit)
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-4


def test_log_prob_is_the_expected_one_of_binary_pixels() -> None:
    d = RelaxedBernoulliLikelihood()(LOGITS)
    binary = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(d.log_prob(binary), bernoulli(LOGITS).log_prob(binary))
    grey = torch.tensor([0.2, 0.0, 0.5, 1.0, 0.9])
    each = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 5)
    weights = torch.where(each == 1.0, grey, 1.0 - grey).prod(-1)
    torch.testing.assert_close(d.log_prob(grey), (weights * bernoulli(LOGITS).log_prob(each)).sum())
    with pytest.raises(
        ValueError, match=r"x must be intensities in \[0, 1\], found values from 1\.5 to 1\.5; divide grey"
    ):
        d.log_prob(torch.full((5,), 1.5))
    with pytest.raises(ValueError, match=r"x must be intensities in \[0, 1\], found values from nan"):
        d.log_prob(torch.full((5,), math.nan))
    with pytest.raises(ValueError, match="support"):
        bernoulli(LOGITS).log_prob(grey)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_relaxed_gradient_is_that_of_finite_differences_with_the_same_noise(temperature: float) -> None:
    logits = LOGITS.double().requires_grad_()

    def draw(at: Tensor, straight_through: bool = False) -> Tensor:
        pyro.set_rng_seed(3)
        return RelaxedPixels(temperature, at, straight_through).rsample((3,))

    step = 1e-6
    differences = (draw(logits.detach() + step) - draw(logits.detach() - step)) / (2.0 * step)
    weights = torch.randn(3, 5, dtype=torch.float64)
    for straight_through in (False, True):
        # Straight through, the pixels carry the gradient of their relaxation under the same noise.
        (found,) = torch.autograd.grad((weights * draw(logits, straight_through)).sum(), logits)
        torch.testing.assert_close(found, (weights * differences).sum(0), rtol=1e-6, atol=1e-8)


def straight_through_gradient(logit: float, temperature: float, slope_at_0: float, slope_at_1: float) -> float:
    """Its expectation for a function of one pixel with these slopes, by quadrature over the noise."""

    def integrand(noise: float, slope: float) -> float:
        s = stats.logistic.cdf((logit + noise) / temperature)
        return slope * stats.logistic.pdf(noise) * s * (1.0 - s) / temperature

    # Further from the pixel's switch s (1 - s) is below e^-40.
    reach = 40.0 * temperature
    below = integrate.quad(integrand, -logit - reach, -logit, args=(slope_at_0,), limit=200)[0]
    return below + integrate.quad(integrand, -logit, reach - logit, args=(slope_at_1,), limit=200)[0]


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_straight_through_gradient_has_the_expectation_that_quadrature_gives(temperature: float) -> None:
    n, t = 40_000, 0.3  # f(x) = (x - t)^3
    for logit in (0.0, 2.0):
        logits = torch.full((n,), logit, dtype=torch.float64, requires_grad=True)
        (RelaxedPixels(temperature, logits).rsample() - t).pow(3).sum().backward()
        gradients = logits.grad
        assert gradients is not None
        expected = straight_through_gradient(logit, temperature, 3.0 * t**2, 3.0 * (1.0 - t) ** 2)
        assert abs(float(gradients.mean()) - expected) < 4.0 * float(gradients.std()) / math.sqrt(n)


@pytest.mark.parametrize(
    ("temperature", "at_half", "at_99"), [(0.2, -0.03, 0.06), (0.5, -0.14, 0.45), (1.0, -1.0 / 3.0, 1.80)]
)
def test_bias_of_the_straight_through_gradient_is_as_stated(temperature: float, at_half: float, at_99: float) -> None:
    for p, bias in ((0.5, at_half), (0.99, at_99)):
        found = straight_through_gradient(math.log(p / (1.0 - p)), temperature, 1.0, 1.0)
        assert found / (p * (1.0 - p)) - 1.0 == pytest.approx(bias, abs=0.006)


def test_straight_through_gradient_tends_to_the_trapezium_rule() -> None:
    for p in (0.5, 0.9):
        found = straight_through_gradient(math.log(p / (1.0 - p)), 1e-3, -2.0, 5.0)
        assert found == pytest.approx(p * (1.0 - p) * 1.5, rel=0.005)


class _One(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.new_ones(*z.shape[:-1], 3)


@pytest.mark.parametrize("pixels", [None, 3])
@pytest.mark.parametrize("by_pyro", [True, False])
def test_a_learned_scale_reaches_its_maximum_likelihood(pixels: int | None, by_pyro: bool) -> None:
    # The latent is without effect: x ~ N(1, scale^2).
    true_scale = torch.tensor([0.05, 0.2, 0.6])
    x = 1.0 + true_scale * torch.randn(200, 3)
    likelihood = LearnedNormalLikelihood(pixels)
    vae = VAE(_One(), 1, likelihood)
    encoder = GaussianEncoder(nn.Linear(3, 1), 1)
    elbo = Trace_ELBO(max_plate_nesting=1)
    torch.testing.assert_close(likelihood.scale.detach(), torch.full((pixels or 1,), 0.1))
    if by_pyro:
        svi = SVI(vae.model, encoder.guide, Adam({"lr": 0.05}), elbo)
        for _ in range(150):
            svi.step(x)
    else:
        optimiser = torch.optim.Adam([*vae.parameters(), *encoder.parameters()], 0.05)
        for _ in range(150):
            optimiser.zero_grad()
            elbo.differentiable_loss(vae.model, encoder.guide, x).backward()
            optimiser.step()
    squares = (x - 1.0).square()
    best = squares.mean().sqrt() if pixels is None else squares.mean(0).sqrt()
    torch.testing.assert_close(likelihood.scale.detach(), best.expand(pixels or 1), rtol=0.02, atol=0.0)


def test_a_learned_scale_stays_within_its_bounds_and_keeps_a_gradient() -> None:
    likelihood = LearnedNormalLikelihood(2, scale=0.5, bounds=(0.1, 2.0))
    with torch.no_grad():
        likelihood.position.copy_(torch.tensor([-8.0, 8.0]))
    scale = likelihood.scale
    torch.testing.assert_close(scale.detach(), torch.tensor([0.1, 2.0]), rtol=2e-3, atol=0.0)
    assert bool((torch.autograd.grad(scale.sum(), likelihood.position)[0] > 0.0).all())
    output = torch.zeros(4, 2)
    expected = dist.Normal(0.0, scale).log_prob(torch.ones(4, 2)).sum(-1)
    torch.testing.assert_close(likelihood(output).log_prob(torch.ones(4, 2)), expected)
    with pytest.raises(ValueError, match=r"pixels=2 coordinates, found shape \(4, 3\)"):
        likelihood(torch.zeros(4, 3))


def test_probabilities_of_bins_sum_to_the_mass_of_the_unit_interval() -> None:
    levels = 17
    loc, scale = torch.tensor([-0.3, 0.02, 0.5, 1.4]).double(), torch.tensor([0.2, 0.001, 3.0, 0.1]).double()
    middles = (torch.arange(levels).double().unsqueeze(-1) + 0.5) / levels
    d = QuantisedLikelihood(lambda output: dist.Normal(output, scale).to_event(1), levels)(loc)
    each = d.base_dist.log_prob(middles)
    cdf = stats.norm(loc.numpy(), scale.numpy()).cdf
    torch.testing.assert_close(each.exp().sum(0), torch.as_tensor(cdf(1.0) - cdf(0.0)))
    # Each bin by itself, where the difference of cdfs has digits left.
    edges = torch.arange(levels + 1).double().unsqueeze(-1) / levels
    expected = torch.as_tensor(cdf(edges.numpy())).diff(dim=0)
    torch.testing.assert_close(each.exp(), expected, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(d.log_prob(middles.expand(levels, 4)), each.sum(-1))


def test_any_intensity_of_a_bin_stands_for_it() -> None:
    levels = 256
    i = torch.arange(levels)
    d = QuantisedLikelihood(NormalLikelihood(0.1), levels)(torch.tensor([0.4])).base_dist
    expected = d.log_prob((i + 0.5) / levels)
    assert len(expected.unique()) > 250
    for x in (i / levels, i / (levels - 1), (i + 0.9999) / levels):
        torch.testing.assert_close(d.log_prob(x), expected, rtol=0.0, atol=0.0)
    with pytest.raises(ValueError, match=r"found values from 1\.01 to 1\.01; divide grey levels"):
        d.log_prob(torch.tensor([1.01]))


@pytest.mark.parametrize(
    ("low", "width"), [(0.0, 1e-3), (-0.5, 1.0), (3.0, 4e-3), (-30.0, 0.01), (200.0, 0.1), (-2000.0, 5.0), (12.0, 30.0)]
)
def test_log_probability_of_an_interval_anywhere(low: float, width: float) -> None:
    # Independently: e^(-low^2 / 2) int_0^width e^(-low t - t^2 / 2) dt, for the interval mirrored to the upper tail.
    start = low if low > 0.0 else -(low + width)
    scale = 1.0 / max(abs(start), 1.0)
    end = min(width, 60.0 * scale)
    integral = integrate.quad(lambda t: math.exp(-start * t - 0.5 * t * t), 0.0, end, epsabs=0.0, epsrel=1e-10)[0]
    expected = -0.5 * start**2 - 0.5 * math.log(2.0 * math.pi) + math.log(integral)
    a = torch.tensor(low, dtype=torch.float64, requires_grad=True)
    found = log_normal_interval(a, a + width)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    # d/da log int_a^(a+w) phi = (phi(a + w) - phi(a)) / integral.
    (slope,) = torch.autograd.grad(found, a)
    at_low, at_high = (math.exp(stats.norm.logpdf(end) - expected) for end in (low, low + width))
    assert float(slope) == pytest.approx(at_high - at_low, rel=1e-6, abs=1e-9)
    single = log_normal_interval(torch.tensor(low), torch.tensor(low) + width)
    assert float(single) == pytest.approx(expected, rel=2e-4 if width < 0.01 else 1e-5, abs=1e-5)


def test_dequantised_density_is_below_the_probability_of_the_bin() -> None:
    # Theis et al. (2016): mean over u of log p((i + u) / L) - log L <= log P(bin i) (Jensen), the gap exact here:
    # the mean is a second moment of the bin.
    levels, loc, scale = 17, 0.4, 0.08
    quantised = VAE(nn.Identity(), 1, NormalLikelihood(scale)).quantised(levels)
    i = torch.arange(levels).double()
    middles = (i + 0.5) / levels
    second = (middles - loc).square() + 1.0 / (12.0 * levels**2)
    continuous = -0.5 * second / scale**2 - math.log(scale) - 0.5 * math.log(2.0 * math.pi) - math.log(levels)
    z = torch.full((levels, 1), loc).double()
    discrete = quantised.log_joint(middles.unsqueeze(-1), z) - quantised.prior(z).log_prob(z)
    assert bool((discrete > continuous).all())
    exact = torch.tensor(
        [
            math.log(integrate.quad(stats.norm(loc, scale).pdf, k / levels, (k + 1) / levels, epsabs=0.0)[0])
            for k in range(levels)
        ]
    )
    torch.testing.assert_close(discrete, exact.double(), rtol=1e-6, atol=1e-6)
    # The bound is tight where the density hardly varies in a bin, and not elsewhere.
    gap = discrete - continuous
    assert float(gap.min()) < 0.05 < 0.9 < float(gap.max())


def test_annealing_and_the_elbo_speak_of_the_discrete_data() -> None:
    # One pixel, x | z ~ N(.5 + .1 z, .05^2): log p(i) is the bin's mass under N(.5, .1^2 + .05^2).
    levels, slope, scale = 4, 0.1, 0.05
    decoder = nn.Linear(1, 1)
    with torch.no_grad():
        decoder.weight.fill_(slope)
        decoder.bias.fill_(0.5)
    vae = VAE(decoder, 1, NormalLikelihood(scale)).double()
    quantised = vae.quantised(levels)
    x = ((torch.arange(levels) + 0.5) / levels).double().unsqueeze(-1)
    marginal = stats.norm(0.5, math.hypot(slope, scale))
    edges = torch.arange(levels + 1).double() / levels
    exact = torch.as_tensor(marginal.cdf(edges.numpy())).diff().log()
    temperatures = SigmoidTemperatures(40)
    evidence = annealed_importance_sampling(
        *(quantised.model, x), temperatures=temperatures, chains=300, leapfrog_steps=4, seed=0, progress=False
    )
    assert float(evidence.stderr.max()) < 0.1
    assert bool(((evidence.log_evidence - exact).abs() < 4.5 * evidence.stderr).all())
    # The figure tells it from a density at the middles of the bins.
    dense = torch.as_tensor(marginal.logpdf(x[:, 0].numpy())) - math.log(levels)
    assert bool(((dense - exact).abs() > 9.0 * evidence.stderr).any())

    encoder = GaussianEncoder(nn.Linear(1, 1), 1).double()
    elbo = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        bound = -elbo.loss(quantised.model, encoder.guide, x)
        z, log_q = encoder.propose(x, 2000)
        terms = (quantised.log_joint(x, z) - log_q).sum(-1)
    # The same bound by hand, from other draws; and below the evidence.
    error = float(terms.std()) / math.sqrt(len(terms))
    assert abs(bound - float(terms.mean())) < 4.5 * math.sqrt(2.0) * error
    assert bound < float(exact.sum())


def test_errors() -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        RelaxedBernoulliLikelihood(0.0)
    with pytest.raises(TypeError, match="straight_through must be True or False"):
        RelaxedBernoulliLikelihood(0.5, "yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be positive"):
        NormalLikelihood(0.0)
    with pytest.raises(ValueError, match=r"scale must lie between the bounds 0\.1 and 1, found 2"):
        LearnedNormalLikelihood(scale=2.0, bounds=(0.1, 1.0))
    with pytest.raises(TypeError, match="bounds must be a pair"):
        LearnedNormalLikelihood(bounds=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels must be at least 2, found 1"):
        QuantisedLikelihood(NormalLikelihood(1.0), 1)
    with pytest.raises(TypeError, match=r"independent normal coordinates.*found Independent of Bernoulli"):
        QuantisedLikelihood(bernoulli)(torch.zeros(3, 2))
    with pytest.raises(NotImplementedError, match="draw from the continuous one"):
        VAE(nn.Linear(1, 2), 1, NormalLikelihood(0.1)).quantised().sample(3, torch.ones(1))
