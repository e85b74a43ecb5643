"""The quadratic form that adversaries may add to their networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avbvi.amortised.adversaries import JointAdversary
from avbvi.amortised.quadratic import REACH, QuadraticForm
from models.linear_gaussian import Laws
from tests.joint.known import DIM, LATENT, frozen, unrelated


def test_the_form_is_the_sum_that_it_says() -> None:
    form = QuadraticForm(2, 3).double()
    for p in form.parameters():
        torch.nn.init.normal_(p)
    u, x = torch.randn(4, 5, 2).double(), torch.randn(5, 3).double()
    a, b, squares = form.of_features, form.of_context, form.features_squared
    expected = (
        torch.einsum("sbi,i->sb", u, a)
        + torch.einsum("bj,j->b", x, b)
        + torch.einsum("sbi,ij,sbj->sb", u, squares, u) / 3.0
        + torch.einsum("bj,j->b", x**2 - 1.0, form.context_squared) / 3.0
        + torch.einsum("sbi,ij,bj->sb", u, form.product, x)
    )
    coefficients = 2 + 3 + 4 + 3 + 6
    torch.testing.assert_close(form(u, x), REACH / coefficients * expected)


def test_an_adversary_with_the_form_starts_like_one_without() -> None:
    adversary = JointAdversary(quadratic=True)
    adversary.build_for(2, 2, 3)
    assert torch.equal(adversary(torch.randn(7, 2), torch.randn(7, 3)), torch.zeros(7))


@pytest.mark.parametrize("squares", [True, False])
def test_an_adversary_with_the_form_can_be_the_log_ratio_of_gaussians(squares: bool) -> None:
    laws: Laws = frozen(unrelated())
    adversary = JointAdversary(quadratic=True, squares=squares)
    adversary.build_for(LATENT, LATENT, DIM)
    adversary.double()
    form = adversary.form
    encoding = laws.encoding
    precision = torch.linalg.inv(encoding.covariance)
    with torch.no_grad():
        # log q(z | x) - log p(z) as a function of z, at given x, less its value at z = 0.
        form.features_squared.copy_(1.5 * (torch.eye(LATENT) - precision) / form.gain)
        form.product.copy_(precision @ encoding.weight / form.gain)
        form.of_features.copy_(precision @ encoding.bias / form.gain)
        x, z = torch.randn(6, DIM).double(), torch.randn(4, 6, LATENT).double()

        def ratio(z: Tensor) -> Tensor:
            return encoding.given(x).log_prob(z) - laws.prior.log_prob(z)

        t = adversary(z, x) - adversary(torch.zeros(6, LATENT).double(), x)
        torch.testing.assert_close(t, ratio(z) - ratio(torch.zeros_like(z)))


def test_the_form_is_for_those_who_ask() -> None:
    plain = JointAdversary()
    plain.build_for(2, 2, 3)
    assert not any(name.startswith("form.") for name, _ in plain.named_parameters())
    with pytest.raises(TypeError, match="quadratic must be True or False, found str 'yes'"):
        JointAdversary(quadratic="yes")  # type: ignore[arg-type]
