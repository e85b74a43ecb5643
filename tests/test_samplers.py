"""Samplers: where they start, which gradients they get, how users' own modules become samplers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from avbvi.samplers import MLPSampler, ModuleSampler, ResidualSampler, Sampler, as_sampler


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize(("factor", "smoothing"), [(1, 0.2), (2, 0.5), (3, 0.9)])
def test_residual_sampler_starts_standard_normal_by_its_weights(dim: int, factor: int, smoothing: float) -> None:
    sampler = ResidualSampler(noise_factor=factor, smoothing=smoothing)
    sampler.build(dim)
    noise_dim = sampler.noise_dim
    assert noise_dim == (factor + 1) * dim
    # At the start the map is linear in the noise, so its matrix can be read off unit vectors.
    with torch.no_grad():
        assert torch.count_nonzero(sampler(torch.zeros(1, noise_dim))) == 0
        matrix = sampler(torch.eye(noise_dim)).mT
        noise = torch.randn(10, noise_dim)
        torch.testing.assert_close(sampler(noise), noise @ matrix.mT)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(dim))
    torch.testing.assert_close(matrix[:, factor * dim :], smoothing * torch.eye(dim))


def test_residual_sampler_starts_standard_normal_by_its_moments() -> None:
    sampler = ResidualSampler()
    sampler.build(3)
    n = 40_000
    with torch.no_grad():
        e = sampler(sampler.sample_noise(torch.Size((n,)), like=torch.zeros((), dtype=torch.float64)).float())
    assert float(e.mean(0).abs().max()) < 4.0 / math.sqrt(n)
    # Standard errors under N(0, I): sqrt(2/n) of a variance, sqrt(1/n) of a covariance, sqrt(96/n) of a 4th moment.
    error = (e.mT.cov() - torch.eye(3)).abs()
    assert float(error.diagonal().max()) < 4.0 * math.sqrt(2.0 / n)
    assert float(error.fill_diagonal_(0.0).max()) < 4.0 * math.sqrt(1.0 / n)
    assert float((e.pow(4).mean(0) - 3.0).abs().max()) < 4.0 * math.sqrt(96.0 / n)


@pytest.mark.parametrize("sampler", [ResidualSampler(hidden=8), MLPSampler(hidden=(8, 8), noise_dim=5)])
def test_every_parameter_receives_a_gradient(sampler: Sampler) -> None:
    sampler.build(2)
    with torch.no_grad():
        for p in sampler.parameters():
            p.add_(0.1 * torch.randn_like(p))  # the ends of the blocks start at zero and would hide what lies before
    noise = sampler.sample_noise(torch.Size((64,)), like=torch.zeros(()))
    assert noise.shape == (64, sampler.noise_dim)
    sampler(noise).pow(3).sum().backward()
    silent = [n for n, p in sampler.named_parameters() if p.grad is None or not float(p.grad.abs().sum()) > 0.0]
    assert silent == []


def test_residual_sampler_computes_its_formula() -> None:
    sampler = ResidualSampler(hidden=8, smoothing=0.3)
    sampler.build(2)
    with torch.no_grad():
        for p in sampler.parameters():
            p.copy_(torch.randn_like(p))
    noise = torch.randn(50, 6)
    inner, outer = noise[:, :4], noise[:, 4:]
    out = sampler.network(inner)
    log_scale = out[:, 2:].clamp(-4.0, 4.0)
    assert float((out[:, 2:].abs() > 4.0).float().mean()) > 0.0  # the clamp is exercised
    expected = inner @ sampler.linear.weight.mT + out[:, :2] + 0.3 * log_scale.exp() * outer
    torch.testing.assert_close(sampler(noise), expected)


@pytest.mark.parametrize("arguments", [{"noise_factor": 0}, {"smoothing": 0.0}, {"smoothing": 1.0}])
def test_residual_sampler_refuses(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        ResidualSampler(**arguments)


def test_mlp_sampler_takes_the_latent_width_unless_told() -> None:
    sampler = MLPSampler()
    sampler.build(3)
    assert sampler.noise_dim == 3
    x = torch.randn(4, 3)
    h = x
    for layer in (sampler.network[0], sampler.network[2]):
        h = torch.nn.functional.elu(layer(h))
    torch.testing.assert_close(sampler(x), sampler.network[4](h))


class Doubling(nn.Module):
    noise_dim = 2

    def forward(self, noise: Tensor) -> Tensor:
        return 2.0 * noise


class Signs(Doubling):
    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        return (torch.rand(*shape, self.noise_dim, dtype=like.dtype, device=like.device) > 0.5).to(like) * 2 - 1


def test_a_users_module_is_a_sampler() -> None:
    sampler = as_sampler(Doubling())
    assert isinstance(sampler, ModuleSampler)
    assert not sampler.is_rebuildable
    sampler.build(2)
    like = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(3)
    noise = sampler.sample_noise(torch.Size((5, 4)), like=like)
    torch.manual_seed(3)
    assert torch.equal(noise, torch.randn(5, 4, 2, dtype=torch.float64))
    assert torch.equal(sampler(noise), 2.0 * noise)


def test_a_users_module_brings_its_own_noise() -> None:
    sampler = as_sampler(Signs())
    noise = sampler.sample_noise(torch.Size((200,)), like=torch.zeros((), dtype=torch.float64))
    assert noise.dtype == torch.float64
    assert noise.shape == (200, 2)
    assert set(noise.unique().tolist()) == {-1.0, 1.0}


def test_the_width_of_the_noise_can_be_given() -> None:
    assert ModuleSampler(nn.Linear(4, 2), noise_dim=4).noise_dim == 4
    assert ModuleSampler(Doubling(), noise_dim=7).noise_dim == 7


def test_samplers_are_returned_as_they_are() -> None:
    sampler = MLPSampler()
    assert as_sampler(sampler) is sampler


def test_what_is_no_sampler_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sampler=Linear must say how wide its noise is"):
        as_sampler(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"sampler must be a torch\.nn\.Module, found function"):
        as_sampler(lambda noise: noise)  # type: ignore[arg-type]

    class Silent(Sampler):
        pass

    with pytest.raises(ValueError, match="Silent has no noise_dim"):
        Silent().sample_noise(torch.Size((2,)), like=torch.zeros(()))
