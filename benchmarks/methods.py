"""Inference methods behind one interface, each with the settings that a user would give it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuide, AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import avbvi
from avbvi.starts import laplace_modes
from avbvi.targets import UnconstrainedTarget

Draws = dict[str, Tensor]


@dataclass
class Fitted:
    """What a method returns: a function for draws, and figures for the record."""

    sample: Callable[[int], Draws]
    seconds: float
    elbo: avbvi.Estimate
    #: Whether log q is exact, so that log Z - elbo is the KL divergence.
    exact: bool
    figures: dict[str, Any] = field(default_factory=dict)


Method = Callable[[Callable[..., Any], int, float], Fitted]


def avb(
    model: Callable[..., Any],
    seed: int,
    minutes: float,
    *,
    guide: Callable[[Callable[..., Any]], avbvi.AVBGuide] = avbvi.AVBGuide,
    elbo: Callable[[], avbvi.AdversarialELBO] = avbvi.AdversarialELBO,
    lr: float = 2e-3,
) -> Fitted:
    """``avbvi.fit`` with a guide and a loss of choice."""
    posterior = avbvi.fit(model, guide=guide(model), elbo=elbo(), lr=lr, seed=seed, minutes=minutes, progress=False)
    stages = posterior.run.history["stage"]
    figures: dict[str, Any] = {
        "verdict": posterior.verdict.status,
        "stage_kept": "adversarial" if posterior.guide.is_adversarial else "trunk",
        "steps": posterior.run.steps,
        "trunk_steps": round(posterior.run.steps * stages.count(0.0) / max(len(stages), 1)),
        "skipped_steps": posterior.run.skipped_steps,
    }
    for name in ("k_hat", "log_evidence", "stage_difference", "stage_difference_stderr", "stage_classifier_excess"):
        if name in posterior.verdict.figures:
            figures[name] = posterior.verdict.figures[name]
    return Fitted(posterior.sample, posterior.run.seconds, posterior.elbo(50_000), posterior.elbo_is_exact, figures)


def paper_guide(model: Callable[..., Any], contrast: avbvi.Contrast | None = None) -> avbvi.AVBGuide:
    """The networks of the AVB paper for Eight Schools (its authors' public notebook), adaptive contrast by default."""
    return avbvi.AVBGuide(
        model,
        trunk=avbvi.IdentityTrunk(),
        sampler=avbvi.MLPSampler(hidden=(128, 128), noise_dim=10),
        contrast=contrast or avbvi.GaussianContrast(),
        adversary=avbvi.ResidualAdversary(hidden=256, blocks=5, target_hint=False, slope=0.2),
    )


def paper_elbo() -> avbvi.AdversarialELBO:
    """The loss of the paper's recipe: batches of 512, two adversary steps at 2e-4, nothing scheduled."""
    plain = avbvi.Schedule(trunk=0.0, anneal=0.0, polish=0.0, decay=False)
    return avbvi.AdversarialELBO(
        num_particles=512, adversary_steps=2, adversary_batch=512, adversary_lr=2e-4, pretrain_steps=0, schedule=plain
    )


def autoguide(
    model: Callable[..., Any], seed: int, minutes: float, *, make: Callable[..., AutoGuide], lr: float
) -> Fitted:
    """One of Pyro's guides by SVI: 64 vectorised particles, Adam, cosine decay of the rate over the time given."""
    started = time.monotonic()
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = make(model)
    clock = avbvi.schedules.Clock(60.0 * minutes)
    schedule = avbvi.Schedule()
    optimiser = pyro.optim.PyroOptim(
        partial(avbvi.schedules.ScheduledAdam, factor=lambda: schedule.factor(clock.progress()), betas=(0.9, 0.999)),
        {"lr": lr},
    )
    svi = SVI(model, guide, optimiser, loss=Trace_ELBO(num_particles=64, vectorize_particles=True))
    steps = 0
    with pyro.validation_enabled(False):
        while clock.progress() < 1.0:
            svi.step()
            steps += 1
    seconds = time.monotonic() - started
    judge = Trace_ELBO(num_particles=2500, vectorize_particles=True)
    with torch.no_grad():
        terms = torch.tensor([-judge.loss(model, guide) for _ in range(20)])
    elbo = avbvi.Estimate(float(terms.mean()), float(terms.std() / math.sqrt(20)))

    def sample(n: int) -> Draws:
        with torch.no_grad():
            draws = Predictive(guide, num_samples=n, parallel=True)()
        return {
            name: value.squeeze(1) if value.dim() == 2 else value for name, value in draws.items() if name[0] != "_"
        }

    return Fitted(sample, seconds, elbo, True, {"steps": steps})


def gaussian_mixture(
    model: Callable[..., Any], seed: int, minutes: float, *, components: int = 4, lr: float = 1e-2, particles: int = 64
) -> Fitted:
    """Full-covariance Gaussian mixture by the plain ELBO: draws stratified by component, path gradient, Adam.

    It starts from multi-start Laplace, components shared out over the modes and jittered.
    """
    started = time.monotonic()
    pyro.set_rng_seed(seed)
    target = _target(model)
    modes = laplace_modes(target.log_prob, target.starting_points(32))
    assert modes is not None
    index = torch.arange(components) % len(modes.locs)
    tril = torch.linalg.cholesky(modes.covariances[index])
    locs = (
        modes.locs[index] + 0.5 * (tril @ torch.randn(components, target.layout.dim, 1)).squeeze(-1)
    ).requires_grad_()
    lower = torch.tril(tril, -1).clone().requires_grad_()
    log_diagonal = tril.diagonal(dim1=1, dim2=2).log().clone().requires_grad_()
    logits = torch.zeros(components, requires_grad=True)
    parameters = [locs, lower, log_diagonal, logits]

    def mixture(*values: Tensor) -> torch.distributions.MixtureSameFamily:
        scale_tril = torch.tril(values[1], -1) + torch.diag_embed(values[2].exp())
        gaussians = torch.distributions.MultivariateNormal(values[0], scale_tril=scale_tril, validate_args=False)
        weights = torch.distributions.Categorical(logits=values[3], validate_args=False)
        return torch.distributions.MixtureSameFamily(weights, gaussians, validate_args=False)

    clock, schedule, steps = avbvi.schedules.Clock(60.0 * minutes), avbvi.Schedule(), 0
    optimiser = avbvi.schedules.ScheduledAdam(
        parameters, lr=lr, betas=(0.9, 0.999), factor=lambda: schedule.factor(clock.progress())
    )
    with pyro.validation_enabled(False):
        while clock.progress() < 1.0:
            z = mixture(*parameters).component_distribution.rsample((particles,)).transpose(0, 1)
            flat = z.reshape(-1, z.shape[-1])
            log_q = mixture(*[p.detach() for p in parameters]).log_prob(flat)
            terms = (target.log_prob(flat) - log_q).reshape(components, particles).mean(1)
            loss = -(logits.softmax(0) * terms).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
    seconds = time.monotonic() - started
    final = mixture(*[p.detach() for p in parameters])
    z = final.sample((50_000,))
    terms = (target.log_prob(z) - final.log_prob(z)).double()
    elbo = avbvi.Estimate(float(terms.mean()), float(terms.std() / math.sqrt(50_000)))
    return Fitted(lambda n: target.layout.constrain(final.sample((n,)))[0], seconds, elbo, True, {"steps": steps})


def _target(model: Callable[..., Any]) -> UnconstrainedTarget:
    guide = avbvi.AVBGuide(model).setup()
    target = guide.target()
    assert target is not None
    return target


def paper_long(model: Callable[..., Any], seed: int, minutes: float) -> Fitted:
    """The paper's recipe for five times as long: its networks are large and its rates small."""
    return METHODS["paper"](model, seed, 5.0 * minutes)


METHODS: dict[str, Method] = {
    "default": avb,
    "avb-pure": partial(avb, guide=lambda model: avbvi.AVBGuide(model, trunk=avbvi.AffineTrunk())),
    "paper": partial(avb, guide=paper_guide, elbo=paper_elbo, lr=1e-4),
    "paper-long": paper_long,
    "paper-prior-contrast": partial(
        avb, guide=lambda model: paper_guide(model, avbvi.PriorContrast()), elbo=paper_elbo, lr=1e-4
    ),
    "trunk-only": partial(avb, elbo=lambda: avbvi.AdversarialELBO(schedule=avbvi.Schedule(trunk=1.0))),
    "mixture-4": gaussian_mixture,
    "advi-meanfield": partial(autoguide, make=AutoNormal, lr=1e-2),
    "advi-fullrank": partial(autoguide, make=AutoMultivariateNormal, lr=1e-2),
    "iaf": partial(autoguide, make=partial(AutoIAFNormal, hidden_dim=[64, 64], num_transforms=3), lr=5e-3),
}
