"""avbvi: black-box variational inference with neural samplers, for Pyro."""

from .adversaries import Adversary, Hint, Logistic, MLPAdversary, Objective, ResidualAdversary
from .amortised import (
    AmortisedAVBGuide,
    AmortisedSampler,
    ConditionalAdversary,
    ConditionalGaussianContrast,
    ConditionalGaussianSampler,
    ConditionalSampler,
    ConvolutionalAdversary,
    ConvolutionalSampler,
    InnerProductAdversary,
    JointAdversary,
    LearnedGaussianContrast,
    NoiseBasisSampler,
    SemiImplicitSampler,
)
from .amortised.posterior import AmortisedPosterior
from .annealed import (
    AnnealedEvidence,
    GaussianStart,
    LinearTemperatures,
    SigmoidTemperatures,
    annealed_importance_sampling,
    bidirectional_sandwich,
)
from .calibration import sbc
from .contrasts import Contrast, GaussianContrast, MixtureContrast, PriorContrast
from .diagnostics import Verdict
from .distributions import ImplicitDistribution
from .divergences import classifier_two_sample_test, kl_lower_bound, knn_kl
from .elbo import AdversarialELBO
from .errors import CheckpointError, FitFailed, ModelError, NonFiniteError
from .estimates import Estimate
from .fitting import fit
from .guides import AVBGuide
from .loading import load
from .posterior import Posterior
from .ranks import Calibration
from .reference import HMCPosterior, hmc_posterior
from .refinement import Refinement
from .samplers import MLPSampler, ModuleSampler, ResidualSampler, Sampler
from .schedules import Schedule
from .stopping import Stopping
from .targets import LogDensity
from .trunks import AffineTrunk, BestTrunk, FlowTrunk, IdentityTrunk, MixtureTrunk, Trunk

__version__ = "0.1.0"

__all__ = [
    "AVBGuide",
    "AdversarialELBO",
    "Adversary",
    "AffineTrunk",
    "AmortisedAVBGuide",
    "AmortisedPosterior",
    "AmortisedSampler",
    "AnnealedEvidence",
    "BestTrunk",
    "Calibration",
    "CheckpointError",
    "ConditionalAdversary",
    "ConditionalGaussianContrast",
    "ConditionalGaussianSampler",
    "ConditionalSampler",
    "Contrast",
    "ConvolutionalAdversary",
    "ConvolutionalSampler",
    "Estimate",
    "FitFailed",
    "FlowTrunk",
    "GaussianContrast",
    "GaussianStart",
    "HMCPosterior",
    "Hint",
    "IdentityTrunk",
    "ImplicitDistribution",
    "InnerProductAdversary",
    "JointAdversary",
    "LearnedGaussianContrast",
    "LinearTemperatures",
    "LogDensity",
    "Logistic",
    "MLPAdversary",
    "MLPSampler",
    "MixtureContrast",
    "MixtureTrunk",
    "ModelError",
    "ModuleSampler",
    "NoiseBasisSampler",
    "NonFiniteError",
    "Objective",
    "Posterior",
    "PriorContrast",
    "Refinement",
    "ResidualAdversary",
    "ResidualSampler",
    "Sampler",
    "Schedule",
    "SemiImplicitSampler",
    "SigmoidTemperatures",
    "Stopping",
    "Trunk",
    "Verdict",
    "annealed_importance_sampling",
    "bidirectional_sandwich",
    "classifier_two_sample_test",
    "fit",
    "hmc_posterior",
    "kl_lower_bound",
    "knn_kl",
    "load",
    "sbc",
]
