"""Images as data: MNIST, digits, CIFAR-10, folders of pictures; how they become binary; batches of them.

`mnist.load`, `digits.load`, `cifar.load` and `image_folder.load` give `Images`. A `Binarisation` says how grey levels
become the zeros and ones that a Bernoulli decoder models, or (`Dequantisation`) the numbers that a continuous one
does; its `str` belongs beside every result. `loader` gives torch's DataLoader over both.
"""

from . import cifar, digits, image_folder, mnist
from .binarisation import Binarisation, DynamicBinarisation, Intensities, StaticBinarisation, ThresholdBinarisation
from .dequantisation import BinMiddles, Dequantisation
from .images import Images, Split, held_out
from .loaders import PixelRows, loader

__all__ = [
    "BinMiddles",
    "Binarisation",
    "Dequantisation",
    "DynamicBinarisation",
    "Images",
    "Intensities",
    "PixelRows",
    "Split",
    "StaticBinarisation",
    "ThresholdBinarisation",
    "cifar",
    "digits",
    "held_out",
    "image_folder",
    "loader",
    "mnist",
]
