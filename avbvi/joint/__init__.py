"""Losses whose adversaries compare joint laws of data and latents: AS-VAE, adversarial autoencoders, ALI, GAN."""

from .draws import JointDraws, LatentVariableModel, Pairs
from .games import Game, JointContrast
from .loss import JointAdversarialLoss
from .relatives import AdversarialAutoencoderLoss, AdversarialInferenceLoss, GenerativeAdversarialLoss
from .symmetric import GenerationELBO, ReconstructionELBO, SymmetricAdversarialELBO

__all__ = [
    "AdversarialAutoencoderLoss",
    "AdversarialInferenceLoss",
    "Game",
    "GenerationELBO",
    "GenerativeAdversarialLoss",
    "JointAdversarialLoss",
    "JointContrast",
    "JointDraws",
    "LatentVariableModel",
    "Pairs",
    "ReconstructionELBO",
    "SymmetricAdversarialELBO",
]
