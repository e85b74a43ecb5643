"""Masked steps: what the host's steps do, to rounding, without its reading anything back."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avbvi import (
    AffineTrunk,
    AVBGuide,
    GaussianContrast,
    LogDensity,
    MixtureContrast,
    ResidualAdversary,
    ResidualSampler,
)
from avbvi.adversarial import AdversaryTrainer
from avbvi.amortised.training import AmortisedTrainer
from avbvi.gradients import GradientBound, MaskedBound
from avbvi.masking import unless
from avbvi.optimisers import AdversaryAdam
from tests.amortised.known import LinearGaussian
from tests.amortised.test_guide import small_guide

EXACT = {"atol": 1e-12, "rtol": 1e-12}
#: A rate in a tensor is rounded to float32, as the kernel takes no other.
RATE = {"atol": 1e-7, "rtol": 1e-6}


def test_the_masked_bound_is_the_host_s() -> None:
    """Norms over ten orders of magnitude, some not finite: factors, flags and running mean are the same."""
    host = GradientBound(longest=3.0)
    masked = MaskedBound(GradientBound(longest=3.0), torch.zeros(()))
    norms = [*(10.0 ** torch.randn(200, dtype=torch.float64)).tolist(), 1e9, 0.0, 1e-9]
    norms[50:50] = [math.nan, math.inf]
    for norm in norms:
        gradients = [torch.tensor([0.6 * norm, 0.0]).double(), torch.tensor([[0.8 * norm]]).double()]
        expected = [g.clone() for g in gradients]
        taken = host.apply(expected)
        assert float(masked.apply(gradients, torch.tensor(True))) == float(not taken)
        if taken:
            torch.testing.assert_close(gradients, expected, **EXACT)
        assert masked.state_dict() == pytest.approx(host.state_dict(), rel=1e-12)
    assert masked.unmasked().state_dict() == masked.state_dict()


def test_a_step_that_is_not_admitted_leaves_the_bound() -> None:
    masked = MaskedBound(GradientBound(), torch.zeros(()))
    masked.apply([torch.ones(3)], torch.tensor(True))
    before = masked.state_dict()
    assert float(masked.apply([torch.full((3,), 7.0)], torch.tensor(False))) == 1.0
    assert float(masked.apply([], torch.tensor(False))) == 1.0
    assert masked.state_dict() == before


def test_buffers_come_back_only_where_something_is_wrong() -> None:
    module = nn.BatchNorm1d(2)
    for wrong, expected in ((True, 0.0), (False, 5.0)):
        with unless(torch.tensor(wrong), (module,)):
            module.running_mean.fill_(5.0)
            module.num_batches_tracked += 1
        assert module.running_mean.tolist() == [expected, expected]
        assert int(module.num_batches_tracked) == int(not wrong)


def gradients(network: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(network(x).square().sum(), list(network.parameters()))


def test_masked_moves_of_adam_are_the_host_s() -> None:
    """Ten steps, two of them not finite and one not admitted, at a rate that changes; then back to the host's way."""
    networks = [nn.Linear(3, 1).double() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    host, masked = (AdversaryAdam(list(n.parameters()), 0.05) for n in networks)
    masked.mask(torch.zeros(()))
    for i in range(10):
        x = torch.randn(5, 3, dtype=torch.float64) * (math.nan if i in (3, 7) else 1.0)
        x = 1e6 * x if i == 5 else x
        factor = 1.0 / (1.0 + i)
        if i == 8:
            skipped = masked.move_masked(gradients(networks[1], x), torch.tensor(factor), torch.tensor(False))
            assert float(skipped) == 1.0
            continue
        taken = host.move(networks[0](x).square().sum(), factor)
        skipped = masked.move_masked(
            gradients(networks[1], x), torch.tensor(factor, dtype=torch.float64), torch.tensor(True)
        )
        assert float(skipped) == float(not taken) == float(i in (3, 7))
        torch.testing.assert_close(networks[1].state_dict(), networks[0].state_dict(), **RATE)
    states = [copy.deepcopy(adam.state_dict()) for adam in (host, masked)]
    for own, other in zip(*(s["optimiser"]["state"].values() for s in states), strict=True):
        torch.testing.assert_close(own, other, **RATE)
    groups = [s["optimiser"]["param_groups"][0] for s in states]
    assert groups[0] == groups[1] | {"lr": groups[0]["lr"]}
    assert groups[1]["lr"] == pytest.approx(groups[0]["lr"])
    host.load_state_dict(states[1])  # one format for both
    masked.unmask()
    for adam, network in zip((host, masked), networks, strict=True):
        assert adam.move(network(torch.ones(1, 3).double()).square().sum(), 1.0)
    torch.testing.assert_close(networks[1].state_dict(), networks[0].state_dict(), **RATE)


class Faulty(ResidualSampler):
    """Gives NaN at the draws whose numbers are in ``at``."""

    at: tuple[int, ...] = ()
    count = 0

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        self.count += 1
        draws = super().forward(noise, context)
        return draws * math.nan if self.count in self.at else draws


def normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() * torch.tensor([1.0, 4.0]).to(z)).sum(-1)


@pytest.mark.parametrize("contrast", [GaussianContrast, MixtureContrast])
def test_masked_steps_of_an_adversary_are_the_host_s(contrast: Any) -> None:
    """With the same noise, and draws that are NaN in the third and fourth of eight steps."""
    model, found = LogDensity(normal, (2,)), []
    for masks in (False, True):
        torch.manual_seed(0)
        sampler = Faulty(hidden=8)
        guide = AVBGuide(
            model, sampler=sampler, trunk=AffineTrunk(), contrast=contrast(), adversary=ResidualAdversary(hidden=8)
        ).setup()
        guide.stage.fill_(1)
        guide.bind(model, (), {}, vectorize=True)
        trainer = AdversaryTrainer(guide, 1e-2)
        if masks:
            trainer.mask(guide.anchor)
        trainer.begin(guide, 32, 0)
        sampler.count, sampler.at = 0, (3, 4)
        for i in range(8):
            torch.manual_seed(i)  # a masked step draws from the contrast, a skipped one does not
            trainer.step(guide, 32, torch.tensor(1.0 / (i + 1)) if masks else 1.0 / (i + 1))
        skipped = int(trainer.skipped) if masks else int(guide.skipped_steps)
        found.append((skipped, {k: v.clone() for k, v in guide.state_dict().items() if k != "skipped_steps"}))
        assert math.isfinite(sum(float(v.double().sum()) for v in found[-1][1].values()))
    assert found[0][0] == found[1][0] == 2
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)


def test_masked_steps_of_an_amortised_adversary_are_the_host_s() -> None:
    known, found = LinearGaussian(), []
    x = known.data(6)
    for masks in (False, True):
        torch.manual_seed(0)
        guide = small_guide(known.model).setup(x)
        trainer = AmortisedTrainer(guide, 1e-2)
        if masks:
            trainer.mask(guide.anchor)
        right = guide.part("sampler").c.detach().clone()
        for i in range(4):
            with torch.no_grad():
                guide.part("sampler").c[0] = math.nan if i == 2 else right[0]
            with guide.training_call((x,), {}):
                trainer.steps(guide, 4, 1.0, 2)
        skipped = int(trainer.skipped) if masks else int(guide.skipped_steps)
        found.append((skipped, {k: v.clone() for k, v in guide.state_dict().items() if k != "skipped_steps"}))
    assert found[0][0] == found[1][0] == 2
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-6, rtol=1e-5)
