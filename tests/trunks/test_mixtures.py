"""MixtureTrunk: density against scipy, gradients of the weighted loss against closed forms, starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from avbvi.starts import LaplaceModes
from avbvi.trunks import BestTrunk, FlowTrunk, MixtureTrunk


def made(components: int, dim: int) -> MixtureTrunk:
    """A trunk whose Gaussians are all different."""
    trunk = MixtureTrunk(components)
    trunk.build(dim)
    trunk.double()
    scale_tril = 0.5 * torch.eye(dim) + 0.3 * torch.ones(dim, dim).tril(-1)
    trunk.start(torch.linspace(-1.0, 2.0, dim).double(), scale_tril.double())
    with torch.no_grad():
        for p in trunk.parameters():
            p.add_(0.03 * torch.randn_like(p))
    return trunk


def scipy_density(trunk: MixtureTrunk, z: Tensor) -> np.ndarray:
    """The density of the trunk's draws, component by component in the latent space."""
    log_weights, locs, factors = trunk.gaussians()
    total = np.zeros(len(z))
    for k in range(len(locs)):
        outer = trunk.scale_tril @ factors[k]
        normal = multivariate_normal((trunk.loc + trunk.scale_tril @ locs[k]).numpy(), (outer @ outer.mT).numpy())
        total += math.exp(float(log_weights[k])) * normal.pdf(z.numpy())
    return total


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_density_is_that_of_the_mixture(dim: int) -> None:
    trunk = made(4, dim)
    z, _ = trunk(trunk.sample_base(torch.Size((50,)), like=trunk.loc))
    found = trunk.log_prob(z.detach()).exp()
    np.testing.assert_allclose(found.numpy(), scipy_density(trunk, z.detach()), rtol=1e-8)


def test_draws_have_the_mixtures_moments() -> None:
    trunk = made(3, 2)
    n = 200_000
    with torch.no_grad():
        e = trunk.sample_base(torch.Size((n // 2, 2)), like=trunk.loc).reshape(n, 2)
    log_weights, locs, factors = trunk.gaussians()
    w = log_weights.exp()
    mean = w @ locs
    second = torch.einsum("k,kij->ij", w, factors @ factors.mT + locs[:, :, None] * locs[:, None, :])
    sd = (second - mean[:, None] * mean).diagonal().sqrt()
    assert bool(((e.mean(0) - mean).abs() < 4.0 * sd / math.sqrt(n)).all())
    products = e[:, :, None] * e[:, None, :]
    assert bool(((products.mean(0) - second).abs() < 4.0 * products.std(0) / math.sqrt(n)).all())


def test_weighted_draws_give_the_gradients_of_closed_form_expectations() -> None:
    # E[a.e + e'Be] is known for a mixture, with its gradient in weights, locations and factors.
    trunk = made(3, 2)
    a, b = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([[1.0, 0.4], [0.4, 2.0]], dtype=torch.float64)
    log_weights, locs, factors = trunk._parameters_in_use()
    quadratic = torch.einsum("ki,ij,kj->k", locs, b, locs)
    spread = torch.stack([(b @ f @ f.mT).trace() for f in factors])
    exact = (log_weights.exp() * (locs @ a + quadratic + spread)).sum()
    expected = torch.autograd.grad(exact, list(trunk.parameters()))
    repeats = []
    for _ in range(300):
        e, weights = trunk.weighted_base(300, like=trunk.loc)
        assert weights is not None
        value = (weights * (e @ a + torch.einsum("ni,ij,nj->n", e, b, e))).sum()
        repeats.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(trunk.parameters()))]))
    found = torch.stack(repeats)
    error = found.mean(0) - torch.cat([g.reshape(-1) for g in expected])
    stderr = found.std(0) / math.sqrt(len(found))
    assert bool((error.abs() < 4.5 * stderr + 1e-12).all())


def test_weights_of_the_strata_sum_to_one() -> None:
    trunk = made(5, 2)
    e, weights = trunk.weighted_base(512, like=trunk.loc)
    assert weights is not None
    assert len(e) == len(weights) == 5 * (512 // 5)
    assert float(weights.detach().sum()) == pytest.approx(1.0, abs=1e-12)


def test_the_path_alone_gives_the_gradient() -> None:
    """base_log_prob hides its parameters: what it leaves out has expectation zero (Prop. 2)."""
    trunk = made(3, 2)
    e, weights = trunk.weighted_base(6, like=trunk.loc)
    assert weights is not None
    (by_draws,) = torch.autograd.grad(trunk.base_log_prob(e).sum(), e, retain_graph=True)
    gradient = torch.autograd.grad(trunk.base_log_prob(e).sum(), trunk.scaled_locs, retain_graph=True)[0]
    expected = torch.autograd.grad(e, trunk.scaled_locs, by_draws)[0]
    torch.testing.assert_close(gradient, expected)


def test_the_path_gradient_is_zero_at_the_target() -> None:
    """Draw by draw, and not only on average: what makes it the better gradient near the end (Roeder et al. 2017)."""
    trunk = made(3, 2)
    log_weights, locs, factors = trunk.gaussians()
    target = MixtureSameFamily(Categorical(logits=log_weights), MultivariateNormal(locs, scale_tril=factors))
    e, weights = trunk.weighted_base(300, like=trunk.loc)
    assert weights is not None
    loss = (weights * (trunk.base_log_prob(e) - target.log_prob(e))).sum()
    for gradient in torch.autograd.grad(loss, list(trunk.parameters())):
        assert float(gradient.abs().max()) < 1e-9


def test_components_begin_at_the_modes_with_their_weights() -> None:
    locs = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, 6.0]], dtype=torch.float64)
    covariances = torch.stack([torch.eye(2).double() * s for s in (0.1, 0.4, 0.9)])
    modes = LaplaceModes(locs, covariances, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())
    for components in (3, 16):
        trunk = MixtureTrunk(components)
        trunk.build(2)
        trunk.double()
        mean, covariance = modes.moments()
        trunk.start(mean, torch.linalg.cholesky(covariance))
        trunk.start_at(modes)
        log_weights, centres, factors = trunk.gaussians()
        placed = trunk(centres)[0].detach()
        nearest = (placed[:, None] - locs).square().sum(-1).argmin(1)
        for k, weight in enumerate((0.2, 0.5, 0.3)):
            mine = nearest == k
            assert float(log_weights[mine].exp().sum()) == pytest.approx(weight, rel=1e-6)
            shapes = trunk.scale_tril @ factors[mine]
            torch.testing.assert_close(shapes @ shapes.mT, covariances[k].expand(int(mine.sum()), 2, 2))
        if components == 3:
            torch.testing.assert_close(placed[nearest.argsort()], locs)


def test_the_best_modes_are_kept_where_there_are_more_than_components() -> None:
    locs = torch.arange(6.0).double()[:, None] * 10.0
    weights = torch.tensor([0.05, 0.3, 0.1, 0.25, 0.05, 0.25], dtype=torch.float64)
    modes = LaplaceModes(locs, torch.ones(6, 1, 1).double(), weights.log())
    trunk = MixtureTrunk(3)
    trunk.build(1)
    trunk.double()
    trunk.start(*(t.reshape(1, 1)[0] if i == 0 else t.sqrt() for i, t in enumerate(modes.moments())))
    trunk.start_at(modes)
    log_weights, centres, _ = trunk.gaussians()
    order = trunk(centres)[0].detach().reshape(-1).argsort()
    torch.testing.assert_close(trunk(centres)[0].detach().reshape(-1)[order], torch.tensor([10.0, 30.0, 50.0]).double())
    torch.testing.assert_close(log_weights.exp()[order], torch.tensor([0.375, 0.3125, 0.3125]).double())


def test_the_number_of_components_follows_the_width() -> None:
    found = []
    for dim in (2, 16, 32, 100):
        trunk = MixtureTrunk()
        trunk.build(dim)
        found.append(len(trunk.gaussians()[0]))
    assert found == [32, 32, 16, 8]
    with pytest.raises(ValueError, match="components must be at least 1, found 0"):
        MixtureTrunk(0)


def test_best_trunk_speaks_for_the_candidate_in_force() -> None:
    flow, mixture = FlowTrunk(hidden=(8,)), MixtureTrunk(3)
    trunk = BestTrunk((mixture, flow))
    trunk.build(2)
    trunk.double()
    trunk.start(torch.tensor([1.0, 2.0]).double(), torch.eye(2).double())
    e = torch.randn(5, 2, dtype=torch.float64)
    for index, member in enumerate((mixture, flow)):
        trunk.choose(index)
        torch.testing.assert_close(trunk.base_log_prob(e), member.base_log_prob(e))
        torch.testing.assert_close(trunk(e)[0], member(e)[0])
        torch.testing.assert_close(trunk.log_prob(e), member.log_prob(e))
        assert trunk.is_reparameterised is member.is_reparameterised
        log_weights, locs, factors = trunk.gaussians()
        # As many Gaussians whichever is in force, and the same density.
        assert len(log_weights) == 3
        assert float(log_weights.exp().sum()) == pytest.approx(1.0)
    assert float(locs.abs().max()) == 0.0
    torch.testing.assert_close(factors, torch.eye(2).double().expand(3, 2, 2), check_dtype=False)


def test_best_trunk_refuses_what_is_no_choice() -> None:
    with pytest.raises(ValueError, match="at least two trunks, found 1"):
        BestTrunk((FlowTrunk(),))
    with pytest.raises(TypeError, match="trainable trunks, found Linear"):
        BestTrunk((FlowTrunk(), torch.nn.Linear(2, 2)))  # type: ignore[arg-type]
