"""Samplers: where they start, which gradients they get, how users' own modules become samplers."""

from __future__ import annotations

import math
from typing import Any

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
def test_residual_sampler_refuses(arguments: dict[str, Any]) -> None:
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


class Table(nn.Module):
    """Rows of a table, chosen by an integer: a sampler of discrete noise whose width only its noise tells."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(rows, freeze=False)

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        return torch.randint(len(self.rows.weight), (*shape, 1), device=like.device)

    def forward(self, noise: Tensor) -> Tensor:
        draws: Tensor = self.rows(noise.squeeze(-1))
        return draws


def started(sampler: ModuleSampler, dim: int) -> ModuleSampler:
    """As the guide's set-up leaves it."""
    sampler.build(dim)
    sampler.start(torch.zeros(()))
    return sampler


def test_a_users_module_is_a_sampler() -> None:
    sampler = as_sampler(Doubling())
    assert isinstance(sampler, ModuleSampler)
    assert not sampler.is_rebuildable
    sampler.build(2)
    like = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(3)
    noise = sampler.sample_noise(torch.Size((5, 4)), like=like)
    torch.manual_seed(3)
    own, smooth = torch.randn(5, 4, 2, dtype=torch.float64), torch.randn(5, 4, 2, dtype=torch.float64)
    assert torch.equal(noise, torch.cat([own, smooth], -1))


def test_a_users_module_can_be_taken_as_it_is() -> None:
    sampler = started(ModuleSampler(Doubling(), smoothing=0.0, standardise=False), 2)
    assert sampler.noise_dim == 2
    assert list(sampler.parameters()) == []
    noise = torch.randn(5, 4, 2)
    assert torch.equal(sampler(noise), 2.0 * noise)


def test_module_sampler_computes_its_formula() -> None:
    sampler = started(ModuleSampler(nn.Linear(5, 2), noise_dim=5, smoothing=0.4), 2)
    with torch.no_grad():
        for p in (sampler.matrix_part, sampler.shift_part, sampler.log_scale_part):
            p.copy_(0.5 * torch.randn_like(p))
        sampler.log_scale_part[0] = 1.0  # 5, beyond the clamp
    noise = torch.randn(50, 7)
    f = sampler.module(noise[:, :5])
    s = 0.4 * torch.tensor([4.0, 5.0 * float(sampler.log_scale_part.detach()[1])]).exp()
    matrix = math.sqrt(1 - 0.4**2) * torch.eye(2) + 5.0 * sampler.matrix_part
    shift = 5.0 * sampler.shift_part
    expected = (f - sampler.center) @ sampler.whitening.mT @ matrix.mT + shift + s * noise[:, 5:]
    torch.testing.assert_close(sampler(noise), expected)
    torch.testing.assert_close(sampler(noise.reshape(5, 10, 7)), expected.reshape(5, 10, 2))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_users_module_starts_standard_in_base_coordinates(smoothing: float) -> None:
    module = nn.Linear(8, 3).double()
    with torch.no_grad():
        module.weight.mul_(torch.tensor([[1e-3], [1.0], [1e3]]))  # a simulator's units
        module.bias.copy_(torch.tensor([5.0, -20.0, 1e4]))
    sampler = ModuleSampler(module, noise_dim=8, smoothing=smoothing)
    sampler.build(3)
    sampler.double().start(torch.zeros((), dtype=torch.float64))
    assert sampler.noise_dim is not None
    # The map is linear, so that its moments can be read off its matrix; c and W come from 4096 draws.
    with torch.no_grad():
        shift = sampler(torch.zeros(1, sampler.noise_dim, dtype=torch.float64))
        matrix = (sampler(torch.eye(sampler.noise_dim, dtype=torch.float64)) - shift).mT
    tolerance = 4.0 * math.sqrt(2.0 / 4096)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64), atol=tolerance, rtol=0.0)
    torch.testing.assert_close(shift, torch.zeros(1, 3, dtype=torch.float64), atol=4.0 / math.sqrt(4096), rtol=0.0)


def test_flat_directions_are_left_to_the_smoothing_noise() -> None:
    module = nn.Linear(1, 3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0], [2.0], [0.0]]))  # a line; the third coordinate is a constant
    sampler = started(ModuleSampler(module, noise_dim=1), 3)
    with torch.no_grad():
        draws = sampler(sampler.sample_noise(torch.Size((20_000,)), like=torch.zeros(())))
    direction = torch.tensor([1.0, 1.0, 0.0]) / math.sqrt(2.0)
    expected = 0.25 * torch.eye(3) + 0.75 * torch.outer(direction, direction)
    torch.testing.assert_close(torch.cov(draws.mT), expected, atol=4 * math.sqrt(2 / 4096 + 2 / 20_000), rtol=0.0)


def test_a_users_module_brings_its_own_noise() -> None:
    sampler = ModuleSampler(Signs(), smoothing=0.0)
    noise = sampler.sample_noise(torch.Size((200,)), like=torch.zeros((), dtype=torch.float64))
    assert noise.dtype == torch.float64
    assert noise.shape == (200, 2)
    assert set(noise.unique().tolist()) == {-1.0, 1.0}


def test_integer_noise_arrives_as_integers() -> None:
    rows = torch.randn(7, 2)
    sampler = started(ModuleSampler(Table(rows)), 2)
    noise = sampler.sample_noise(torch.Size((30,)), like=torch.zeros(()))
    assert noise.shape == (30, 3)
    chosen = rows[noise[:, 0].long()] - sampler.center
    expected = math.sqrt(0.75) * chosen @ sampler.whitening.mT + 0.5 * noise[:, 1:]
    torch.testing.assert_close(sampler(noise), expected)
    unsmoothed = ModuleSampler(Table(rows), smoothing=0.0)
    assert unsmoothed.sample_noise(torch.Size((4,)), like=torch.zeros(())).dtype == torch.int64


def test_the_mode_of_a_users_module_is_kept() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    sampler = ModuleSampler(module, noise_dim=4)
    sampler.eval()
    assert (sampler.training, module.training, module[0].training) == (False, True, True)
    sampler = ModuleSampler(module.eval(), noise_dim=4)
    sampler.train()
    assert not module[0].training


def test_setting_up_draws_nothing_from_the_callers_generator() -> None:
    module = Table(torch.randn(3, 2))
    before = torch.get_rng_state()
    ModuleSampler(module)
    assert torch.equal(torch.get_rng_state(), before)


class Detached(Doubling):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, noise: Tensor) -> Tensor:
        return self.scale.detach() * noise


class Infinite(Doubling):
    def forward(self, noise: Tensor) -> Tensor:
        return noise / 0.0


class Misshapen(Doubling):
    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        return torch.randn(*shape, 3)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (ModuleSampler(Detached()), "sampler=Detached carry no gradient to its parameters"),
        (ModuleSampler(Infinite()), "sampler=Infinite gives draws that are not finite"),
        (ModuleSampler(Misshapen()), r"sample_noise of sampler=Misshapen must give noise \(2, 2\).*found \(2, 3\)"),
        (ModuleSampler(nn.Linear(1, 2), 1, smoothing=0.0), r"fill only 1 of 2 directions.*smoothing=0\.5"),
        (ModuleSampler(nn.LSTM(3, 2), 3), r"found tuple"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_set_up(sampler: ModuleSampler, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        started(sampler, 2)


def test_module_sampler_refuses() -> None:
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), found 1"):
        ModuleSampler(Doubling(), smoothing=1.0)
    with pytest.raises(ValueError, match="noise_dim must be at least 1, found 0"):
        ModuleSampler(Doubling(), noise_dim=0)
    with pytest.raises(ValueError, match=r"normalises over the batch \(0\).*LayerNorm"):
        ModuleSampler(nn.Sequential(nn.BatchNorm1d(2)), noise_dim=2)
    ModuleSampler(nn.Sequential(nn.BatchNorm1d(2)).eval(), noise_dim=2)


def test_the_width_of_the_noise_can_be_given() -> None:
    assert ModuleSampler(nn.Linear(4, 2), noise_dim=4).noise_dim == 4
    assert ModuleSampler(Doubling(), noise_dim=7).noise_dim == 7
    assert ModuleSampler(Table(torch.zeros(3, 2))).noise_dim == 1


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
