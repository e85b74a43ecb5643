"""Annealed importance sampling: log-evidence by datum of a latent-variable model, bounds from both sides."""

from .densities import DatumDensity, GaussianStart, PriorDensity, PriorStart, StartDensity
from .evidence import AnnealedEvidence, Sandwich
from .precision import BFloat16Products, ProductPrecision, TF32Products
from .sampling import annealed_importance_sampling, bidirectional_sandwich
from .temperatures import LinearTemperatures, SigmoidTemperatures, Temperatures

__all__ = [
    "AnnealedEvidence",
    "BFloat16Products",
    "DatumDensity",
    "GaussianStart",
    "LinearTemperatures",
    "PriorDensity",
    "PriorStart",
    "ProductPrecision",
    "Sandwich",
    "SigmoidTemperatures",
    "StartDensity",
    "TF32Products",
    "Temperatures",
    "annealed_importance_sampling",
    "bidirectional_sandwich",
]
