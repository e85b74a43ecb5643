"""Second derivatives of a user's density: right where PyTorch's own are NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import avbvi
from avbvi.recording.densities import TracedDensity
from avbvi.second_order import SecondOrder
from avbvi.starts.laplace import laplace_modes

APART = 40.0
SDS = (1.0, 0.5)


def two_normals(z: Tensor) -> Tensor:
    """Equal normals at 0 and at (APART, APART), as a user writes them."""
    first = -0.5 * (z / SDS[0]).square().sum(-1) - 2.0 * math.log(SDS[0])
    second = -0.5 * ((z - APART) / SDS[1]).square().sum(-1) - 2.0 * math.log(SDS[1])
    return torch.logaddexp(first, second)


@pytest.mark.parametrize("call", [torch.logaddexp, torch.Tensor.logaddexp])
def test_values_and_gradients_are_torchs_own(call: object) -> None:
    assert callable(call)
    a = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, dtype=torch.float64, requires_grad=True)
    expected = torch.logaddexp(a, b)
    with SecondOrder():
        found = call(a, b)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), [a, b]), torch.autograd.grad(expected.square().sum(), [a, b])
    )
    with SecondOrder():
        assert torch.autograd.gradgradcheck(torch.logaddexp, (a, b))


def test_other_calls_are_left_alone() -> None:
    a, b, out = torch.tensor([0.0, -math.inf]), torch.tensor([1.0, -math.inf]), torch.empty(2)
    with SecondOrder():
        assert torch.logaddexp(a, b, out=out) is out
        torch.testing.assert_close(torch.logaddexp(a, b), out)
        assert torch.logaddexp(a.double(), b).dtype == torch.float64
        assert float(torch.exp(torch.zeros(()))) == 1.0


def test_a_recorded_density_has_the_curvature_of_the_mode_that_is_near() -> None:
    z = torch.tensor([[0.3, -0.2], [APART + 0.1, APART]])
    density = TracedDensity(two_normals)
    z.requires_grad_()
    (score,) = torch.autograd.grad(density(z).sum(), z, create_graph=True)
    (along,) = torch.autograd.grad(score[:, 0].sum(), z)
    expected = torch.tensor([[-1.0 / SDS[0] ** 2, 0.0], [-1.0 / SDS[1] ** 2, 0.0]])
    torch.testing.assert_close(along, expected)


def test_laplace_at_far_modes_has_their_covariances() -> None:
    modes = laplace_modes(two_normals, torch.tensor([[1.0, 0.0], [APART, APART - 1.0]]))
    assert modes is not None
    order = modes.locs[:, 0].argsort()
    expected = torch.eye(2) * torch.tensor(SDS).square()[:, None, None]
    torch.testing.assert_close(modes.covariances[order], expected, atol=1e-4, rtol=1e-3)


def test_no_step_of_an_adversarial_stage_is_skipped() -> None:
    model = avbvi.LogDensity(two_normals, (2,))
    guide = avbvi.AVBGuide(model, trunk=avbvi.AffineTrunk())
    posterior = avbvi.fit(model, guide=guide, steps=30, seed=0, progress=False)
    assert posterior.run.skipped_steps == 0
    assert not posterior.run.rollbacks
