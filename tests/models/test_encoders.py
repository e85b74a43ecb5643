"""Encoders: densities, moments and draws against exact ones; bodies and budgets by hand counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from models.auxiliary import AuxiliaryEncoder
from models.encoders import (
    ConvBody,
    Drawn,
    DrawnDistribution,
    Encoder,
    FullGaussianEncoder,
    GaussianEncoder,
    MLPBody,
    parameter_count,
    width_for,
)
from models.flows import FlowEncoder, autoregressive, couplings, householder, planar
from models.vaes import VAE

PIXELS, DIM, CONTEXT = 6, 3, 4


def _body() -> MLPBody:
    return MLPBody(PIXELS, (8, 8))


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "gaussian": lambda: GaussianEncoder(_body(), DIM),
    "full": lambda: FullGaussianEncoder(_body(), DIM),
    "auxiliary": lambda: AuxiliaryEncoder(_body(), _body(), DIM, auxiliary_dim=2, hidden=8),
    "autoregressive": lambda: FlowEncoder(_body(), DIM, autoregressive(DIM, CONTEXT, hidden=8), CONTEXT),
    "couplings": lambda: FlowEncoder(_body(), DIM, couplings(DIM, CONTEXT, hidden=8), CONTEXT),
    "planar": lambda: FlowEncoder(_body(), DIM, planar(DIM, CONTEXT, length=8), CONTEXT),
    "householder": lambda: FlowEncoder(_body(), DIM, householder(DIM, CONTEXT, length=3), CONTEXT),
}


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Each encoder, moved away from its start."""
    made = ENCODERS[request.param]()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


# The auxiliary encoder's "log q" is no density; test_auxiliary.py has its exact cases.
@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "auxiliary"], indirect=True)
def test_log_q_belongs_to_a_density_of_unit_mass(encoder: Encoder) -> None:
    # E_q[phi / q] = 1 for a density phi well inside q.
    x, n = torch.randn(2, PIXELS), 40_000
    with torch.no_grad():
        z, log_q = encoder.propose(x, n)
    covariance = torch.stack([each.mT.cov() for each in z.unbind(1)])
    inside = torch.distributions.MultivariateNormal(z.mean(0), 0.15 * covariance)
    ratio = (inside.log_prob(z) - log_q).double().exp()
    error = ratio.std(0) / math.sqrt(n)
    assert bool((error < 0.1).all())
    assert bool(((ratio.mean(0) - 1.0).abs() < 4.0 * error).all())


def test_each_datum_has_its_own_posterior(encoder: Encoder) -> None:
    x = torch.randn(3, PIXELS)
    together = encoder.moments(x, 20_000)[0]
    alone = torch.cat([encoder.moments(each.unsqueeze(0), 20_000)[0] for each in x])
    sds = encoder.moments(x, 20_000)[1].diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool(((together - alone).abs() <= 5.0 * math.sqrt(2.0) * sds / math.sqrt(20_000)).all())
    assert float((together[0] - together[1]).abs().max()) > 0.05


def test_every_parameter_receives_a_gradient(encoder: Encoder) -> None:
    vae, x = VAE(nn.Linear(DIM, PIXELS), DIM), torch.bernoulli(torch.full((4, PIXELS), 0.5))
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, encoder.guide, x).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_guide_serves_the_model_with_its_own_draws(encoder: Encoder, vectorize: bool) -> None:
    vae, x = VAE(nn.Linear(DIM, PIXELS), DIM), torch.bernoulli(torch.full((4, PIXELS), 0.5))
    particles = 6
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
    pyro.set_rng_seed(3)
    loss = elbo.loss(vae.model, encoder.guide, x, 12)
    pyro.set_rng_seed(3)
    with torch.no_grad():
        draws = [encoder.propose(x, particles)] if vectorize else [encoder.propose(x, 1) for _ in range(particles)]
        expected = sum((vae.log_joint(x, z) - log_q).sum() for z, log_q in draws) / particles
    assert loss == pytest.approx(-3.0 * float(expected), rel=1e-5)


def test_doubles_and_devices(encoder: Encoder, device: torch.device) -> None:
    encoder = encoder.double().to(device)
    x = torch.randn(2, PIXELS, dtype=torch.float64, device=device)
    z, log_q = encoder.propose(x, 5)
    assert (z.dtype, log_q.dtype) == (torch.float64, torch.float64)
    assert z.device.type == device.type


@pytest.mark.parametrize("make", [GaussianEncoder, FullGaussianEncoder])
def test_gaussians_have_their_density_and_moments(make: Callable[..., Encoder]) -> None:
    encoder, x = make(_body(), DIM).double(), torch.randn(3, PIXELS).double()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))
    loc, covariance = encoder.moments(x)
    normal = torch.distributions.MultivariateNormal(loc, covariance)
    with torch.no_grad():
        z, log_q = encoder.propose(x, 7)
    torch.testing.assert_close(log_q, normal.log_prob(z))
    elsewhere = 3.0 * torch.randn(4, 7, 3, DIM).double()
    torch.testing.assert_close(encoder.posterior(x).log_prob(elsewhere).detach(), normal.log_prob(elsewhere))
    # The base class counts draws instead.
    n = 40_000
    sampled_loc, sampled = Encoder.moments(encoder, x, n)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((sampled_loc - loc).abs() < 4.5 * (variances / n).sqrt()).all())
    error = ((covariance.square() + variances.unsqueeze(-1) * variances.unsqueeze(-2)) / n).sqrt()
    assert bool(((sampled - covariance).abs() < 4.5 * error).all())
    if make is FullGaussianEncoder:
        assert float((covariance[:, 1, 0].abs() / (variances[:, 0] * variances[:, 1]).sqrt()).max()) > 0.1


@pytest.mark.parametrize("make", [GaussianEncoder, FullGaussianEncoder])
def test_densities_elsewhere_have_gradients(make: Callable[..., Encoder]) -> None:
    encoder = make(_body(), DIM).double()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, z = torch.randn(3, PIXELS).double().requires_grad_(), torch.randn(2, 3, DIM).double().requires_grad_()
    parameters = dict(encoder.named_parameters())

    def density(x: Tensor, z: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(_LogDensity(encoder), {f"encoder.{k}": v for k, v in named.items()}, (x, z))

    assert torch.autograd.gradcheck(density, (x, z, *parameters.values()), fast_mode=True)


class _LogDensity(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        log_q: Tensor = self.encoder.posterior(x).log_prob(z)
        return log_q


def test_drawn_densities_are_known_at_the_last_draw_only() -> None:
    def draw(shape: torch.Size) -> Drawn:
        z = torch.randn(*shape, 2)
        return Drawn(z, -z.square().sum(-1))

    distribution = DrawnDistribution(draw, torch.Size((3,)), 2)
    with pytest.raises(NotImplementedError, match="own draws only"):
        distribution.log_prob(torch.zeros(3, 2))
    z = distribution.rsample(torch.Size((4,)))
    assert torch.equal(distribution.log_prob(z), -z.square().sum(-1))
    with pytest.raises(NotImplementedError, match="own draws only"):
        distribution.log_prob(z.clone())
    wide = distribution.expand(torch.Size((5, 3)))
    assert wide.rsample().shape == (5, 3, 2)
    with pytest.raises(NotImplementedError, match="own draws only"):
        wide.log_prob(z)


def test_a_drawn_distribution_keeps_to_what_comes_with_its_draws() -> None:
    def draw(shape: torch.Size) -> Drawn:
        return Drawn(torch.randn(*shape, 2), torch.full(shape, 7.0))

    distribution = DrawnDistribution(draw, torch.Size((3,)), 2, density=lambda z: z.sum(-1)).expand(torch.Size((3,)))
    z = distribution.rsample()
    assert bool((distribution.log_prob(z) == 7.0).all())
    torch.testing.assert_close(distribution.log_prob(z + 0.0), z.sum(-1))
    with pytest.raises(ValueError, match=r"value must have shape \(\*batch, 2\), found \(3, 3\)"):
        distribution.log_prob(torch.zeros(3, 3))


def test_bodies_have_the_parameters_counted_by_hand() -> None:
    assert parameter_count(MLPBody(784, (300, 200))) == 785 * 300 + 301 * 200
    body = ConvBody((1, 28, 28), channels=(16, 32), hidden=100)
    assert parameter_count(body) == (25 + 1) * 16 + (16 * 25 + 1) * 32 + (32 * 7 * 7 + 1) * 100
    # 15 -> 8 -> 4, 9 -> 5 -> 3
    body = ConvBody((3, 15, 9), channels=(4, 5), hidden=6)
    assert parameter_count(body) == (3 * 25 + 1) * 4 + (4 * 25 + 1) * 5 + (5 * 4 * 3 + 1) * 6
    x = torch.randn(2, 3, 15, 9)
    assert torch.equal(body(x), body(x.flatten(1)))


@pytest.mark.parametrize(
    "make", [lambda p: MLPBody(6, (40,), dropout=p), lambda p: ConvBody((1, 2, 3), (4,), 40, blocks=1, dropout=p)]
)
def test_dropout_leaves_features_out_in_training_alone(make: Callable[[float], nn.Module]) -> None:
    plain, dropping, x, n = make(0.0), make(0.25), torch.randn(1, 6), 4000
    dropping.load_state_dict(plain.state_dict())  # the names are the same
    with torch.no_grad():
        features = dropping(x.expand(n, 6))
        # An activation is never exactly zero, so that zeros are units left out.
        share = (features == 0.0).double().mean()
        assert abs(float(share) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / (40 * n))
        assert torch.equal(dropping.eval()(x), plain(x))
    if isinstance(dropping, MLPBody):
        kept = torch.where(features == 0.0, plain(x) / 0.75, features)
        torch.testing.assert_close(kept, (plain(x) / 0.75).expand(n, 40))


def test_residual_blocks_of_a_body_start_as_the_identity() -> None:
    plain, deep = ConvBody((2, 5, 5), (3, 4), 6), ConvBody((2, 5, 5), (3, 4), 6, blocks=2)
    assert parameter_count(deep) == parameter_count(plain) + 2 * 2 * sum(c * c * 9 + c for c in (3, 4))
    shared = [value for name, value in deep.state_dict().items() if ".change." not in name]
    plain.load_state_dict(dict(zip(plain.state_dict(), shared, strict=True)))
    x = torch.randn(4, 50)
    assert torch.equal(deep(x), plain(x))
    with torch.no_grad():
        for p in deep.parameters():
            p.add_(0.1 * torch.randn_like(p))
    deep(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in deep.parameters())


def test_a_convolutional_body_sees_where_a_pixel_is() -> None:
    body = ConvBody((1, 8, 8), channels=(4,), hidden=16)
    x = torch.zeros(64, 64, requires_grad=True)
    with torch.no_grad():
        x += torch.eye(64)
    assert len(body(x).round(decimals=6).unique(dim=0)) == 64


def test_widths_meet_a_budget() -> None:
    def gaussian(width: int) -> Encoder:
        return GaussianEncoder(MLPBody(784, (width, width)), 32)

    def auxiliary(width: int) -> Encoder:
        body, reverse = MLPBody(784, (width, width)), MLPBody(784, (50,))
        return AuxiliaryEncoder(body, reverse, 32, auxiliary_dim=32, hidden=width)

    assert width_for(gaussian(300).sampling_parameters(), gaussian) == 300
    budget = gaussian(300).sampling_parameters()
    assert budget == 785 * 300 + 301 * 300 + 301 * 64
    made = auxiliary(width_for(budget, auxiliary))
    assert abs(made.sampling_parameters() - budget) < 0.01 * budget
    # p(a | x, z) is not needed for a draw: body, q(a | x), q(z | a, x) by hand.
    w = made.conditional.from_given.out_features
    by_hand = 785 * w + (w + 1) * w + (w + 1) * 64 + (w + 1) * w + 32 * w + (w + 1) * 64
    assert made.sampling_parameters() == by_hand < parameter_count(made)


def test_a_search_for_a_width_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    width_for(5000, lambda width: MLPBody(10, (width, width)))
    assert torch.equal(torch.get_rng_state(), state)


def test_errors() -> None:
    with pytest.raises(ValueError, match="no width comes within 10% of budget=5 parameters; width 1 has"):
        width_for(5, lambda width: nn.Linear(20, width))
    with pytest.raises(ValueError, match="make must give more parameters the wider it is, found 42 at width 2"):
        width_for(5000, lambda width: nn.Linear(20, 2))
    with pytest.raises(TypeError, match="body=Sequential must have an attribute out_features"):
        GaussianEncoder(nn.Sequential(nn.Linear(2, 2)), 2)
    with pytest.raises(TypeError, match=r"body must be a torch\.nn\.Module"):
        FullGaussianEncoder(lambda x: x, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hidden must have at least one width"):
        MLPBody(3, ())
    with pytest.raises(ValueError, match="image must have channels, height and width"):
        ConvBody((28, 28))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), found 1"):
        MLPBody(3, dropout=1)
    with pytest.raises(ValueError, match="blocks must be at least 0"):
        ConvBody(blocks=-1)
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        GaussianEncoder(_body(), 0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        GaussianEncoder(_body(), 2).propose(torch.zeros(1, PIXELS), 0)
    GaussianEncoder(_body(), 2).guide(torch.zeros(1, PIXELS))
    with pytest.raises(ValueError, match="another module in Pyro's parameter store"):
        GaussianEncoder(_body(), 2).guide(torch.zeros(1, PIXELS))
