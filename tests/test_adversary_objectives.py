"""Objectives in adversaries, and in fits: their place in saved files, densities and the watch over a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import avbvi
from avbvi import AdversarialELBO, AVBGuide, CheckpointError
from avbvi import training as training_module
from avbvi.adversaries import MLPAdversary, ResidualAdversary
from avbvi.amortised.adversaries import InnerProductAdversary, JointAdversary
from avbvi.amortised.convolutional import ConvolutionalAdversary
from avbvi.diagnostics import judge
from avbvi.objectives import AlphaDivergence, FDivergence, KullbackLeibler, Logistic, Objective
from avbvi.parts import rebuild
from avbvi.recovery import broken_adversary

OBJECTIVES: list[Any] = [
    cls(0.3) if cls is AlphaDivergence else cls()
    for name, cls in sorted(Objective.registry.items())
    if cls is not FDivergence
]


def output(objective: Objective, log_ratio: Tensor) -> Tensor:
    """T at which the objective tells these log-ratios."""
    return log_ratio + 1.0 if isinstance(objective, KullbackLeibler) else log_ratio


ADVERSARIES: dict[str, Callable[..., Any]] = {
    "residual": ResidualAdversary,
    "mlp": MLPAdversary,
    "inner": InnerProductAdversary,
    "joint": JointAdversary,
    "convolutional": lambda **options: ConvolutionalAdversary((1, 2, 3), **options),
}


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_every_adversary_takes_an_objective(kind: str) -> None:
    make = ADVERSARIES[kind]
    assert make().objective == Logistic()
    for objective in OBJECTIVES:
        adversary = make(objective=objective)
        assert adversary.objective is objective
        assert adversary.is_rebuildable
        configuration = json.loads(json.dumps(adversary.configuration()))
        again = rebuild(configuration)
        assert again.objective == objective
        assert type(again.objective) is type(objective)
        assert again.configuration() == adversary.configuration()
    del configuration["arguments"]["objective"]  # a file from before objectives were arguments
    assert rebuild(configuration).objective == Logistic()


class Squared(Objective):
    """A user's own: regression on labels 1 and 0, without a class argument."""

    def loss(self, t_q: Tensor, t_r: Tensor) -> Tensor:
        return (t_q - 1.0).square().mean() + t_r.square().mean()

    def log_ratio(self, t: Tensor) -> Tensor:
        return torch.logit(t, 1e-6)


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_what_is_no_objective_is_refused(kind: str) -> None:
    make = ADVERSARIES[kind]
    with pytest.raises(TypeError, match=r"objective must be an object, not a class, found Logistic; give Logistic\(\)"):
        make(objective=Logistic)
    with pytest.raises(TypeError, match=r"objective must be an Objective such as Logistic\(\), found str 'kl'"):
        make(objective="kl")
    assert not make(objective=Squared()).is_rebuildable


def regression(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a, 0.5), obs=x)


def images(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def guide_of(model: Any, objective: Objective) -> AVBGuide:
    if model is regression:
        return AVBGuide(model, adversary=MLPAdversary((8,), objective=objective), trunk=avbvi.AffineTrunk())
    return AVBGuide(
        model,
        sampler=avbvi.ConditionalSampler(2, hidden=(8,)),
        adversary=InnerProductAdversary((8,), objective=objective),
    )


def small_elbo() -> AdversarialELBO:
    return AdversarialELBO(num_particles=8, adversary_batch=16, pretrain_steps=3)


@pytest.mark.parametrize(
    ("model", "objective"),
    [(regression, KullbackLeibler()), (images, AlphaDivergence(0.3))],
    ids=["posterior", "amortised"],
)
def test_a_fit_with_another_objective_is_saved_and_loaded(
    model: Any, objective: FDivergence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "judge", partial(judge, n=500))  # this is not about the verdict
    data = torch.randn(6) if model is regression else torch.randn(6, 2)
    posterior = avbvi.fit(
        model, data, guide=guide_of(model, objective), elbo=small_elbo(), steps=8, seed=0, progress=False
    )
    file = tmp_path / "fit.pt"
    posterior.save(file)
    loaded = avbvi.load(file, model, data)
    assert loaded.guide.part("adversary").objective == objective
    draws = posterior.sample(5)
    assert torch.equal(loaded.log_prob(draws), posterior.log_prob(draws))
    avbvi.load(file, model, data, guide=guide_of(model, objective))
    with pytest.raises(CheckpointError, match="guide has another adversary"):
        avbvi.load(file, model, data, guide=guide_of(model, Logistic()))


def test_a_fit_with_an_own_objective_needs_a_guide(tmp_path: Path) -> None:
    data = torch.randn(6, 2)
    guide = guide_of(images, Squared())
    posterior = avbvi.fit(images, data, guide=guide, elbo=small_elbo(), steps=4, seed=0, progress=False)
    posterior.save(tmp_path / "fit.pt")
    with pytest.raises(CheckpointError, match=r"custom parts \['adversary'\]; pass guide="):
        avbvi.load(tmp_path / "fit.pt", images, data)
    loaded = avbvi.load(tmp_path / "fit.pt", images, data, guide=guide_of(images, Squared()))
    draws = posterior.sample(5)
    assert torch.equal(loaded.log_prob(draws), posterior.log_prob(draws))


@pytest.mark.parametrize("model", [regression, images])
def test_the_density_is_read_through_the_objective(model: Any) -> None:
    """The same network under eq. (6.10) tells a log-density that is lower by one."""
    data = torch.randn(6) if model is regression else torch.randn(6, 2)
    found = []
    for objective in (Logistic(), KullbackLeibler()):
        pyro.set_rng_seed(0)
        guide = guide_of(model, objective)
        guide.setup(data)
        if model is regression:
            guide.start(guide.target(data))
            guide.stage.fill_(1)
            draw = guide.draw(50)
            found.append(guide.base_log_prob(draw))
        else:
            found.append(guide.log_q(torch.randn(50, 6, 2), data))
    torch.testing.assert_close(found[0] - found[1], torch.ones_like(found[0]), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_signs_of_a_breakdown_are_those_of_the_log_ratio(objective: FDivergence) -> None:
    """A good adversary is no breakdown whatever its loss is; a wrong one is, where its loss tells nothing."""
    guide = guide_of(images, objective)
    log_ratio = torch.randn(200)
    good = output(objective, log_ratio + 1.0), output(objective, log_ratio - 1.0)
    assert broken_adversary(guide, *good) is None
    chance = output(objective, torch.zeros(200))
    assert broken_adversary(guide, chance, chance) is None
    far = output(objective, torch.full((200,), 1000.0))
    assert "its loss is 1e+03, at chance it would be 1.39" in str(broken_adversary(guide, far, far))
    assert "|T| reaches 2e+05" in str(broken_adversary(guide, 200.0 * far, chance))
