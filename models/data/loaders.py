"""Batches of pixels through torch's DataLoader, each cut from the whole tensor at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avbvi.arguments import flag, instance, positive_integer

from .binarisation import Binarisation, DynamicBinarisation
from .images import Images, intensities

__all__ = ["PixelRows", "loader"]


class PixelRows(Dataset[Tensor]):
    """Pictures as rows of pixels, binarised once or at each access.

    Args:
        images: the pictures.
        binarisation: how intensities become pixels.
        generator: what fresh draws come from; torch's global generator by default.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a rule for another number of levels than the pictures have.
    """

    def __init__(self, images: Images, binarisation: Binarisation, generator: torch.Generator | None = None) -> None:
        instance("images", images, Images, "models.data.Images, as mnist.load gives them")
        instance("binarisation", binarisation, Binarisation, "a Binarisation, such as DynamicBinarisation()")
        instance("generator", generator, (torch.Generator, type(None)), "a torch.Generator or None")
        binarisation.check_maximum(images.maximum)
        self.images = images
        self.binarisation = binarisation
        self.generator = generator
        self._levels = images.levels.flatten(1)
        self._fixed = binarisation.binarise(images.intensities()) if binarisation.is_fixed else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """One picture, shape (pixels,)."""
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Many pictures, shape (len(indices), pixels); DataLoader calls this for a batch."""
        rows = torch.as_tensor(indices, device=self._levels.device)
        if self._fixed is not None:
            return self._fixed.index_select(0, rows)
        levels = self._levels.index_select(0, rows)
        return self.binarisation.binarise(intensities(levels, self.images.maximum), self.generator)


def loader(
    images: Images,
    batch_size: int,
    binarisation: Binarisation | None = None,
    *,
    shuffle: bool = True,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> DataLoader[Tensor]:
    """A DataLoader whose batches are pixels of shape (batch, pixels), on the device of the pictures.

    Args:
        images: the pictures; `images.to("cuda")` makes the batches on a GPU.
        batch_size: pictures in a batch; the last one may have fewer.
        binarisation: how intensities become pixels; `DynamicBinarisation()` by default.
        shuffle: whether the order is drawn anew in each epoch.
        drop_last: whether an incomplete last batch is left out.
        generator: what order and fresh pixels are drawn from (its state resumes a run); torch's global
            generator by default.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the batch size is not positive, `drop_last` leaves no batch, or the rule is for another number of
            levels than the pictures have.
    """
    rows = PixelRows(images, DynamicBinarisation() if binarisation is None else binarisation, generator)
    size = positive_integer("batch_size", batch_size)
    if flag("drop_last", drop_last) and size > len(rows):
        raise ValueError(f"batch_size={size} with drop_last=True leaves no batch of {len(rows)} pictures")
    return DataLoader(
        rows,
        batch_size=size,
        shuffle=flag("shuffle", shuffle),
        drop_last=drop_last,
        generator=generator,
        collate_fn=_whole,
    )


def _whole(batch: Any) -> Tensor:
    """What `__getitems__` gave is a batch already; DataLoader declares it a list."""
    result: Tensor = batch
    return result
