"""The yardstick's step is avbvi's: same losses and gradients from the same weights and noise, in double precision."""

import math
from collections.abc import Iterator

import pyro
import pytest
import torch
from torch import Tensor

from avbvi import AdversarialELBO, AffineTrunk, AVBGuide, MixtureContrast, Schedule, adversarial
from avbvi.training import Trainer
from benchmarks.reference_step import Adversary, Mixture, ReferenceStep, ResidualNet
from benchmarks.step_problems import EIGHT_SCHOOLS, REGRESSION, StepProblem

STEPS = 4


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(False):
        yield


def trainer_of(problem: StepProblem) -> Trainer:
    """A run of avbvi at the first step of its adversarial stage, its networks away from where they start."""
    elbo = AdversarialELBO(pretrain_steps=0, schedule=Schedule(anneal=0.0))
    guide = AVBGuide(problem.model, trunk=AffineTrunk(), contrast=MixtureContrast(rate=0.05))
    trainer = Trainer(problem.model, problem.arguments(torch.float64), {}, guide, elbo, 2e-3)
    elbo.begin_run()
    elbo.steps = 10**9
    trainer._prepare(elbo.steps, None, None)
    with torch.no_grad():
        for p in (*guide.part("sampler").parameters(), *guide.part("adversary").parameters()):
            p.add_(0.05 * torch.randn_like(p))
    elbo._enter_adversarial(guide)
    return trainer


def reference_of(problem: StepProblem, guide: AVBGuide) -> ReferenceStep:
    """The yardstick with a guide's weights."""
    trunk, sampler, contrast, adversary = (guide.part(r) for r in ("trunk", "sampler", "contrast", "adversary"))
    step = ReferenceStep(
        problem.by_hand(torch.float64),
        problem.dim,
        loc=trunk.loc,
        scale_tril=trunk.scale_tril,
        dtype=torch.float64,
    )
    for own, other in ((step.sampler, sampler), (step.adversary, adversary)):
        own.load_state_dict(renamed(other.state_dict()))
    step.average = [p.detach().clone() for p in step.sampler.parameters()]
    mine = step.contrast
    for name in ("log_weights", "locs", "counts", "first", "second", "center", "whitening"):
        setattr(mine, name, getattr(contrast, name).clone())
    mine.factors, mine.inverses = contrast.scale_trils.clone(), contrast.inverse_trils.clone()
    return step


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """avbvi's names of weights as the yardstick's."""
    state = {name.replace("leave.1.", "leave."): value for name, value in state.items()}
    state.pop("centered", None)
    return state


@pytest.mark.parametrize("problem", [EIGHT_SCHOOLS, REGRESSION], ids=lambda p: p.name)
def test_steps_are_those_of_avbvi(problem: StepProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    # avbvi makes the draws of two adversary steps at once, which moves the contrast once for both; one by one they
    # are the yardstick's.
    monkeypatch.setattr(adversarial, "TOGETHER", 1)
    trainer = trainer_of(problem)
    guide = trainer.guide
    reference = reference_of(problem, guide)
    torch.manual_seed(1)
    losses = [trainer.step() for _ in range(STEPS)]
    torch.manual_seed(1)
    # avbvi's rates warm up over 100 steps.
    found = [reference.step(i / 100.0, i / 100.0) for i in range(1, STEPS + 1)]
    assert found == pytest.approx(losses, rel=1e-8)
    adversary = trainer.elbo._trainers.of(guide).adam
    for role, own, adam in (
        ("sampler", reference.adam, trainer.state.optimiser),
        ("adversary", reference.adversary_adam, adversary.optimiser),
    ):
        assert adam is not None
        theirs = dict(guide.part(role).named_parameters())
        mine = dict(getattr(reference, role).named_parameters())
        assert len(theirs) == len(mine)
        for name, p in theirs.items():
            q = mine[next(iter(renamed({name: p})))]
            # The running mean of the gradients is linear in them: it tells scale and direction.
            mean = adam.state[p]["exp_avg"]
            atol = 1e-9 * float(mean.abs().max())
            torch.testing.assert_close(own.adam.state[q]["exp_avg"], mean, rtol=1e-8, atol=atol)
            torch.testing.assert_close(q, p, rtol=1e-8, atol=1e-10)
    assert reference.adversary_adam.mean == pytest.approx(adversary.bound.mean, rel=1e-8)
    assert reference.adam.mean == pytest.approx(trainer.elbo._guard.bound.mean, rel=1e-8)
    average = trainer.elbo._trainers.of(guide).average
    for mean, (name, _) in zip(reference.average, reference.sampler.named_parameters(), strict=True):
        torch.testing.assert_close(mean, average[name.replace("leave.", "leave.1.")], rtol=1e-8, atol=1e-10)


def test_gradient_of_the_sampler_is_the_path_gradient() -> None:
    """At q = N(0, I) against p = N(m, I), with an exact adversary, the gradient of the shift is that of KL(q, p)."""
    dim, shift = 3, torch.tensor([0.3, -0.2, 0.1])
    step = ReferenceStep(lambda e: -0.5 * (e - shift).square().sum(-1), dim, batch=50_000, dtype=torch.float64)

    class Exact(Adversary):
        def forward(self, features: Tensor, log_ratio: Tensor, score: Tensor) -> Tensor:
            # log q - log r for q = r.
            return features.sum(-1) * 0.0 + 0.0 * log_ratio + 0.0 * score.sum(-1)

    step.adversary = Exact(dim)
    step.contrast = Mixture(dim, 1, 0.05, 1e-3, shift)
    loss = step.step_sampler()
    gradient = dict(zip((n for n, _ in step.sampler.named_parameters()), step.adam.gradients, strict=True))
    # d KL / d mean = mean - m, and log q - log p has no spread that would blur it but for the draws' own.
    bias = gradient["network.leave.bias"][:dim]
    stderr = 1.0 / math.sqrt(50_000)
    assert (bias + shift).abs().max() < 5 * stderr
    # q = r = N(0, I), whose log-density has the constant that p here lacks.
    exact = 0.5 * float(shift.square().sum()) - 0.5 * dim * math.log(2 * math.pi)
    assert loss == pytest.approx(exact, abs=5 * float(shift.norm()) * stderr)


def test_mixture_recovers_two_gaussians() -> None:
    mixture = Mixture(2, 2, 0.05, 1e-6, torch.zeros(()))
    which = torch.arange(40_000) % 4 == 0
    draws = torch.randn(40_000, 2) * torch.tensor([1.0, 0.5]) + torch.where(which, 6.0, -2.0)[:, None]
    mixture.begin(draws, rounds=30)
    order = mixture.locs[:, 0].argsort()
    torch.testing.assert_close(mixture.log_weights[order].exp(), torch.tensor([0.75, 0.25]), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(mixture.locs[order], torch.tensor([[-2.0, -2.0], [6.0, 6.0]]), rtol=0.0, atol=0.05)
    covariances = mixture.factors @ mixture.factors.mT
    torch.testing.assert_close(covariances, torch.diag(torch.tensor([1.0, 0.25])).expand(2, 2, 2), rtol=0.0, atol=0.07)
    # Draws of r and its density, against the mixture's by torch.distributions.
    r = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.log_weights),
        torch.distributions.MultivariateNormal(mixture.locs, scale_tril=mixture.factors),
    )
    torch.testing.assert_close(mixture.log_prob(draws[:50]), r.log_prob(draws[:50]))
    own = mixture.sample(40_000)
    stderr = own.std(0) / 200.0
    assert ((own.mean(0) - r.mean).abs() < 5 * stderr).all()


def test_network_of_known_weights() -> None:
    network = ResidualNet(2, 1, 2, 1)
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(0.5)

    def silu(x: float) -> float:
        return x / (1.0 + math.exp(-x))

    h = 0.5 * 1.0 + 0.5 * 2.0 + 0.5
    inner = 2 * 0.5 * silu(h) + 0.5
    h = h + 2 * 0.5 * silu(inner) + 0.5
    assert network(torch.tensor([[1.0, 2.0]])).item() == pytest.approx(2 * 0.5 * silu(h) + 0.5, rel=1e-12)


def test_training_reaches_a_gaussian() -> None:
    """150 steps towards a Gaussian of other mean and scale: mean and sd within 0.15 sd."""
    loc, scale = torch.tensor([1.0, -1.0]), torch.tensor([0.6, 1.5])
    log_p = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1).log_prob
    step = ReferenceStep(log_p, 2, dtype=torch.float64)
    step.begin()
    for _ in range(150):
        step.step()
    draws = step.draw(4000)
    assert ((draws.mean(0) - loc) / scale).abs().max() < 0.15
    assert (draws.std(0) / scale - 1.0).abs().max() < 0.15
