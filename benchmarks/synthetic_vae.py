"""Four one-hot images of 2 x 2 pixels with latents in the plane: Table 1 and Figure 6 of AVB (section 5.1).

``python -m benchmarks.synthetic_vae [--seeds 3] [--methods M ...] [--keep] [--quick]``

All methods share decoder, optimiser, schedule and steps, and see all four images in every step; encoders have equally
many parameters within 10 %. log p(x), the true posterior and the ELBO of the trained encoder come from quadrature and
neighbours (``models.synthetic_images``); the adversary's own estimate of the ELBO stands beside them. The picture shows
the first seed. ``--quick`` trains for few steps; ``--minutes`` is of no effect. Each run has one thread; see
``benchmarks.runner`` for interrupted runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import avbvi
from avbvi import AdversarialELBO, AVBGuide, PriorContrast
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.amortised.samplers import ConditionalSampler
from avbvi.contrasts import Contrast
from avbvi.rng import rng_untouched
from avbvi.schedules import Schedule
from benchmarks import figures, latent, latent_tables, record, runner
from benchmarks.judging import Row
from benchmarks.runner import Job
from models.decoders import FullyConnectedDecoder
from models.encoders import Encoder, GaussianEncoder, MLPBody, parameter_count, width_for
from models.synthetic_images import PlanarTruth, kl_to_standard_normal, one_hot_images
from models.vaes import VAE, Likelihood, bernoulli

NAME = "synthetic_vae"
TARGET = "one_hot_2x2"
CACHE = Path(__file__).resolve().parent / ".cache" / NAME
SEEDS = 3
STEPS, QUICK_STEPS = 8000, 300
HIDDEN = (128, 128)
#: Draws for each image in a training step, and those that the judges see.
DRAWS, JUDGED, QUICK_JUDGED, SHOWN = 128, 40_000, 4_000, 2_000
#: Points of the quadrature per axis.
POINTS, QUICK_POINTS = 301, 101
#: The decoder learns faster than the encoder: borders between images are as sharp as its weights are large.
RATE, DECODER_RATE, ADVERSARY_RATE, AVERAGE = 3e-3, 1.6e-2, 4e-3, 0.999
#: Draws from which adaptive contrast takes a Gaussian's moments.
MOMENT_DRAWS = 128
RELU = 0.0  # slope on the left: posteriors with sharp edges are cut out better by units with kinks
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / f"benchmark_{NAME}.png"
LAWS = {"encoder": "encoder q(z | x)", "posterior": "posterior p(z | x)"}
KEYS = (
    *("method", "seed", "seconds", "cpu_seconds_with_verdict", "log_likelihood", "elbo_exact", "elbo", "elbo_error"),
    *("gap", "reconstruction_error", "kl_aggregate", "verdict"),
)


@dataclass(frozen=True)
class Trained:
    """A VAE with its encoder.

    Args:
        sample: n -> draws of q(z | x) for the four images, (n, 4, 2).
        log_q: their log-density, exact or learned: (n, 4, 2) -> (n, 4).
        figures: further ones of the record.
    """

    vae: VAE
    sample: Callable[[int], Tensor]
    log_q: Callable[[Tensor], Tensor]
    figures: Row


def make_vae(likelihood: Likelihood = bernoulli) -> VAE:
    """The model, with parameters drawn from the global random state."""
    return VAE(FullyConnectedDecoder(2, (1, 2, 2), hidden=HIDDEN, activation=nn.ReLU), 2, likelihood)


def make_sampler() -> ConditionalSampler:
    """AVB's encoder; its size is the budget of the Gaussian one."""
    return ConditionalSampler(one_hot_images().shape[1], hidden=HIDDEN, slope=RELU)


def make_adversary(kind: type[InnerProductAdversary] = InnerProductAdversary, **options: Any) -> InnerProductAdversary:
    """AVB's adversary, or a kind of it."""
    return kind(hidden=HIDDEN, slope=RELU, **options)


def body(width: int) -> MLPBody:
    """Two layers that see an image."""
    return MLPBody(one_hot_images().shape[1], (width, width))


def gaussian_encoder(budget: int) -> GaussianEncoder:
    """The VAE's encoder, with so many parameters."""

    def make(width: int) -> GaussianEncoder:
        return GaussianEncoder(body(width), 2)

    return make(width_for(budget, make))


def encoder_budget() -> int:
    """The number of parameters of AVB's encoder."""
    sampler = make_sampler()
    with rng_untouched():
        sampler.build(2)
    return parameter_count(sampler)


def rates(vae: VAE, encoder: nn.Module | None, decoder_rate: float) -> list[dict[str, Any]]:
    """Groups of parameters for Adam: encoder, if there is one, and decoder have rates of their own."""
    groups: list[dict[str, Any]] = [] if encoder is None else [{"params": list(encoder.parameters())}]
    return [*groups, {"params": list(vae.parameters()), "lr": decoder_rate}]


def train_encoder(
    seed: int,
    steps: int,
    make: Callable[[int], Encoder],
    model: Callable[[], VAE] | None = None,
    decoder_rate: float = DECODER_RATE,
) -> Trained:
    """Encoder with a density, made from a budget of parameters, trained by the plain ELBO.

    ``model`` makes another VAE than the board's, ``decoder_rate`` is its learning rate, here and below.
    """
    pyro.set_rng_seed(seed)
    vae, x = (model or make_vae)(), one_hot_images()
    encoder = make(encoder_budget())
    latent.train(
        Trace_ELBO(num_particles=DRAWS, vectorize_particles=True),
        vae.model,
        encoder.guide,
        [x],
        rates(vae, encoder, decoder_rate),
        latent.Recipe(steps, lr=RATE, average=AVERAGE),
        seed=seed,
    )
    with torch.no_grad():
        posterior = encoder.posterior(x)
    return Trained(vae, lambda n: posterior.sample(torch.Size((n,))), posterior.log_prob, {})


def train_vae(
    seed: int, steps: int, model: Callable[[], VAE] | None = None, decoder_rate: float = DECODER_RATE
) -> Trained:
    """Gaussian encoder with diagonal covariance, trained by the plain ELBO."""
    return train_encoder(seed, steps, gaussian_encoder, model, decoder_rate)


def train_avb(
    seed: int,
    steps: int,
    contrast: Contrast,
    adversary: InnerProductAdversary | None = None,
    *,
    model: Callable[[], VAE] | None = None,
    decoder_rate: float = DECODER_RATE,
) -> Trained:
    """Encoder without density: noise goes into every layer, the adversary learns its log-ratio to the contrast."""
    pyro.set_rng_seed(seed)
    vae, x = (model or make_vae)(), one_hot_images()
    guide = AVBGuide(
        vae.model,
        sampler=make_sampler(),
        adversary=make_adversary() if adversary is None else adversary,
        contrast=contrast,
    )
    elbo = AdversarialELBO(
        num_particles=DRAWS, adversary_batch=DRAWS, adversary_lr=ADVERSARY_RATE, schedule=Schedule(average=AVERAGE)
    )
    posterior = avbvi.fit(
        vae.model, x, guide=guide, elbo=elbo, lr=RATE, model_lr=decoder_rate, steps=steps, seed=seed, progress=False
    )
    return Trained(
        vae,
        lambda n: guide.draw_latents(n, x),
        lambda z: guide.log_q(z, x).detach(),
        {
            "verdict": posterior.verdict.status,
            "skipped_steps": posterior.run.skipped_steps,
            "rollbacks": posterior.run.rollbacks,
        },
    )


METHODS: dict[str, Callable[[int, int], Trained]] = {
    "vae": train_vae,
    "avb": lambda seed, steps: train_avb(seed, steps, PriorContrast()),
    "avb+ac": lambda seed, steps: train_avb(seed, steps, ConditionalGaussianContrast(draws=MOMENT_DRAWS)),
}


@torch.no_grad()
def judged(trained: Trained, draws: int, points: int = POINTS) -> Row:
    """Exact figures of a trained model, and the encoder's own estimate of its ELBO."""
    x = one_hot_images()
    truth = PlanarTruth(trained.vae, x, points)
    z = trained.sample(draws)
    exact = truth.elbo(z)
    log_likelihood = float(truth.log_likelihood.mean())
    own = float((trained.vae.log_joint(x, z) - trained.log_q(z)).mean())
    log_likelihood_of_reconstructions = trained.vae.likelihood(trained.vae.decoder(z)).log_prob(x)
    aggregate = kl_to_standard_normal(z.flatten(0, 1))
    return {
        "log_likelihood": log_likelihood,
        "elbo_exact": exact.value,
        "elbo_exact_stderr": exact.stderr,
        "elbo": own,
        "elbo_error": own - exact.value,
        "gap": log_likelihood - exact.value,
        "reconstruction_error": -float(log_likelihood_of_reconstructions.mean()) / x.shape[1],
        "kl_aggregate": aggregate.value,
        "kl_aggregate_stderr": aggregate.stderr,
    }


def run(job: Job) -> list[Row]:
    """One job of the board; the first seed leaves draws for the picture."""
    quick = job.minutes <= runner.QUICK_MINUTES
    steps = QUICK_STEPS if quick else STEPS
    matmul = record.matmul_seconds()
    started, cpu = time.monotonic(), time.process_time()
    trained = METHODS[job.method](job.seed, steps)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    if job.seed == 0 and not quick:
        CACHE.mkdir(parents=True, exist_ok=True)
        truth = PlanarTruth(trained.vae, one_hot_images())
        torch.save(
            {"encoder": trained.sample(SHOWN), "posterior": truth.sample_posterior(SHOWN)},
            CACHE / f"{job.method}.pt",
        )
    return [
        {
            "target": TARGET,
            "method": job.method,
            "seed": job.seed,
            "device": "cpu",
            "seconds": seconds,
            "cpu_seconds_with_verdict": cpu,
            "matmul_seconds": matmul,
            "steps": steps,
            **(judged(trained, QUICK_JUDGED, QUICK_POINTS) if quick else judged(trained, JUDGED)),
            **trained.figures,
        }
    ]


def finished(records: list[Row]) -> list[Row]:
    """Records in the order of the board."""
    order = {name: i for i, name in enumerate(METHODS)}
    return sorted(records, key=lambda r: (order[r["method"]], r["seed"]))


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what is not yet done, save, print the table, draw the picture."""
    settings = runner.options(
        __doc__, methods=tuple(METHODS), targets=(TARGET,), seeds=SEEDS, minutes=1.0, arguments=arguments
    )
    jobs = [
        Job(TARGET, method, seed, settings.minutes)
        for method in reversed(METHODS)  # the longest first
        for seed in range(settings.seeds)
        if settings.wants(TARGET, method)
    ]
    records = runner.run_jobs(NAME, jobs, run, settings, keys=KEYS, finish=finished)
    found = {method: CACHE / f"{method}.pt" for method in METHODS}
    if not settings.quick and all(path.exists() for path in found.values()):
        drawn = {method: torch.load(path, weights_only=True) for method, path in found.items()}
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        figures.planes(drawn, latent_tables.LABELS | LAWS).savefig(PICTURE, dpi=150)
        print(PICTURE)
    return records


if __name__ == "__main__":
    main()
