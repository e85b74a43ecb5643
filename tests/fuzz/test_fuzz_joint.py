"""Losses on joint laws: models, guides, data, adversaries and states that do not fit are refused by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import avbvi
from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from models.encoders import MLPBody
from models.flows import FlowEncoder, planar
from tests.fuzz import cases
from tests.fuzz.cases import check

pytestmark = pytest.mark.filterwarnings("ignore:Found vars in")

X = torch.linspace(0.1, 0.9, 12).reshape(4, 3)
KINDS: dict[str, type[JointAdversarialLoss]] = {
    "as-vae": SymmetricAdversarialELBO,
    "as-vae-r": ReconstructionELBO,
    "as-vae-g": GenerationELBO,
    "aae": AdversarialAutoencoderLoss,
    "ali": AdversarialInferenceLoss,
    "gan": GenerativeAdversarialLoss,
}
#: Those that draw x ~ p(x | z) with gradient; that ask for log q at the model's latents; that ask the guide at all.
SIMULATE = ("as-vae", "as-vae-r", "as-vae-g", "ali", "gan")
DENSITY = ("as-vae", "as-vae-g")
GUIDED = tuple(name for name in KINDS if name != "gan")
CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "loss": lambda loss, model, guide, args: loss.loss(model, guide, *args),
    "differentiable_loss": lambda loss, model, guide, args: loss.differentiable_loss(model, guide, *args),
    "loss_and_grads": lambda loss, model, guide, args: loss.loss_and_grads(model, guide, *args),
}


def make(kind: str, **options: Any) -> JointAdversarialLoss:
    return KINDS[kind](**{"pretrain_steps": 1, "adversary_steps": 1, **options})  # type: ignore[arg-type]


DECODER, ENCODER = nn.Linear(2, 3), nn.Linear(3, 4)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(DECODER(z), 0.5).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    loc, scale = ENCODER(x).chunk(2, -1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def call_of(*names: str) -> str:
    """One of the calls, in turn: they refuse alike."""
    return list(CALLS)[sum(map(len, names)) % len(CALLS)]


def run(kind: str, call: str = "differentiable_loss", model: Any = model, guide: Any = guide, args: Any = (X,)) -> None:
    CALLS[call](make(kind), model, guide, args)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_tests_start_from_is_accepted(kind: str, call: str) -> None:
    run(kind, call)


# -- models -------------------------------------------------------------------------------------------------------


def latent(name: str = "z") -> Tensor:
    z: Tensor = pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))
    return z


def observed(z: Tensor, x: Tensor, name: str = "x") -> None:
    pyro.sample(name, dist.Normal(DECODER(z), 0.5).to_event(1), obs=x)


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        observed(latent() + k[:, None], x)


def enumerated(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        observed(latent() + k[:, None], x)


def only_discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5).expand([len(x)]))
        observed(torch.stack([k, k], -1), x)


def two_plates(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
    with pyro.plate("others", len(x)):
        observed(z + latent("w"), x)


def nested_plates(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 2, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :2])


def global_latent(x: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        observed(latent() + shift, x)


def no_plate(x: Tensor) -> None:
    observed(latent(), x.mean(0))


def no_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        observed(torch.zeros(len(x), 2), x)


def unobserved(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        latent()


def observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
    pyro.sample("x", dist.Normal(DECODER(z), 0.5).to_event(2), obs=x)


def two_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
        observed(z, x)
        observed(z, x, "y")


def other_data(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        observed(latent(), 2.0 * x)


def part_of_the_data(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(latent(), 0.5).to_event(1), obs=x[:, :2])


def fewer_data(x: Tensor) -> None:
    with pyro.plate("data", 2):
        observed(latent(), x[:2])


def changing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = latent()
        for i in range(int(torch.randint(1, 9, ()))):
            z = z + latent(f"more_{i}")
        observed(z, x)


def failing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        observed(torch.ones(5) @ latent(), x)


def bad_prior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), -torch.ones(2)).to_event(1))
        observed(z, x)


MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "discrete": (discrete, ("'k'", "discrete")),
    "enumerated": (enumerated, ("'k'", "discrete")),
    "only discrete": (only_discrete, ("'k'", "discrete")),
    "two plates": (two_plates, ("'data'", "'others'", "one plate")),
    "nested plates": (nested_plates, ("'data'", "'parts'", "one plate")),
    "global": (global_latent, ("'shift'", "global")),
    "no plate": (no_plate, ("'z'", "pyro.plate")),
    "no latent": (no_latent, ("no continuous latent",)),
    "unobserved": (unobserved, ("one observed site", "'data'", "none")),
    "observed outside": (observed_outside, ("one observed site", "'data'")),
    "two observed": (two_observed, ("one observed site", "'x'", "'y'")),
    "other data": (other_data, ("'x'", "first argument")),
    "part of the data": (part_of_the_data, ("'x'", "first argument", "(4, 3)", "(4, 2)")),
    "fewer data": (fewer_data, ("first argument", "(4, 3)", "(2, 3)")),
    "changing": (changing, ("dynamic",)),
    "failing": (failing, ("model failed", "'z'")),
    "bad prior": (bad_prior, ("model failed", "scale")),
    "None": (None, ("model", "callable", "NoneType")),
    "text": ("model", ("model", "callable", "str")),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_models(kind: str, name: str) -> None:
    bad, words = MODELS[name]
    check("joint", lambda: run(kind, call_of(kind, name), model=bad), *words)


# -- data ---------------------------------------------------------------------------------------------------------

FIRST = ("first argument", "data")
DATA: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "none": ((), FIRST),
    "None": ((None,), (*FIRST, "NoneType")),
    "list": (([[0.1, 0.2, 0.3]],), (*FIRST, "list")),
    "array": ((np.ones((4, 3), dtype=np.float32),), (*FIRST, "ndarray")),
    "integers": ((torch.ones(4, 3, dtype=torch.long),), (*FIRST, "int64")),
    "flags": ((X > 0.5,), (*FIRST, "bool")),
    "complex": ((X * 1j,), (*FIRST, "complex64")),
    "scalar": ((torch.tensor(0.5),), ("x must have shape", "()")),
    "a row": ((X[0],), ("x must have shape", "(3,)")),
    "no rows": ((X[:0],), ("x must have shape", "(0, 3)")),
    "no columns": ((X[:, :0],), ("x must have shape", "(4, 0)")),
    "NaN": ((torch.where(X > 0.8, math.nan, X),), ("x", "NaN")),
    "infinite": ((torch.where(X > 0.8, math.inf, X),), ("x", "infinite")),
    "too wide": ((torch.ones(4, 5),), ("'x'", "(4, 5)", "(3,)")),
}


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_data(kind: str, name: str) -> None:
    args, words = DATA[name]
    check("joint", lambda: run(kind, call_of(kind, name), args=args), *words)


LATER = ("None", "list", "integers", "a row", "no rows", "NaN", "infinite", "too wide")


@pytest.mark.parametrize("name", LATER)
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_a_later_call(kind: str, name: str) -> None:
    args, words = DATA[name]
    if name == "too wide":
        words = ("x", "3", "5")
    loss = make(kind)
    loss.differentiable_loss(model, guide, X)
    before = copy.deepcopy(loss.state_dict())
    for call in CALLS.values():
        check("joint", lambda: call(loss, model, guide, args), *words)  # noqa: B023
    assert same(before, loss.state_dict())  # a refusal trains nothing
    loss.differentiable_loss(model, guide, X)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("as-vae", "as-vae-g", "ali", "as-vae-r")])
def test_one_datum_has_no_other_to_be_paired_with(kind: str) -> None:
    run(kind, args=(X[:1],))
    if kind in DENSITY:
        for call in ("differentiable_loss", "loss_and_grads"):
            # The paper's way, by products of marginals.
            loss = make(kind, densities=False)
            check("joint", lambda: CALLS[call](loss, model, guide, (X[:1],)), "at least two data")  # noqa: B023


def relaxed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        law = dist.RelaxedBernoulli(torch.tensor(0.5), logits=DECODER(latent()))
        pyro.sample("x", law.to_event(1), obs=x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_images_out_of_the_likelihoods_range(kind: str, scale: float) -> None:
    run(kind, model=relaxed)
    for validation in (True, False):
        with pyro.validation_enabled(validation):
            bad = (scale * X,)
            check("joint", lambda: run(kind, call_of(kind), relaxed, args=bad), "'x'", "RelaxedBernoulli", "support")  # noqa: B023


def bernoulli(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=DECODER(latent())).to_event(1), obs=x)


@pytest.mark.parametrize("kind", SIMULATE)
def test_a_decoder_without_rsample(kind: str) -> None:
    x = (X > 0.5).float()
    if kind == "as-vae-r":  # what it simulates is for its adversary's eyes alone
        run(kind, model=bernoulli, args=(x,))
        return
    for call in CALLS:
        check("joint", lambda: run(kind, call, model=bernoulli, args=(x,)), "'x'", "Bernoulli", "rsample")  # noqa: B023


def test_an_autoencoder_may_have_bernoulli_pixels() -> None:
    run("aae", model=bernoulli, args=((X > 0.5).float(),))


# -- guides -------------------------------------------------------------------------------------------------------


def no_site(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pass


def other_name(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(ENCODER(x)[:, :2], 1.0).to_event(1))


def other_width(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(ENCODER(x)[:, :3], 1.0).to_event(1))


def other_number(x: Tensor) -> None:
    with pyro.plate("data", len(x) - 1):
        pyro.sample("z", dist.Normal(ENCODER(x)[1:, :2], 1.0).to_event(1))


def several_draws(x: Tensor) -> None:
    with pyro.plate("draws", 5, dim=-2), pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(ENCODER(x)[:, :2], 1.0).to_event(1))


class NoRsample(dist.Normal):  # type: ignore[name-defined, misc]
    has_rsample = False

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError


def not_reparameterised(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", NoRsample(ENCODER(x)[:, :2], 1.0).to_event(1))


def failing_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(ENCODER(x[:, :2]), 1.0).to_event(1))


def nan_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(ENCODER(x)[:, :2] * math.nan, 1.0, validate_args=False).to_event(1))


GUIDES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no site": (no_site, ("guide", "'z'")),
    "other name": (other_name, ("guide", "'z'")),
    "other width": (other_width, ("guide", "'z'", "(4, 3)")),
    "other number": (other_number, ("guide", "'z'", "(3, 2)")),
    "several draws": (several_draws, ("guide", "'z'", "(5, 4, 2)")),
    "not reparameterised": (not_reparameterised, ("guide", "'z'", "rsample")),
    "failing": (failing_guide, ("guide failed",)),
    "NaN": (nan_guide, ("guide", "'z'", "NaN")),
    "None": (None, ("guide", "callable", "NoneType")),
    "module": (nn.Linear(3, 2), ("guide", "'z'")),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("kind", GUIDED)
def test_guides(kind: str, name: str) -> None:
    bad, words = GUIDES[name]
    check("joint", lambda: run(kind, call_of(kind, name), guide=bad), *words)


def implicit() -> avbvi.AVBGuide:
    sampler = avbvi.ConditionalSampler(3, hidden=(4,), context_hidden=())
    return avbvi.AVBGuide(model, sampler=sampler, adversary=avbvi.InnerProductAdversary((4,)))


def point(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(ENCODER(x)[:, :2]).to_event(1))


def auxiliary(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(ENCODER(x)[:, :2], 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(a, 1.0).to_event(1))


class Implicit(dist.TorchDistribution):  # type: ignore[name-defined, misc]
    """Draws without a density."""

    arg_constraints: dict[str, Any] = {}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Implicit:
        return Implicit(self.loc.expand(*batch_shape, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + torch.randn_like(self.loc).exp()


def no_density(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", Implicit(ENCODER(x)[:, :2]))


def planar_flow() -> Any:
    return FlowEncoder(MLPBody(3, (4,)), 2, planar(2, 4, length=2), context_dim=4).guide


WITHOUT_DENSITY: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "implicit": (implicit, ("AVBGuide", "density", "ReconstructionELBO")),
    "point": (lambda: point, ("'z'", "Delta", "density")),
    "auxiliary": (lambda: auxiliary, ("'a'", "density")),
    "no density": (lambda: no_density, ("density", "latents that the model drew")),
    "planar flow": (planar_flow, ("density", "latents that the model drew")),
}


@pytest.mark.parametrize("name", WITHOUT_DENSITY)
@pytest.mark.parametrize("kind", GUIDED)
def test_guides_without_a_density_at_foreign_latents(kind: str, name: str) -> None:
    made, words = WITHOUT_DENSITY[name]
    if kind in DENSITY:
        check("joint", lambda: run(kind, call_of(kind, name), guide=made()), *words)
    else:
        run(kind, call_of(kind, name), guide=made())


# -- adversaries --------------------------------------------------------------------------------------------------

PAIRS = ("as-vae-r", "as-vae-g", "ali")
ONE_INPUT = ("aae", "gan")
NO_ADVERSARY = cases.NO_OBJECT.filter(lambda value: value is not None)


@pytest.mark.parametrize("kind", PAIRS)
@given(bad=NO_ADVERSARY | st.builds(avbvi.ResidualAdversary) | st.builds(nn.Linear, st.just(2), st.just(1)))
def test_an_adversary_of_pairs(kind: str, bad: Any) -> None:
    check("joint", lambda: make(kind, adversary=bad), "adversary", "T(x, z)")


@pytest.mark.parametrize("kind", ONE_INPUT)
@given(bad=NO_ADVERSARY | st.builds(avbvi.JointAdversary) | st.builds(nn.Linear, st.just(2), st.just(1)))
def test_an_adversary_of_one_input(kind: str, bad: Any) -> None:
    check("joint", lambda: make(kind, adversary=bad), "adversary", "T(z)" if kind == "aae" else "T(x)")


@given(bad=NO_ADVERSARY | st.lists(st.builds(avbvi.JointAdversary), max_size=1))
def test_what_is_no_pair_of_adversaries(bad: Any) -> None:
    check("joint", lambda: SymmetricAdversarialELBO(bad), "adversaries", "(f1, f2)")


def test_pairs_of_adversaries() -> None:
    one = avbvi.JointAdversary((4,))
    three = tuple(avbvi.JointAdversary((4,)) for _ in range(3))
    check("joint", lambda: SymmetricAdversarialELBO((one, one)), "adversaries", "twice")
    check("joint", lambda: SymmetricAdversarialELBO(three), "adversaries", "(f1, f2)", "3")  # type: ignore[arg-type]
    check("joint", lambda: SymmetricAdversarialELBO((one, avbvi.ResidualAdversary())), "adversary", "T(x, z)")
    check("joint", lambda: SymmetricAdversarialELBO((one, "f2")), "adversary", "T(x, z)", "'f2'")  # type: ignore[arg-type]


def built(dim: int, context: int | None) -> Any:
    if context is None:
        plain = avbvi.ResidualAdversary(hidden=4, blocks=0, target_hint=False)
        plain.build_for(dim, dim)
        return plain
    joint = avbvi.JointAdversary((4,))
    joint.build_for(dim, dim, context)
    return joint


@pytest.mark.parametrize("kind", [*PAIRS, *ONE_INPUT])
def test_an_adversary_that_was_built_for_other_widths(kind: str) -> None:
    if kind in ONE_INPUT:
        width = 2 if kind == "aae" else 3
        run_with(kind, built(width, None))
        check("joint", lambda: run_with(kind, built(5, None)), "ResidualAdversary", "5", str(width))
    else:
        run_with(kind, built(2, 3))
        check("joint", lambda: run_with(kind, built(5, 3)), "JointAdversary", "10", "4")
        check("joint", lambda: run_with(kind, built(2, 7)), "JointAdversary", "7", "3")


def run_with(kind: str, adversary: Any) -> None:
    make(kind, adversary=adversary).differentiable_loss(model, guide, X)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_has_met_a_model_of_other_widths(kind: str) -> None:
    loss = make(kind)
    loss.differentiable_loss(model, guide, X)
    wide, narrow = nn.Linear(2, 5), nn.Linear(5, 4)

    def wider(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(wide(latent()), 0.5).to_event(1), obs=x)

    def its_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(narrow(x)[:, :2], 1.0).to_event(1))

    if kind != "aae":  # which sees latents alone
        check("joint", lambda: loss.differentiable_loss(wider, its_guide, torch.ones(4, 5)), "Adversary", "3", "5")
    loss.differentiable_loss(model, guide, X)


@pytest.mark.parametrize("kind", ONE_INPUT)
def test_an_adversary_does_without_the_hint_that_only_a_target_gives(kind: str) -> None:
    run_with(kind, avbvi.ResidualAdversary(hidden=4))


@pytest.mark.parametrize("kind", PAIRS)
def test_an_adversary_that_asks_for_the_prior(kind: str) -> None:
    check("joint", lambda: run_with(kind, avbvi.JointAdversary((4,), log_prior=True)), "log_prior=False")


# -- numbers ------------------------------------------------------------------------------------------------------

NUMBERS: dict[str, Any] = {
    "steps": cases.no_integer_from(1).filter(lambda v: v is not None),
    "adversary_steps": cases.no_integer_from(1),
    "pretrain_steps": cases.no_integer_from(0),
    "adversary_lr": cases.no_number_in(0.0, math.inf),
    "schedule": cases.NO_OBJECT.filter(lambda v: v is not None),
}


@pytest.mark.parametrize("name", NUMBERS)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_numbers(name: str, data: st.DataObject, kind: str) -> None:
    value = data.draw(NUMBERS[name])
    check("joint", lambda: make(kind, **{name: value}), name)


@given(kind=st.sampled_from(sorted(KINDS)), value=cases.no_number_in(0.0, math.inf))
def test_learning_rates(kind: str, value: Any) -> None:
    check("joint", lambda: make(kind).optimizer(lr=value), "lr")
    if value is not None:
        check("joint", lambda: make(kind).optimizer(model_lr=value), "model_lr")


def test_a_gan_reconstructs_nothing() -> None:
    check("joint", lambda: make("gan").reconstruction(model, guide, X), "GAN", "no encoder")


# -- states -------------------------------------------------------------------------------------------------------


def state(kind: str, calls: int = 1) -> dict[str, Any]:
    loss = make(kind)
    for _ in range(calls):
        loss.differentiable_loss(model, guide, X)
    return copy.deepcopy(loss.state_dict())


def _other_width(found: dict[str, Any]) -> None:
    adversary = found["games"][0]["adversary"]
    name = max(adversary, key=lambda key: adversary[key].numel())
    adversary[name] = adversary[name][..., :-1]


def _moments_of_another(found: dict[str, Any]) -> None:
    for moments in found["games"][0]["adam"]["optimiser"]["state"].values():
        moments["exp_avg"] = torch.zeros(7)


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda s: s.clear(),
    "other loss": lambda s: s.update(loss="Trace_ELBO"),
    "no name": lambda s: s.pop("loss"),
    "no games": lambda s: s.pop("games"),
    "games of no kind": lambda s: s.update(games="games"),
    "fewer games": lambda s: s["games"].pop(),
    "no guard": lambda s: s.pop("guard"),
    "guard of no kind": lambda s: s.update(guard=3),
    "no count": lambda s: s.pop("step_count"),
    "negative count": lambda s: s.update(step_count=-1),
    "count of no kind": lambda s: s.update(step_count="3"),
    "game of no kind": lambda s: s["games"].__setitem__(0, None),
    "no adversary": lambda s: s["games"][0].pop("adversary"),
    "adversary of no kind": lambda s: s["games"][0].update(adversary=[1]),
    "a weight less": lambda s: s["games"][0]["adversary"].popitem(),
    "a weight more": lambda s: s["games"][0]["adversary"].update(more=torch.ones(2)),
    "other width": _other_width,
    "no optimiser": lambda s: s["games"][0].pop("adam"),
    "optimiser of no kind": lambda s: s["games"][0].update(adam=[1]),
    "optimiser of others": lambda s: s["games"][0]["adam"]["optimiser"]["param_groups"][0].update(params=[0]),
    "moments of others": _moments_of_another,
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("kind", ["as-vae", "gan"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "trained"])
def test_a_damaged_state(kind: str, name: str, fresh: bool) -> None:
    bad = state(kind)
    DAMAGE[name](bad)
    loss = make(kind)
    if not fresh:
        loss.differentiable_loss(model, guide, X)
    before = copy.deepcopy(loss.state_dict())

    def load_and_call() -> None:
        loss.load_state_dict(bad)
        loss.differentiable_loss(model, guide, X)  # a loss that has no adversaries yet reads them in its first call

    check("joint", load_and_call, "state")
    if not fresh:
        assert same(loss.state_dict(), before)


@pytest.mark.parametrize("bad", [None, 3, "state", [1], torch.ones(2)], ids=str)
def test_what_is_no_state(bad: Any) -> None:
    for kind in KINDS:
        check("joint", lambda: make(kind).load_state_dict(bad), "state", KINDS[kind].__name__)  # noqa: B023


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_other_losses(kind: str) -> None:
    for other in KINDS:
        if other != kind:
            bad, words = state(other), (KINDS[kind].__name__, KINDS[other].__name__)
            check("joint", lambda: make(kind).load_state_dict(bad), *words)  # noqa: B023
    make(kind).load_state_dict(state(kind))
    make(kind).load_state_dict(state(kind, calls=0))
    begun = make(kind)
    begun.differentiable_loss(model, guide, X)
    check("joint", lambda: begun.load_state_dict(state(kind, calls=0)), "state", "before its first call")
