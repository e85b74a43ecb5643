"""avbvi: black-box variational inference with neural samplers, for Pyro."""

from .adversaries import Adversary, Hint, Logistic, MLPAdversary, Objective, ResidualAdversary
from .calibration import sbc
from .contrasts import Contrast, GaussianContrast, MixtureContrast, PriorContrast
from .diagnostics import Verdict
from .distributions import ImplicitDistribution
from .divergences import classifier_two_sample_test, kl_lower_bound, knn_kl
from .elbo import AdversarialELBO
from .errors import CheckpointError, FitFailed, ModelError, NonFiniteError
from .estimates import Estimate
from .guides import AVBGuide
from .posterior import Posterior, load
from .ranks import Calibration
from .reference import HMCPosterior, hmc_posterior
from .refinement import Refinement
from .samplers import MLPSampler, ModuleSampler, ResidualSampler, Sampler
from .schedules import Schedule
from .stopping import Stopping
from .targets import LogDensity
from .training import fit
from .trunks import AffineTrunk, BestTrunk, FlowTrunk, IdentityTrunk, MixtureTrunk, Trunk

__version__ = "0.1.0"

__all__ = [
    "AVBGuide",
    "AdversarialELBO",
    "Adversary",
    "AffineTrunk",
    "BestTrunk",
    "Calibration",
    "CheckpointError",
    "Contrast",
    "Estimate",
    "FitFailed",
    "FlowTrunk",
    "GaussianContrast",
    "HMCPosterior",
    "Hint",
    "IdentityTrunk",
    "ImplicitDistribution",
    "LogDensity",
    "Logistic",
    "MLPAdversary",
    "MLPSampler",
    "MixtureContrast",
    "MixtureTrunk",
    "ModelError",
    "ModuleSampler",
    "NonFiniteError",
    "Objective",
    "Posterior",
    "PriorContrast",
    "Refinement",
    "ResidualAdversary",
    "ResidualSampler",
    "Sampler",
    "Schedule",
    "Stopping",
    "Trunk",
    "Verdict",
    "classifier_two_sample_test",
    "fit",
    "hmc_posterior",
    "kl_lower_bound",
    "knn_kl",
    "load",
    "sbc",
]
