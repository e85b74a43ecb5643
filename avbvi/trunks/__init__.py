"""Trunks: maps of known log-determinant from base coordinates to the latent space, with a base density of their own."""

from .base import AffineTrunk, IdentityTrunk, LogDensityFunction, Trunk, standard_normal_log_prob
from .choice import BestTrunk
from .flows import FlowTrunk
from .mixtures import MixtureTrunk

__all__ = [
    "AffineTrunk",
    "BestTrunk",
    "FlowTrunk",
    "IdentityTrunk",
    "LogDensityFunction",
    "MixtureTrunk",
    "Trunk",
    "standard_normal_log_prob",
]
