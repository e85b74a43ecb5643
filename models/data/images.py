"""Pictures as one tensor of grey or colour levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from avbvi.arguments import found, instance, integer, positive_integer, seed_number

__all__ = ["Images", "Split", "held_out"]


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures of one size, as bytes: a quarter of the memory of floating-point numbers.

    Args:
        levels: shape (n, channels, height, width), uint8.
        maximum: the level of full intensity: 255 for MNIST, 16 for scikit-learn's digits.
        labels: class of each picture, shape (n,), if it has one.

    Raises:
        TypeError: levels or labels are no tensors of integers.
        ValueError: shapes don't fit, there is no picture, or a level exceeds the maximum.
    """

    levels: Tensor
    maximum: int = 255
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        instance("levels", self.levels, Tensor, "a tensor of dtype uint8")
        if self.levels.dtype != torch.uint8:
            raise TypeError(f"levels must be a tensor of dtype uint8, found {found(self.levels)}")
        if self.levels.dim() != 4 or not self.levels.numel():
            raise ValueError(
                f"levels must have shape (n, channels, height, width), none of them 0, found {tuple(self.levels.shape)}"
            )
        largest = int(self.levels.max())
        if largest > integer("maximum", self.maximum, 1):
            raise ValueError(f"levels must not exceed maximum={self.maximum}, found a level of {largest}")
        if self.labels is None:
            return
        instance("labels", self.labels, Tensor, "a tensor of integers or None")
        if self.labels.is_floating_point() or self.labels.is_complex():
            raise TypeError(f"labels must be a tensor of integers, found {found(self.labels)}")
        if self.labels.shape != (len(self.levels),):
            raise ValueError(
                f"labels must have one entry for each of the {len(self.levels)} pictures, "
                f"found shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.levels)

    def __getitem__(self, rows: slice | Tensor) -> Images:
        """Some of the pictures, with their labels: by slice, or by a tensor of indices.

        Raises:
            TypeError: rows is something else (a single index would lose an axis).
        """
        instance("rows", rows, (slice, Tensor), "a slice or a tensor of indices, such as images[:10]")
        return Images(self.levels[rows], self.maximum, None if self.labels is None else self.labels[rows])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.levels.shape[1:]
        return channels, height, width

    @property
    def pixels(self) -> int:
        """Numbers that a picture has: channels * height * width."""
        return self.levels[0].numel()

    def intensities(self) -> Tensor:
        """All pictures, flattened, as numbers in [0, 1]: shape (n, pixels), torch's default dtype."""
        return intensities(self.levels.flatten(1), self.maximum)

    def to(self, device: torch.device | str) -> Images:
        """The same pictures on a device: batches are then made there."""
        return Images(self.levels.to(device), self.maximum, None if self.labels is None else self.labels.to(device))


class Split(NamedTuple):
    """Pictures to learn from, and others to judge by."""

    train: Images
    test: Images


def held_out(images: Images, count: int, seed: int = 0) -> Split:
    """Some pictures set aside to judge by, drawn at random without replacement; always the same ones of a seed.

    Args:
        images: all pictures.
        count: how many are set aside; at least one, and not all.
        seed: of the draw. It leaves all generators alone.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the count or the seed is out of range.
    """
    instance("images", images, Images, "models.data.Images, as image_folder.load gives them")
    count = positive_integer("count", count)
    if count >= len(images):
        raise ValueError(f"count={count} leaves nothing to learn from: there are {len(images)} pictures")
    if seed_number(seed) is None:
        raise TypeError("seed must be an integer: the part that is set aside must always be the same")
    # NumPy keeps this generator's stream for ever; torch and NumPy's newer generators may change theirs.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images)))
    learned = len(images) - count
    return Split(images[order[:learned]], images[order[learned:]])


def intensities(levels: Tensor, maximum: int) -> Tensor:
    """Levels 0..maximum as numbers in [0, 1] of torch's default dtype."""
    return levels.to(torch.get_default_dtype()).div_(maximum)
