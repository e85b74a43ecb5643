"""The amortised guide: exact posteriors, who moves when, minibatches, company, copies, refusals."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor, nn

import avbvi
from avbvi import AdversarialELBO, AVBGuide, GaussianContrast, ModelError, PriorContrast, ResidualAdversary, Schedule
from avbvi.amortised import AmortisedAVBGuide, minibatch
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from tests.amortised.known import LinearGaussian, LinearSampler, exact_guide

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def small_guide(model: Any, context_dim: int = 3, **kwargs: Any) -> AmortisedAVBGuide:
    given = {
        "sampler": LinearSampler(context_dim),
        "contrast": ConditionalGaussianContrast(draws=8),
        "adversary": InnerProductAdversary(hidden=(8,)),
    }
    guide = AVBGuide(model, **(given | kwargs))
    assert isinstance(guide, AmortisedAVBGuide)
    return guide


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    """First names of the entries that differ."""
    return {k.split(".")[0] for k, v in module.state_dict().items() if not torch.equal(before[k], v)}


# -- what it learns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [PriorContrast, ConditionalGaussianContrast])
def test_trained_guide_has_the_exact_posterior_of_a_linear_gaussian_model(contrast: Any) -> None:
    """Mean within a tenth of the posterior's sd, covariance within .08 of its own, on average over data."""
    pyro.set_rng_seed(100)
    known = LinearGaussian(learned=False)
    x = known.data(32)
    guide = small_guide(known.model, contrast=contrast(), adversary=InnerProductAdversary(hidden=(32, 32)))
    steps = 250
    elbo = AdversarialELBO(steps=steps, num_particles=8, pretrain_steps=50)
    svi = SVI(known.model, guide, elbo.optimizer(lr=4e-2), loss=elbo)
    for _ in range(steps):
        svi.step(x)
    z = guide.draw_latents(4000, x)
    loc, covariance = known.posterior(x)
    assert float(((z.mean(0) - loc) / covariance.diagonal().sqrt()).abs().mean()) < 0.1
    white = torch.linalg.inv(torch.linalg.cholesky(covariance))
    centred = (z - z.mean(0)) @ white.mT
    found = torch.einsum("sbi,sbj->bij", centred, centred) / len(z)
    assert float((found - torch.eye(2)).abs().mean()) < 0.08
    # The learned log q is a density's: its ELBO is near log p(x), which it can't exceed if it is right.
    learned = (guide.target(x).log_joint(z) - guide.log_q(z, x)).mean()
    assert float((learned - known.log_evidence(x).mean()).abs().detach()) < 0.15


def test_decoder_is_learned_with_the_guide() -> None:
    """Log-evidence of the learned W, b against that of data of known covariance."""
    pyro.set_rng_seed(100)
    truth = LinearGaussian(learned=False)
    x = truth.data(256)
    known = LinearGaussian()
    with torch.no_grad():
        known.decoder.weight.mul_(0.2)
        known.decoder.bias.zero_()
    before = float(known.log_evidence(x).mean())
    guide = small_guide(known.model, contrast=ConditionalGaussianContrast(draws=64))
    elbo = AdversarialELBO(steps=300)
    svi = SVI(known.model, guide, elbo.optimizer(lr=3e-2), loss=elbo)
    for i in range(300):
        places = torch.arange(64) + 64 * (i % 4)
        svi.step(x[places], 256)
    best = float(truth.log_evidence(x).mean())
    assert before < best - 0.5
    assert float(known.log_evidence(x).mean()) > best - 0.05


# -- who moves when -----------------------------------------------------------------------------------


def test_each_part_moves_by_its_own_optimiser_and_none_under_no_grad() -> None:
    known = LinearGaussian()
    x = known.data(6)
    guide = small_guide(known.model).setup(x)
    elbo = AdversarialELBO(pretrain_steps=0)
    before, decoder = snapshot(guide), snapshot(known.decoder)
    elbo.loss(known.model, guide, x)
    with torch.no_grad():
        elbo.differentiable_loss(known.model, guide, x)
        Predictive(known.model, guide=guide, num_samples=2)(x)
        guide.median(x)
    assert changed(before, guide) == {"started"}
    elbo.loss_and_grads(known.model, guide, x)
    # Nobody has stepped outside: what moved is the adversary's.
    assert changed(before, guide) == {"adversary", "started", "adversarial_steps", "step_count"}
    assert changed(decoder, known.decoder) == set()
    assert all(p.grad is None for p in guide.adversary_parameters())
    assert all(p.grad is not None for p in (*guide.part("sampler").parameters(), *known.decoder.parameters()))


@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("to_none", [True, False])
def test_a_users_optimiser_over_all_parameters_never_moves_the_adversary(optimiser: Any, to_none: bool) -> None:
    class Model(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.known = LinearGaussian()
            self.decoder = self.known.decoder

        def forward(self, x: Tensor) -> None:
            self.known.model(x)

    model = Model()
    x = model.known.data(6)
    guide = small_guide(model)
    elbo = AdversarialELBO(pretrain_steps=0)
    loss_of = elbo(model, guide)
    guide.setup(x)
    step = optimiser(loss_of.parameters(), lr=1e-2, **({"weight_decay": 0.1} if optimiser is torch.optim.AdamW else {}))
    for _ in range(3):
        loss = loss_of(x)
        after_its_own, decoder = snapshot(guide), snapshot(model.decoder)
        step.zero_grad(set_to_none=to_none)
        loss.backward()
        step.step()
        assert changed(after_its_own, guide) == {"sampler"}
        assert changed(decoder, model.decoder) == {"weight", "bias"}


def test_guide_and_model_have_their_own_rates() -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""
    known = LinearGaussian()
    x = known.data(6)
    guide = small_guide(known.model).setup(x)
    elbo = AdversarialELBO(pretrain_steps=0)
    before, decoder = snapshot(guide), snapshot(known.decoder)
    SVI(known.model, guide, elbo.optimizer(lr=0.2, model_lr=0.05), loss=elbo).step(x)
    step = elbo.lr_factor()
    assert step > 0.0
    for name, rate, now, then in (
        ("sampler.c", 0.2, guide.state_dict(), before),
        ("weight", 0.05, known.decoder.state_dict(), decoder),
    ):
        torch.testing.assert_close((now[name] - then[name]).abs(), torch.full_like(then[name], rate * step), **EXACT)


def test_the_averages_of_encoder_and_decoder_are_taken_before_the_polish() -> None:
    known = LinearGaussian()
    x = known.data(6)
    guide = small_guide(known.model).setup(x)
    elbo = AdversarialELBO(steps=10, pretrain_steps=0, schedule=Schedule(polish=0.5, average=0.9))
    svi = SVI(known.model, guide, elbo.optimizer(lr=0.3), loss=elbo)
    average: dict[str, Tensor] = {}
    for i in range(10):
        c, w = guide.part("sampler").c.detach().clone(), known.decoder.weight.detach().clone()
        adversary = snapshot(guide.part("adversary"))
        svi.step(x)
        if i == 5:  # the averages are not what the last steps left
            assert not torch.allclose(average["c"], c)
            assert not torch.allclose(average["w"], w)
        if i >= 5:
            for name, now in (("c", guide.part("sampler").c), ("w", known.decoder.weight)):
                torch.testing.assert_close(now.detach(), average[name], **EXACT)
            assert changed(adversary, guide.part("adversary"))
            continue
        # The first look at the decoder is after its first step.
        decay = min(0.9, (1.0 + (i + 1)) / (10.0 + (i + 1)))
        for name, now in (("c", c), ("w", w)):
            if name == "c" or i:
                average[name] = torch.lerp(average.get(name, now), now, 1.0 - decay)


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    known = LinearGaussian()
    x = known.data(6)
    guide = small_guide(known.model, contrast=PriorContrast()).setup(x)
    elbo = AdversarialELBO(pretrain_steps=0, adversary_steps=3)
    svi = SVI(known.model, guide, elbo.optimizer(lr=0.1), loss=elbo)
    svi.step(x)
    right = guide.part("sampler").c.detach().clone()
    before, decoder = snapshot(guide), snapshot(known.decoder)
    with torch.no_grad():
        guide.part("sampler").c[0] = torch.nan
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN"):
        svi.step(x)
    assert int(guide.skipped_steps) == 3 + 1  # the adversary's and the outer one
    with torch.no_grad():
        guide.part("sampler").c.copy_(right)
    assert changed(before, guide) == {"skipped_steps", "adversarial_steps", "step_count"}
    assert changed(decoder, known.decoder) == set()
    svi.step(x)
    assert int(guide.skipped_steps) == 4
    assert "sampler" in changed(before, guide)


def test_the_contrast_is_shared_by_all_steps_of_a_call() -> None:
    known = LinearGaussian()
    x = known.data(6)
    asked = []

    class Counting(ConditionalGaussianContrast):
        def given(self, *args: Any) -> Any:
            asked.append(len(args[1]))
            return super().given(*args)

    guide = small_guide(known.model, contrast=Counting()).setup(x)
    elbo = AdversarialELBO(pretrain_steps=5, adversary_steps=3, num_particles=2)
    for part in (x, x[:4]):
        elbo.loss_and_grads(known.model, guide, part)
    assert asked == [6, 4]


def test_numbers_of_draws_that_were_left_open_follow_the_guide() -> None:
    known = LinearGaussian()
    x = known.data(6)
    elbo = AdversarialELBO(pretrain_steps=0)
    elbo.loss(known.model, small_guide(known.model), x)
    assert (elbo.num_particles, elbo.elbo.num_particles, elbo.adversary_batch) == (1, 1, 1)

    def single() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    elbo.loss(single, AVBGuide(single, trunk=avbvi.AffineTrunk()))
    assert (elbo.num_particles, elbo.elbo.num_particles, elbo.adversary_batch) == (512, 512, 256)
    given = AdversarialELBO(num_particles=4, adversary_batch=7)
    given.adapt(small_guide(known.model))
    assert (given.num_particles, given.adversary_batch) == (4, 7)


# -- the data of a call -------------------------------------------------------------------------------


def test_minibatches_of_any_size() -> None:
    known = LinearGaussian()
    x = known.data(10)
    guide = small_guide(known.model)
    elbo = AdversarialELBO(num_particles=2, pretrain_steps=0)
    svi = SVI(known.model, guide, elbo.optimizer(), loss=elbo)
    for part in (x[:4], x[4:8], x[8:]):
        svi.step(part, 10)
        assert guide.minibatch(part, 10).frame[2:] == (len(part), 10)
        trace = poutine.trace(guide).get_trace(part, 10)
        assert trace.nodes["z"]["value"].shape == (len(part), 2)
        assert trace.nodes["z"]["scale"] == 10 / len(part)
    assert int(guide.skipped_steps) == 0


def test_plates_of_ever_new_arguments_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch, "MOST_FRAMES", 5)
    known = LinearGaussian()
    x = known.data(4)
    guide = small_guide(known.model).setup(x, 10)
    assert guide.reader is not None
    for _ in range(2):
        for size in range(10, 30):
            assert guide.minibatch(x, size).frame[2:] == (4, size)
            assert len(guide.reader._frames) <= 5


def test_a_model_that_subsamples_gets_the_guides_places_and_their_context() -> None:
    known = LinearGaussian()
    x = known.data(30)
    guide = small_guide(known.subsampling).setup(x, 5)
    trace = poutine.trace(guide).get_trace(x, 5)
    places = trace.nodes["data"]["value"]
    replayed = poutine.trace(poutine.replay(known.subsampling, trace=trace)).get_trace(x, 5)
    torch.testing.assert_close(replayed.nodes["x"]["value"], x[places])
    # A guide that is replayed at other places takes their context.
    sampler = guide.part("sampler")
    other = torch.tensor([3, 1, 4, 15, 9])
    at = poutine.trace(poutine.condition(guide, data={"data": other})).get_trace(x, 5)
    noise = sampler.noises[-1]
    torch.testing.assert_close(at.nodes["z"]["value"], sampler(noise, x[other]))
    # Within a training call adversary and outer step have the same.
    with guide.training_call((x, 5), {}):
        data = guide.minibatch(x, 5)
        again = poutine.trace(guide).get_trace(x, 5)
        torch.testing.assert_close(again.nodes["data"]["value"], data.indices)
    assert not torch.equal(poutine.trace(guide).get_trace(x, 5).nodes["data"]["value"], data.indices)


def test_places_that_the_model_is_told_are_left_to_it() -> None:
    known = LinearGaussian()
    x = known.data(30)

    def model(x: Tensor, places: Tensor) -> None:
        with pyro.plate("data", len(x), subsample=places) as chosen:
            known.datum(x[chosen])

    places = torch.tensor([3, 1, 4, 15, 9])
    guide = small_guide(model, context=lambda x, places: x[places]).setup(x, places)
    trace = poutine.trace(guide).get_trace(x, places)
    assert trace.nodes["z"]["scale"] == 6.0
    replayed = poutine.trace(poutine.replay(model, trace=trace)).get_trace(x, places)
    torch.testing.assert_close(replayed.nodes["x"]["value"], x[places])
    z = torch.randn(5, 2)
    torch.testing.assert_close(guide.target(x, places).log_joint(z), known.log_joint(z, x[places]))


def test_context_is_a_function_of_the_models_arguments() -> None:
    known = LinearGaussian()
    x = known.data(4)

    def model(scale: float, *, images: Tensor) -> None:
        with pyro.plate("data", len(images)):
            known.datum(images.reshape(len(images), -1))

    guide = small_guide(model, 3, context=lambda scale, images: scale * images)
    guide.setup(2.0, images=x[:, None])
    torch.testing.assert_close(guide.minibatch(2.0, images=x[:, None]).context, 2.0 * x)
    integers = small_guide(known.model, context=lambda x: x.round().long()).minibatch(x)
    assert integers.context.dtype == x.dtype


def test_predictive_and_quantiles_are_those_of_the_sampler() -> None:
    known = LinearGaussian()
    x = known.data(5)
    guide = exact_guide(known.model, known.width).setup(x)
    sampler = guide.part("sampler")
    n = 4000
    draws = Predictive(known.model, guide=guide, num_samples=n, parallel=True)(x)
    assert draws["z"].shape == (n, 5, 2)
    loc, sd = sampler.loc(x).detach(), (sampler.l @ sampler.l.mT).diagonal().sqrt().detach()
    assert bool(((draws["z"].mean(0) - loc).abs() < 4.5 * sd / n**0.5).all())
    quantiles = guide.quantiles([0.1, 0.5], x)["z"]
    assert quantiles.shape == (2, 5, 2)
    # Standard errors of an empirical quantile: sqrt(p (1 - p) / n) / density.
    for found, at, error in ((quantiles[0], -1.2816, 1.71), (quantiles[1], 0.0, 1.25)):
        assert bool(((found - loc - at * sd).abs() < 4.5 * error * sd / 2000**0.5).all())
    torch.testing.assert_close(guide.median(x)["z"], quantiles[1])


# -- company: global latents --------------------------------------------------------------------------


class Hierarchy:
    """mu ~ N(0, 3^2); z_i ~ N(mu, 1); x_i ~ N(z_i, 0.5^2)."""

    def model(self, x: Tensor, size: int) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 3.0))
        with pyro.plate("data", size, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, **kwargs: Any) -> AutoGuideList:
        guides = AutoGuideList(self.model)
        guides.append(AutoNormal(poutine.block(self.model, expose=["mu"])))
        guides.append(small_guide(poutine.block(self.model, hide=["mu"]), 1, **kwargs))
        return guides


def test_beside_a_global_latent_only_local_terms_are_scaled() -> None:
    hierarchy = Hierarchy()
    x = torch.randn(4)
    guides = hierarchy.guide()
    elbo = AdversarialELBO(num_particles=2, pretrain_steps=0)
    for part in (x, x[:3]):  # the last minibatch is smaller
        elbo.loss_and_grads(hierarchy.model, guides, part, 20)
        trace = poutine.trace(guides).get_trace(part, 20)
        assert {name: node["scale"] for name, node in trace.nodes.items() if name in ("mu", "z")} == {
            "mu": 1.0,
            "z": 20 / len(part),
        }
        assert trace.nodes["z"]["value"].shape == (len(part),)
        (latent,) = [node for name, node in trace.nodes.items() if name.endswith("_latent")]
        assert latent["scale"] == 20 / len(part)


@pytest.mark.slow
def test_means_of_a_hierarchy_are_exact_beside_a_normal_guide() -> None:
    """The best independent Gaussians have the exact posterior's means."""
    pyro.set_rng_seed(100)
    hierarchy = Hierarchy()
    x = 1.5 + torch.randn(40)
    guides = hierarchy.guide(contrast=ConditionalGaussianContrast(draws=64))
    elbo = AdversarialELBO(steps=1500, num_particles=8)
    svi = SVI(hierarchy.model, guides, elbo.optimizer(lr=2e-2), loss=elbo)
    for i in range(1500):
        part = x[:20] if i % 2 else x[20:]
        svi.step(part, 40)
    variance = 1.0 / (1.0 / 9.0 + 40 / 1.25)
    mean = variance * float(x.sum()) / 1.25
    amortised = guides[1]
    assert float(guides[0].median(x, 40)["mu"]) == pytest.approx(mean, abs=0.1)
    z = amortised.draw_latents(2000, x, 40).mean(0)[:, 0]
    torch.testing.assert_close(z, (mean + 4.0 * x) / 5.0, atol=0.12, rtol=0.0)


def test_a_prior_contrast_in_company_is_refused() -> None:
    hierarchy = Hierarchy()
    guides = hierarchy.guide(contrast=PriorContrast())
    with pytest.raises(ValueError, match="inside an AutoGuideList does not have; use ConditionalGaussianContrast"):
        AdversarialELBO().loss_and_grads(hierarchy.model, guides, torch.randn(3), 9)


# -- copies -------------------------------------------------------------------------------------------


def test_copies_draw_alike_and_train_apart() -> None:
    known = LinearGaussian(learned=False)
    x = known.data(4)
    guide = small_guide(known.model).setup(x)
    loaded = pickle.loads(pickle.dumps(small_guide(plain_model).setup(x)))
    assert isinstance(loaded, AmortisedAVBGuide)
    loaded(x)
    twin = copy.deepcopy(guide)
    assert type(twin) is AmortisedAVBGuide
    assert twin._pyro_name != guide._pyro_name
    torch.manual_seed(5)
    first = guide(x)["z"]
    torch.manual_seed(5)
    torch.testing.assert_close(twin(x)["z"], first)
    before = snapshot(guide)
    elbo = AdversarialELBO(pretrain_steps=0)
    SVI(known.model, twin, elbo.optimizer(), loss=elbo).step(x)
    assert changed(before, guide) == set()
    assert "sampler" in changed(before, twin)
    fresh = small_guide(known.model)
    fresh.setup(x)
    fresh.load_state_dict(guide.state_dict())
    torch.manual_seed(5)
    torch.testing.assert_close(fresh(x)["z"], first)


def plain_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True) * torch.ones(3), 1.0).to_event(1), obs=x)


# -- refusals -----------------------------------------------------------------------------------------


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trunk=AffineTrunk\(\) is one map for all data.*leave the trunk out"):
        small_guide(plain_model, trunk=avbvi.AffineTrunk())
    with pytest.raises(ValueError, match=r"context is what an amortised guide's sampler sees.*takes none"):
        AVBGuide(plain_model, context=lambda x: x)
    with pytest.raises(TypeError, match="context must be callable, found int"):
        small_guide(plain_model, context=3)
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"adversary=ResidualAdversary\(\) sees no context"):
        small_guide(plain_model, adversary=ResidualAdversary()).setup(x)
    with pytest.raises(
        ValueError, match=r"GaussianContrast\(\) follows a single posterior.*ConditionalGaussianContrast"
    ):
        small_guide(plain_model, contrast=GaussianContrast()).setup(x)


def test_wrong_contexts_are_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"must have 5 numbers for each datum, the sampler's context_dim; found 3"):
        small_guide(plain_model, 5).setup(x)
    with pytest.raises(ValueError, match=r"one row for each datum of plate 'data', 4; found 3"):
        small_guide(plain_model, 4, context=lambda x: x.mT).setup(x)
    with pytest.raises(TypeError, match=r"context must be a torch.Tensor .*found tuple"):
        small_guide(plain_model, context=lambda x: (x, x)).setup(x)

    def by_name(*, x: Tensor) -> None:
        plain_model(x)

    guide = small_guide(by_name)
    for _ in range(2):  # the first refusal leaves nothing behind
        with pytest.raises(TypeError, match=r"first argument by default, and there is none"):
            guide.setup(x=x)


def test_models_without_a_datum_to_amortise_over_are_refused() -> None:
    def unplated(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))

    def with_globals(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        plain_model(x)

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(0.5 * x.new_ones(())))
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def broken(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            term = dist.Unit(z.sum(-1) * torch.tensor([0.0, float("nan"), 0.0, 0.0]), validate_args=False)
            pyro.sample("likelihood", term, obs=x.new_zeros(4, 0))

    x = torch.zeros(4, 3)
    for model, match in (
        (unplated, r"\['z'\] lie in no pyro.plate"),
        (with_globals, r"\['mu'\] are global latents .*AutoGuideList\(model\).*poutine.block\(model, hide=\['mu'\]\)"),
        (discrete, "site 'k' is a discrete latent"),
        (pyro.infer.config_enumerate(discrete), r"\['k'\] are enumerated, which an amortised guide can't sum out"),
    ):
        with pytest.raises(ModelError, match=match):
            small_guide(model).setup(x)
    with pytest.raises(ModelError, match=r"log-density is nan at a draw of the prior, for datum 1 of the minibatch"):
        AdversarialELBO().loss(broken, small_guide(broken), x)
    # A sampler without a context takes a plate for global latents, and a subsampled one for an error, as ever.
    known = LinearGaussian()
    with pytest.raises(ModelError, match=r"lies in plate 'data', which subsamples 4 of 8.*takes the data as context"):
        AVBGuide(known.model).setup(known.data(4), 8)
