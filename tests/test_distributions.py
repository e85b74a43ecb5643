"""The implicit distribution with an exact base density, where everything has a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from avbvi.distributions import Draw, ImplicitDistribution
from avbvi.trunks import AffineTrunk, FlowTrunk, Trunk, standard_normal_log_prob

LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
SCALE_TRIL = torch.tensor([[0.5, 0.0, 0.0], [0.3, 2.0, 0.0], [-1.0, 0.2, 0.7]], dtype=torch.float64)


class Counting:
    """A trunk whose calls are counted, with standard normal base draws of exactly known density."""

    def __init__(self, trunk: Trunk, scale: Tensor | None = None) -> None:
        trunk.build(3)
        trunk.double()
        trunk.start(LOC, SCALE_TRIL)
        self.trunk = trunk
        self.inverses = 0
        self.scale = torch.ones((), dtype=torch.float64) if scale is None else scale

    def draw_base(self, shape: torch.Size) -> Tensor:
        return self.scale * torch.randn(*shape, 3, dtype=torch.float64)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.inverses += 1
        return self.trunk.inverse(z)

    def base_log_prob(self, draw: Draw) -> Tensor:
        scale = self.scale.detach()
        return standard_normal_log_prob(draw.base / scale) - 3 * scale.log()

    def distribution(self) -> ImplicitDistribution:
        return ImplicitDistribution(self.draw_base, self.trunk, self.inverse, self.base_log_prob, 3)


EXACT = MultivariateNormal(LOC, scale_tril=SCALE_TRIL)


@pytest.mark.parametrize("shape", [(), (7,), (4, 2)])
def test_own_draws_have_their_density_without_an_inverse(shape: tuple[int, ...]) -> None:
    parts = Counting(AffineTrunk())
    q = parts.distribution()
    z = q.rsample(torch.Size(shape))
    assert z.shape == (*shape, 3)
    torch.testing.assert_close(q.log_prob(z), EXACT.log_prob(z))
    assert parts.inverses == 0


def test_foreign_values_have_their_density_by_the_inverse() -> None:
    parts = Counting(AffineTrunk())
    q = parts.distribution()
    z = q.rsample(torch.Size((5,)))
    torch.testing.assert_close(q.log_prob(z.clone()), EXACT.log_prob(z))
    assert parts.inverses == 1
    foreign = 3.0 * torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(foreign), EXACT.log_prob(foreign))
    # A later draw replaces the remembered one.
    q.rsample()
    torch.testing.assert_close(q.log_prob(z), EXACT.log_prob(z))
    assert parts.inverses == 3


def test_both_paths_agree_through_a_flow() -> None:
    parts = Counting(FlowTrunk(hidden=(8,)))
    with torch.no_grad():
        for p in parts.trunk.parameters():
            p.add_(0.2 * torch.randn_like(p))
    q = parts.distribution()
    z = q.rsample(torch.Size((20,)))
    cached = q.log_prob(z)
    assert float((cached - EXACT.log_prob(z)).detach().abs().max()) > 1e-2  # no Gaussian any more
    torch.testing.assert_close(q.log_prob(z.detach().clone()), cached)
    draw = q.draw((6,))
    torch.testing.assert_close(q.draw_log_prob(draw), parts.trunk.log_prob(draw.z))


def test_draws_have_the_gaussian_moments() -> None:
    n = 20_000
    z = Counting(AffineTrunk()).distribution().sample(torch.Size((n,)))
    assert not z.requires_grad
    covariance = SCALE_TRIL @ SCALE_TRIL.mT
    variance = covariance.diagonal()
    assert bool(((z.mean(0) - LOC).abs() < 4.0 * (variance / n).sqrt()).all())
    stderr = ((covariance.square() + variance[:, None] * variance) / n).sqrt()
    assert bool(((z.mT.cov() - covariance).abs() < 4.0 * stderr).all())


def test_expand_draws_independently_over_the_batch() -> None:
    q = Counting(AffineTrunk()).distribution()
    wide = q.expand(torch.Size((5, 2)))
    assert (wide.batch_shape, wide.event_shape) == ((5, 2), (3,))
    z = wide.rsample(torch.Size((4,)))
    assert z.shape == (4, 5, 2, 3)
    assert len(z.reshape(-1, 3).unique(dim=0)) == 40
    torch.testing.assert_close(wide.log_prob(z), EXACT.log_prob(z))
    assert (q.batch_shape, q.rsample().shape) == ((), (3,))


def test_pathwise_gradient_of_the_elbo_is_the_analytic_one() -> None:
    # q = N(loc, s^2 L L^T), target N(loc, L L^T): d/ds E_q[log p - log q] = 3 (1/s - s). With log q's own
    # parameters detached the estimate through z alone is sum_i e_i^2 (1/s - s) with the same noise.
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    parts = Counting(AffineTrunk(), scale)
    q = parts.distribution()
    n = 5000
    z = q.rsample(torch.Size((n,)))
    (gradient,) = torch.autograd.grad((EXACT.log_prob(z) - q.log_prob(z)).mean(), scale)
    e = torch.linalg.solve_triangular(SCALE_TRIL, (z.detach() - LOC).mT, upper=False).mT / scale.detach()
    s = float(scale.detach())
    per_draw = e.square().sum(-1) * (1.0 / s - s)
    assert float(gradient) == pytest.approx(float(per_draw.mean()), rel=1e-10)
    assert abs(float(gradient) - 3.0 * (1.0 / s - s)) < 4.0 * float(per_draw.std()) / math.sqrt(n)
