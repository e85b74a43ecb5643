"""Trunks: log-determinants against the autograd Jacobian, inverses, normalisation, starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from pyro.distributions.transforms import spline_coupling
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.trunks import AffineTrunk, FlowTrunk, IdentityTrunk, Trunk, standard_normal_log_prob

Make = Callable[[int], Trunk]


def coupling(dim: int) -> Trunk:
    steps = [spline_coupling(dim, hidden_dims=[8], bound=4.0) for _ in range(2)]
    with torch.no_grad():
        for p in (p for step in steps for p in step.parameters()):
            p.mul_(0.3)  # Pyro's random start has density ridges too thin for quadrature
    return FlowTrunk(transforms=steps)


KINDS: dict[str, Make] = {
    "identity": lambda dim: IdentityTrunk(),
    "affine": lambda dim: AffineTrunk(),
    "flow": lambda dim: FlowTrunk(hidden=(16, 16)),
    "coupling": coupling,
}
CASES = [(kind, dim) for kind in KINDS for dim in (1, 2, 5) if (kind, dim) != ("coupling", 1)]


def start_values(dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    loc = torch.linspace(-1.0, 2.0, dim, dtype=dtype)
    scale_tril = torch.eye(dim, dtype=dtype) * torch.linspace(0.5, 2.0, dim, dtype=dtype)
    return loc, scale_tril + 0.3 * torch.ones(dim, dim, dtype=dtype).tril(-1)


def made(kind: str, dim: int, dtype: torch.dtype = torch.float64, *, perturb: float = 0.15) -> Trunk:
    """A trunk that is started, and whose weights are moved far enough from the identity."""
    trunk = KINDS[kind](dim)
    trunk.build(dim)
    trunk.to(dtype)
    with torch.no_grad():
        for p in trunk.parameters():
            p.add_(perturb * torch.randn_like(p))
    trunk.start(*start_values(dim, dtype))
    return trunk


@pytest.mark.parametrize(("kind", "dim"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_det_is_that_of_the_jacobian(kind: str, dim: int, dtype: torch.dtype) -> None:
    trunk = made(kind, dim, dtype)
    e = torch.randn(6, dim, dtype=dtype)
    _, log_det = trunk(e)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda x: trunk(x[None])[0][0], row) for row in e])
    assert log_det.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians)[1], atol=tolerance, rtol=tolerance)
    if trunk.is_trainable:
        # The perturbation really moved it: log|det| is no constant.
        assert float(log_det.detach().std()) > 1e-3


@pytest.mark.parametrize(("kind", "dim"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(7,), (2, 3)])
def test_inverse_undoes_forward(kind: str, dim: int, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    trunk = made(kind, dim, dtype)
    e = torch.randn(*batch, dim, dtype=dtype)
    z, log_det = trunk(e)
    back, log_det_back = trunk.inverse(z.detach())
    assert back.dtype == dtype
    tolerance = 1e-8 if dtype == torch.float64 else 2e-3
    torch.testing.assert_close(back, e, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(log_det_back, log_det.expand(batch), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_log_prob_of_a_draw_is_base_density_less_log_det(kind: str, dim: int) -> None:
    trunk = made(kind, dim)
    e = torch.randn(9, dim, dtype=torch.float64)
    z, log_det = trunk(e)
    torch.testing.assert_close(trunk.log_prob(z), standard_normal_log_prob(e) - log_det)

    def base(x: Tensor) -> Tensor:
        return MultivariateNormal(torch.ones(dim).double(), 2.0 * torch.eye(dim).double()).log_prob(x)

    torch.testing.assert_close(trunk.log_prob(z, base), base(e) - log_det)


@pytest.mark.parametrize("kind", ["identity", "affine", "flow", "coupling"])
def test_density_integrates_to_one_in_two_dimensions(kind: str) -> None:
    trunk = made(kind, 2)
    with torch.no_grad():
        z, _ = trunk(4.5 * torch.randn(20_000, 2, dtype=torch.float64).clamp(-1.0, 1.0))
        low, high = z.amin(0) - 1.0, z.amax(0) + 1.0
        n = 500
        axes = [torch.linspace(float(a), float(b), n, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
        grid = torch.cartesian_prod(*axes)
        cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
        total = float(trunk.log_prob(grid).exp().sum()) * cell
    assert total == pytest.approx(1.0, abs=2e-3)


def test_density_integrates_to_one_in_one_dimension() -> None:
    trunk = made("flow", 1, perturb=0.5)
    with torch.no_grad():
        z = torch.linspace(-20.0, 20.0, 200_001, dtype=torch.float64)
        total = torch.trapezoid(trunk.log_prob(z[:, None]).exp(), z)
    assert float(total) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_affine_start_is_the_gaussian_asked_for(dim: int) -> None:
    trunk = made("affine", dim)
    loc, scale_tril = start_values(dim, torch.float64)
    z = torch.randn(5, dim, dtype=torch.float64)
    torch.testing.assert_close(trunk.log_prob(z), MultivariateNormal(loc, scale_tril=scale_tril).log_prob(z))
    torch.testing.assert_close(trunk(z)[0], loc + z @ scale_tril.mT)
    torch.testing.assert_close(trunk.reference_coordinates(trunk(z)[0]), z)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_flow_starts_near_the_gaussian_asked_for(dim: int) -> None:
    trunk = FlowTrunk()
    trunk.build(dim)
    trunk.double()
    loc, scale_tril = start_values(dim, torch.float64)
    trunk.start(loc, scale_tril)
    e = torch.randn(4000, dim, dtype=torch.float64)
    with torch.no_grad():
        z, _ = trunk(e)
    # In whitened coordinates the flow differs from the identity by little (its last layers are scaled by .01) ...
    moved = torch.linalg.solve_triangular(scale_tril, (z - loc).mT, upper=False).mT - e
    assert float(moved.abs().max()) < 0.15
    # ... so that mean and covariance are those asked for to within a few per cent, with the same draws.
    exact = loc + e @ scale_tril.mT
    torch.testing.assert_close(z.mean(0), exact.mean(0), atol=0.05, rtol=0.0)
    torch.testing.assert_close(z.mT.cov().reshape(dim, dim), exact.mT.cov().reshape(dim, dim), atol=0.05, rtol=0.05)


def test_start_refuses_a_scale_without_positive_diagonal() -> None:
    trunk = AffineTrunk()
    trunk.build(2)
    with pytest.raises(ValueError, match="positive diagonal"):
        trunk.start(torch.zeros(2), torch.diag(torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(("kind", "dim"), [c for c in CASES if c[0] in ("flow", "coupling")])
def test_every_parameter_receives_a_gradient_forward_and_backward(kind: str, dim: int) -> None:
    for direction in ("forward", "inverse"):
        trunk = made(kind, dim)
        out, log_det = getattr(trunk, direction)(torch.randn(200, dim, dtype=torch.float64))
        (out.square().sum() + log_det.sum()).backward()
        parameters = dict(trunk.named_parameters())
        assert parameters
        silent = [n for n, p in parameters.items() if p.grad is None or not float(p.grad.abs().sum()) > 0.0]
        assert silent == []


@pytest.mark.parametrize(("kind", "dim"), CASES)
def test_a_trunk_is_copied_after_a_draw_with_gradient(kind: str, dim: int) -> None:
    trunk = made(kind, dim)
    e = torch.randn(5, dim, dtype=torch.float64, requires_grad=True)
    z, log_det = trunk(e)
    trunk.inverse(z)
    twin = copy.deepcopy(trunk)
    torch.testing.assert_close(twin(e), (z, log_det), rtol=0.0, atol=0.0)
    # Apart from each other: moving the copy leaves the original where it was.
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    torch.testing.assert_close(trunk(e)[0], z, rtol=0.0, atol=0.0)
    if trunk.is_trainable:
        assert not torch.equal(twin(e)[0], z)


def test_standard_normal_density() -> None:
    e = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(e).sum(-1)
    torch.testing.assert_close(standard_normal_log_prob(e), expected)
