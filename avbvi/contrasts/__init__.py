"""Contrasts r: simple densities that the adversary compares the sampler with (Adaptive Contrast, AVB section 4).

A contrast lives in the trunk's base coordinates. It follows the sampler's draws, is never
differentiated through its own parameters (they are buffers, or trained by maximum likelihood apart
from the ELBO), and it whitens: the adversary sees coordinates in which r is about standard.
"""

from .base import Contrast, DatumPrior, GivenContrast
from .gaussian import GaussianContrast
from .mixtures import MixtureContrast
from .prior import PriorContrast

__all__ = ["Contrast", "DatumPrior", "GaussianContrast", "GivenContrast", "MixtureContrast", "PriorContrast"]
