"""Dropout in adversaries: what it leaves out, that evaluation knows none of it, and names of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avbvi.adversaries import Adversary
from avbvi.amortised import ConvolutionalAdversary, ImageAdversary, InnerProductAdversary, JointAdversary
from avbvi.arguments import share

PIXELS, DIM, BATCH = 12, 3, 2

# One hidden layer each: the output is then linear in the units that are left out.
MAKERS: dict[str, Callable[[float], Adversary]] = {
    "inner": lambda p: InnerProductAdversary(hidden=(8,), dropout=p),
    "joint": lambda p: JointAdversary(hidden=(8,), alone=(8,), dropout=p),
    "convolutional": lambda p: ConvolutionalAdversary((1, 3, 4), channels=(5,), dropout=p),
    "image": lambda p: ImageAdversary((1, 3, 4), channels=(5,), dropout=p),
}


def built(make: Callable[[float], Adversary], dropout: float) -> Adversary:
    torch.manual_seed(7)
    adversary = make(dropout).double()
    if isinstance(adversary, ImageAdversary):
        adversary.build_for(PIXELS, PIXELS)
    else:
        adversary.build_for(DIM, DIM, PIXELS)
    adversary.double()
    with torch.no_grad():
        for p in adversary.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return adversary


def t(adversary: Adversary, z: Tensor, x: Tensor) -> Tensor:
    out: Tensor = adversary(x) if isinstance(adversary, ImageAdversary) else adversary(z, x)
    return out


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[float], Adversary]:
    return MAKERS[request.param]


def test_evaluation_is_that_of_the_network_without_dropout(make: Callable[[float], Adversary]) -> None:
    plain, dropping = built(make, 0.0), built(make, 0.4)
    assert list(dropping.state_dict()) == list(plain.state_dict())
    dropping.load_state_dict(plain.state_dict())
    z, x = torch.randn(BATCH, DIM).double(), torch.randn(BATCH, PIXELS).double()
    assert not torch.equal(t(dropping, z, x), t(dropping, z, x))
    assert torch.equal(t(plain, z, x), t(plain.eval(), z, x))
    assert torch.equal(t(dropping.eval(), z, x), t(plain, z, x))


def test_the_mean_over_masks_is_the_value_in_evaluation(make: Callable[[float], Adversary]) -> None:
    adversary, n = built(make, 0.4), 10_000
    z, x = torch.randn(BATCH, DIM).double(), torch.randn(BATCH, PIXELS).double()
    with torch.no_grad():
        draws = t(adversary, z.repeat(n, 1), x.repeat(n, 1)).reshape(n, BATCH)
        expected = t(adversary.eval(), z, x)
    error = draws.std(0) / math.sqrt(n)
    assert bool((error > 1e-4).all())
    assert bool(((draws.mean(0) - expected).abs() < 4.5 * error).all())


def test_dropout_is_kept_in_the_configuration_and_reaches_deep_layers() -> None:
    for adversary in (
        InnerProductAdversary(hidden=(6, 6, 6), dropout=0.3),
        JointAdversary(hidden=(6, 6), alone=(6, 6), dropout=0.3),
        ConvolutionalAdversary((1, 3, 4), channels=(4, 4), blocks=2, dropout=0.3),
    ):
        adversary.build_for(DIM, DIM, PIXELS)
        assert adversary.configuration()["arguments"]["dropout"] == 0.3
        rates = [m.p for m in adversary.modules() if isinstance(m, torch.nn.Dropout)]
        assert set(rates) == {0.3}
        with torch.no_grad():
            for p in adversary.parameters():
                p.add_(0.3 * torch.randn_like(p))
        adversary(torch.randn(64, BATCH, DIM), torch.randn(BATCH, PIXELS)).square().sum().backward()
        assert [n for n, p in adversary.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_rates_out_of_range_are_refused(make: Callable[[float], Adversary], value: float) -> None:
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), found"):
        make(value)


def test_rates_must_be_numbers() -> None:
    with pytest.raises(TypeError, match="rate must be a number, found str 'half'"):
        share("rate", "half")
    assert share("rate", 0) == 0.0
