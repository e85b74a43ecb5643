"""The end of a run of given length: first the modules rest, then their adversaries."""

from __future__ import annotations

import itertools

import torch
from pyro.infer import SVI
from torch import Tensor

from avbvi import Schedule
from avbvi.joint import SymmetricAdversarialELBO
from tests.joint.known import built, unrelated

STEPS, RESTING = 20, 4


def lengths(rows: list[Tensor]) -> list[float]:
    """How far each step went."""
    return [float((after - before).norm()) for before, after in itertools.pairwise(rows)]


def test_adversaries_learn_on_while_the_modules_rest_and_come_to_rest_themselves() -> None:
    known = unrelated()
    schedule = Schedule(polish=RESTING / STEPS, adversary_floor=0.5)
    loss = built(SymmetricAdversarialELBO(steps=STEPS, pretrain_steps=0, schedule=schedule), known)
    svi = SVI(known.vae.model, known.encoder.guide, loss.optimizer(lr=1e-2), loss=loss)
    adversaries = [p for game in loss.games for p in game.adversary.parameters()]
    rows: list[tuple[Tensor, Tensor]] = []
    for step in range(STEPS + 2):
        if step:
            svi.step(known.data.sample((32,)))
        rows.append(tuple(torch.nn.utils.parameters_to_vector(p).detach() for p in (known.parameters, adversaries)))
    outer, inner = (lengths([row[i] for row in rows]) for i in range(2))
    assert min(outer[: STEPS - RESTING]) > 0.0
    assert outer[STEPS - RESTING :] == [0.0] * (RESTING + 1)
    assert min(inner[:STEPS]) > 0.0
    assert inner[STEPS] == 0.0
    # Linearly to zero, beginning at the floor; Adam's steps are about as long as its rate.
    last = inner[STEPS - RESTING : STEPS]
    assert all(later < earlier for earlier, later in itertools.pairwise(last))
