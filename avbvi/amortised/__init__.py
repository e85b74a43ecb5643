"""Amortised guides: one posterior per datum, all of them given by one sampler with a context."""

from .adversaries import ConditionalAdversary, InnerProductAdversary, JointAdversary
from .contrasts import ConditionalGaussianContrast, LearnedGaussianContrast
from .convolutional import ConvolutionalAdversary, ConvolutionalSampler, ImageAdversary
from .guide import AmortisedAVBGuide
from .layout import Frame, LocalSite, PlateLayout
from .minibatch import Minibatch
from .samplers import AmortisedSampler, ConditionalGaussianSampler, ConditionalSampler, NoiseBasisSampler
from .semi_implicit import SemiImplicitSampler
from .target import DatumTarget, path_only

__all__ = [
    "AmortisedAVBGuide",
    "AmortisedSampler",
    "ConditionalAdversary",
    "ConditionalGaussianContrast",
    "ConditionalGaussianSampler",
    "ConditionalSampler",
    "ConvolutionalAdversary",
    "ConvolutionalSampler",
    "DatumTarget",
    "Frame",
    "ImageAdversary",
    "InnerProductAdversary",
    "JointAdversary",
    "LearnedGaussianContrast",
    "LocalSite",
    "Minibatch",
    "NoiseBasisSampler",
    "PlateLayout",
    "SemiImplicitSampler",
    "path_only",
]
