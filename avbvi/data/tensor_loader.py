"""Batches of tensors that fit in memory, cut out where the tensors lie: on a GPU without a copy from the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ..arguments import flag, found, instance, integer


class TensorLoader(DataLoader[tuple[Tensor, ...]]):
    """A DataLoader over rows of tensors, each batch one indexing of each tensor on the tensor's own device.

    It gives what ``DataLoader(TensorDataset(*tensors), ...)`` gives, but takes no data one by one, and its order lies
    on the tensors' device: nothing waits for the host. ``fit(..., device=...)`` moves it there as a whole.

    Args:
        tensors: shapes (N, \\*shape of a datum) with the same N, on one device.
        batch_size: data in a batch; the last one may have fewer.
        shuffle: whether each pass has an order of its own.
        drop_last: whether an incomplete last batch is left out.
        generator: what the orders are drawn from, on the CPU; torch's global one by default.

    Raises:
        TypeError: no tensor, or an argument of another kind.
        ValueError: tensors without rows, with different numbers of rows or on different devices; ``batch_size`` is not
            positive, or ``drop_last`` leaves no batch.

    Example:
        >>> import torch, avbvi
        >>> loader = avbvi.TensorLoader(torch.randn(10, 3), torch.arange(10), batch_size=4)
        >>> [(x.shape, y.shape) for x, y in loader][-1]
        (torch.Size([2, 3]), torch.Size([2]))
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self._check(tensors)
        size, n = integer("batch_size", batch_size, 1), len(tensors[0])
        instance("generator", generator, (torch.Generator, type(None)), "a torch.Generator or None")
        if flag("drop_last", drop_last) and size > n:
            raise ValueError(f"batch_size={size} with drop_last=True leaves no batch of {n} data")
        self.tensors = tensors
        self.shuffle: bool = flag("shuffle", shuffle)
        self._skipped = 0
        super().__init__(
            TensorDataset(*tensors), batch_size=size, shuffle=shuffle, drop_last=drop_last, generator=generator
        )

    @staticmethod
    def _check(tensors: tuple[Any, ...]) -> None:
        if not tensors:
            raise TypeError("tensors: give at least one tensor")
        for tensor in tensors:
            instance("tensors", tensor, Tensor, "torch.Tensors")
            if tensor.dim() < 1 or not len(tensor):
                raise ValueError(f"tensors must have shape (N, *shape of a datum), found {found(tensor)}")
        for what, values in (("rows", [len(t) for t in tensors]), ("device", [str(t.device) for t in tensors])):
            if len(set(values)) > 1:
                raise ValueError(f"tensors must have the same {what}, found {values}")

    def to(self, device: torch.device | str) -> TensorLoader:
        """The same loader of tensors on a ``device``; it draws from the same generator."""
        size, generator = self.batch_size, self.generator
        assert size is not None
        moved = (tensor.to(device) for tensor in self.tensors)
        return TensorLoader(
            *moved, batch_size=size, shuffle=self.shuffle, drop_last=self.drop_last, generator=generator
        )

    def skip(self, batches: int) -> None:
        """Leave out so many ``batches`` at the beginning of the next pass.

        Raises:
            TypeError: the number is no integer.
            ValueError: it is negative.
        """
        self._skipped = integer("batches", batches, 0)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:  # type: ignore[override]  # DataLoader has a class of its own
        begin, self._skipped = self._skipped, 0
        n, size = len(self.tensors[0]), self.batch_size
        assert size is not None
        order = None
        if self.shuffle:
            order = torch.randperm(n, generator=self.generator, device="cpu").to(self.tensors[0].device)
        for i in range(begin, len(self)):
            place = slice(i * size, (i + 1) * size)
            if order is None:
                yield tuple(tensor[place] for tensor in self.tensors)
            else:
                yield tuple(tensor.index_select(0, order[place]) for tensor in self.tensors)
