"""Amortised guides: one posterior per datum, all of them given by one sampler with a context."""

from .guide import AmortisedAVBGuide
from .layout import Frame, LocalSite, PlateLayout
from .minibatch import Minibatch
from .target import DatumTarget, path_only

__all__ = [
    "AmortisedAVBGuide",
    "DatumTarget",
    "Frame",
    "LocalSite",
    "Minibatch",
    "PlateLayout",
    "path_only",
]
