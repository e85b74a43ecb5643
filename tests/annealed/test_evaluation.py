"""Values and gradients of densities: recordings against the model itself, some chains at a time, bounded memory."""

from __future__ import annotations

import logging

import pyro
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avbvi.annealed import evaluation
from avbvi.annealed.evaluation import Evaluation
from avbvi.annealed.problems import density_of
from models.decoders import FullyConnectedDecoder
from models.vaes import VAE
from tests.annealed.known import LinearGaussian


@pytest.fixture
def early(monkeypatch):
    monkeypatch.setattr(evaluation, "RECORDED_AT_CPU", 1)


def vae_density(batch: int = 7):
    torch.manual_seed(0)
    vae = VAE(FullyConnectedDecoder(3, (1, 4, 4), hidden=(9,)), 3)
    pyro.clear_param_store()
    return vae, density_of(vae.model, ((torch.rand(batch, 16) < 0.4).float(),), {})


def test_value_and_gradient_of_a_linear_gaussian_are_exact():
    density = LinearGaussian.simulated(5, 6, 3, dtype=torch.float64)
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    value, gradient = Evaluation(density.log_joint)(z)
    residual = density.x - z @ density.weight.mT - density.bias
    torch.testing.assert_close(gradient, residual @ density.weight / density.noise**2 - z)
    torch.testing.assert_close(value, density.log_joint(z))


def test_a_recorded_model_gives_its_values_and_moves_no_parameter(early):
    vae, density = vae_density()
    plain, recorded = Evaluation(density.log_joint), Evaluation(density.log_joint, recorded=True)
    with pyro.validation_enabled(False):
        recorded(torch.randn(4, 7, 3))
    calls: list[int] = []
    vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    z = torch.randn(4, 7, 3).permute(1, 0, 2).contiguous().permute(1, 0, 2)  # of any strides
    found = recorded(z)  # as recorded, since this shape has been
    assert recorded.reason is None
    assert not calls
    for a, b in zip(found, plain(z), strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(p.grad is None for p in vae.parameters())
    # Another number of chains is another recording.
    assert recorded(z[:2])[0].shape == (2, 7)


def test_what_branches_on_values_runs_as_it_is_and_says_so(early, caplog):
    def log_prob(z: Tensor) -> Tensor:
        return -z.square().sum(-1) if float(z.sum()) > 0 else -z.abs().sum(-1)

    density = Evaluation(log_prob, recorded=True)
    z = torch.rand(3, 2, 2)
    with caplog.at_level(logging.INFO, logger="avbvi"):
        density(z)
    assert density.reason is not None
    assert "can't be recorded" in caplog.text
    torch.testing.assert_close(density(-z)[0], -z.sum(-1))
    torch.testing.assert_close(density(z)[1], -2.0 * z)


def test_what_changes_from_call_to_call_is_not_recorded(early):
    calls: list[int] = []

    def log_prob(z: Tensor) -> Tensor:
        calls.append(1)
        return -len(calls) * z.square().sum(-1)

    density = Evaluation(log_prob, recorded=True)
    density(torch.rand(3, 2, 2))
    assert density.reason is not None
    assert "other values" in density.reason


class Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor) and x.numel() and 0 not in x.stride():
                self.numbers = max(self.numbers, x.numel())
        return result


@pytest.mark.parametrize("recorded", [False, True])
def test_chains_at_once_bound_the_activations_and_change_nothing(early, recorded):
    density = LinearGaussian.simulated(4, 500, 2, dtype=torch.float64)
    z = torch.randn(60, 4, 2, dtype=torch.float64)
    sizes, results = [], []
    for at_once in (None, 7):
        evaluate = Evaluation(density.log_joint, at_once, recorded=recorded)
        evaluate(z)
        with Largest() as largest:
            results.append(evaluate(z))
        sizes.append(largest.numbers)
    assert sizes == [60 * 4 * 500, 7 * 4 * 500]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
