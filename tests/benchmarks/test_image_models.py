"""Training and judging of latent-variable models of pictures, against models whose evidence is known."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyro
import pytest
import torch
from torch import Tensor, nn

from benchmarks import digits, image_models, mnist
from benchmarks.image_models import AVB, Task, Trained
from benchmarks.latent import Recipe
from benchmarks.pieces import Clock
from benchmarks.rivals.latent import RIVALS
from models.data.images import Images
from models.decoders import FullyConnectedDecoder
from models.encoders import MLPBody, parameter_count
from models.vaes import VAE, NormalLikelihood

SCALE = 0.5


def small_task(steps: int = 12) -> Task:
    """Pictures of 3 x 3 pixels."""
    return replace(
        digits.task(2),
        pixels=9,
        decoder=lambda: FullyConnectedDecoder(2, (1, 3, 3), hidden=(8,)),
        body=lambda width: MLPBody(9, (width,)),
        width=12,
        shape=(8,),
        recipe=Recipe(steps=steps, lr=1e-3, warm_up=0.25, average=0.9),
        batch_size=4,
    )


def pictures() -> Images:
    return Images(torch.randint(0, 17, (11, 1, 3, 3), dtype=torch.uint8), maximum=16)


class LinearGaussian:
    """x = W z + b + noise with its exact posterior as encoder, so that every draw's weight is p(x)."""

    def __init__(self, pixels: int = 5) -> None:
        self.vae = VAE(nn.Linear(2, pixels), 2, likelihood=NormalLikelihood(SCALE))
        w, self.offset = (p.detach() for p in self.vae.decoder.parameters())
        self.weight = w
        self.covariance = torch.linalg.inv(torch.eye(2) + w.T @ w / SCALE**2)
        self.gain = self.covariance @ w.T / SCALE**2
        self.evidence = torch.distributions.MultivariateNormal(self.offset, w @ w.T + SCALE**2 * torch.eye(pixels))

    def posterior(self, x: Tensor) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal((x - self.offset) @ self.gain.T, self.covariance)

    def draw(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        posterior = self.posterior(x)
        z = posterior.sample((n,))
        return z, posterior.log_prob(z)

    def bounds(self, x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        z, log_q = self.draw(x, n)
        return z, log_q - 0.25, log_q + 0.75


def test_figures_of_an_exact_encoder_are_the_evidence() -> None:
    known = LinearGaussian()
    x = known.evidence.sample((70,))  # more than one chunk
    exact = float(known.evidence.log_prob(x).mean())
    figures = image_models.figures_of(Trained(known.vae, known.draw, None, {}), x)
    assert figures["elbo"] == pytest.approx(exact, abs=1e-4)
    assert figures["elbo_exact"] == figures["elbo"]
    assert "elbo_exact_upper" not in figures
    # E_q[-log p(x | z)] in closed form; the draws' error is below .01.
    residual = known.posterior(x).mean @ known.weight.T + known.offset - x
    spread = torch.trace(known.weight @ known.covariance @ known.weight.T)
    normal = 0.5 * torch.log(torch.tensor(2.0 * torch.pi)) + torch.log(torch.tensor(SCALE))
    expected = normal + (residual.square().sum(-1).mean() + spread) / (2.0 * SCALE**2 * 5)
    assert figures["reconstruction_error"] == pytest.approx(float(expected), abs=0.01)
    assert figures["active_units"] == 2
    learned = image_models.figures_of(Trained(known.vae, known.draw, known.bounds, {}), x)
    assert learned["elbo_exact"] == pytest.approx(exact - 0.75, abs=1e-4)
    assert learned["elbo_exact_upper"] == pytest.approx(exact + 0.25, abs=1e-4)


def test_annealing_finds_the_evidence() -> None:
    known = LinearGaussian()
    x = known.evidence.sample((6,))
    trained = Trained(known.vae, known.draw, None, {})
    row = image_models.evidence_figures(image_models.anneal(trained, x, temperatures=15, chains=10))
    assert abs(row["ais"] - float(known.evidence.log_prob(x).mean())) < 4.0 * row["ais_stderr"] + 1e-4
    assert row["ais_stderr"] < 0.1
    assert row["ais_data_stderr"] == pytest.approx(float(known.evidence.log_prob(x).std()) / 6**0.5, rel=0.1)


def test_differences_are_paired() -> None:
    row = image_models.ahead(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 2.0, 4.0]))
    assert row == {"ahead_of_vae": pytest.approx(1.0), "ahead_of_vae_stderr": pytest.approx(3**-0.5)}


@cache
def board_tasks() -> dict[str, Task]:
    dims = {name: digits.task(dim) for name, (dim, _) in digits.TARGETS.items()}
    return dims | {name: mnist.task(name, 10) for name in mnist.DECODERS}


@pytest.mark.parametrize("name", [*digits.TARGETS, *mnist.DECODERS])
def test_all_encoders_of_a_board_have_the_same_size(name: str) -> None:
    task = board_tasks()[name]
    sampler = task.sampler()
    sampler.build(task.latent_dim)
    budget = parameter_count(sampler)
    for method in {*digits.METHODS, *mnist.METHODS} - {AVB}:
        encoder = RIVALS[method].encoder(task.body, task.latent_dim, budget)
        assert abs(encoder.sampling_parameters() / budget - 1.0) <= 0.1, method


@pytest.mark.parametrize("method", ["vae", pytest.param(AVB, marks=pytest.mark.slow)])
def test_a_run_in_pieces_is_that_of_one_piece(method: str, tmp_path: Path, default_sigint: None) -> None:
    images, task = pictures(), small_task()
    x = images.intensities()

    def train(checkpoint: Path | None, clock: Clock | None) -> list[Tensor]:
        data = image_models.batches(images, task, 3)
        trained = image_models.train(task, method, data, 3, checkpoint=checkpoint, clock=clock)
        pyro.set_rng_seed(0)
        return [*trained.draw(x, 2), *(p.detach().clone() for p in trained.vae.parameters())]

    whole = train(None, None)
    pieces = 0
    while True:
        pieces += 1
        assert pieces < 200
        try:
            found = train(tmp_path / "run.pt", Clock(0.3))
        except KeyboardInterrupt:
            continue
        break
    for mine, theirs in zip(found, whole, strict=True):
        assert torch.equal(mine, theirs)


def test_both_methods_begin_with_the_same_decoder_and_see_the_same_pictures() -> None:
    images, task = pictures(), small_task()
    first = [next(iter(image_models.batches(images, task, seed))) for seed in (3, 3, 4)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    still = replace(task, recipe=replace(task.recipe, steps=1, lr=1e-12), adversary_lr=1e-12)
    decoders = []
    for method in ("vae", AVB):
        trained = image_models.train(still, method, image_models.batches(images, still, 3), 3)
        decoders.append(torch.cat([p.detach().flatten() for p in trained.vae.parameters()]))
    torch.testing.assert_close(decoders[0], decoders[1], atol=1e-6, rtol=0.0)


def test_pictures_are_probabilities_and_interpolations_end_in_reconstructions() -> None:
    images, task = pictures(), small_task()
    trained = image_models.train(task, "vae", image_models.batches(images, task, 3), 3)
    z = torch.randn(1, 4, 2)
    fixed = Trained(trained.vae, lambda x, n: (z[:, : len(x)], torch.zeros(n, len(x))), None, {})
    sheet = image_models.pictures(fixed, images.intensities(), 2, count=4, between=5)
    assert sheet["samples"].shape == (8, 9)
    assert all(float(p.min()) >= 0.0 and float(p.max()) <= 1.0 for p in sheet.values())
    assert sheet["interpolations"].shape == (2, 5, 9)
    torch.testing.assert_close(sheet["interpolations"][:, 0], sheet["reconstructions"][0::2])
    torch.testing.assert_close(sheet["interpolations"][:, -1], sheet["reconstructions"][1::2])
    torch.testing.assert_close(sheet["interpolations"][0, 2], trained.vae.mean(z[:, :2].mean(1)).squeeze(0).detach())


def test_pictures_of_a_model_without_an_encoder() -> None:
    decoder = nn.Linear(2, 3)
    with torch.no_grad():
        decoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        decoder.bias.zero_()
    z, prior = torch.tensor([[0.2, 0.0], [0.8, 0.4]]), torch.tensor([[-3.0, 0.5]])
    found = image_models.pictures_of(VAE(decoder, 2, NormalLikelihood(0.1)), z, prior, between=3)
    assert set(found) == {"samples", "interpolations"}
    torch.testing.assert_close(found["samples"], torch.tensor([[0.0, 0.5, 0.0]]))
    torch.testing.assert_close(
        found["interpolations"], torch.tensor([[[0.2, 0.0, 0.0], [0.5, 0.2, 0.0], [0.8, 0.4, 0.0]]])
    )


def test_the_clock_interrupts(default_sigint: None) -> None:
    clock = Clock(0.05)
    with pytest.raises(KeyboardInterrupt), clock.interrupting():
        time.sleep(5.0)
    assert clock.left == 0.0
    with pytest.raises(KeyboardInterrupt), clock.interrupting():
        pytest.fail("there was no time left")
    with Clock(60.0).interrupting():
        time.sleep(0.01)
    with Clock().interrupting():
        time.sleep(0.01)
