"""The amortised guide's gradients against hand-derived ones with the same noise, and minibatches against all data."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from avbvi import AdversarialELBO, Schedule
from tests.amortised.known import LinearGaussian, SplitSampler, exact_guide

EXACT = {"atol": 1e-9, "rtol": 1e-9}


@pytest.fixture(autouse=True)
def float64() -> None:
    """Double precision, so that identities hold to rounding."""
    torch.set_default_dtype(torch.float64)


def outer_noise(guide: Any, particles: int, *, vectorize: bool) -> Tensor:
    """The noise of the last outer step (S, B, dim): the sampler is asked for it last."""
    noises = guide.part("sampler").noises
    return noises[-1].reshape(particles, *noises[-1].shape[-2:]) if vectorize else torch.stack(noises[-particles:])


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorised", "looped"])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("size", [None, 40], ids=["all data", "minibatch of 40"])
@pytest.mark.parametrize("weight", [1.0, 0.5], ids=["full", "KL warm-up"])
def test_gradient_is_the_hand_derived_one(vectorize: bool, particles: int, size: int | None, weight: float) -> None:
    known = LinearGaussian()
    x = known.data(5)
    guide = exact_guide(known.model, known.width)
    elbo = AdversarialELBO(
        steps=100,
        num_particles=particles,
        vectorize_particles=vectorize,
        pretrain_steps=0,
        schedule=Schedule(kl_warm_up=0.5),
    )
    guide.setup(x, size)
    guide.step_count.fill_(int(50 * weight))
    loss = elbo.loss_and_grads(known.model, guide, x, size)

    sampler = guide.part("sampler")
    noise = outer_noise(guide, particles, vectorize=vectorize)
    a, c, l = (p.detach() for p in (sampler.a, sampler.c, sampler.l))
    loc = x @ a.mT + c
    z = loc + noise @ l.mT
    scale = (size or len(x)) / len(x)
    d_prior, d_likelihood = known.score(z, x)
    d_log_q = -(z - loc) @ torch.linalg.inv(l @ l.mT)
    slope = scale * (weight * (d_log_q - d_prior) - d_likelihood) / particles
    expected = {
        "a": torch.einsum("sbi,bj->ij", slope, x),
        "c": slope.sum((0, 1)),
        "l": torch.einsum("sbi,sbj->ij", slope, noise),
    }
    for name, by_hand in expected.items():
        torch.testing.assert_close(getattr(sampler, name).grad, by_hand, **EXACT)

    residual = (x - known.decoder(z).detach()) / known.scale**2
    torch.testing.assert_close(
        known.decoder.weight.grad, -scale / particles * torch.einsum("sbi,sbj->ij", residual, z), **EXACT
    )
    torch.testing.assert_close(known.decoder.bias.grad, -scale / particles * residual.sum((0, 1)), **EXACT)

    log_q = torch.distributions.MultivariateNormal(loc, l @ l.mT).log_prob(z)
    log_prior = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    log_likelihood = known.log_joint(z, x) - log_prior
    by_hand = scale * (weight * (log_q - log_prior) - log_likelihood).sum(-1).mean()
    assert loss == pytest.approx(float(by_hand.detach()), abs=1e-9)


@pytest.mark.parametrize("learned", [True, False], ids=["adversary right", "adversary wrong"])
@pytest.mark.parametrize("particles", [1, 3])
def test_gradient_of_a_sampler_that_splits_leaves_the_adversary_out_of_its_gaussian(
    learned: bool, particles: int
) -> None:
    """z = mu + L e: in mu and L the gradient is that of a Gaussian encoder, whatever T is; in e it is T's."""
    known = LinearGaussian()
    x = known.data(5)
    guide = exact_guide(known.model, known.width, SplitSampler).setup(x, 40)
    sampler, oracle = guide.part("sampler"), guide.part("adversary")
    wrong = torch.tensor([0.7, -0.4])
    if not learned:
        right = oracle.forward
        oracle.forward = lambda features, *args, **kwargs: right(features, *args, **kwargs) + features @ wrong
    loss = AdversarialELBO(num_particles=particles, pretrain_steps=0).loss_and_grads(known.model, guide, x, 40)
    noise = outer_noise(guide, particles, vectorize=True)
    a, c, l, s = (p.detach() for p in (sampler.a, sampler.c, sampler.l, sampler.s))
    e = noise + s
    z = x @ a.mT + c + e @ l.mT
    scale = 8.0
    slope = -scale * sum(known.score(z, x)) / particles
    entropy = torch.diag_embed(scale * len(x) / l.diagonal())
    # T's gradient in z comes to e by L; the Gaussian of e has the score -(e - s).
    d_log_q = -noise + (0.0 if learned else 1.0) * wrong @ l
    expected = {
        "a": torch.einsum("sbi,bj->ij", slope, x),
        "c": slope.sum((0, 1)),
        "l": torch.einsum("sbi,sbj->ij", slope, e) - entropy,
        "s": (slope @ l + scale * d_log_q / particles).sum((0, 1)),
    }
    for name, by_hand in expected.items():
        torch.testing.assert_close(getattr(sampler, name).grad, by_hand, **EXACT)
    log_q = sampler.log_prob(z, x) + (0.0 if learned else 1.0) * z @ wrong
    by_hand = scale * (log_q - known.log_joint(z, x)).sum(-1).mean()
    assert loss == pytest.approx(float(by_hand.detach()), abs=1e-9)
    # At a point that was not drawn the density is the same function.
    elsewhere = torch.randn(5, 2)
    found = guide.get_posterior(x, 40).log_prob(elsewhere).detach()
    torch.testing.assert_close(found, sampler.log_prob(elsewhere, x) + float(not learned) * elsewhere @ wrong, **EXACT)
    torch.testing.assert_close(guide.log_q(elsewhere, x, 40).detach(), found, **EXACT)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
def test_other_elbos_give_the_same_gradient(kind: Any) -> None:
    known = LinearGaussian()
    x, noise = known.data(4), torch.randn(4, 2)
    looped = exact_guide(known.model, known.width).setup(x)
    draws = iter([noise, -noise])
    looped.part("sampler").sample_noise = lambda shape, *, like: next(draws)
    Trace_ELBO(num_particles=2).loss_and_grads(known.model, looped, x)
    guide = exact_guide(known.model, known.width).setup(x)
    guide.part("sampler").fixed = torch.stack([noise, -noise])
    kind(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(known.model, guide, x)
    for name in ("a", "c", "l"):
        expected = getattr(looped.part("sampler"), name).grad
        torch.testing.assert_close(getattr(guide.part("sampler"), name).grad, expected, **EXACT)
        assert float(expected.abs().max()) > 0.1


def mixed(x: Tensor, size: int | None = None) -> None:
    """Two sites for each datum, one of them positive."""
    with pyro.plate("data", size or len(x), subsample_size=len(x)):
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.5), 2.0))
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.5)))
        pyro.sample("x", dist.Normal(mu[..., None], tau.rsqrt()[..., None]).to_event(1), obs=x)


def mixed_in_plates(x: Tensor, size: int | None = None) -> None:
    """The same with the numbers of a datum in a plate of their own, on the right of the data's."""
    with pyro.plate("data", size or len(x), subsample_size=len(x), dim=-2):
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.5), 2.0))
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.5)))
        with pyro.plate("numbers", x.shape[-1], dim=-1):
            pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)


def mixed_score(z: Tensor, x: Tensor) -> Tensor:
    """d log p(x, z) / dz with tau = exp(z_2): its Gamma(2, 1.5) density times the Jacobian exp(z_2)."""
    mu, tau = z[..., 0], z[..., 1].exp()
    residual = x - mu[..., None]
    d_mu = tau * residual.sum(-1) - (mu - 0.5) / 4.0
    d_log_tau = 0.5 * x.shape[-1] - 0.5 * tau * residual.square().sum(-1) + (2.0 - 1.0) - 1.5 * tau + 1.0
    return torch.stack([d_mu, d_log_tau], -1)


def mixed_log_joint(z: Tensor, x: Tensor) -> Tensor:
    mu, tau = z[..., 0], z[..., 1].exp()
    log_p = dist.Normal(0.5, 2.0).log_prob(mu) + dist.Gamma(2.0, 1.5).log_prob(tau) + z[..., 1]
    return log_p + dist.Normal(mu[..., None], tau.rsqrt()[..., None]).log_prob(x).sum(-1)


@pytest.mark.parametrize("model", [mixed, mixed_in_plates])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorised", "looped"])
def test_several_sites_for_each_datum_one_of_them_positive(model: Any, particles: int, vectorize: bool) -> None:
    x = torch.randn(6, 4)
    guide = exact_guide(model, 4)
    elbo = AdversarialELBO(num_particles=particles, vectorize_particles=vectorize, pretrain_steps=0)
    loss = elbo.loss_and_grads(model, guide, x, 30)
    sampler = guide.part("sampler")
    noise = outer_noise(guide, particles, vectorize=vectorize)
    z = (sampler.loc(x) + noise @ sampler.l.mT).detach()
    d_log_q = -(z - sampler.loc(x).detach()) @ torch.linalg.inv(sampler.l @ sampler.l.mT).detach()
    slope = 5.0 * (d_log_q - mixed_score(z, x)) / particles
    torch.testing.assert_close(sampler.c.grad, slope.sum((0, 1)), **EXACT)
    torch.testing.assert_close(sampler.l.grad, torch.einsum("sbi,sbj->ij", slope, noise), **EXACT)
    by_hand = 5.0 * (sampler.log_prob(z, x) - mixed_log_joint(z, x)).sum(-1).mean()
    assert loss == pytest.approx(float(by_hand.detach()), abs=1e-9)


def gradients(known: LinearGaussian, guide: Any) -> list[Tensor]:
    own = guide.part("sampler")
    found = [p.grad.clone() for p in (own.a, own.c, own.l, known.decoder.weight, known.decoder.bias)]
    for p in (*own.parameters(), *known.decoder.parameters()):
        p.grad = None
    return found


@pytest.mark.parametrize("who", ["the caller", "the model"])
def test_minibatches_give_the_gradient_of_all_data_in_expectation(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a partition into subsets of one size, with each datum's own noise, the mean is exact."""
    known = LinearGaussian()
    n, b = 12, 4
    x, noise = known.data(n), torch.randn(n, known.dim)
    full = exact_guide(known.model, known.width).setup(x)
    full.part("sampler").fixed = noise
    AdversarialELBO(pretrain_steps=0).loss_and_grads(known.model, full, x)
    expected = gradients(known, full)

    pyro.clear_param_store()
    model, args = (known.model, (x[:b], n)) if who == "the caller" else (known.subsampling, (x, b))
    guide = exact_guide(model, known.width).setup(*args)
    elbo = AdversarialELBO(pretrain_steps=0)
    parts = []
    for subset in torch.randperm(n).reshape(-1, b):
        rest = torch.tensor([i for i in range(n) if i not in subset.tolist()])
        places = torch.cat([subset, rest])
        monkeypatch.setattr(torch, "randperm", lambda m, device=None, p=places: p)
        guide.part("sampler").fixed = noise[subset]
        elbo.loss_and_grads(model, guide, *((x[subset], n) if who == "the caller" else (x, b)))
        monkeypatch.undo()
        parts.append(gradients(known, guide))
    for of_all, of_parts in zip(expected, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(of_parts).mean(0), of_all, **EXACT)
        assert float((of_parts[0] - of_all).abs().max()) > 1e-3  # a single one differs


@pytest.mark.parametrize("model", [mixed, mixed_in_plates])
def test_a_sampler_that_splits_has_the_same_loss(model: Any) -> None:
    x = torch.randn(6, 4)
    guide = exact_guide(model, 4, SplitSampler)
    loss = AdversarialELBO(num_particles=3, pretrain_steps=0).loss_and_grads(model, guide, x, 30)
    sampler = guide.part("sampler")
    z = (sampler.loc(x) + outer_noise(guide, 3, vectorize=True) @ sampler.l.mT).detach()
    by_hand = 5.0 * (sampler.log_prob(z, x) - mixed_log_joint(z, x)).sum(-1).mean()
    assert loss == pytest.approx(float(by_hand.detach()), abs=1e-9)


def test_terms_of_the_guides_trace_are_scaled_like_the_models() -> None:
    x = torch.randn(6, 4)
    guide = exact_guide(mixed, 4)
    trace = poutine.trace(guide).get_trace(x, 30)
    trace.compute_log_prob()
    (latent,) = [node for name, node in trace.nodes.items() if name.endswith("_latent")]
    z = latent["value"]
    assert z.shape == (6, 2)
    torch.testing.assert_close(latent["log_prob"], 5.0 * guide.part("sampler").log_prob(z, x), **EXACT)
    torch.testing.assert_close(trace.nodes["mu"]["log_prob"], torch.zeros(6), **EXACT)
    torch.testing.assert_close(trace.nodes["tau"]["value"], z[:, 1].exp(), **EXACT)
    # Per unit of tau, not of its logarithm.
    torch.testing.assert_close(trace.nodes["tau"]["log_prob"], -5.0 * z[:, 1], **EXACT)
