"""What the adversaries of the joint losses are shown: both samples' laws, and nothing of the losses' gradients."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from avbvi.adversaries import ResidualAdversary
from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    Game,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointDraws,
    LatentVariableModel,
    Pairs,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from tests.joint.known import DIM, LATENT, SIGMAS, Known, built, unrelated

DRAWS = 100_000


class Product(NamedTuple):
    """Moments of independent x and z."""

    loc: Tensor
    covariance_matrix: Tensor


def product(x: MultivariateNormal, z: MultivariateNormal) -> Product:
    covariance = torch.block_diag(x.covariance_matrix, z.covariance_matrix)
    return Product(torch.cat([x.loc, z.loc]), covariance)


def laws_of_games(known: Known) -> list[tuple[str, Game, slice, Product, Product]]:
    """Each game, the coordinates that it sees, and the moments that its two samples should have."""
    with torch.no_grad():
        laws = known.laws
    encoded, decoded = laws.encoded, laws.decoded
    of_model, of_encoder = product(laws.evidence, laws.prior), product(laws.data, laws.aggregate)
    pairs, latents, data = slice(None), slice(DIM, None), slice(DIM)
    f1, f2 = SymmetricAdversarialELBO().games
    return [
        ("f1", f1, pairs, encoded, of_model),
        ("f2", f2, pairs, decoded, of_encoder),
        ("AS-VAE-r", ReconstructionELBO().games[0], pairs, encoded, of_model),
        ("AS-VAE-g", GenerationELBO().games[0], pairs, decoded, of_encoder),
        ("AAE", AdversarialAutoencoderLoss().games[0], latents, of_encoder, of_model),
        ("ALI", AdversarialInferenceLoss().games[0], pairs, encoded, decoded),
        ("GAN", GenerativeAdversarialLoss().games[0], data, of_encoder, of_model),
    ]


NAMES = ("f1", "f2", "AS-VAE-r", "AS-VAE-g", "AAE", "ALI", "GAN")


@pytest.mark.parametrize("name", NAMES)
def test_both_samples_of_a_game_have_their_laws(name: str) -> None:
    known = unrelated()
    ((game, seen, upper, lower),) = [rest for label, *rest in laws_of_games(known) if label == name]
    with torch.no_grad():
        draws = known.draws(DRAWS)
        samples = game.upper(draws), game.lower(draws)
    for pairs, law in zip(samples, (upper, lower), strict=True):
        found = torch.cat([pairs.x, pairs.z], -1)[:, seen]
        loc, covariance = law.loc[seen], law.covariance_matrix[seen, seen]
        scale = covariance.diagonal().sqrt()
        assert ((found.mean(0) - loc).abs() < SIGMAS * scale / DRAWS**0.5).all()
        # Var(xy) <= 2 for standard normals of any correlation.
        error = (found.mT.cov() - covariance).abs() / (scale.unsqueeze(-1) * scale)
        assert (error < SIGMAS * (2.0 / DRAWS) ** 0.5).all()
    # The two laws differ by more than that: an exchange of them would be seen.
    apart = (upper.covariance_matrix - lower.covariance_matrix)[seen, seen].abs().max()
    assert apart > 0.1


def sharp(known: Known) -> Known:
    """The encoder nearly without noise, so that z tells its datum."""
    with torch.no_grad():
        known.encoder.log_scale.fill_(-7.0)
        known.encoder.below.zero_()
    return known


def data_behind(known: Known, z: Tensor, data: Tensor) -> Tensor:
    """Which of the data each z was encoded from."""
    return torch.cdist(z, known.encoder.linear(data)).argmin(-1)


def draws_of(known: Known, x: Tensor) -> JointDraws:
    return JointDraws(LatentVariableModel(known.vae.model, (x,), {}), known.encoder.guide, (x,), {})


@torch.no_grad()
@pytest.mark.parametrize("n", [2, 3, 50])
def test_no_datum_meets_its_own_latents(n: int) -> None:
    known = sharp(unrelated())
    x = known.data.sample((n,))
    draws = draws_of(known, x)
    assert (data_behind(known, draws.encoded.z, x) == torch.arange(n)).all()
    pairs = draws.encoder_marginals
    of_x, of_z = torch.cdist(pairs.x, x).argmin(-1), data_behind(known, pairs.z, x)
    assert (of_x != of_z).all()
    assert (of_x.sort().values == torch.arange(n)).all()
    assert (of_z.sort().values == torch.arange(n)).all()


@torch.no_grad()
def test_latents_of_few_repeated_data_are_independent_of_the_datum() -> None:
    # A board that repeats four data has the empirical law of the four as q(x): every pairing is equally likely.
    known, copies = sharp(unrelated()), 20_000
    four = known.data.sample((4,))
    pairs = draws_of(known, four.repeat(copies, 1)).encoder_marginals
    of_x, of_z = torch.cdist(pairs.x, four).argmin(-1), data_behind(known, pairs.z, four)
    counts = torch.bincount(4 * of_x + of_z, minlength=16).double()
    assert ((counts - copies / 4.0).abs() < SIGMAS * (copies / 4.0) ** 0.5).all()


@torch.no_grad()
def test_products_are_shuffled_anew() -> None:
    known = sharp(unrelated())
    x = known.data.sample((40,))
    first, second = draws_of(known, x).encoder_marginals, draws_of(known, x).encoder_marginals
    partners = [data_behind(known, p.z[torch.cdist(p.x, x).argmin(-1).argsort()], x) for p in (first, second)]
    assert (partners[0] != partners[1]).sum() > 20


def test_a_game_learns_the_log_ratio_with_its_sign() -> None:
    # T(z) of the AAE's game, whose answer is known; 100 steps of head start on fresh data.
    known = unrelated()
    with torch.no_grad():
        known.encoder.linear.weight.zero_()
        known.encoder.linear.bias.copy_(torch.tensor([1.5, 0.0]))
        known.encoder.below.zero_()
        known.encoder.log_scale.zero_()
    loss = AdversarialAutoencoderLoss(ResidualAdversary(hidden=32, target_hint=False), adversary_lr=1e-2, steps=1)
    x = known.data.sample((512,))
    loss.differentiable_loss(known.vae.model, known.encoder.guide, x)
    z = torch.randn(2000, LATENT, dtype=torch.float64)
    with torch.no_grad():
        t = loss.games[0].log_ratio(Pairs(x, z))
    exact = 1.5 * z[:, 0] - 0.5 * 1.5**2
    assert (t - exact).abs().mean() < 0.25 * exact.abs().mean()


def test_outer_gradients_do_not_reach_adversaries_nor_theirs_the_model() -> None:
    known = unrelated()
    loss = built(SymmetricAdversarialELBO(pretrain_steps=3), known)
    x = known.data.sample((16,))
    loss.differentiable_loss(known.vae.model, known.encoder.guide, x).backward()
    for game in loss.games:
        assert all(p.grad is None for p in game.adversary.parameters())
    own = [p.grad.clone() for p in known.parameters]
    for p in known.parameters:
        p.grad = None
    draws = known.draws(16)
    for game in loss.games:
        assert game.step(draws, 1.0)
    assert all(p.grad is None for p in known.parameters)
    assert all(bool(g.abs().max() > 0.0) for g in own)
