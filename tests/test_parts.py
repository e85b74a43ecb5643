"""Parts: known width at set-up, and a configuration from which every built-in class can be made again."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avbvi.adversaries import Adversary, MLPAdversary
from avbvi.contrasts import Contrast
from avbvi.objectives import AlphaDivergence, KullbackLeibler, Objective
from avbvi.parts import Part, ResidualNetwork, mlp, rebuild
from avbvi.samplers import ModuleSampler, Sampler
from avbvi.trunks import FlowTrunk, MixtureTrunk, Trunk

#: Arguments that differ from every default, where a class takes any.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ResidualSampler": {"hidden": 8, "blocks": 1, "noise_factor": 3, "smoothing": 0.25},
    "MLPSampler": {"hidden": (5, 7), "noise_dim": 4},
    "BestTrunk": {"candidates": (FlowTrunk(hidden=(6,)), MixtureTrunk(components=3))},
    "FlowTrunk": {"layers": 2, "hidden": (6,)},
    "MixtureTrunk": {"components": 5},
    "GaussianContrast": {"full": True, "momentum": 0.5, "jitter": 1e-3},
    "MixtureContrast": {"components": 2, "rate": 0.25, "jitter": 1e-2},
    "ResidualAdversary": {"hidden": 9, "blocks": 1, "target_hint": False, "score": False, "slope": 0.2}
    | {"objective": AlphaDivergence(0.3)},
    "MLPAdversary": {"hidden": (5,), "objective": KullbackLeibler()},
}
BASES = (Part, Sampler, Trunk, Contrast, Adversary)
#: Parts of amortised guides need a context: tests/amortised.
CONCRETE = sorted(
    name
    for name, cls in Part.registry.items()
    if cls not in BASES and cls is not ModuleSampler and not cls.__module__.startswith("avbvi.amortised")
)


def build(part: Part, dim: int = 3) -> Part:
    if isinstance(part, Adversary):
        part.build_for(dim, dim)
    else:
        part.build(dim)
    return part


def evaluate(part: Part, x: Tensor) -> Tensor:
    """What the part computes, as one tensor."""
    if isinstance(part, Contrast):
        return part.features(x) if type(part).__name__ == "PriorContrast" else part.log_prob(x)
    if isinstance(part, Sampler):
        torch.manual_seed(7)
        result: Tensor = part(part.sample_noise(torch.Size((4,)), like=x))
        return result
    result = part(x)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", CONCRETE)
@pytest.mark.parametrize("other", [False, True], ids=["defaults", "other"])
def test_a_part_is_made_again_from_its_configuration_and_state(name: str, other: bool) -> None:
    # A copy: parts among the arguments are built along with the whole.
    part = Part.registry[name](**(copy.deepcopy(ARGUMENTS.get(name, {})) if other else {}))
    build(part)
    with torch.no_grad():
        for p in part.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert part.is_rebuildable
    configuration = json.loads(json.dumps(part.configuration()))  # plain data: it survives JSON
    again = build(rebuild(configuration))
    assert type(again) is type(part)
    assert again.configuration() == part.configuration()
    again.load_state_dict(part.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(evaluate(again, x), evaluate(part, x))


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return value.configuration() if isinstance(value, Part | Objective) else value


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_configuration_holds_every_argument(name: str) -> None:
    part = Part.registry[name](**ARGUMENTS[name])
    expected = {k: plain(v) for k, v in ARGUMENTS[name].items()}
    found = part.configuration()["arguments"]
    assert {k: found[k] for k in expected} == expected
    assert set(found) - set(expected) <= {"transforms"}


def test_custom_parts_are_not_rebuildable() -> None:
    class Own(MLPAdversary):
        pass

    assert "Own" not in Part.registry
    assert not Own().is_rebuildable
    with pytest.raises(ValueError, match="'Own' is not a built-in part"):
        rebuild(Own().configuration())
    assert not FlowTrunk(transforms=[torch.distributions.AffineTransform(0.0, 2.0)]).is_rebuildable


def test_another_width_is_refused_and_the_same_one_keeps_the_parameters() -> None:
    part = MLPAdversary()
    part.build_for(3, 3)
    before = [p.clone() for p in part.parameters()]
    part.build_for(3, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))
    with pytest.raises(ValueError, match="built for 3 latent coordinates but the model has 4"):
        part.build_for(4, 4)


def test_networks_compute_what_their_layers_say() -> None:
    net = mlp([2, 5, 1], nn.Tanh)
    x = torch.randn(6, 2)
    first, last = net[0], net[2]
    expected = torch.tanh(x @ first.weight.mT + first.bias) @ last.weight.mT + last.bias
    torch.testing.assert_close(net(x), expected)
    assert torch.count_nonzero(mlp([2, 5, 1], nn.Tanh, zero_last=True)(x)) == 0

    residual = ResidualNetwork(2, 3, hidden=4, blocks=1, activation=nn.Tanh)
    assert torch.count_nonzero(residual(x)) == 0
    with torch.no_grad():
        for p in residual.parameters():
            p.copy_(torch.randn_like(p))
    h = residual.enter(x)
    h = h + residual.blocks[0][3](torch.tanh(residual.blocks[0][1](torch.tanh(h))))
    torch.testing.assert_close(residual(x), residual.leave[1](torch.tanh(h)))
