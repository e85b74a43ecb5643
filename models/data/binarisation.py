"""How intensities in [0, 1] become the zeros and ones that a Bernoulli decoder models.

Log-likelihoods under different binarisations can't be compared, so each has a name, its `str`, that
belongs beside every result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from avbvi.arguments import instance, number, seed_number

__all__ = ["Binarisation", "DynamicBinarisation", "Intensities", "StaticBinarisation", "ThresholdBinarisation"]

_BLOCK = 1 << 20  # pixels that a static draw handles at a time, for its memory


class Binarisation(ABC):
    """A rule that turns intensities into pixels; its `str` states it."""

    #: Whether a picture's pixels are the same at each access: then they can be computed once.
    is_fixed: ClassVar[bool] = True

    def __call__(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The pixels of the intensities, of their shape, dtype and device.

        Args:
            intensities: numbers in [0, 1], any shape.
            generator: what fresh draws come from; torch's global generator by default. Fixed rules ignore it.

        Raises:
            TypeError: the intensities are no floating-point tensor.
            ValueError: some of them lie outside [0, 1].
        """
        instance("intensities", intensities, Tensor, "a tensor")
        if not intensities.is_floating_point():
            raise TypeError(f"intensities must be floating-point numbers in [0, 1], found dtype {intensities.dtype}")
        if not bool(((intensities >= 0.0) & (intensities <= 1.0)).all()):  # false for NaN too
            raise ValueError("intensities must lie in [0, 1]; divide grey levels by their maximum first")
        return self.binarise(intensities, generator)

    def check_maximum(self, maximum: int) -> None:
        """Raise a ValueError if images whose levels are 0 .. maximum are not for this rule; most take any."""
        return

    @abstractmethod
    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same without checks, which would make a GPU wait at each batch."""


@dataclass(frozen=True)
class ThresholdBinarisation(Binarisation):
    """1 where the intensity is at least `level`, 0 elsewhere.

    Args:
        level: in (0, 1].

    Raises:
        ValueError: the level lies outside (0, 1].
    """

    level: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < number("level", self.level) <= 1.0:
            raise ValueError(f"level must lie in (0, 1], found {self.level}")

    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Compare with the level."""
        return (intensities >= self.level).to(intensities.dtype)

    def __str__(self) -> str:
        return f"static: threshold at {self.level:g}"


@dataclass(frozen=True)
class StaticBinarisation(Binarisation):
    """One Bernoulli draw with the intensities as probabilities, fixed by a seed.

    Pixels are drawn in order, on the CPU: the first pictures of a set get the same pixels whether the
    rest is there or not, on any device and in any dtype.

    Args:
        seed: of the draw.

    Raises:
        TypeError: the seed is no integer.
        ValueError: it is negative or too large.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if seed_number(self.seed) is None:
            raise TypeError("seed must be an integer; for fresh draws use DynamicBinarisation()")

    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Compare with uniform draws of the seed; torch's global generator stays as it is."""
        own = torch.Generator().manual_seed(self.seed)
        flat = intensities.flatten()
        result = torch.empty_like(flat)
        for start in range(0, len(flat), _BLOCK):
            block = flat[start : start + _BLOCK]
            uniform = torch.rand(len(block), generator=own, dtype=torch.float32).to(flat.device)
            result[start : start + _BLOCK] = uniform < block
        return result.reshape(intensities.shape)

    def __str__(self) -> str:
        return f"static: one Bernoulli draw, seed {self.seed}"


@dataclass(frozen=True)
class DynamicBinarisation(Binarisation):
    """A fresh Bernoulli draw, with the intensities as probabilities, at each access.

    It has no state of its own: with the generator's state a run repeats and resumes exactly.
    """

    is_fixed: ClassVar[bool] = False

    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Compare with uniform draws of the generator."""
        device = intensities.device if generator is None else generator.device
        # A uniform draw lies in [0, 1): intensity 0 never gives a one, intensity 1 always. Faster than bernoulli.
        uniform = torch.rand(intensities.shape, generator=generator, dtype=intensities.dtype, device=device)
        return uniform.to(intensities.device).lt_(intensities)

    def __str__(self) -> str:
        return "dynamic: a fresh Bernoulli draw at each access"


@dataclass(frozen=True)
class Intensities(Binarisation):
    """Leaves the intensities as they are, for decoders of real-valued pixels."""

    def binarise(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The intensities."""
        return intensities

    def __str__(self) -> str:
        return "none: intensities in [0, 1]"
