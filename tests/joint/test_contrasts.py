"""Contrasts of joint laws: what densities tell of f1 and f2, and what they leave to the adversaries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from avbvi import AVBGuide, ConditionalGaussianSampler, ModelError
from avbvi.joint import (
    GenerationELBO,
    JointAdversarialLoss,
    Pairs,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from tests.joint.known import DIM, LATENT, SIGMAS, Known, built, unrelated

N = 200


def anywhere(n: int = N) -> Pairs:
    return Pairs(3.0 * torch.randn(n, DIM).double(), 3.0 * torch.randn(n, LATENT).double())


def exact_ratio(known: Known, x: Tensor, z: Tensor) -> Tensor:
    """log q(z | x) - log p(z)."""
    laws = known.laws
    return laws.encoding.given(x).log_prob(z) - laws.prior.log_prob(z)


def test_what_densities_tell_is_exact_at_any_pairs_and_differentiable_in_them_alone() -> None:
    known = unrelated()
    draws = known.draws(N)
    x, z = (part.requires_grad_() for part in anywhere())
    found = draws.log_encoding_ratio_at(Pairs(x, z))
    exact = exact_ratio(known, x, z)
    torch.testing.assert_close(found, exact, atol=1e-9, rtol=1e-9)
    weights = torch.randn(N).double()
    gradients = torch.autograd.grad(weights @ found, [x, z, *known.encoder.parameters()], allow_unused=True)
    expected = torch.autograd.grad(weights @ exact, [x, z])
    for mine, theirs in zip(gradients[:2], expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)
    assert all(g is None for g in gradients[2:])


def test_encoded_simulations_have_their_law() -> None:
    known, n = unrelated(), 100_000
    with torch.no_grad():
        laws = known.laws
        pairs = known.draws(n).encoded_simulations
    law = laws.encoding.joint(laws.evidence)
    both = torch.cat([pairs.z, pairs.x], -1)
    scale = law.covariance_matrix.diagonal().sqrt()
    assert ((both.mean(0) - law.loc).abs() < SIGMAS * scale / n**0.5).all()
    assert ((both.T.cov() - law.covariance_matrix).abs() < SIGMAS * 2.0 * torch.outer(scale, scale) / n**0.5).all()


def test_the_log_ratio_is_what_the_adversary_says_and_what_densities_tell() -> None:
    known = unrelated()
    loss = built(SymmetricAdversarialELBO(), known)
    pairs, draws = anywhere(), known.draws(N)
    with torch.no_grad():
        for game in loss.games:
            t = game.adversary(pairs.z, pairs.x)
            expected = t + exact_ratio(known, *pairs)
            torch.testing.assert_close(game.log_ratio(pairs, draws), expected, atol=1e-9, rtol=1e-9)
        with pytest.raises(ValueError, match="draws must be given"):
            loss.games[0].log_ratio(pairs)


def test_games_are_played_against_the_contrast() -> None:
    known = unrelated()
    loss = built(SymmetricAdversarialELBO(), known)
    draws = known.draws(N)
    f1, f2 = (game.contrast for game in loss.games)
    assert f1 is not None
    assert f2 is not None
    assert f1.sample(draws) is draws.encoded_simulations
    assert f2.sample(draws) is draws.encoded
    without = built(SymmetricAdversarialELBO(densities=False), known)
    assert all(game.contrast is None for game in without.games)


def implicit(known: Known) -> AVBGuide:
    return AVBGuide(known.vae.model, sampler=ConditionalGaussianSampler(DIM, body=nn.Identity()))


def test_an_encoder_without_density_goes_without_contrast() -> None:
    known = unrelated()
    loss, guide, x = ReconstructionELBO(), implicit(known), known.data.sample((8,))
    loss.loss(known.vae.model, guide, x)
    assert loss.games[0].contrast is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReconstructionELBO(densities=True),
        GenerationELBO,
        lambda: SymmetricAdversarialELBO(densities=False),
    ],
)
def test_a_density_that_is_needed_and_missing_is_an_error(make: Callable[[], JointAdversarialLoss]) -> None:
    known = unrelated()
    with pytest.raises(ModelError, match="no density"):
        make().loss(known.vae.model, implicit(known), known.data.sample((8,)))


@pytest.mark.parametrize("make", [ReconstructionELBO, GenerationELBO, SymmetricAdversarialELBO])
def test_densities_is_a_flag(make: Callable[..., JointAdversarialLoss]) -> None:
    with pytest.raises(TypeError, match="densities must be True or False"):
        make(densities="known")
