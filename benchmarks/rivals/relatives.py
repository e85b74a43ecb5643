"""AVB's relatives for the boards: losses whose adversaries compare joint laws of data and latents.

relative = RELATIVES["as-vae"]
encoder = RIVALS[relative.encoder].encoder(body, latent_dim, budget)
loss = relative.loss(Opponents(JointAdversary, plain_adversary, plain_adversary, steps=3000))
train(loss, vae.model, encoder.guide, loader, parameters, recipe, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from avbvi.adversaries import Adversary, ResidualAdversary
from avbvi.joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from avbvi.schedules import Schedule

__all__ = ["RELATIVES", "Opponents", "Relative", "plain_adversary"]


def plain_adversary() -> Adversary:
    """T of one input, of latents or of pictures."""
    return ResidualAdversary(hidden=128, target_hint=False)


@dataclass(frozen=True)
class Opponents:
    """The adversaries of a task and how they learn, the same for all losses.

    Args:
        of_pairs, of_latents, of_data: make T(x, z), T(z), T(x).
        steps: of the run.
        adversary_steps: of each adversary in a step.
        adversary_lr: their learning rate.
        schedule: the share of warm-up.
    """

    of_pairs: Callable[[], Adversary]
    of_latents: Callable[[], Adversary]
    of_data: Callable[[], Adversary]
    steps: int
    adversary_steps: int = 2
    adversary_lr: float = 2e-3
    schedule: Schedule = field(default_factory=Schedule)

    def against(self, loss: Callable[..., JointAdversarialLoss], adversary: Any) -> JointAdversarialLoss:
        """A loss with this adversary, or pair of them."""
        return loss(
            adversary,
            steps=self.steps,
            adversary_steps=self.adversary_steps,
            adversary_lr=self.adversary_lr,
            schedule=self.schedule,
        )


@dataclass(frozen=True)
class Relative:
    """A loss, and the encoder that it is used with.

    Args:
        name: its key in the records.
        label: as it reads in tables.
        loss: makes the loss against a task's adversaries.
        encoder: key of the encoder in ``RIVALS``.
        encodes: whether the loss trains it.
    """

    name: str
    label: str
    loss: Callable[[Opponents], JointAdversarialLoss]
    encoder: str = "vae"
    encodes: bool = True


RELATIVES: dict[str, Relative] = {
    relative.name: relative
    for relative in (
        Relative("as-vae-r", "AS-VAE-r", lambda o: o.against(ReconstructionELBO, o.of_pairs())),
        Relative("as-vae-g", "AS-VAE-g", lambda o: o.against(GenerationELBO, o.of_pairs())),
        Relative(
            "as-vae", "AS-VAE", lambda o: o.against(SymmetricAdversarialELBO, (o.of_pairs(), o.of_pairs()))
        ),
        Relative(
            "aae", "adversarial autoencoder", lambda o: o.against(AdversarialAutoencoderLoss, o.of_latents())
        ),
        Relative("ali", "ALI", lambda o: o.against(AdversarialInferenceLoss, o.of_pairs())),
        Relative(
            "dcgan", "GAN", lambda o: o.against(GenerativeAdversarialLoss, o.of_data()), encodes=False
        ),
    )
}  # fmt: skip
