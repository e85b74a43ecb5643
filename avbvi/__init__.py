"""avbvi: black-box variational inference with neural samplers, for Pyro."""

import logging

from .adversaries import Adversary, Hint, MLPAdversary, ResidualAdversary
from .amortised import (
    AmortisedAVBGuide,
    AmortisedSampler,
    ConditionalAdversary,
    ConditionalGaussianContrast,
    ConditionalGaussianSampler,
    ConditionalSampler,
    ConvolutionalAdversary,
    ConvolutionalSampler,
    ImageAdversary,
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
from .data.array_files import ArrayFileDataset
from .data.block_shuffle import BlockShuffleSampler
from .data.tensor_loader import TensorLoader
from .diagnostics import Verdict
from .distributions import ImplicitDistribution
from .divergences import classifier_two_sample_test, kl_lower_bound, knn_kl
from .early_stopping import EarlyStopping
from .elbo import AdversarialELBO
from .errors import CheckpointError, FitFailed, ModelError, NonFiniteError
from .estimates import Estimate
from .fitting import fit
from .guides import AVBGuide
from .joint import (
    AdversarialAutoencoderLoss,
    AdversarialInferenceLoss,
    GenerationELBO,
    GenerativeAdversarialLoss,
    JointAdversarialLoss,
    ReconstructionELBO,
    SymmetricAdversarialELBO,
)
from .loading import load
from .log_density import LogDensity
from .objectives import (
    AlphaDivergence,
    FDivergence,
    JensenShannon,
    KullbackLeibler,
    Logistic,
    NeymanChiSquared,
    Objective,
    PearsonChiSquared,
    ReverseKullbackLeibler,
    SquaredHellinger,
    TriangularDiscrimination,
)
from .posterior import Posterior
from .precision import Precision
from .ranks import Calibration
from .reference import HMCPosterior, hmc_posterior
from .refinement import Refinement
from .sample_figures import bits_per_dimension, inception_score, rmse
from .samplers import MLPSampler, ModuleSampler, ResidualSampler, Sampler
from .schedules import Schedule
from .stopping import Stopping
from .trunks import AffineTrunk, BestTrunk, FlowTrunk, IdentityTrunk, MixtureTrunk, Trunk

# Silent unless a program sets logging up.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"

__all__ = [
    "AVBGuide",
    "AdversarialAutoencoderLoss",
    "AdversarialELBO",
    "AdversarialInferenceLoss",
    "Adversary",
    "AffineTrunk",
    "AlphaDivergence",
    "AmortisedAVBGuide",
    "AmortisedPosterior",
    "AmortisedSampler",
    "AnnealedEvidence",
    "ArrayFileDataset",
    "BestTrunk",
    "BlockShuffleSampler",
    "Calibration",
    "CheckpointError",
    "ConditionalAdversary",
    "ConditionalGaussianContrast",
    "ConditionalGaussianSampler",
    "ConditionalSampler",
    "Contrast",
    "ConvolutionalAdversary",
    "ConvolutionalSampler",
    "EarlyStopping",
    "Estimate",
    "FDivergence",
    "FitFailed",
    "FlowTrunk",
    "GaussianContrast",
    "GaussianStart",
    "GenerationELBO",
    "GenerativeAdversarialLoss",
    "HMCPosterior",
    "Hint",
    "IdentityTrunk",
    "ImageAdversary",
    "ImplicitDistribution",
    "InnerProductAdversary",
    "JensenShannon",
    "JointAdversarialLoss",
    "JointAdversary",
    "KullbackLeibler",
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
    "NeymanChiSquared",
    "NoiseBasisSampler",
    "NonFiniteError",
    "Objective",
    "PearsonChiSquared",
    "Posterior",
    "Precision",
    "PriorContrast",
    "ReconstructionELBO",
    "Refinement",
    "ResidualAdversary",
    "ResidualSampler",
    "ReverseKullbackLeibler",
    "Sampler",
    "Schedule",
    "SemiImplicitSampler",
    "SigmoidTemperatures",
    "SquaredHellinger",
    "Stopping",
    "SymmetricAdversarialELBO",
    "TensorLoader",
    "TriangularDiscrimination",
    "Trunk",
    "Verdict",
    "annealed_importance_sampling",
    "bidirectional_sandwich",
    "bits_per_dimension",
    "classifier_two_sample_test",
    "fit",
    "hmc_posterior",
    "inception_score",
    "kl_lower_bound",
    "knn_kl",
    "load",
    "rmse",
    "sbc",
]
