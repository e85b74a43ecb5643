"""Annealed importance sampling: log-evidence by datum of a latent-variable model, bounds from both sides."""

from .densities import DatumDensity, GaussianStart, PriorDensity, PriorStart, StartDensity
from .evidence import AnnealedEvidence, Sandwich
from .sampling import annealed_importance_sampling, bidirectional_sandwich
from .temperatures import LinearTemperatures, SigmoidTemperatures, Temperatures

__all__ = [
    "AnnealedEvidence",
    "DatumDensity",
    "GaussianStart",
    "LinearTemperatures",
    "PriorDensity",
    "PriorStart",
    "Sandwich",
    "SigmoidTemperatures",
    "StartDensity",
    "Temperatures",
    "annealed_importance_sampling",
    "bidirectional_sandwich",
]
