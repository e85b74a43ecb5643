"""Random numbers keyed by datum, chain and step: their law, and that they do not depend on their company."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from avbvi.annealed.noise import ChainNoise, Keys, Role

LIKE = torch.zeros(1, dtype=torch.float64)


def noise(shape=(40, 50, 3), *, seed=0, first=0, role=Role.FORWARD, like=LIKE) -> ChainNoise:
    return ChainNoise(Keys(seed, first), role, shape, like)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_numbers_have_their_laws(seed):
    source = noise(seed=seed)
    moves = [source.move(step) for step in range(20)]
    normal = torch.stack([m.momentum for m in moves]).flatten().numpy()
    assert stats.kstest(normal, "norm").pvalue > 1e-4
    assert abs((normal**4).mean() - 3.0) < 4.5 * math.sqrt(96.0 / len(normal))
    for name in ("uniform", "jitter"):
        uniform = torch.stack([getattr(m, name) for m in moves]).flatten().numpy()
        assert stats.kstest(uniform, "uniform").pvalue > 1e-4
        assert uniform.min() >= 0.0
        assert uniform.max() < 1.0


def test_the_tails_are_normal_in_single_precision():
    z = noise((200, 250, 20), like=torch.zeros(1)).normal(7).double().abs()
    assert z.dtype == torch.float64
    for level in (3.0, 4.0, 4.5):
        p = 2.0 * float(stats.norm.sf(level))
        assert abs(float((z > level).double().mean()) - p) < 4.5 * math.sqrt(p / z.numel())
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("what", ["chains", "data", "coordinates", "steps", "roles", "seeds"])
def test_numbers_are_uncorrelated(what):
    source = noise((60, 60, 8))
    z = source.normal(3)
    pairs = {
        "chains": lambda: (z[1:], z[:-1]),
        "data": lambda: (z[:, 1:], z[:, :-1]),
        "coordinates": lambda: (z[..., 1:], z[..., :-1]),
        "steps": lambda: (z, source.normal(4)),
        "roles": lambda: (z, noise((60, 60, 8), role=Role.PILOT).normal(3)),
        "seeds": lambda: (z, noise((60, 60, 8), seed=1).normal(3)),
    }
    a, b = pairs[what]()
    for f in (torch.Tensor.clone, torch.square):
        x, y = f(a).flatten(), f(b).flatten()
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 4.5 / math.sqrt(len(x))


def test_momenta_tell_nothing_of_acceptance():
    drawn = noise((300, 300, 4)).move(5)
    for a in drawn.momentum.unbind(-1):
        for b in (drawn.uniform, drawn.jitter):
            x = torch.stack([a.abs().flatten(), b.flatten()])
            assert abs(float(torch.corrcoef(x)[0, 1])) < 4.5 / 300.0


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_part_of_the_data_and_chains_draws_what_all_draw(dim):
    whole = noise((6, 100, dim)).move(11)
    part = noise((4, 30, dim), first=60).move(torch.tensor([11]))
    for a, b in zip(part, whole, strict=True):
        assert torch.equal(a, b[:4, 60:90])


def test_no_two_numbers_are_the_same():
    source = noise((50, 40, 6))
    numbers = torch.stack([source.normal(step) for step in range(30)]).flatten()
    assert len(numbers.unique()) > len(numbers) - 5
