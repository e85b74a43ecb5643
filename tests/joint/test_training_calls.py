"""Joint losses in SVI and in torch's loops: what a call moves, what it leaves alone, runs that are resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

import avbvi
from avbvi.early_stopping import EarlyStopping
from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from benchmarks.latent import Recipe, Training
from models.encoders import GaussianEncoder, MLPBody
from models.vaes import VAE, NormalLikelihood

KINDS = ["as-vae", "as-vae-r", "as-vae-g", "aae", "ali", "gan"]
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def pairs() -> avbvi.JointAdversary:
    """An adversary of pairs with dropout in what it sees of x."""
    return avbvi.JointAdversary((6,), (4,), body=nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3)))


def one_input() -> avbvi.ResidualAdversary:
    return avbvi.ResidualAdversary(hidden=6, blocks=1, target_hint=False)


def make(kind: str, **options: Any) -> JointAdversarialLoss:
    options = {"steps": 6, "pretrain_steps": 2, "schedule": avbvi.Schedule(kl_warm_up=0.5), **options}
    if kind == "as-vae":
        return SymmetricAdversarialELBO((pairs(), pairs()), **options)
    if kind in ("aae", "gan"):
        return {"aae": AdversarialAutoencoderLoss, "gan": GenerativeAdversarialLoss}[kind](one_input(), **options)
    of_pairs = {"as-vae-r": ReconstructionELBO, "as-vae-g": GenerationELBO, "ali": AdversarialInferenceLoss}
    return of_pairs[kind](pairs(), **options)


def networks() -> tuple[VAE, GaussianEncoder]:
    """Decoder and encoder with dropout."""
    vae = VAE(nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.3), nn.Linear(6, 3)), 2, NormalLikelihood(0.5))
    return vae, GaussianEncoder(MLPBody(3, (6,)), 2)


def parameters(*modules: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for module in modules for t in module.state_dict().values()]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# -- what a call moves --------------------------------------------------------------------------------------------


class Model(PyroModule):
    """A linear decoder; a Pyro module, so that Pyro's ELBO finds its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.linear(z), 0.5).to_event(1), obs=x)


class Guide(PyroModule):
    """A linear encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.linear(x), 0.5).to_event(1))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimiser_over_all_parameters_never_moves_adversaries(
    kind: str, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, model, guide = make(kind, steps=None), Model(), Guide()
    adversaries = [game.adversary for game in loss.games]
    elbo = loss(model, guide)
    with torch.no_grad():
        elbo(X)  # builds them
    # Without Adams of their own nothing else is to move them, weight decay included.
    for game in loss.games:
        monkeypatch.setattr(game.adam, "move", lambda *_: True)
    before, others = parameters(*adversaries), parameters(model, guide)
    outer = optimizer(elbo.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        outer.zero_grad()
        elbo(X).backward()
        assert all(p.grad is None for adversary in adversaries for p in adversary.parameters())
        outer.step()
    assert same(parameters(*adversaries), before)
    moved = [not torch.equal(a, b) for a, b in zip(parameters(model, guide), others, strict=True)]
    assert moved == [True, True, kind != "gan", kind != "gan"]


@pytest.mark.parametrize("kind", KINDS)
def test_svi_moves_model_and_guide_by_its_optimiser_and_adversaries_by_their_own(kind: str) -> None:
    loss, (vae, encoder) = make(kind), networks()
    svi = SVI(vae.model, encoder.guide, loss.optimizer(lr=1e-2), loss=loss)
    svi.evaluate_loss(X)
    adversaries = [game.adversary for game in loss.games]
    before, outer = [parameters(a) for a in adversaries], parameters(vae, encoder)
    for _ in range(2):
        svi.step(X)
    for adversary, then in zip(adversaries, before, strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(parameters(adversary), then, strict=True))
        assert all(p.grad is None for p in adversary.parameters())
    stored = {id(p) for _, p in pyro.get_param_store().named_parameters()}
    assert not stored & {id(p) for adversary in adversaries for p in adversary.parameters()}
    moved = [not torch.equal(a, b) for a, b in zip(parameters(vae, encoder), outer, strict=True)]
    assert all(moved[: len(vae.state_dict())])
    assert all(moved) == (kind != "gan")


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_train_nothing(kind: str) -> None:
    loss, (vae, encoder) = make(kind), networks()
    svi = SVI(vae.model, encoder.guide, loss.optimizer(lr=1e-2), loss=loss)
    for begun in (False, True):
        if begun:
            svi.step(X)
        loss.loss(vae.model, encoder.guide, X)  # builds the adversaries
        state, outer = copy.deepcopy(loss.state_dict()), parameters(vae, encoder)
        assert loss.step_count == int(begun)
        svi.evaluate_loss(X)
        with torch.no_grad():
            value = loss.differentiable_loss(vae.model, encoder.guide, X)
            assert not value.requires_grad
            loss(vae.model, encoder.guide)(X)
        if kind != "gan":
            loss.reconstruction(vae.model, encoder.guide, X)
        assert same(loss.state_dict(), state)
        assert same(parameters(vae, encoder), outer)


@pytest.mark.parametrize("first", [True, False], ids=["first call", "later call"])
@pytest.mark.parametrize("kind", ["as-vae-r", "aae"])
def test_an_evaluation_draws_as_many_random_numbers_as_pyros_elbo(kind: str, first: bool) -> None:
    loss, (vae, encoder) = make(kind), networks()
    if not first:
        loss.loss(vae.model, encoder.guide, X)
    state = torch.get_rng_state()
    Trace_ELBO(max_plate_nesting=1).loss(vae.model, encoder.guide, X)
    expected = torch.get_rng_state()
    torch.set_rng_state(state)
    loss.loss(vae.model, encoder.guide, X)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_evaluation_draws_as_many_random_numbers_as_the_second(kind: str) -> None:
    loss, (vae, encoder) = make(kind), networks()
    state = torch.get_rng_state()
    values, after = [], []
    for _ in range(2):
        torch.set_rng_state(state)
        values.append(loss.loss(vae.model, encoder.guide, X))
        after.append(torch.get_rng_state())
    assert values[0] == values[1]
    assert torch.equal(*after)
    assert not torch.equal(after[0], state)


def test_adversaries_begin_elsewhere_with_another_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        loss, (vae, encoder) = make("ali"), networks()
        pyro.set_rng_seed(seed)
        loss.loss(vae.model, encoder.guide, X)
        weights.append(parameters(loss.games[0].adversary))
    assert same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


def test_an_implicit_encoder_learns_by_the_reconstruction_half() -> None:
    vae, _ = networks()
    guide = avbvi.AVBGuide(
        vae.model,
        sampler=avbvi.ConditionalSampler(3, hidden=(6,), context_hidden=()),
        adversary=avbvi.InnerProductAdversary((6,)),
    )
    loss = make("as-vae-r")
    svi = SVI(vae.model, guide, loss.optimizer(lr=1e-2), loss=loss)
    svi.evaluate_loss(X)
    sampler, adversary = (parameters(guide.part(name)) for name in ("sampler", "adversary"))
    for _ in range(2):
        svi.step(X)
    names = [name for name, _ in guide.part("sampler").named_parameters()]
    moved = {
        name: not torch.equal(a, b)
        for name, a, b in zip(
            guide.part("sampler").state_dict(), parameters(guide.part("sampler")), sampler, strict=True
        )
    }
    assert all(moved[name] for name in names)
    assert same(parameters(guide.part("adversary")), adversary)


@pytest.mark.parametrize("kind", ["as-vae", "as-vae-r", "as-vae-g"])
def test_early_stopping_looks_on_without_changing_an_svi_run(kind: str) -> None:
    def run(validated: bool) -> tuple[list[float], list[Tensor], EarlyStopping]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss, (vae, encoder) = make(kind), networks()
        svi = SVI(vae.model, encoder.guide, loss.optimizer(lr=1e-2), loss=loss)
        early, losses, seen = EarlyStopping([vae, encoder], patience=9), [], []
        for _ in range(4):
            losses.append(svi.step(X))
            if validated:
                early.validate(lambda: loss.reconstruction(vae.model, encoder.guide, X[:4]))
                seen.append((early.best_at, parameters(vae, encoder)))
        last = parameters(vae, encoder)
        if validated:
            early.restore()
            assert same(parameters(vae, encoder), seen[early.best_at - 1][1])
        return losses, last, early

    (losses, last, early), (others, expected, _) = run(True), run(False)
    assert losses == others
    assert same(last, expected)
    assert early.count == 4


# -- runs that are resumed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_svi_resumes_bit_equal(kind: str, done: int, tmp_path: Path) -> None:
    def begin() -> tuple[JointAdversarialLoss, VAE, GaussianEncoder, SVI]:
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        loss, (vae, encoder) = make(kind), networks()
        return loss, vae, encoder, SVI(vae.model, encoder.guide, loss.optimizer(lr=1e-2), loss=loss)

    loss, vae, encoder, svi = begin()
    losses = [svi.step(X) for _ in range(6)]
    expected = parameters(vae, encoder), copy.deepcopy(loss.state_dict())
    loss, vae, encoder, svi = begin()
    for _ in range(done):
        svi.step(X)
    modules = [vae.state_dict(), encoder.state_dict()]
    torch.save([loss.state_dict(), modules, svi.optim.get_state(), torch.get_rng_state()], tmp_path / "run.pt")
    loss, vae, encoder, svi = begin()
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    loss.load_state_dict(saved[0])
    for module, state in zip((vae, encoder), saved[1], strict=True):
        module.load_state_dict(state)
    svi.optim.set_state(saved[2])
    torch.set_rng_state(saved[3])
    assert [svi.step(X) for _ in range(6 - done)] == losses[done:]
    assert same(parameters(vae, encoder), expected[0])
    assert same(loss.state_dict(), expected[1])
    assert loss.step_count == 6


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_pieces_ends_where_an_uninterrupted_one_does(kind: str, tmp_path: Path) -> None:
    def begin() -> tuple[Training, JointAdversarialLoss, list[nn.Module]]:
        pyro.set_rng_seed(3)
        loss, (vae, encoder) = make(kind), networks()
        batches = list(torch.randn(12, 3).split(4))
        groups = [p for module in (vae, encoder) for p in module.parameters()]
        recipe = Recipe(6, lr=1e-2, average=0.5)
        training = Training(loss, vae.model, encoder.guide, batches, groups, recipe, seed=0, modules=[vae, encoder])
        return training, loss, [vae, encoder]

    whole, loss, modules = begin()
    whole.run()
    expected = parameters(*modules), copy.deepcopy(loss.state_dict())
    for done in (1, 4):
        before, _, _ = begin()
        while before.step_count < done:
            with before._own_state(), before._training_mode():
                before._step()
        torch.save(before.state_dict(), tmp_path / "state.pt")
        after, loss, modules = begin()
        torch.manual_seed(99)
        after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert after.run()
        assert same(parameters(*modules), expected[0])
        assert same(loss.state_dict(), expected[1])
        assert after.losses == whole.losses
