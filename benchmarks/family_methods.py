"""The methods of the family's board on the synthetic example: what they share, and how each is trained.

One decoder, optimiser, schedule and number of steps for all. Encoders have equally many parameters within 10 %:
AVB's sampler where no density is needed, else a flow. Adversaries of data and latents are the same networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from avbvi import AVBGuide, PriorContrast
from avbvi.adversaries import Adversary, ResidualAdversary
from avbvi.amortised.adversaries import InnerProductAdversary
from avbvi.amortised.contrasts import ConditionalGaussianContrast
from avbvi.contrasts import Contrast
from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from benchmarks import latent
from benchmarks import synthetic_vae as example
from benchmarks.rivals.latent import RIVALS
from models.encoders import Encoder
from models.likelihoods import Likelihood, RelaxedBernoulliLikelihood, bernoulli
from models.synthetic_images import one_hot_images
from models.vaes import VAE

TARGET, UNSURE = example.TARGET, "unsure_2x2"
#: Of the reparameterised pixels that a model gives its adversaries: black and white, with the gradient of grey ones.
TEMPERATURE = 0.5
#: Learning rates of a decoder that learns by likelihood alone, that of encoders, and of one that learns through its own
#: draws: faster than its adversary it ends with one image.
DECODER_RATE, SIMULATED_RATE = example.RATE, 1e-3
#: Probability that a pixel is wrong, at least, on ``unsure_2x2``.
LEAST_WRONG = 0.2


@dataclass(frozen=True)
class Coder:
    """An encoder as the judges see it.

    Args:
        sample: n -> draws of q(z | x) for the four images, (n, 4, 2).
        log_q: log q(z | x_j) for each image at any z, (n, 4, 2) -> (n, 4); None if it has no density.
    """

    sample: Callable[[int], Tensor]
    log_q: Callable[[Tensor], Tensor] | None = None


class Fitted(NamedTuple):
    """A trained model, with its encoder if it has one."""

    vae: VAE
    coder: Coder | None


class Trainable(NamedTuple):
    """An encoder to be trained: Pyro guide, its parameters, and how to judge it afterwards."""

    guide: Callable[..., Any]
    module: nn.Module | None
    coder: Callable[[], Coder | None]


def flow(budget: int) -> Encoder:
    """The encoder with a density: an inverse autoregressive flow with so many parameters."""
    return RIVALS["iaf-vae"].encoder(example.body, 2, budget)


def explicit(vae: VAE) -> Trainable:
    """A flow."""
    encoder = flow(example.encoder_budget())

    def coder() -> Coder:
        with torch.no_grad():
            posterior = encoder.posterior(one_hot_images())
        return Coder(lambda n: posterior.sample(torch.Size((n,))), posterior.log_prob)

    return Trainable(encoder.guide, encoder, coder)


def implicit(vae: VAE) -> Trainable:
    """AVB's encoder, noise in every layer and no density, without AVB's adversary."""
    x = one_hot_images()
    guide = AVBGuide(vae.model, sampler=example.make_sampler(), contrast=PriorContrast())
    guide.setup(x)
    return Trainable(guide, guide.sampler, lambda: Coder(lambda n: guide.draw_latents(n, x)))


def absent(vae: VAE) -> Trainable:
    """No encoder: a GAN has none."""
    return Trainable(lambda x: None, None, lambda: None)


def joint_adversary() -> Adversary:
    """T(x, z), the networks of AVB's adversary on this example."""
    return InnerProductAdversary(hidden=example.HIDDEN, slope=example.RELU)


def plain_adversary() -> Adversary:
    """T(z) or T(x), as wide."""
    return ResidualAdversary(hidden=example.HIDDEN[0], target_hint=False)


class Relative(NamedTuple):
    """A method with a joint loss: how it is made from the number of steps, what it encodes with, its decoder's rate."""

    loss: Callable[[int], JointAdversarialLoss]
    encoder: Callable[[VAE], Trainable]
    decoder_rate: float = DECODER_RATE


#: Learning rate and number of steps of all adversaries, those of AVB on this example.
RATE, ADVERSARY_STEPS = example.ADVERSARY_RATE, 2

RELATIVES = {
    "as-vae-r": Relative(lambda steps: ReconstructionELBO(joint_adversary(), **options(steps)), explicit),
    "as-vae-r-implicit": Relative(lambda steps: ReconstructionELBO(joint_adversary(), **options(steps)), implicit),
    "as-vae-g": Relative(lambda steps: GenerationELBO(joint_adversary(), **options(steps)), explicit, SIMULATED_RATE),
    "as-vae": Relative(
        lambda steps: SymmetricAdversarialELBO((joint_adversary(), joint_adversary()), **options(steps)),
        explicit,
        SIMULATED_RATE,
    ),
    "aae": Relative(lambda steps: AdversarialAutoencoderLoss(plain_adversary(), **options(steps)), implicit),
    "ali": Relative(
        lambda steps: AdversarialInferenceLoss(joint_adversary(), **options(steps)), implicit, SIMULATED_RATE
    ),
    "gan": Relative(
        lambda steps: GenerativeAdversarialLoss(plain_adversary(), **options(steps)), absent, SIMULATED_RATE
    ),
}


def options(steps: int) -> dict[str, Any]:
    """What all joint losses share."""
    return {"steps": steps, "adversary_steps": ADVERSARY_STEPS, "adversary_lr": RATE}


def make_vae(likelihood: Likelihood = bernoulli) -> VAE:
    """The synthetic example's model with weights that preserve the variance (He et al. 2015), the same for all methods.

    Where an adversary sees the model's draws, all z are at first pushed towards the same image if the decoder hardly
    depends on z, as with torch's smaller weights, and a decoder that gives one image for all z stays with that.
    """
    vae = example.make_vae(likelihood)
    for layer in vae.decoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return vae


def unsure(output: Tensor) -> TorchDistribution:
    """Bernoulli pixels, each wrong with a probability of ``LEAST_WRONG`` at least, whatever the log odds."""
    return dist.Bernoulli(LEAST_WRONG + (1.0 - 2.0 * LEAST_WRONG) * torch.sigmoid(output)).to_event(1)


def train_relative(seed: int, steps: int, relative: Relative, likelihood: Likelihood | None = None) -> Fitted:
    """Train by a joint loss, on the four images as often as AVB sees each."""
    pyro.set_rng_seed(seed)
    vae = make_vae(likelihood or RelaxedBernoulliLikelihood(TEMPERATURE))
    with pyro.get_param_store().scope():
        encoder = relative.encoder(vae)
    latent.train(
        relative.loss(steps),
        vae.model,
        encoder.guide,
        [one_hot_images().repeat(example.DRAWS, 1)],
        example.rates(vae, encoder.module, relative.decoder_rate),
        latent.Recipe(steps, lr=example.RATE, average=example.AVERAGE),
        seed=seed,
    )
    return Fitted(vae, encoder.coder())


def with_density(trained: example.Trained) -> Fitted:
    """What the synthetic board trained, log q exact."""
    return Fitted(trained.vae, Coder(trained.sample, trained.log_q))


def without_density(trained: example.Trained) -> Fitted:
    """The same with log q learned, of which the judges here take no notice."""
    return Fitted(trained.vae, Coder(trained.sample))


def train_avb(seed: int, steps: int, contrast: Contrast, likelihood: Likelihood = bernoulli) -> Fitted:
    """AVB as on the synthetic board."""
    return without_density(
        example.train_avb(seed, steps, contrast, model=lambda: make_vae(likelihood), decoder_rate=DECODER_RATE)
    )


def train_flow(seed: int, steps: int, likelihood: Likelihood = bernoulli) -> Fitted:
    """A VAE with the flow as encoder."""
    return with_density(example.train_encoder(seed, steps, flow, lambda: make_vae(likelihood), DECODER_RATE))


Train = Callable[[int, int], Fitted]


def _relative(name: str) -> Train:
    return lambda seed, steps: train_relative(seed, steps, RELATIVES[name])


#: target -> method -> (seed, steps) -> what it trained.
METHODS: dict[str, dict[str, Train]] = {
    TARGET: {
        "vae": lambda seed, steps: with_density(example.train_vae(seed, steps, make_vae, DECODER_RATE)),
        "iaf-vae": train_flow,
        "avb": lambda seed, steps: train_avb(seed, steps, PriorContrast()),
        "avb+ac": lambda seed, steps: train_avb(seed, steps, ConditionalGaussianContrast(draws=example.MOMENT_DRAWS)),
        **{name: _relative(name) for name in RELATIVES},
    },
    UNSURE: {
        "iaf-vae": lambda seed, steps: train_flow(seed, steps, unsure),
        "avb": lambda seed, steps: train_avb(seed, steps, PriorContrast(), unsure),
        "aae": lambda seed, steps: train_relative(seed, steps, RELATIVES["aae"], unsure),
    },
}
