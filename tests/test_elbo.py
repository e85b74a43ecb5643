"""AdversarialELBO: exact gradients, who moves when, stages, other ELBOs inside, skipped steps, resuming."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import avbvi
from avbvi import (
    AdversarialELBO,
    Adversary,
    AffineTrunk,
    AVBGuide,
    GaussianContrast,
    Hint,
    IdentityTrunk,
    LogDensity,
    NonFiniteError,
    ResidualAdversary,
    ResidualSampler,
    Sampler,
    Schedule,
)
from avbvi.guides import ADVERSARIAL, TRUNK
from avbvi.schedules import Clock

EXACT = {"atol": 1e-9, "rtol": 1e-9}

# -- a sampler whose density is known, and the adversary that knows it ------------------------------


class Affine(Sampler):
    """e = loc + exp(log_scale) n; remembers its last noise."""

    def _build(self, dim: int) -> None:
        self.noise_dim = dim
        self.loc = nn.Parameter(torch.linspace(-0.4, 0.5, dim))
        self.log_scale = nn.Parameter(torch.linspace(-0.3, 0.2, dim))

    def sample_noise(self, shape: torch.Size, *, like: Tensor) -> Tensor:
        self.noise = super().sample_noise(shape, like=like)
        return self.noise

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        return self.loc + self.log_scale.exp() * noise


class Exact(Adversary):
    """T* = log q - log r of an affine sampler against a diagonal Gaussian contrast."""

    def __init__(self, sampler: Affine, contrast: GaussianContrast) -> None:
        super().__init__()
        self.known = (sampler, contrast)

    def _build(self, dim: int) -> None:
        self.idle = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        sampler, contrast = self.known
        e = contrast.loc + contrast.scale_tril.diagonal() * features
        log_q = dist.Normal(sampler.loc.detach(), sampler.log_scale.detach().exp()).log_prob(e).sum(-1)
        return log_q - contrast.log_prob(e) + 0.0 * self.idle


Y = torch.tensor([0.4, 1.9, -0.3, 1.1], dtype=torch.float64)


def conjugate(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.5), 2.0))
    nu = pyro.sample("nu", dist.Normal(y.new_tensor(-1.0), 0.7))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Normal(mu + nu, 0.8), obs=y)


def conjugate_score(z: Tensor) -> Tensor:
    """d log p(y, z) / dz, by hand."""
    mu, nu = z.unbind(-1)
    residual = (Y - (mu + nu)[..., None]).sum(-1) / 0.8**2
    return torch.stack([residual - (mu - 0.5) / 4.0, residual - (nu + 1.0) / 0.49], -1)


def constrained(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.5), 2.0))
    tau = pyro.sample("tau", dist.Gamma(y.new_tensor(2.0), y.new_tensor(1.5)))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)


def constrained_score(z: Tensor) -> Tensor:
    """The same with tau = exp(z_2): its Gamma(2, 1.5) density times the Jacobian exp(z_2)."""
    mu, tau = z[..., 0], z[..., 1].exp()
    residual = Y - mu[..., None]
    d_mu = tau * residual.sum(-1) - (mu - 0.5) / 4.0
    d_log_tau = 0.5 * len(Y) - 0.5 * tau * residual.square().sum(-1) + (2.0 - 1.0) - 1.5 * tau + 1.0
    return torch.stack([d_mu, d_log_tau], -1)


def exact_guide(model: Any, trunk: Any, **kwargs: Any) -> AVBGuide:
    sampler, contrast = Affine(), GaussianContrast()
    return AVBGuide(model, sampler=sampler, contrast=contrast, adversary=Exact(sampler, contrast), trunk=trunk)


def collect_gradients(guide: AVBGuide) -> list[Tensor]:
    sampler = guide.part("sampler")
    return [sampler.loc.grad, sampler.log_scale.grad]


@pytest.mark.parametrize("trunk", [IdentityTrunk, AffineTrunk])
@pytest.mark.parametrize("beta", [1.0, 0.1, 0.55])
@pytest.mark.parametrize(
    ("model", "score"), [(conjugate, conjugate_score), (constrained, constrained_score)], ids=["real", "constrained"]
)
def test_gradient_is_the_hand_derived_one(trunk: Any, beta: float, model: Any, score: Any) -> None:
    check_gradient(trunk, beta, model, score, vectorize=True)


def test_gradient_of_a_looping_elbo_is_the_hand_derived_one() -> None:
    check_gradient(AffineTrunk, 0.55, constrained, constrained_score, vectorize=False)


def check_gradient(trunk: Any, beta: float, model: Any, score: Any, *, vectorize: bool) -> None:
    torch.set_default_dtype(torch.float64)
    guide = exact_guide(model, trunk())
    particles = 32 if vectorize else 1
    schedule = Schedule(beta_start=beta, anneal=0.5 if beta < 1.0 else 0.0)
    elbo = AdversarialELBO(
        steps=100, num_particles=particles, vectorize_particles=vectorize, pretrain_steps=0, schedule=schedule
    )
    if not vectorize:  # spare the search for a start, which is slow in a loop over draws
        guide.setup(Y)
        guide.trunk.start(torch.tensor([0.3, -0.2]), torch.tensor([[0.7, 0.0], [0.2, 0.4]]))
        guide.started.fill_(True)
    elbo.loss_and_grads(model, guide, Y)
    assert guide.is_adversarial
    # The outer step draws its noise last.
    noise = guide.part("sampler").noise.reshape(particles, 2)
    scale = guide.part("sampler").log_scale.detach().exp()
    loc = guide.part("sampler").loc.detach()
    g = guide.part("trunk")
    factor = g.scale_tril if trunk is AffineTrunk else torch.eye(2)
    e = loc + scale * noise
    z = e @ factor.mT + (g.loc if trunk is AffineTrunk else 0.0)
    # d/de of log q(z) - beta log p(y, z) - (1 - beta) log N(reference; 0, 2^2 I): the reference lies in the
    # coordinates of the start, which are e for an affine trunk and z for none; log|det G| is constant.
    d_log_q = -(e - loc) / scale**2
    d_reference = -e / 4.0
    gradient = d_log_q - beta * score(z) @ factor - (1.0 - beta) * d_reference
    expected = [gradient.mean(0), (gradient * scale * noise).mean(0)]
    for found, by_hand in zip(collect_gradients(guide), expected, strict=True):
        torch.testing.assert_close(found, by_hand, **EXACT)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO])
def test_annealed_loss_is_the_annealed_objective(kind: Any) -> None:
    """Trace_ELBO's loss is evaluated without Pyro's handlers, the other one's with them."""
    torch.set_default_dtype(torch.float64)
    guide = exact_guide(constrained, AffineTrunk())
    beta = 0.3
    inner = kind(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    elbo = AdversarialELBO(inner, steps=100, pretrain_steps=0, schedule=Schedule(beta_start=beta))
    loss = elbo.loss_and_grads(constrained, guide, Y)
    sampler, trunk = guide.part("sampler"), guide.part("trunk")
    e = sampler.loc + sampler.log_scale.exp() * sampler.noise.reshape(16, 2)
    z, log_det = trunk(e)
    log_q = dist.Normal(sampler.loc, sampler.log_scale.exp()).log_prob(e).sum(-1) - log_det
    mu, tau = z[:, 0], z[:, 1].exp()
    log_p = dist.Normal(0.5, 2.0).log_prob(mu) + dist.Gamma(2.0, 1.5).log_prob(tau) + z[:, 1]
    log_p = log_p + dist.Normal(mu[:, None], tau.rsqrt()[:, None]).log_prob(Y).sum(-1)
    reference = dist.Normal(0.0, 2.0).log_prob(e).sum(-1) + 2 * math.log(2.0)  # unnormalised by the scale 2
    by_hand = (log_q - beta * log_p - (1.0 - beta) * reference).mean().detach()
    assert loss == pytest.approx(float(by_hand), abs=1e-9)


def test_expected_gradient_of_the_log_ratio_is_that_of_the_entropy() -> None:
    """Prop. 2: E_q[grad T*] = 0, so that the path alone gives -grad H: 0 for loc, -1 for log_scale."""
    torch.set_default_dtype(torch.float64)
    guide = exact_guide(conjugate, IdentityTrunk()).setup(Y)
    sampler, contrast = guide.part("sampler"), guide.part("contrast")
    guide.stage.fill_(ADVERSARIAL)
    contrast.reset(guide.draw(500).base)
    n = 20_000
    q = guide.get_posterior(Y)
    z = q.rsample(torch.Size((n,)))
    (path,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    per_draw = torch.cat([path, path * sampler.log_scale.exp() * sampler.noise], -1).detach()
    error = per_draw.std(0) / math.sqrt(n)
    assert bool(((per_draw.mean(0) - torch.tensor([0.0, 0.0, -1.0, -1.0])).abs() < 4.5 * error).all())
    # The other half, the gradient of T* in its own parameters, has mean zero.
    loc, log_scale = (p.detach().requires_grad_() for p in (sampler.loc, sampler.log_scale))
    fixed = z.detach()

    def log_ratio(loc: Tensor, log_scale: Tensor, at: Tensor) -> Tensor:
        return dist.Normal(loc, log_scale.exp(), validate_args=False).log_prob(at).sum() - contrast.log_prob(at)

    scores = torch.func.vmap(torch.func.grad(log_ratio, argnums=(0, 1)), in_dims=(None, None, 0))(loc, log_scale, fixed)
    for s in scores:
        assert bool((s.mean(0).abs() < 4.5 * s.std(0) / math.sqrt(n)).all())
        assert bool((s.std(0) > 0.1).all())


# -- who moves when ------------------------------------------------------------------------------------

# A seventh of the work is two fifths of the steps: an adversarial step counts as four of the trunk's.
FAST = Schedule(trunk=0.14, polish=0.25, anneal=0.3)


def small_guide(model: Any = conjugate, **parts: Any) -> AVBGuide:
    given: dict[str, Any] = {
        "trunk": avbvi.FlowTrunk(layers=1, hidden=(8,)),
        "sampler": ResidualSampler(hidden=8, blocks=1),
        "adversary": ResidualAdversary(hidden=8, blocks=1),
        "contrast": GaussianContrast(full=True),
    }
    return AVBGuide(model, **(given | parts))


def snapshot(guide: AVBGuide) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in guide.state_dict().items()}


def changed(before: dict[str, Tensor], guide: AVBGuide) -> set[str]:
    return {k for k, v in guide.state_dict().items() if not torch.equal(before[k], v)}


def parts_of(names: set[str], *parts: str) -> set[str]:
    return {n.split(".")[0] for n in names if n.split(".")[0] in parts}


def test_outer_gradient_leaves_the_adversary_and_inner_step_leaves_sampler_and_trunk() -> None:
    guide = small_guide()
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    elbo.loss_and_grads(conjugate, guide, Y)
    stages = set()
    for _ in range(2):
        stages.add(guide.is_adversarial)
        before = snapshot(guide)
        guide.zero_grad()
        elbo.loss_and_grads(conjugate, guide, Y)
        moved = changed(before, guide)
        # No outer optimiser has stepped: whatever moved was moved by the adversary's step.
        assert parts_of(moved, "sampler", "trunk") == set()
        assert parts_of(moved, "adversary", "contrast") == {"adversary", "contrast"}
        assert all(p.grad is None for p in guide.adversary_parameters())
        assert all(p.grad is None for p in guide.part("trunk").parameters())
        assert any(p.grad is not None and bool(p.grad.any()) for p in guide.part("sampler").parameters())
    assert stages == {True}


def test_contrasts_are_without_gradient() -> None:
    for contrast in (GaussianContrast(), GaussianContrast(full=True), avbvi.MixtureContrast(components=2)):
        guide = small_guide(contrast=contrast)
        AdversarialELBO(num_particles=64, pretrain_steps=0).loss_and_grads(conjugate, guide, Y)
        assert list(contrast.parameters()) == []
        assert dict(contrast.named_buffers())
        assert all(b.grad_fn is None and not b.requires_grad for b in contrast.buffers())


def run_torch(
    guide: AVBGuide, elbo: AdversarialELBO, make: Any, calls: int, *, to_none: bool = True, observe: Any = None
) -> list[float]:
    loss_of = elbo(conjugate, guide)
    guide.setup(Y)
    optimiser = make(loss_of.parameters())
    losses = []
    for i in range(calls):
        if observe is not None:
            observe(i)
        loss = loss_of(Y)
        optimiser.zero_grad(set_to_none=to_none)
        loss.backward()
        assert all(p.grad is None for p in guide.adversary_parameters())
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def svi_steps(guide: AVBGuide, elbo: AdversarialELBO, calls: int, observe: Any = None) -> None:
    svi = SVI(conjugate, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    for i in range(calls):
        if observe is not None:
            observe(i)
        svi.step(Y)


@pytest.mark.parametrize("way", ["SVI", "Adam", "AdamW"])
@pytest.mark.parametrize("to_none", [True, False])
def test_stages_and_what_moves_in_them(way: str, to_none: bool) -> None:
    """20 steps: 8 of the trunk, then adversarial, of which the last quarter (3) is polish."""
    guide = small_guide()
    elbo = AdversarialELBO(steps=20, num_particles=64, pretrain_steps=0, schedule=FAST)
    record: list[dict[str, Tensor]] = []

    def observe(i: int) -> None:
        if guide.prototype_trace is not None:
            record.append(snapshot(guide))

    guide.setup(Y)
    if way == "SVI":
        svi_steps(guide, elbo, 20, observe)
    else:
        make = {
            "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.9, 0.999)),
            "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        }[way]
        run_torch(guide, elbo, make, 20, to_none=to_none, observe=observe)
    record.append(snapshot(guide))
    assert int(guide.step_count) == 20
    assert guide.comparison is not None
    assert int(guide.stage) == (ADVERSARIAL if guide.comparison.keep_adversarial else TRUNK)
    for i in range(20):
        moved = {k for k in record[i] if not torch.equal(record[i][k], record[i + 1][k])}
        parts = parts_of(
            {k for k in moved if "loc" not in k and "scale_tril" not in k}, "trunk", "sampler", "adversary"
        )
        if i == 0:
            assert "sampler" not in parts  # the affine start moves here too
        elif i < 8:
            assert parts == {"trunk"}, i
            assert int(record[i]["stage"]) == TRUNK
        elif i < 17:
            assert parts == {"sampler", "adversary"}, i
            assert int(record[i + 1]["stage"]) == ADVERSARIAL
        elif i == 17:
            assert parts == {"sampler", "adversary"}  # the average of the sampler's weights is taken
            assert bool(record[i + 1]["polishing"])
        else:
            assert parts <= {"adversary"}, i


def test_calls_beyond_the_end_overturn_nothing() -> None:
    guide = small_guide()
    elbo = AdversarialELBO(steps=10, num_particles=64, pretrain_steps=0, schedule=FAST)
    svi = SVI(conjugate, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    for _ in range(10):
        svi.step(Y)
    comparison, before = guide.comparison, snapshot(guide)
    for _ in range(2):
        assert math.isfinite(svi.step(Y))
    assert changed(before, guide) == set()
    assert guide.comparison is comparison


def test_torch_optimiser_trains() -> None:
    """A short fit by torch.optim alone finds the mean, from a sampler that starts elsewhere."""
    guide = small_guide(trunk=IdentityTrunk(), sampler=Affine())
    elbo = AdversarialELBO(num_particles=256, adversary_lr=1e-2)
    run_torch(guide, elbo, lambda p: torch.optim.Adam(p, lr=2e-2, betas=(0.5, 0.999)), 250)
    with torch.no_grad():
        draws = guide.draw(20_000).z
    mean, covariance = posterior_of_conjugate()
    # s.e. of the mean .007 sd: tolerance .1 sd for the adversarial fit of a mean-field sampler.
    assert bool(((draws.mean(0) - mean).abs() / covariance.diagonal().sqrt() < 0.1).all())


def posterior_of_conjugate() -> tuple[Tensor, Tensor]:
    precision = torch.diag(torch.tensor([0.25, 1 / 0.49], dtype=torch.float64)) + len(Y) / 0.64
    covariance = torch.linalg.inv(precision)
    information = torch.tensor([0.5 * 0.25, -1.0 / 0.49], dtype=torch.float64) + Y.sum() / 0.64
    return covariance @ information, covariance


def test_evaluation_changes_nothing() -> None:
    guide = small_guide(trunk=AffineTrunk())
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(conjugate, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    for _ in range(3):
        svi.step(Y)
    before, state = snapshot(guide), copy.deepcopy(elbo.state_dict())
    factor = elbo.lr_factor()
    svi.evaluate_loss(Y)
    with torch.no_grad():
        elbo(conjugate, guide)(Y)
        elbo.differentiable_loss(conjugate, guide, Y)
        elbo.loss(conjugate, guide, Y)
    Predictive(conjugate, guide=guide, num_samples=20, parallel=True)(Y)
    guide.median(Y)
    guide.quantiles([0.1, 0.9], Y)
    with torch.no_grad():
        guide.get_posterior(Y).log_prob(torch.randn(5, 2, dtype=torch.float64))
    assert changed(before, guide) == set()
    assert_same(elbo.state_dict(), state)
    assert elbo.lr_factor() == factor
    svi.step(Y)
    assert parts_of(changed(before, guide), "sampler", "adversary", "contrast") == {"sampler", "adversary", "contrast"}


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for k in expected:
            assert_same(found[k], expected[k])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


# -- resuming --------------------------------------------------------------------------------------------


def fresh(steps: int | None) -> tuple[AVBGuide, AdversarialELBO, SVI]:
    pyro.clear_param_store()
    pyro.set_rng_seed(5)
    guide = small_guide(name="resumed")
    elbo = AdversarialELBO(steps=steps, num_particles=64, pretrain_steps=2, schedule=FAST)
    return guide, elbo, SVI(conjugate, guide, elbo.optimizer(lr=1e-2), loss=elbo)


@pytest.mark.parametrize("cut", [5, 10, 13, 18])
def test_half_and_half_is_the_whole(cut: int) -> None:
    """Stopped at any point, taken up by a new guide, ELBO and optimiser from what was saved: equal to the bit."""
    guide, _, svi = fresh(20)
    losses = [svi.step(Y) for _ in range(20)]
    whole = snapshot(guide)

    guide, elbo, svi = fresh(20)
    first = [svi.step(Y) for _ in range(cut)]
    saved = copy.deepcopy((guide.state_dict(), elbo.state_dict(), svi.optim.get_state(), torch.get_rng_state()))

    guide, elbo, svi = fresh(20)
    guide.setup(Y)
    guide.load_state_dict(saved[0])
    elbo.load_state_dict(saved[1])
    svi.optim.set_state(saved[2])
    torch.set_rng_state(saved[3])
    second = [svi.step(Y) for _ in range(20 - cut)]
    assert first + second == losses
    assert changed(whole, guide) == set()


def test_loaded_state_is_a_copy_and_survives_until_it_is_used() -> None:
    _, elbo, svi = fresh(None)
    for _ in range(12):
        svi.step(Y)
    state = copy.deepcopy(elbo.state_dict())
    untouched = copy.deepcopy(state)
    _, second, svi = fresh(None)
    second.load_state_dict(state)
    assert_same(second.state_dict(), untouched)  # not lost by a save before the first step
    for _ in range(2):
        svi.loss = second.loss_and_grads
        svi.step(Y)
    assert_same(state, untouched)


# -- other ELBOs inside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_any_elbo_inside_gives_its_own_loss(kind: Any, vectorize: bool) -> None:
    """At the exact posterior every one of them is the log evidence, whatever is drawn."""
    guide = AVBGuide(conjugate, trunk=AffineTrunk(), contrast=GaussianContrast()).setup(Y)
    mean, covariance = posterior_of_conjugate()
    guide.trunk.start(mean, torch.linalg.cholesky(covariance))
    guide.started.fill_(True)
    elbo = AdversarialELBO(kind(num_particles=4, vectorize_particles=vectorize, max_plate_nesting=1))
    total = (4.0 + 0.49) * torch.ones(4, 4).double() + 0.64 * torch.eye(4).double()
    evidence = torch.distributions.MultivariateNormal(torch.full((4,), -0.5).double(), total).log_prob(Y)
    assert -elbo.loss(conjugate, guide, Y) == pytest.approx(float(evidence), abs=1e-9)


@pytest.mark.parametrize("kind", [TraceGraph_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_any_elbo_inside_trains(kind: Any) -> None:
    guide = small_guide(trunk=AffineTrunk())
    elbo = AdversarialELBO(
        kind(num_particles=8, vectorize_particles=True, max_plate_nesting=1), steps=20, pretrain_steps=0
    )
    svi = SVI(conjugate, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    svi.step(Y)
    before = snapshot(guide)
    assert all(math.isfinite(svi.step(Y)) for _ in range(5))
    assert {"sampler", "adversary", "contrast"} <= {k.split(".")[0] for k in changed(before, guide)}
    assert int(guide.skipped_steps) == 0


def test_looped_particles_have_the_loss_of_vectorised_ones_in_expectation() -> None:
    guide = small_guide(trunk=AffineTrunk())
    train = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(conjugate, guide, train.optimizer(lr=1e-2), loss=train)
    for _ in range(3):
        svi.step(Y)
    runs = []
    for vectorize in (True, False):
        elbo = AdversarialELBO(num_particles=10, vectorize_particles=vectorize)
        with torch.no_grad():
            runs.append(torch.tensor([elbo.loss(conjugate, guide, Y) for _ in range(60)]))
    error = math.sqrt(sum(float(r.var()) / len(r) for r in runs))
    assert error > 0.0
    assert abs(float(runs[0].mean() - runs[1].mean())) < 4.0 * error


DATA = torch.tensor([-2.1, -1.4, -2.9, 1.2, 2.2, 1.7, 2.9, 1.9, -1.8, 2.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)


def mixture(y: Tensor) -> None:
    low = pyro.sample("low", dist.Normal(y.new_tensor(-2.0), 0.8))
    high = pyro.sample("high", dist.Normal(y.new_tensor(2.0), 0.8))
    with pyro.plate("data", len(y), dim=-1):
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(torch.where(k == 0, low, high), 1.0), obs=y)


def marginal_terms(low: Tensor, high: Tensor, y: Tensor) -> Tensor:
    each = [dist.Normal(m, 1.0).log_prob(y) + w.log() for m, w in zip((low, high), WEIGHTS, strict=True)]
    return torch.logaddexp(*each)


def marginalised(y: Tensor) -> None:
    low = pyro.sample("low", dist.Normal(y.new_tensor(-2.0), 0.8))
    high = pyro.sample("high", dist.Normal(y.new_tensor(2.0), 0.8))
    with pyro.plate("data", len(y), dim=-1):
        pyro.factor("y", marginal_terms(low, high, y))


def enumerating(particles: int, **kwargs: Any) -> AdversarialELBO:
    inner = TraceEnum_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    return AdversarialELBO(inner, **kwargs)


def test_enumerated_loss_and_gradients_are_those_of_the_marginalised_model() -> None:
    twins: list[tuple[list[float], dict[str, Tensor]]] = []
    weights: dict[str, Tensor] = {}
    for model, elbo in (
        (mixture, enumerating(16, pretrain_steps=2)),
        (marginalised, AdversarialELBO(num_particles=16, pretrain_steps=2)),
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(7)
        guide = small_guide(model, trunk=AffineTrunk()).setup(DATA)
        guide.trunk.start(torch.tensor([-2.0, 2.0]), 0.4 * torch.eye(2))
        guide.started.fill_(True)
        # The enumerated model has one more site to draw in the set-up: same weights, same generator from here.
        weights = weights or snapshot(guide)
        guide.load_state_dict(weights)
        pyro.set_rng_seed(8)
        svi = SVI(model, guide, elbo.optimizer(lr=1e-2), loss=elbo)
        losses = [svi.step(DATA) for _ in range(4)]
        twins.append((losses, snapshot(guide)))
    assert twins[0][0] == pytest.approx(twins[1][0], abs=1e-8)
    for name, value in twins[0][1].items():
        torch.testing.assert_close(value, twins[1][1][name], atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_enumerated_mixture_recovers_the_posterior_of_quadrature() -> None:
    grid = torch.linspace(-7.0, 7.0, 701, dtype=torch.float64)
    low, high = torch.meshgrid(grid, grid, indexing="ij")
    log_p = dist.Normal(-2.0, 0.8).log_prob(low) + dist.Normal(2.0, 0.8).log_prob(high)
    for y in DATA:
        log_p = log_p + marginal_terms(low, high, y)
    weight = torch.softmax(log_p.reshape(-1), 0)
    exact = torch.stack([low.reshape(-1), high.reshape(-1)], -1)
    mean = weight @ exact
    sd = (weight @ (exact - mean).square()).sqrt()
    pyro.set_rng_seed(1)
    guide = AVBGuide(mixture, trunk=avbvi.FlowTrunk(layers=2, hidden=(16,)))
    elbo = enumerating(128, steps=400, schedule=Schedule(trunk=0.9))
    svi = SVI(mixture, guide, elbo.optimizer(lr=5e-3), loss=elbo)
    for _ in range(400):
        svi.step(DATA)
    draws = guide.draw(10_000).z  # s.e. of the mean .01 sd, of the sd ratio .007
    assert bool(((draws.mean(0) - mean).abs() / sd < 0.05).all())
    assert bool(((draws.std(0) / sd - 1.0).abs() < 0.05).all())


# -- steps that are not finite --------------------------------------------------------------------------------


encountered = pytest.mark.filterwarnings("ignore:Encountered:UserWarning")  # Pyro's own warning of NaN


def breaking() -> tuple[LogDensity, list[bool]]:
    """A normal density that is NaN, with NaN gradient, while the switch is on."""
    switch = [False]

    def log_prob(z: Tensor) -> Tensor:
        value = -0.5 * z.square().sum(-1)
        return value * math.nan if switch[0] else value

    return LogDensity(log_prob, (2,)), switch


@encountered
def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    model, switch = breaking()
    guide = small_guide(model, adversary=avbvi.MLPAdversary((8,)))
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(model, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    for _ in range(3):
        svi.step()
    assert int(guide.skipped_steps) == 0
    switch[0] = True
    before = snapshot(guide)
    for _ in range(4):
        assert math.isnan(svi.step())
    assert int(guide.skipped_steps) == 4
    assert parts_of(changed(before, guide), "sampler", "trunk") == set()
    assert all(bool(torch.isfinite(v).all()) for v in guide.state_dict().values())
    switch[0] = False
    assert math.isfinite(svi.step())
    assert parts_of(changed(before, guide), "sampler") == {"sampler"}
    assert int(guide.skipped_steps) == 4


@encountered
def test_a_hint_that_is_not_finite_does_not_spoil_the_adversary() -> None:
    model, switch = breaking()
    guide = small_guide(model)
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(model, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    svi.step()
    switch[0] = True
    svi.step()
    assert all(bool(torch.isfinite(v).all()) for v in guide.state_dict().values())
    assert int(guide.skipped_steps) > 0
    switch[0] = False
    assert math.isfinite(svi.step())


@encountered
def test_too_many_steps_that_are_not_finite_raise() -> None:
    model, switch = breaking()
    guide = small_guide(model, adversary=avbvi.MLPAdversary((8,)))
    elbo = AdversarialELBO(num_particles=64, pretrain_steps=0)
    svi = SVI(model, guide, elbo.optimizer(lr=1e-2), loss=elbo)
    svi.step()
    switch[0] = True
    for _ in range(50):
        svi.step()
    with pytest.raises(NonFiniteError, match=r"51 steps in a row.*NaN or infinite where the guide draws"):
        svi.step()
    assert int(guide.skipped_steps) == 51
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        elbo.differentiable_loss(model, guide)


# -- recovery of known posteriors -----------------------------------------------------------------------------


def fit_default(model: Any, *args: Any, steps: int) -> AVBGuide:
    guide = AVBGuide(model)
    elbo = AdversarialELBO(steps=steps)
    svi = SVI(model, guide, elbo.optimizer(), loss=elbo)
    for _ in range(steps):
        svi.step(*args)
    return guide


def close_in_sd(draws: Tensor, mean: float, sd: float) -> None:
    """Fixed tolerances: mean within .03 sd, ratio of sds in [.97, 1.03]; s.e. a third of that for 10 000 draws."""
    assert abs(float(draws.mean()) - mean) < 0.03 * sd
    assert 0.97 < float(draws.std()) / sd < 1.03


@pytest.mark.slow
def test_conjugate_normal_is_recovered() -> None:
    guide = fit_default(conjugate, Y, steps=600)
    mean, covariance = posterior_of_conjugate()
    draws = guide.draw(10_000).z
    for i in range(2):
        close_in_sd(draws[:, i], float(mean[i]), math.sqrt(float(covariance[i, i])))


@pytest.mark.slow
def test_gamma_poisson_is_recovered() -> None:
    counts = torch.tensor([3.0, 1.0, 4.0, 2.0])

    def model(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    guide = fit_default(model, counts, steps=600)
    shape, rate = 2.0 + float(counts.sum()), 1.0 + len(counts)
    assert guide.layout is not None
    values, _ = guide.layout.constrain(guide.draw(10_000).z)
    close_in_sd(values["rate"], shape / rate, math.sqrt(shape) / rate)


@pytest.mark.parametrize("schedule", [Schedule(trunk=1.0), Schedule(trunk=0.0, polish=0.0)], ids=["trunk", "no polish"])
def test_a_step_that_begins_as_the_time_runs_out_is_still_done(schedule: Schedule) -> None:
    model = LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
    guide = AVBGuide(model)
    elbo = AdversarialELBO(num_particles=16, pretrain_steps=0, schedule=schedule)
    elbo.clock = Clock(1.0, started=-math.inf)  # over
    assert math.isfinite(elbo.loss_and_grads(model, guide))
    assert int(guide.step_count) == 1
    assert bool(guide.is_adversarial) == (schedule.trunk == 0.0)
