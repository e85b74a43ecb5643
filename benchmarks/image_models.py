"""Latent-variable models of pictures for the boards: every encoder trained alike, judged alike, in pieces if need be.

A task says what all methods share: decoder, data, optimiser, schedule, steps, and the size of the encoder, which is
that of AVB's sampler within 10 %. Each trained model is judged by annealed importance sampling from Gaussians with the
moments of its own encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import avbvi
from avbvi import AdversarialELBO, AVBGuide, PriorContrast
from avbvi.adversaries import Adversary
from avbvi.amortised.adversaries import ConditionalAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.amortised.semi_implicit import SemiImplicitSampler
from avbvi.annealed import AnnealedEvidence, GaussianStart, SigmoidTemperatures
from avbvi.checkpoints import write_atomically
from avbvi.latent_figures import active_units
from avbvi.schedules import Schedule
from benchmarks.judging import Row
from benchmarks.latent import Recipe, Training
from benchmarks.pieces import Clock
from benchmarks.rivals.latent import RIVALS
from benchmarks.rivals.relatives import RELATIVES, Opponents, plain_adversary
from models.data.images import Images
from models.data.loaders import PixelRows, loader
from models.decoders import Decoder
from models.encoders import parameter_count
from models.likelihoods import Likelihood, bernoulli
from models.vaes import VAE

AVB = "avb+ac"
#: AVB's methods: what contrast the adversary tells the encoder's draws from.
CONTRASTS = {AVB: ConditionalGaussianContrast, "avb": PriorContrast}
#: Draws by datum: for ELBO and moments, for the start of annealing, for the mixture that bounds AVB's log q.
DRAWS, START_DRAWS, MIXTURE = 100, 200, 1000
#: Of the covariance of the encoder's draws, for the start of annealing.
INFLATION = 1.5
#: Data that the ELBO and its like are computed on at a time.
CHUNK = 64


@dataclass(frozen=True)
class Task:
    """What the methods of a row share.

    Args:
        latent_dim: width of z.
        pixels: numbers in a picture.
        decoder: makes a decoder.
        body: width -> what an encoder makes of a picture first.
        width: that of AVB's body.
        shape: widths of the network that gives AVB's encoder its shape.
        adversary: makes an adversary of pairs, AVB's and that of joint losses.
        recipe: optimiser, schedule, steps.
        batch_size: pictures in a step.
        adversary_lr, adversary_draws: learning rate of adversaries, and AVB's draws by datum and step.
        adversary_steps: of each adversary in a step.
        likelihood: makes p(x | z); for joint losses one with draws that have a gradient.
        latent_adversary, data_adversary: make adversaries of latents alone and of pictures alone.
    """

    latent_dim: int
    pixels: int
    decoder: Callable[[], Decoder]
    body: Callable[[int], nn.Module]
    width: int
    shape: tuple[int, ...]
    adversary: Callable[[], ConditionalAdversary]
    recipe: Recipe
    batch_size: int
    adversary_lr: float = 1e-3
    adversary_draws: int = 2
    adversary_steps: int = 2
    likelihood: Callable[[], Likelihood] = lambda: bernoulli
    latent_adversary: Callable[[], Adversary] = plain_adversary
    data_adversary: Callable[[], Adversary] = plain_adversary

    @property
    def schedule(self) -> Schedule:
        """The recipe's, for losses with adversaries."""
        return Schedule(kl_warm_up=self.recipe.warm_up, average=self.recipe.average or 0.0)

    def opponents(self) -> Opponents:
        """The adversaries of joint losses, and how they learn."""
        return Opponents(
            self.adversary,
            self.latent_adversary,
            self.data_adversary,
            steps=self.recipe.steps,
            adversary_steps=self.adversary_steps,
            adversary_lr=self.adversary_lr,
            schedule=self.schedule,
        )

    def sampler(self) -> SemiImplicitSampler:
        """AVB's encoder; its size is the budget of all."""
        return SemiImplicitSampler(self.pixels, hidden=self.shape, body=self.body(self.width))


@dataclass(frozen=True)
class Trained:
    """A trained decoder with its encoder.

    Args:
        vae: the model.
        draw: (x, n) -> z (n, B, dim) with log q (n, B), exact or learned.
        bounds: (x, n) -> a lower and an upper bound of log q on average, at n draws z, which come first; None where
            log q is exact.
        figures: further ones for the record.
        encodes: False where there is no encoder; draws are then the prior's.
    """

    vae: VAE
    draw: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    bounds: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]] | None
    figures: Row
    encodes: bool = True


def train(
    task: Task,
    method: str,
    data: DataLoader[Tensor],
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    clock: Clock | None = None,
) -> Trained:
    """Train a model by a method.

    Args:
        task: what it shares with others.
        method: a key of ``CONTRASTS``, ``RIVALS`` or ``RELATIVES``.
        data: the minibatches, on the device.
        seed: of parameters, batches and noise.
        device: where to train.
        checkpoint: file of a run that is cut in pieces.
        clock: the time that this piece may take.

    Raises:
        KeyboardInterrupt: the time is over and the run saved: call again with the same arguments.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae = VAE(task.decoder(), task.latent_dim, task.likelihood()).to(device)
    clock = clock or Clock()
    one = partial(_train_avb if method in CONTRASTS else _train_rival, method=method)
    return one(task, vae, data, seed, device, checkpoint, clock)


def _train_avb(
    task: Task,
    vae: VAE,
    data: DataLoader[Tensor],
    seed: int,
    device: str,
    checkpoint: Path | None,
    clock: Clock,
    *,
    method: str,
) -> Trained:
    sampler, recipe = task.sampler(), task.recipe
    guide = AVBGuide(vae.model, sampler=sampler, adversary=task.adversary(), contrast=CONTRASTS[method]())
    elbo = AdversarialELBO(
        adversary_steps=task.adversary_steps,
        adversary_batch=task.adversary_draws,
        adversary_lr=task.adversary_lr,
        schedule=task.schedule,
    )
    with clock.interrupting():
        posterior = avbvi.fit(
            *(vae.model, data),
            guide=guide,
            elbo=elbo,
            lr=recipe.lr,
            steps=recipe.steps,
            seed=seed,
            device=None if device == "cpu" else device,
            progress=False,
            checkpoint=checkpoint,
        )
    if posterior.run.interrupted:
        raise KeyboardInterrupt

    def draw(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        z = guide.draw_latents(n, x)
        return z, guide.log_q(z, x)

    def bounds(x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        noise = sampler.sample_noise(torch.Size((n, len(x))), like=x)
        return sampler(noise, x), *sampler.log_prob_bounds(noise, x, draws=MIXTURE)

    figures = {"parameters": parameter_count(sampler), "verdict": posterior.verdict.status}
    return Trained(vae, draw, bounds, {**figures, "train_seconds": posterior.run.seconds})


def _train_rival(
    task: Task,
    vae: VAE,
    data: DataLoader[Tensor],
    seed: int,
    device: str,
    checkpoint: Path | None,
    clock: Clock,
    *,
    method: str,
) -> Trained:
    relative = RELATIVES.get(method)
    rival = RIVALS[method if relative is None else relative.encoder]
    sampler = task.sampler()
    sampler.build(task.latent_dim)
    encoder = rival.encoder(task.body, task.latent_dim, parameter_count(sampler)).to(device)
    encodes = relative is None or relative.encodes
    modules = [vae, encoder] if encodes else [vae]
    training = Training(
        rival.elbo() if relative is None else relative.loss(task.opponents()),
        vae.model,
        encoder.guide,
        data,
        [p for module in modules for p in module.parameters()],
        task.recipe,
        seed=seed,
        modules=modules,
    )
    if checkpoint is not None and checkpoint.exists():
        training.load_state_dict(torch.load(checkpoint, weights_only=True, map_location=device))
    done = training.run(clock.left)
    if checkpoint is not None:
        write_atomically(checkpoint, training.state_dict())
    if not done:
        raise KeyboardInterrupt
    figures = {"parameters": encoder.sampling_parameters(), "train_seconds": training.seconds}
    if encodes:
        return Trained(vae, encoder.propose, None, figures)
    return Trained(vae, partial(draws_of_prior, vae), None, {**figures, "parameters": 0}, encodes=False)


def draws_of_prior(vae: VAE, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    z = vae.prior(x).sample((n, len(x)))
    return z, vae.prior(x).log_prob(z)


@torch.no_grad()
def figures_of(trained: Trained, x: Tensor) -> Row:
    """ELBO, as the encoder itself has it and exactly, reconstruction error and active units, on data x.

    ``elbo`` takes log q as the method knows it. Where an adversary learned it, ``elbo_exact`` is a lower bound of the
    true ELBO by the mixture that AVB's encoder is, and ``elbo_exact_upper`` an upper one.
    """
    sums: dict[str, float] = {}
    means = []

    def add(key: str, values: Tensor) -> None:
        sums[key] = sums.get(key, 0.0) + float(values.double().mean(0).sum())

    for part in x.split(CHUNK):
        z, log_q = trained.draw(part, DRAWS)
        log_joint = trained.vae.log_joint(part, z)
        add("elbo", log_joint - log_q)
        add("log_likelihood_of_reconstructions", log_joint - trained.vae.prior(z).log_prob(z))
        means.append(z.mean(0))
        if trained.bounds is not None:
            z, low, high = trained.bounds(part, DRAWS // 10)
            log_joint = trained.vae.log_joint(part, z)
            add("elbo_exact", log_joint - high)
            add("elbo_exact_upper", log_joint - low)
    figures: Row = {key: value / len(x) for key, value in sums.items()}
    figures["reconstruction_error"] = -figures.pop("log_likelihood_of_reconstructions") / x[0].numel()
    figures.setdefault("elbo_exact", figures["elbo"])
    return {**figures, "active_units": active_units(torch.cat(means)).active}


def anneal(
    trained: Trained,
    x: Tensor,
    *,
    temperatures: int,
    chains: int = 5,
    seed: int = 0,
    batch_size: int | None = None,
    checkpoint: Path | None = None,
    clock: Clock | None = None,
) -> AnnealedEvidence:
    """log p(x) by annealed importance sampling, from Gaussians with the moments of the encoder's draws.

    Raises:
        KeyboardInterrupt: the clock's time is over and the run saved.
    """

    @torch.no_grad()
    def start(part: Tensor) -> GaussianStart:
        return GaussianStart.of_draws(trained.draw(part, START_DRAWS)[0], inflation=INFLATION)

    pyro.clear_param_store()
    with (clock or Clock()).interrupting():
        return avbvi.annealed_importance_sampling(
            *(trained.vae.model, x),
            start=start,
            temperatures=SigmoidTemperatures(temperatures),
            chains=chains,
            batch_size=batch_size,
            seed=seed,
            device=x.device,
            progress=False,
            checkpoint=checkpoint,
        )


def evidence_figures(evidence: AnnealedEvidence) -> Row:
    """The figures of annealed importance sampling: its error over chains, and that of the data as a sample."""
    return {
        "ais": evidence.mean.value,
        "ais_stderr": evidence.mean.stderr,
        "ais_data_stderr": evidence.data_sd / math.sqrt(len(evidence.log_evidence)),
        "ais_seconds": evidence.seconds,
    }


def ahead(mine: Tensor, theirs: Tensor) -> Row:
    """How far a method is ahead of the Gaussian VAE on the same test pictures, with the error of the paired difference.

    Args:
        mine, theirs: log-evidence by picture, (B,).
    """
    difference = mine.double() - theirs.double()
    stderr = float(difference.std()) / math.sqrt(len(difference))
    return {"ahead_of_vae": float(difference.mean()), "ahead_of_vae_stderr": stderr}


@torch.no_grad()
def pictures(trained: Trained, x: Tensor, latent_dim: int, count: int = 10, between: int = 8) -> dict[str, Tensor]:
    """Rows of pictures, as probabilities of the pixels: data, their reconstructions, samples, and interpolations.

    Args:
        x: at least ``count`` data.
        count: pictures in a row, except in interpolations.
        between: pictures of an interpolation, ends included; their latents lie on straight lines.
    """
    z = trained.draw(x[:count], 1)[0][0]
    prior = torch.randn(count * count // 2, latent_dim).to(z)
    return pictures_of(trained.vae, z, prior, x[:count], between=between)


@torch.no_grad()
def pictures_of(vae: VAE, z: Tensor, prior: Tensor, x: Tensor | None = None, *, between: int = 8) -> dict[str, Tensor]:
    """The same of given latents, for a model without an encoder too; means outside [0, 1] are cut off.

    Args:
        vae: the model.
        z: ends of the interpolations (count, latent_dim): encodings of x, or draws of the prior.
        prior: draws of the prior for samples (m, latent_dim).
        x: (count, pixels); without it there are neither data nor reconstructions.
        between: as for `pictures`.
    """
    count = len(z)
    share = torch.linspace(0.0, 1.0, between).to(z)[:, None, None]
    ends = z[0::2][: count // 2], z[1::2][: count // 2]
    lines = torch.lerp(ends[0][None], ends[1][None], share).transpose(0, 1)
    shown = {"samples": vae.mean(prior), "interpolations": vae.mean(lines)}
    if x is not None:
        shown = {"data": x, "reconstructions": vae.mean(z), **shown}
    return {name: each.clamp(0.0, 1.0).cpu() for name, each in shown.items()}


def batches(images: Images, task: Task, seed: int, binarisation: Any = None) -> DataLoader[Tensor]:
    """Minibatches of a task in an order, and with pixels, that depend on the seed alone, the same for all methods;
    on a GPU only the order is."""
    generator = torch.Generator().manual_seed(seed)
    data = loader(images, task.batch_size, binarisation, drop_last=True, generator=generator)
    if images.levels.is_cuda and isinstance(data.dataset, PixelRows):
        data.dataset.generator = None  # drawn on the device: half a million numbers a step are too many for the CPU
    return data
