"""What a model has learned: modules are trained as they are handed in, whatever Pyro's store still holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import avbvi
from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, MLPAdversary, MLPSampler, Verdict
from avbvi import training as training_module
from avbvi.model_state import claim_parameters, model_buffers, model_parameters, modules_at_hand, modules_of

X = torch.tensor([[0.3, -0.2], [0.1, 0.8], [0.4, 0.1]])


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.layer)
        offset = pyro.param("offset", torch.zeros(2))
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.layer(z) + offset, 1.0).to_event(1), obs=x)


class Learned(PyroModule):
    """Parameters of all kinds, with their names made by Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.deep = PyroModule[nn.Linear](2, 2)
        self.scale = PyroParam(torch.rand(()) + 0.5, constraints.positive)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.layer(z) + self.deep(z), self.scale).to_event(1), obs=x)


def stored() -> dict[str, Tensor]:
    return dict(pyro.get_param_store().named_parameters())


class Holder:
    """A model's owner that is no module itself."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder, self.width = decoder, 2

    def model(self, x: Tensor) -> None:
        self.decoder(x)


GLOBAL = nn.BatchNorm1d(2)


def test_a_models_modules() -> None:
    decoder = Decoder()
    for model in (decoder.model, partial(decoder.model), partial(partial(decoder.model), x=X)):
        assert modules_of(model) == {"": decoder}
    learned = Learned()
    assert modules_of(learned) == modules_of(learned.forward) == {"": learned}
    assert modules_of(Holder(decoder).model) == {"decoder.": decoder}

    def closing_over(x: Tensor) -> None:
        decoder.model(GLOBAL(x))

    assert modules_of(closing_over) == {"decoder.": decoder, "GLOBAL.": GLOBAL}
    assert modules_of(lambda x: None) == {}


def test_entries_of_another_module_are_dropped() -> None:
    first, second = Decoder(), Decoder()
    first.model(X)
    pyro.get_param_store()["offset"] = torch.ones(2)
    claim_parameters(second.model, (X,), {})
    second.model(X)
    assert stored()["decoder$$$weight"] is second.layer.weight
    assert stored()["decoder$$$bias"] is second.layer.bias
    assert torch.equal(pyro.param("offset"), torch.ones(2))  # a parameter without a module goes on, as in Pyro


def test_own_entries_stay() -> None:
    decoder = Decoder()
    decoder.model(X)
    before, state = stored(), torch.get_rng_state()
    claim_parameters(decoder.model, (X,), {})
    assert all(stored()[name] is value for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_pyro_modules_keep_their_values() -> None:
    first, second = Learned(), Learned()
    first(X)
    values = {name: p.detach().clone() for name, p in second.named_parameters()}
    claim_parameters(second, (X,), {})
    second(X)
    for name, p in second.named_parameters():
        assert torch.equal(p, values[name]), name
        assert any(p is entry for entry in stored().values()), name


def test_a_model_that_fails_is_left_to_the_set_up() -> None:
    def broken(x: Tensor) -> None:
        raise RuntimeError("broken")

    claim_parameters(broken, (X,), {})


def test_parameters_are_the_modules_own() -> None:
    first, second = Decoder(), Decoder()
    first.model(X)
    second.model(X)  # its weights are not in the store
    found = model_parameters(second.model, (X,), {})
    assert found["decoder$$$weight"] is second.layer.weight
    assert torch.equal(found["offset"], torch.zeros(2))


def test_buffers() -> None:
    decoder = Decoder()
    assert set(model_buffers(decoder.model)) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert model_buffers(decoder.model, decoder.norm) == {}
    assert model_buffers(lambda x: None) == {}


def test_modules_at_hand() -> None:
    first, second = Learned(), Learned()
    decoder = Decoder()
    first(X), decoder.model(X)
    pyro.get_param_store()["offset"] = torch.ones(2)
    before = stored()
    with modules_at_hand():
        second(X)
        assert stored()["layer$$$weight"] is second.layer.weight
        assert torch.equal(pyro.param("offset"), torch.ones(2))
    assert stored().keys() == before.keys()
    assert all(stored()[name] is value for name, value in before.items())


@pytest.mark.parametrize("make", [Decoder, Learned])
def test_fits_in_a_row_train_the_modules_they_are_given(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a claim the first module's weights would be trained, or the second one's overwritten, in silence."""
    monkeypatch.setattr(training_module, "judge", lambda *args, **kwargs: Verdict("ok", []))

    def fit(seed: int) -> tuple[Any, dict[str, Tensor]]:
        torch.manual_seed(seed)
        module = make()
        model = module.model if make is Decoder else module
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        elbo = AdversarialELBO(num_particles=8, pretrain_steps=1)
        guide = AVBGuide(model, trunk=AffineTrunk(), sampler=MLPSampler((8,)), adversary=MLPAdversary((8,)))
        avbvi.fit(model, X, guide=guide, seed=0, steps=5, elbo=elbo, progress=False)
        return module, before

    first, _ = fit(1)
    trained = {name: p.detach().clone() for name, p in first.named_parameters()}
    if "offset" in stored():
        del pyro.get_param_store()["offset"]
    second, before = fit(2)
    for name, p in second.named_parameters():
        if not name.startswith("norm"):
            assert not torch.equal(p, before[name]), name
            # Adam's first steps are of the size of the rate: the start is still to be seen.
            assert float((p.detach() - before[name]).abs().max()) < 0.02, name
    assert all(torch.equal(p, trained[name]) for name, p in first.named_parameters())
