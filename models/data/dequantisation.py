"""How levels 0 .. L - 1 become numbers that a continuous decoder models: the bins [i / L, (i + 1) / L] of [0, 1].

The log-density of dequantised images less the log of a bin's width bounds, on average over the noise, the
log-probability of the discrete images from below (Theis, van den Oord and Bethge 2016), which
`models.likelihoods.QuantisedLikelihood` evaluates.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from avbvi.arguments import integer

from .binarisation import Binarisation

__all__ = ["BinMiddles", "Dequantisation"]


@dataclass(frozen=True)
class _Bins(Binarisation):
    levels: int = 256

    def __post_init__(self) -> None:
        integer("levels", self.levels, 2)

    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """From i / (levels - 1) to a point of [i / levels, (i + 1) / levels]."""
        level = (intensities * (self.levels - 1)).round_()
        return level.add_(self.place(intensities, generator)).div_(self.levels)

    def check_maximum(self, maximum: int) -> None:
        """Refuse images with another number of levels."""
        if maximum != self.levels - 1:
            raise ValueError(
                f"levels={self.levels} belongs to images with maximum={self.levels - 1}, found maximum={maximum}; "
                f"take levels={maximum + 1}"
            )

    @abstractmethod
    def place(self, intensities: Tensor, generator: torch.Generator | None) -> Tensor | float:
        """Where in its bin each value goes, in (0, 1)."""


@dataclass(frozen=True)
class Dequantisation(_Bins):
    """(i + u) / levels with fresh uniform u at each access (AS-VAE, Pu et al. 2017, section 5.1: 256 levels).

    The intensities must be those of `Images` with ``maximum = levels - 1``: i / (levels - 1).

    Args:
        levels: number of levels of a pixel: 256 for 8 bits, 17 for scikit-learn's digits.

    Raises:
        TypeError: levels is no integer.
        ValueError: less than 2 levels; from a loader, images with another number of them.
    """

    is_fixed: ClassVar[bool] = False

    def place(self, intensities: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform draws of the generator."""
        device = intensities.device if generator is None else generator.device
        u = torch.rand(intensities.shape, generator=generator, dtype=intensities.dtype, device=device)
        # Rounding must not carry i + u into the bin above: u keeps off the ends, by 1e-4 for 256 levels in float32.
        margin = 4.0 * self.levels * torch.finfo(u.dtype).eps
        return u.to(intensities.device).mul_(1.0 - 2.0 * margin).add_(margin)

    def __str__(self) -> str:
        return f"none: {self.levels} levels, dequantised by fresh uniform noise"


@dataclass(frozen=True)
class BinMiddles(_Bins):
    """(i + 1/2) / levels: the same bins without noise, for figures that must repeat.

    Args:
        levels: as for `Dequantisation`.

    Raises:
        TypeError: levels is no integer.
        ValueError: less than 2 levels; from a loader, images with another number of them.
    """

    def place(self, intensities: Tensor, generator: torch.Generator | None) -> float:
        """The middle."""
        return 0.5

    def __str__(self) -> str:
        return f"none: {self.levels} levels, the middles of their bins"
