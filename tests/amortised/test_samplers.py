"""Samplers with a context: analytic moments against Monte Carlo, exact densities, what starts and learns how."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from avbvi.amortised.convolutional import ConvolutionalSampler
from avbvi.amortised.networks import BasisNetworks, InjectedNetwork
from avbvi.amortised.samplers import (
    AmortisedSampler,
    ConditionalGaussianSampler,
    ConditionalSampler,
    NoiseBasisSampler,
)
from avbvi.amortised.semi_implicit import SemiImplicitSampler
from avbvi.parts import rebuild

CONTEXT_DIM, DIM, BATCH = 6, 3, 4


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def all_samplers() -> list[AmortisedSampler]:
    """One of each, with every argument away from its default."""
    return [
        ConditionalSampler(
            CONTEXT_DIM,
            hidden=(7, 7, 5),
            network_noise=4,
            context_hidden=(8,),
            start_scale=0.3,
            smoothing=0.4,
            slope=0.2,
        ),
        ConvolutionalSampler(
            (1, 2, 3), channels=(4, 5), blocks=1, network_noise=4, start_scale=0.3, smoothing=0.4, slope=0.2
        ),
        NoiseBasisSampler(
            CONTEXT_DIM,
            bases=3,
            basis_noise=2,
            basis_hidden=(5,),
            context_hidden=(8, 8),
            moment_draws=500,
            offset=1.0,
            slope=0.1,
        ),
        ConditionalGaussianSampler(CONTEXT_DIM, context_hidden=(8,), full=True, start_scale=0.3, slope=0.1),
        SemiImplicitSampler(
            CONTEXT_DIM,
            hidden=(7, 7),
            extra_noise=4,
            context_hidden=(8,),
            full=False,
            start_scale=0.3,
            limit=1.5,
            moment_draws=20,
            slope=0.1,
        ),
    ]


def names(samplers: list[AmortisedSampler]) -> list[str]:
    return [type(sampler).__name__ for sampler in samplers]


SAMPLERS = pytest.mark.parametrize("sampler", all_samplers(), ids=names(all_samplers()))


def built(sampler: AmortisedSampler, spread: float = 0.3) -> AmortisedSampler:
    """Built for DIM latents, with weights away from the zeros at which some start."""
    sampler.build(DIM)
    sampler.double()
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(spread * torch.randn_like(p))
    return sampler


def contexts() -> Tensor:
    return torch.randn(BATCH, CONTEXT_DIM)


def noise_of(sampler: AmortisedSampler, *shape: int) -> Tensor:
    return sampler.sample_noise(torch.Size(shape), like=torch.zeros(()))


@SAMPLERS
def test_draws_of_a_batch_are_those_of_each_datum_alone(sampler: AmortisedSampler) -> None:
    built(sampler)
    context, noise = contexts(), noise_of(sampler, 2, 5, BATCH)
    together = sampler(noise, context).detach()
    assert together.shape == (2, 5, BATCH, DIM)
    for s in range(2):
        for k in range(5):
            for b in range(BATCH):
                alone = sampler(noise[s, k, b][None], context[b][None])[0]
                torch.testing.assert_close(together[s, k, b], alone)
    torch.testing.assert_close(sampler(noise[0, 0], context), together[0, 0])
    assert float(together.std(1).min()) > 0.0  # neither the noise ...
    assert float((sampler(noise, contexts()).detach() - together).abs().min()) > 0.0  # ... nor the context is ignored


@SAMPLERS
def test_every_parameter_receives_a_gradient(sampler: AmortisedSampler) -> None:
    built(sampler)
    sampler(noise_of(sampler, 16, BATCH), contexts()).pow(3).sum().backward()
    silent = [n for n, p in sampler.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0.0]
    assert silent == []


@SAMPLERS
def test_a_sampler_is_made_again_from_its_configuration(sampler: AmortisedSampler) -> None:
    built(sampler)
    assert sampler.is_rebuildable
    configuration = json.loads(json.dumps(sampler.configuration()))
    again = rebuild(configuration)
    assert isinstance(again, AmortisedSampler)
    again.build(DIM)
    again.double()
    assert json.loads(json.dumps(again.configuration())) == configuration
    assert again.context_dim == CONTEXT_DIM
    again.load_state_dict(sampler.state_dict())
    context, noise = contexts(), noise_of(sampler, 5, BATCH)
    assert torch.equal(again(noise, context), sampler(noise, context))


@SAMPLERS
def test_a_context_is_required(sampler: AmortisedSampler) -> None:
    built(sampler)
    with pytest.raises(ValueError, match=rf"{type(sampler).__name__} needs a context \(B, 6\), found None"):
        sampler(noise_of(sampler, BATCH))


def test_noise_is_wider_than_the_latents_unless_told() -> None:
    for dim, width in ((2, 8), (5, 10)):
        for smoothing, more in ((0.0, 0), (0.5, dim)):
            widths = {
                ConditionalSampler(3, smoothing=smoothing): width + more,
                ConvolutionalSampler((1, 8, 8), smoothing=smoothing): width + more,
                SemiImplicitSampler(3): dim + 2,
                SemiImplicitSampler(3, extra_noise=7): dim + 7,
                ConditionalGaussianSampler(3): dim,
                NoiseBasisSampler(3, bases=4, basis_noise=5): 20,
            }
            for sampler, expected in widths.items():
                sampler.build(dim)
                assert sampler.noise_dim == expected


# -- moments ------------------------------------------------------------------------------------------


def assert_moments(draws: Tensor, loc: Tensor, covariance: Tensor, analytic_draws: float) -> None:
    """Within 5 standard errors of both sides: draws (n, B, dim), and moments from so many draws of the basis."""
    n = len(draws)
    ratio = math.sqrt(1.0 + n / analytic_draws)
    assert bool(((draws.mean(0) - loc).abs() < 5.0 * ratio * draws.std(0) / math.sqrt(n)).all())
    centred = draws - draws.mean(0)
    products = centred[..., :, None] * centred[..., None, :]
    assert bool(((products.mean(0) - covariance).abs() < 5.0 * ratio * products.std(0) / math.sqrt(n)).all())


def test_analytic_moments_of_the_noise_basis_are_those_of_its_draws() -> None:
    n = 50_000
    sampler = NoiseBasisSampler(CONTEXT_DIM, bases=3, basis_noise=2, basis_hidden=(16,), moment_draws=n, offset=0.5)
    built(sampler, 0.5)
    context = contexts()
    with torch.no_grad():
        draws = sampler(noise_of(sampler, n, BATCH), context)
        loc, covariance = sampler.moments(context)
        assert_moments(draws, loc, covariance, n)
        marginal_loc, variance = sampler.marginal_moments(context)
    torch.testing.assert_close(variance, covariance.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(marginal_loc, loc)
    # The check means something: correlations are there, and differ between data.
    scale = variance.sqrt()
    correlation = covariance / (scale[:, :, None] * scale[:, None, :])
    assert float(correlation.tril(-1).abs().max()) > 0.1
    assert float(variance.std(0).min()) > 1e-3


def test_moments_of_a_linear_basis_are_exact() -> None:
    # v_i = A_i n_i + b_i: E v_i = b_i and Cov v_i = A_i A_i^T, so that the two sums can be written down.
    sampler = NoiseBasisSampler(CONTEXT_DIM, bases=2, basis_noise=3, basis_hidden=(), moment_draws=100_000, offset=0.0)
    built(sampler, 0.5)
    context = contexts()
    with torch.no_grad():
        loc, covariance = sampler.moments(context)
        a = torch.nn.functional.elu(sampler.coefficients(sampler.features(context))) + 1.0
        a = a.reshape(BATCH, 2, DIM)
        matrices, shifts = sampler.basis.weights[0], sampler.basis.biases[0][:, 0]
        expected_loc = sampler.location(sampler.features(context))
        expected = torch.zeros(BATCH, DIM, DIM)
        for i in range(2):
            expected_loc = expected_loc + a[:, i] * shifts[i]
            diagonal = torch.diag_embed(a[:, i])
            expected = expected + diagonal @ (matrices[i].mT @ matrices[i]) @ diagonal
    variance = expected.diagonal(dim1=-2, dim2=-1)
    n = 100_000
    # Standard errors of moments of normal v; those of the bases' sum are no larger.
    assert bool(((loc - expected_loc).abs() < 5.0 * (variance / n).sqrt()).all())
    stderr = ((variance[:, :, None] * variance[:, None, :] + expected.square()) / n).sqrt()
    assert bool(((covariance - expected).abs() < 5.0 * stderr).all())


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_sampler_knows_its_moments_and_density(full: bool) -> None:
    sampler = ConditionalGaussianSampler(CONTEXT_DIM, context_hidden=(8,), full=full)
    built(sampler)
    context, n = contexts(), 40_000
    with torch.no_grad():
        loc, covariance = sampler.moments(context)
        noise = noise_of(sampler, n, BATCH)
        draws = sampler(noise, context)
        assert_moments(draws, loc, covariance, math.inf)
        expected = MultivariateNormal(loc, covariance)
        torch.testing.assert_close(sampler.log_prob(draws[:20], context), expected.log_prob(draws[:20]))
        marginal_loc, variance = sampler.marginal_moments(context)
        torch.testing.assert_close(marginal_loc, loc)
        torch.testing.assert_close(variance, covariance.diagonal(dim1=-2, dim2=-1))
        torch.testing.assert_close(sampler.gaussians(context).standardise(draws), noise)
    assert bool((covariance.tril(-1) != 0.0).any()) == full


def test_a_full_factor_of_one_coordinate_is_its_scale() -> None:
    sampler = ConditionalGaussianSampler(CONTEXT_DIM, full=True)
    sampler.build(1)
    _, covariance = sampler.moments(contexts())
    assert covariance.shape == (BATCH, 1, 1)


# -- where they start ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("network_noise", "smoothing"), [(None, 0.0), (None, 0.6), (2, 0.6)])
def test_conditional_sampler_starts_normal_about_a_location(network_noise: int | None, smoothing: float) -> None:
    sampler = ConditionalSampler(CONTEXT_DIM, network_noise=network_noise, start_scale=0.3, smoothing=smoothing)
    sampler.build(DIM)
    assert sampler.noise_dim is not None
    context = contexts()
    with torch.no_grad():
        loc = sampler(torch.zeros(1, BATCH, sampler.noise_dim), context)
        # Linear in the noise at the start: its matrix can be read off unit vectors.
        unit = torch.eye(sampler.noise_dim)[:, None].expand(-1, BATCH, -1)
        matrix = (sampler(unit, context) - loc).permute(1, 2, 0)
        noise = noise_of(sampler, 9, BATCH)
        torch.testing.assert_close(sampler(noise, context), loc + torch.einsum("bij,sbj->sbi", matrix, noise))
    covariance = matrix @ matrix.mT
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), torch.full((BATCH, DIM), 0.09))
    if network_noise is None:
        torch.testing.assert_close(covariance, 0.09 * torch.eye(DIM).expand(BATCH, DIM, DIM))
    if smoothing:
        torch.testing.assert_close(matrix[..., -DIM:], smoothing * 0.3 * torch.eye(DIM).expand(BATCH, DIM, DIM))
    assert float(loc.std(1).min()) > 0.0


def test_smoothing_is_independent_noise_of_bounded_learned_scale() -> None:
    sampler = ConditionalSampler(CONTEXT_DIM, smoothing=0.4)
    built(sampler, 0.5)
    context = contexts()
    with torch.no_grad():
        sampler.smooth.log_scale.bias[0] = 50.0
        sampler.smooth.log_scale.bias[1] = -50.0
        scale = sampler.smooth(sampler.features(context))
        inner = noise_of(sampler, BATCH)
        inner[..., sampler.inner_dim :] = 0.0
        outer = torch.zeros_like(inner)
        outer[..., sampler.inner_dim :] = torch.randn(BATCH, DIM)
        added = sampler(inner + outer, context) - sampler(inner, context)
    torch.testing.assert_close(added, scale * outer[..., sampler.inner_dim :])
    torch.testing.assert_close(scale[:, 0], torch.full((BATCH,), 0.2 * math.exp(2.0)))
    torch.testing.assert_close(scale[:, 1], torch.full((BATCH,), 0.2 * math.exp(-2.0)))
    assert float(scale[:, 2].std()) > 0.0  # it depends on the datum


def test_noise_basis_starts_narrow() -> None:
    sampler = NoiseBasisSampler(CONTEXT_DIM)
    sampler.build(DIM)
    context = contexts()
    with torch.no_grad():
        draws = sampler(noise_of(sampler, 500, BATCH), context)
    # a is about exp(-5) = .0067, v less than 1, and there are 8 of them.
    assert float(draws.std(0).max()) < 0.05
    assert float(draws.std(0).min()) > 1e-4


# -- networks ------------------------------------------------------------------------------------------


def test_injected_network_computes_its_formula() -> None:
    net = InjectedNetwork(2, 3, (4, 4, 5), 1, None)
    noise, features = torch.randn(6, BATCH, 2), torch.randn(BATCH, 3)
    add = noise @ net.from_noise.weight.mT + features @ net.from_context.weight.mT + net.from_context.bias
    act = torch.nn.functional.silu
    h = add[..., :4]
    h = h + act(h) @ net.between[0].weight.mT + add[..., 4:8]  # a skip between equal widths
    h = act(h) @ net.between[1].weight.mT + add[..., 8:]
    torch.testing.assert_close(net(noise, features), act(h) @ net.leave.weight.mT + net.leave.bias)
    assert torch.count_nonzero(InjectedNetwork(2, 3, (4,), 1, None, zero_last=True)(noise, features)) == 0


def test_basis_networks_are_networks_side_by_side() -> None:
    basis = BasisNetworks(2, (3, 5, 4), 0.1)
    noise = torch.randn(7, 2, 6)
    for i in range(2):
        own = noise[..., 3 * i : 3 * i + 3]
        h = own @ basis.weights[0][i] + basis.biases[0][i]
        h = torch.nn.functional.leaky_relu(h, 0.1) @ basis.weights[1][i] + basis.biases[1][i]
        torch.testing.assert_close(basis(noise)[..., i, :], h)


# -- a user's own body ----------------------------------------------------------------------------------


class Reshaping(nn.Module):
    """A body that sees the flat context as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 2)

    def forward(self, context: Tensor) -> Tensor:
        out: Tensor = self.convolution(context.reshape(-1, 1, 2, 3))
        return out.flatten(1)


@pytest.mark.parametrize(
    "make", [ConditionalSampler, NoiseBasisSampler, ConditionalGaussianSampler, SemiImplicitSampler]
)
def test_a_users_body_takes_the_place_of_the_network_of_x(make: Any) -> None:
    body = Reshaping()
    before = torch.get_rng_state()
    sampler = make(CONTEXT_DIM, body=body)
    assert torch.equal(torch.get_rng_state(), before)
    assert not sampler.is_rebuildable
    built(sampler)
    context = contexts()
    torch.testing.assert_close(sampler.features(context), body(context))
    sampler(noise_of(sampler, 3, BATCH), context).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0.0 for p in body.parameters())
    assert sum(p is body.convolution.weight for p in sampler.parameters()) == 1


class Pair(nn.Module):
    def forward(self, context: Tensor) -> Any:
        return context, context


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (lambda x: x, TypeError, r"body must be a torch\.nn\.Module or None, found function"),
        (nn.Linear(5, 2), ValueError, r"body failed on a context of shape \(2, 6\).*reshape it inside the body"),
        (Pair(), ValueError, r"body must map a context \(2, 6\) to features \(2, width\), found tuple"),
        (nn.Unflatten(1, (2, 3)), ValueError, r"found \(2, 2, 3\)"),
        (nn.Sequential(nn.BatchNorm1d(6)), ValueError, r"body=Sequential normalises over the minibatch \(0\)"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(body: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ConditionalSampler(CONTEXT_DIM, body=body)
    if isinstance(body, nn.Sequential):
        ConditionalSampler(CONTEXT_DIM, body=body.eval())


@pytest.mark.parametrize(
    ("make", "name", "value", "message"),
    [
        (ConditionalSampler, "context_dim", 0, "context_dim must be at least 1, found 0"),
        (ConditionalSampler, "hidden", (), "hidden must name at least one layer"),
        (ConditionalSampler, "hidden", (3, 0), r"hidden\[1\] must be at least 1"),
        (ConditionalSampler, "context_hidden", 3, "context_hidden must be a tuple"),
        (ConditionalSampler, "network_noise", 0, "network_noise must be at least 1"),
        (ConditionalSampler, "smoothing", 1.0, r"smoothing must be in \[0, 1\), found 1"),
        (ConditionalSampler, "start_scale", 0.0, "start_scale must be positive"),
        (ConditionalSampler, "slope", 1.0, "slope must lie between -1 and 1, found 1"),
        (ConvolutionalSampler, "image_shape", (28, 28), "image_shape must be channels, height and width"),
        (ConvolutionalSampler, "channels", (), "channels must name at least one layer"),
        (ConvolutionalSampler, "blocks", -1, "blocks must be at least 0"),
        (NoiseBasisSampler, "bases", 0, "bases must be at least 1"),
        (NoiseBasisSampler, "basis_noise", 2.5, "basis_noise must be"),
        (NoiseBasisSampler, "moment_draws", 1, "moment_draws must be at least 2"),
        (NoiseBasisSampler, "offset", math.nan, "offset must lie between -50 and 50, found nan"),
        (ConditionalGaussianSampler, "full", 1, "full must be True or False"),
        (SemiImplicitSampler, "extra_noise", 0, "extra_noise must be at least 1"),
        (SemiImplicitSampler, "limit", 0.0, "limit must be positive"),
    ],
)
def test_bad_arguments_are_named(make: Any, name: str, value: Any, message: str) -> None:
    context: dict[str, Any] = {"image_shape": (1, 2, 3)} if make is ConvolutionalSampler else {"context_dim": 6}
    with pytest.raises((TypeError, ValueError), match=message):
        make(**{**context, name: value})


def test_a_sampler_without_moments_says_so() -> None:
    sampler = ConditionalSampler(CONTEXT_DIM)
    assert not sampler.has_moments
    with pytest.raises(NotImplementedError, match="ConditionalSampler has no analytic moments"):
        sampler.moments(contexts())
