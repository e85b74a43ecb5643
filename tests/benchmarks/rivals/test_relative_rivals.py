"""AVB's relatives as the boards make them: whose adversaries, what they train, and how they go on in pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avbvi.adversaries import Adversary, ResidualAdversary
from avbvi.amortised.adversaries import JointAdversary
from avbvi.schedules import Schedule
from benchmarks import image_models, relative_targets
from benchmarks.image_models import Task
from benchmarks.latent import Recipe
from benchmarks.pieces import Clock
from benchmarks.rivals.relatives import RELATIVES, Opponents, plain_adversary
from models.data.images import Images
from models.decoders import FullyConnectedDecoder
from models.encoders import MLPBody

#: Number of adversaries, and of what.
GAMES = {"as-vae-r": 1, "as-vae-g": 1, "as-vae": 2, "aae": 1, "ali": 1, "dcgan": 1}


def small_task(steps: int = 12) -> Task:
    """Pictures of 3 x 3 pixels."""
    return replace(
        relative_targets.digits_task(),
        latent_dim=2,
        pixels=9,
        decoder=lambda: FullyConnectedDecoder(2, (1, 3, 3), hidden=(8,)),
        body=lambda width: MLPBody(9, (width,)),
        width=12,
        shape=(8,),
        adversary=lambda: JointAdversary((8,)),
        recipe=Recipe(steps=steps, lr=1e-2, average=0.9),
        batch_size=4,
        adversary_steps=1,
    )


def pictures() -> Images:
    return Images(torch.randint(0, 17, (11, 1, 3, 3), dtype=torch.uint8), maximum=16)


@pytest.mark.parametrize("name", list(RELATIVES))
def test_a_task_says_who_plays_and_how_fast(name: str) -> None:
    made: list[Adversary] = []

    def note(adversary: Adversary) -> Adversary:
        made.append(adversary)
        return adversary

    schedule = Schedule(kl_warm_up=0.25)
    opponents = Opponents(
        of_pairs=lambda: note(JointAdversary((7,))),
        of_latents=lambda: note(ResidualAdversary(hidden=5, target_hint=False)),
        of_data=lambda: note(ResidualAdversary(hidden=6, target_hint=False)),
        steps=11,
        adversary_steps=3,
        adversary_lr=4e-3,
        schedule=schedule,
    )
    loss = RELATIVES[name].loss(opponents)
    assert (loss.steps, loss.adversary_steps, loss.schedule) == (11, 3, schedule)
    assert [game.adversary for game in loss.games] == made
    assert [game.lr for game in loss.games] == [4e-3] * GAMES[name]
    width = {"aae": 5, "dcgan": 6}.get(name, (7,))
    assert [a.hidden for a in made if isinstance(a, JointAdversary | ResidualAdversary)] == [width] * GAMES[name]


@pytest.mark.parametrize("name", list(RELATIVES))
def test_a_run_trains_the_decoder_and_the_encoder_if_there_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, x = small_task(), (torch.rand(6, 9) > 0.5).float()
    before: dict[str, list[Tensor]] = {}
    encoders: list[nn.Module] = []
    original = image_models.Training

    def spied(loss: object, model: object, guide: object, *rest: object, **others: object) -> object:
        encoders.append(guide.__self__)  # type: ignore[attr-defined]
        decoder: nn.Module = model.__self__  # type: ignore[attr-defined]
        for key, module in (("decoder", decoder), ("encoder", encoders[0])):
            before[key] = [p.detach().clone() for p in module.parameters()]
        return original(loss, model, guide, *rest, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(image_models, "Training", spied)
    trained = image_models.train(task, name, image_models.batches(pictures(), task, 0), 0)
    moved = {
        key: [not torch.equal(p, q) for p, q in zip(module.parameters(), before[key], strict=True)]
        for key, module in (("decoder", trained.vae), ("encoder", encoders[0]))
    }
    assert all(moved["decoder"])
    assert (all if trained.encodes else any)(moved["encoder"]) == (name != "dcgan")
    assert trained.encodes == (name != "dcgan")
    z, log_q = trained.draw(x, 4000)
    if trained.encodes:
        encoder = encoders[0]
        exact = encoder.posterior(x).log_prob(z)  # type: ignore[operator]
        torch.testing.assert_close(log_q, exact)
    else:
        torch.testing.assert_close(log_q, torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1))
        assert float(z.mean().abs()) < 4.0 / (z.numel() ** 0.5)


class Instant(Clock):
    """Time for one step at each look."""

    @property
    def left(self) -> float:
        return 0.02


@pytest.mark.parametrize("name", ["as-vae", "dcgan"])
def test_a_run_in_pieces_is_the_same_run(name: str, tmp_path: Path) -> None:
    task, images = small_task(steps=5), pictures()

    def train(checkpoint: Path | None, clock: Clock | None) -> list[Tensor]:
        data = image_models.batches(images, task, 0)
        trained = image_models.train(task, name, data, 0, checkpoint=checkpoint, clock=clock)
        return [p.detach().clone() for p in trained.vae.parameters()]

    whole, pieces = train(None, None), 0
    while True:
        pieces += 1
        assert pieces < 20
        try:
            found = train(tmp_path / "run.pt", Instant())
            break
        except KeyboardInterrupt:
            continue
    assert pieces > 2
    for p, q in zip(whole, found, strict=True):
        assert torch.equal(p, q)


def test_the_plain_adversary_needs_no_hint() -> None:
    adversary = plain_adversary()
    adversary.build_for(3, 3)
    assert adversary(torch.randn(5, 3)).shape == (5,)
