"""DatumTarget: per-datum log-densities of plated models against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from avbvi import ModelError
from avbvi.amortised import DatumTarget, path_only
from tests.amortised.known import LinearGaussian

EXACT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def float64() -> None:
    """Double precision, so that identities hold to rounding."""
    torch.set_default_dtype(torch.float64)


def normal_prior(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorised", "looped"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("size", [None, 50])
def test_log_joint_is_that_of_each_datum_unscaled(vectorize: bool, shape: tuple[int, ...], size: int | None) -> None:
    known = LinearGaussian()
    x = known.data(5)
    target = DatumTarget(known.model, args=(x, size), vectorize=vectorize)
    assert (target.batch, target.dim) == (5, 2)
    z = torch.randn(*shape, 5, 2)
    torch.testing.assert_close(target.log_joint(z), known.log_joint(z, x), **EXACT)
    torch.testing.assert_close(target.log_prior(z), normal_prior(z), **EXACT)


def test_gradients_in_z_and_in_the_models_parameters() -> None:
    known = LinearGaussian()
    x = known.data(5)
    z = torch.randn(3, 5, 2, requires_grad=True)
    target = DatumTarget(known.model, args=(x,))
    (slope, weight) = torch.autograd.grad(target.log_joint(z).sum(), (z, known.decoder.weight))
    d_prior, d_likelihood = known.score(z.detach(), x)
    torch.testing.assert_close(slope, d_prior + d_likelihood, **EXACT)
    residual = (x - known.decoder(z).detach()) / known.scale**2
    torch.testing.assert_close(weight, torch.einsum("sbi,sbj->ij", residual, z.detach()), **EXACT)


def grid(x: Tensor, size: int | None = None) -> None:
    """Pixels in a plate of their own, to the right of the data's; a positive site, a mask, a scale and a factor."""
    data = pyro.plate("data", size or len(x), subsample_size=len(x), dim=-2)
    pixels = pyro.plate("pixels", x.shape[-1], dim=-1)
    with data:
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.5)))
        shift = pyro.sample("shift", dist.Normal(x.new_tensor(0.0), 2.0))
        pyro.factor("penalty", -0.1 * shift.square())
        with pixels, poutine.scale(scale=0.5), poutine.mask(mask=x > -1.0):
            pyro.sample("x", dist.Normal(shift, rate.rsqrt()), obs=x)
    pyro.factor("of the model alone", x.new_tensor(-17.0))


def grid_log_joint(z: Tensor, x: Tensor) -> Tensor:
    rate, shift = z[..., 0].exp(), z[..., 1]
    log_p = dist.Gamma(2.0, 1.5).log_prob(rate) + z[..., 0] + dist.Normal(0.0, 2.0).log_prob(shift)
    log_x = dist.Normal(shift[..., None], rate.rsqrt()[..., None]).log_prob(x) * (x > -1.0)
    return log_p - 0.1 * shift.square() + 0.5 * log_x.sum(-1)


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorised", "looped"])
@pytest.mark.parametrize("size", [None, 30])
def test_further_plates_masks_scales_and_factors(vectorize: bool, size: int | None) -> None:
    x = torch.randn(3, 4)
    target = DatumTarget(grid, args=(x, size), vectorize=vectorize)
    z = torch.randn(2, 3, 2)
    torch.testing.assert_close(target.log_joint(z), grid_log_joint(z, x), **EXACT)
    log_prior = grid_log_joint(z, x.new_full((3, 4), -5.0)) + 0.1 * z[..., 1].square()  # all is masked
    torch.testing.assert_close(target.log_prior(z), log_prior, **EXACT)


def test_a_model_that_subsamples_keeps_its_places() -> None:
    known = LinearGaussian()
    x = known.data(40)
    target = DatumTarget(known.subsampling, args=(x, 6))
    assert target.batch == 6
    assert target.indices is not None
    z = torch.randn(6, 2)
    first, second = target.log_joint(z), target.log_joint(z)
    torch.testing.assert_close(first, known.log_joint(z, x[target.indices]), **EXACT)
    assert bool((first == second).all())
    places = torch.tensor([5, 1, 39, 7, 8, 2])
    chosen = DatumTarget(known.subsampling, target.layout, (x, 6), indices=places)
    torch.testing.assert_close(chosen.log_joint(z), known.log_joint(z, x[places]), **EXACT)


def test_the_prior_costs_no_run_of_the_decoder() -> None:
    calls = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            calls.append(len(z))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    target = DatumTarget(model, args=(torch.zeros(3, 2),))
    before = len(calls)
    target.log_prior(torch.randn(4, 3, 2))
    target.sample_prior(4)
    assert len(calls) == before
    target.log_joint(torch.randn(4, 3, 2))
    assert len(calls) == before + 1


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorised", "looped"])
def test_draws_of_the_prior(vectorize: bool) -> None:
    x = torch.zeros(3, 4)
    n = 4000 if vectorize else 200
    z = DatumTarget(grid, args=(x,), vectorize=vectorize).sample_prior(n)
    assert z.shape == (n, 3, 2)
    rate, shift = z[..., 0].exp(), z[..., 1]
    for found, mean, sd in ((rate, 2.0 / 1.5, math.sqrt(2.0) / 1.5), (shift, 0.0, 2.0)):
        assert bool(((found.mean(0) - mean).abs() < 4.5 * sd / math.sqrt(n)).all())
    assert float(torch.corrcoef(shift.mT)[0, 1].abs()) < 4.5 / math.sqrt(n)  # one datum's are not another's


def test_simulated_data_have_the_models_covariance_with_their_latents() -> None:
    known = LinearGaussian()
    n = 4000
    z, target = DatumTarget(known.model, args=(torch.zeros(n, known.width),)).simulate()
    # The target of the simulated data gives them away: d log p(x, z) / dz is linear in x.
    zero = torch.zeros(n, known.dim, requires_grad=True)
    (slope,) = torch.autograd.grad(target.log_joint(zero).sum(), zero)
    w = known.decoder.weight.detach()
    seen = slope * known.scale**2  # (x - b) W
    covariance = seen.mT @ z / n
    expected = w.mT @ w
    # Var of a product of normals: at most E a^2 E b^2 + (E ab)^2.
    variance = expected @ expected + known.scale**2 * expected
    error = ((variance.diagonal()[:, None] + expected.square()) / n).sqrt()
    assert bool(((covariance - expected).abs() < 4.5 * error).all())
    torch.testing.assert_close(target.log_joint(z), target.log_joint(z), **EXACT)


def test_simulated_data_take_the_place_of_the_observed() -> None:
    known = LinearGaussian()
    x = known.data(200)
    z, target = DatumTarget(known.subsampling, args=(x, 50)).simulate()
    before = known.log_joint(z, x[target.indices])
    # Log p(x, z) at an exact draw: mean -(dim + width) / 2 - log normalisers, one half of a chi-square.
    k = known.dim + known.width
    mean = -0.5 * k * (1.0 + math.log(2 * math.pi)) - known.width * math.log(known.scale)
    after = target.log_joint(z)
    assert abs(float(after.mean().detach()) - mean) < 4.5 * math.sqrt(k / 2 / 50)
    assert float((after - before).abs().max().detach()) > 1.0


def test_path_only_differentiates_in_z_alone() -> None:
    w = nn.Parameter(torch.randn(3))
    z = torch.randn(4, 3, requires_grad=True)

    def log_prob(z: Tensor) -> Tensor:
        return -(w * z).square().sum(-1)

    value = path_only(log_prob, 2.0 * z)
    torch.testing.assert_close(value, log_prob(2.0 * z), **EXACT)
    slope, none = torch.autograd.grad(value.sum(), (z, w), allow_unused=True)
    torch.testing.assert_close(slope, -8.0 * w.detach().square() * z.detach(), **EXACT)
    assert none is None
    with torch.no_grad():
        assert not path_only(log_prob, z).requires_grad


def test_refusals() -> None:
    known = LinearGaussian()
    x = known.data(5)
    target = DatumTarget(known.model, args=(x,))
    with pytest.raises(ValueError, match=r"z must have shape \(\.\.\., 5, 2\).*found \(5, 3\)"):
        target.log_joint(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="indices need a layout"):
        DatumTarget(known.subsampling, args=(x, 3), indices=torch.arange(3))

    def hierarchical(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mu + 0.0 * x[:, :2], 1.0).to_event(1))

    with pytest.raises(ModelError, match=r"global latents"):
        DatumTarget(hierarchical, args=(x,))
    with pytest.raises(ModelError, match=r"of one datum are \['z'\], but the model's are \['mu', 'z'\].*poutine.block"):
        DatumTarget(hierarchical, target.layout, (x,))

    def narrow(x: Tensor) -> None:
        """Reads its latents from the left, which a plate over draws takes."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x[:, 0])

    with pytest.raises(ModelError, match=r"does not broadcast|failed when run for many draws"):
        DatumTarget(narrow, args=(x,)).log_joint(torch.randn(4, 5, 2))
    looped: Any = DatumTarget(narrow, args=(x,), vectorize=False)
    z = torch.randn(4, 5, 2)
    torch.testing.assert_close(
        looped.log_joint(z), normal_prior(z) + dist.Normal(z[..., 0], 1.0).log_prob(x[:, 0]), **EXACT
    )
