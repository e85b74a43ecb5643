"""All methods by name: avbvi's own, the AVB paper's recipe, and the rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import nn

import avbvi
from avbvi.reference import constrained
from avbvi.rng import rng_untouched, seeded
from avbvi.targets import Model
from avbvi.training import Trainer
from benchmarks.fitting import Fitted, Method, Recorder
from benchmarks.problems import Draws, Problem
from benchmarks.rivals import chains, families, guides, numpyro_rivals

#: Files of avbvi that its fits depend on.
AVB_SOURCES = (
    *("avbvi/contrasts", "avbvi/diagnostics", "avbvi/recording", "avbvi/starts", "avbvi/trunks"),
    *(
        f"avbvi/{name}.py"
        for name in (
            *("adversarial", "adversaries", "annealing", "distributions", "elbo", "fitting", "gradients"),
            *("guides", "layout", "mixtures", "parts", "recovery", "refinement", "samplers", "schedules", "targets"),
            *("control", "direct", "hints", "optimisers", "training", "training_state", "trunk_stage"),
        )
    ),
)
#: Figures of the verdict that go into the records.
VERDICT_FIGURES = (
    *("k_hat", "log_evidence", "stage_difference", "stage_difference_stderr", "stage_classifier_excess"),
    *("mean_shift", "sd_ratio_narrow", "sd_ratio_wide", "jeffreys", "jensen_shannon", "energy_shift", "stein_error"),
    *("kl_by_weights", "learned_kl_by_weights", "learned_k_hat", "calibration_error", "cross_entropy_excess"),
    *("modes_found", "modes_lost", "modes_misplaced", "iterates_rhat", "iterates_drift"),
)
MakeGuide = Callable[[Model], avbvi.AVBGuide]


class _WatchedTrainer(Trainer):
    """A training run that is looked at along the way."""

    recorder: Recorder

    def step(self) -> float:
        loss = super().step()
        spent = self.recorder.look(int(self.guide.step_count), self._sample)
        if self.elbo.clock is not None:
            self.elbo.clock.started += spent
        return loss

    def _sample(self, n: int) -> Draws:
        target = self.guide.target(*self.args, **self.kwargs)
        assert target is not None
        return constrained(target, self.guide.draw(n).z)


def avb(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    guide: MakeGuide = avbvi.AVBGuide,
    elbo: Callable[[], avbvi.AdversarialELBO] = avbvi.AdversarialELBO,
    lr: float = 2e-3,
    raw: bool = False,
) -> Fitted:
    """``avbvi.fit`` with a guide and a loss of choice; ``raw`` takes the guide's draws without the HMC at the end."""
    recorder = Recorder(problem, snapshots)
    posterior = _posterior(problem, seed, minutes, guide, elbo, lr, recorder, bool(snapshots))
    seconds = posterior.run.seconds - recorder.spent
    stages = posterior.run.history["stage"]
    figures: dict[str, Any] = {
        "verdict": posterior.verdict.status,
        "stage_kept": "adversarial" if posterior.guide.is_adversarial else "trunk",
        "steps": posterior.run.steps,
        "trunk_steps": round(posterior.run.steps * stages.count(0.0) / max(len(stages), 1)),
        "skipped_steps": posterior.run.skipped_steps,
    }
    figures["verdict_reasons"] = "; ".join(posterior.verdict.reasons)
    for name in VERDICT_FIGURES:
        if name in posterior.verdict.figures:
            figures[name] = posterior.verdict.figures[name]
    sample = partial(posterior.sample, hmc_steps=0) if raw else posterior.sample
    figures["hmc_steps"] = 0 if raw else posterior.hmc_steps
    return Fitted(
        sample,
        seconds,
        posterior.elbo(50_000),
        posterior.elbo_is_exact,
        figures,
        recorder.last(seconds, posterior.run.steps, sample),
    )


def _posterior(
    problem: Problem,
    seed: int,
    minutes: float,
    guide: MakeGuide,
    elbo: Callable[[], avbvi.AdversarialELBO],
    lr: float,
    recorder: Recorder,
    watched: bool,
) -> avbvi.Posterior:
    with seeded(seed):  # a user's network draws its weights when it is made
        made, loss = guide(problem.model), elbo()
    if not watched:
        return avbvi.fit(
            problem.model, *problem.args, guide=made, elbo=loss, lr=lr, seed=seed, minutes=minutes, progress=False
        )
    # What avbvi.fit does, with a trainer that can be watched.
    with seeded(seed):
        trainer = _WatchedTrainer(problem.model, problem.args, {}, made, loss, lr)
        trainer.recorder = recorder
        trainer.run.seed = seed
        return trainer.train(None, minutes, progress=False, checkpoint=None)


def affine_guide(model: Model) -> avbvi.AVBGuide:
    """The default guide with whitening instead of a flow: the adversary has all the work."""
    return avbvi.AVBGuide(model, trunk=avbvi.AffineTrunk())


def generator(dim: int) -> nn.Module:
    """What a user might bring: a plain network of 64-dimensional noise, as torch initialises it."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, dim))


def own_sampler_guide(model: Model, *, dim: int, trunk: Callable[[], avbvi.Trunk] | None = None) -> avbvi.AVBGuide:
    """The default guide with a user's generator network in place of its sampler, behind a trunk of choice."""
    own = avbvi.ModuleSampler(generator(dim), noise_dim=64)
    return avbvi.AVBGuide(model, sampler=own, trunk=None if trunk is None else trunk())


def own_sampler(
    problem: Problem,
    seed: int,
    minutes: float,
    snapshots: Sequence[float],
    *,
    trunk: Callable[[], avbvi.Trunk] | None = None,
) -> Fitted:
    """``avbvi.fit`` with :func:`own_sampler_guide`."""
    with rng_untouched():
        layout = avbvi.AVBGuide(problem.model).setup(*problem.args).layout
    assert layout is not None
    guide = partial(own_sampler_guide, dim=layout.dim, trunk=trunk)
    return avb(problem, seed, minutes, snapshots, guide=guide)


def paper_guide(model: Model, contrast: avbvi.Contrast | None = None) -> avbvi.AVBGuide:
    """The networks of the AVB paper for Eight Schools (its authors' public notebook), adaptive contrast by default."""
    return avbvi.AVBGuide(
        model,
        trunk=avbvi.IdentityTrunk(),
        sampler=avbvi.MLPSampler(hidden=(128, 128), noise_dim=10),
        contrast=contrast or avbvi.GaussianContrast(),
        adversary=avbvi.ResidualAdversary(hidden=256, blocks=5, target_hint=False, slope=0.2),
    )


def prior_contrast_guide(model: Model) -> avbvi.AVBGuide:
    """The paper's networks with the model's prior as contrast (Algorithm 1)."""
    return paper_guide(model, avbvi.PriorContrast())


def paper_elbo() -> avbvi.AdversarialELBO:
    """The loss of the paper's recipe: batches of 512, two adversary steps at 2e-4, nothing scheduled."""
    plain = avbvi.Schedule(trunk=0.0, anneal=0.0, polish=0.0, decay=False)
    return avbvi.AdversarialELBO(
        num_particles=512, adversary_steps=2, adversary_batch=512, adversary_lr=2e-4, pretrain_steps=0, schedule=plain
    )


def trunk_elbo() -> avbvi.AdversarialELBO:
    """The default loss with all of the run given to the trunk."""
    return avbvi.AdversarialELBO(schedule=avbvi.Schedule(trunk=1.0))


def all_stages_elbo() -> avbvi.AdversarialELBO:
    """The default loss with an adversarial stage however close the trunk is."""
    return avbvi.AdversarialELBO(schedule=avbvi.Schedule(settle=0.0))


paper = partial(avb, guide=paper_guide, elbo=paper_elbo, lr=1e-4, raw=True)


def paper_long(problem: Problem, seed: int, minutes: float, snapshots: Sequence[float]) -> Fitted:
    """The paper's recipe for five times as long: its networks are large and its rates small."""
    return paper(problem, seed, 5.0 * minutes, snapshots)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("default", "avbvi default", avb, sources=AVB_SOURCES),
        Method("avb-pure", "pure AVB (no flow)", partial(avb, guide=affine_guide, raw=True), sources=AVB_SOURCES),
        Method(
            "own-sampler",
            "a user's generator network, 64-d noise",
            own_sampler,
            sources=AVB_SOURCES,
        ),
        Method(
            "own-sampler-flow",
            "the same behind a flow trunk",
            partial(own_sampler, trunk=avbvi.FlowTrunk),
            sources=AVB_SOURCES,
        ),
        Method(
            "all-stages",
            "avbvi, adversarial stage always",
            partial(avb, elbo=all_stages_elbo, raw=True),
            sources=AVB_SOURCES,
        ),
        Method("trunk-only", "trunk alone", partial(avb, elbo=trunk_elbo, raw=True), sources=AVB_SOURCES),
        Method("paper", "AVB paper, adaptive contrast", paper, sources=AVB_SOURCES),
        Method("paper-long", "AVB paper, adaptive contrast, 5 minutes", paper_long, sources=AVB_SOURCES),
        Method(
            "paper-prior-contrast",
            "AVB paper, prior contrast",
            partial(avb, guide=prior_contrast_guide, elbo=paper_elbo, lr=1e-4, raw=True),
            sources=AVB_SOURCES,
        ),
        Method("mixture-4", "Gaussian mixture, K = 4", families.mixture_4, sources=families.SOURCES),
        Method(
            "nsf",
            "zuko coupling NSF, path gradient",
            families.nsf,
            missing=families.zuko_missing,
            sources=families.SOURCES,
        ),
        Method("iaf-stl", "IAF [64, 64] x 3, path gradient", families.iaf_stl, sources=families.SOURCES),
        Method(
            "iaf",
            "Pyro AutoIAFNormal [64, 64] x 3",
            partial(guides.autoguide, make=partial(AutoIAFNormal, hidden_dim=[64, 64], num_transforms=3), lr=5e-3),
            sources=guides.SOURCES,
        ),
        Method(
            "advi-fullrank",
            "ADVI full-rank",
            partial(guides.autoguide, make=AutoMultivariateNormal, lr=1e-2),
            sources=guides.SOURCES,
        ),
        Method(
            "advi-lowrank",
            "ADVI low-rank",
            partial(guides.autoguide, make=AutoLowRankMultivariateNormal, lr=1e-2),
            sources=guides.SOURCES,
        ),
        Method(
            "advi-meanfield",
            "ADVI mean-field",
            partial(guides.autoguide, make=AutoNormal, lr=1e-2),
            sources=guides.SOURCES,
        ),
        Method("nuts", "Pyro NUTS, 4 x 1000", chains.nuts, timed=False, curves=False, sources=chains.NUTS_SOURCES),
        Method("hmc", "avbvi batched HMC", chains.hmc, timed=False, curves=False, sources=chains.HMC_SOURCES),
        Method(
            "numpyro-iaf",
            "NumPyro AutoIAFNormal [64, 64] x 3",
            numpyro_rivals.iaf,
            curves=False,
            missing=numpyro_rivals.missing,
        ),
        Method(
            "numpyro-nuts",
            "NumPyro NUTS, 4 x 1000",
            numpyro_rivals.nuts,
            timed=False,
            curves=False,
            missing=numpyro_rivals.missing,
        ),
    )
}
