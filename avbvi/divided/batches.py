"""Batches of a DataLoader for several processes: each takes its part of every one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from .. import distributed
from ..arguments import found
from ..data.batches import Arguments, Batches, FixedArguments
from .division import Division, data_divided, divide, equal_parts


class DividedBatches:
    """Another source's batches, of which this process takes its part.

    A loader that gives all processes the same batches has each one divided; where its sampler is a
    ``DistributedSampler`` a batch is the process's part already. ``reference`` is a whole batch either way.

    Args:
        batches: the source.
        loader: the DataLoader that it iterates.

    Raises:
        ValueError: the processes' loaders give different batches, and have no DistributedSampler, or parts of different
            sizes, and have one; or a batch has fewer data than there are processes.
        TypeError: a batch holds something that can't be divided.
    """

    def __init__(self, batches: Batches, loader: DataLoader[Any]) -> None:
        self._inner = batches
        self.epoch: int = batches.epoch
        self._is_part = any(
            isinstance(getattr(holder, "sampler", None), DistributedSampler)
            for holder in (loader, loader.batch_sampler)
        )
        #: How the last batch is divided.
        self.division: Division | None = None
        self.reference: tuple[Any, ...] = batches.reference
        sizes = distributed.everyones(_size(self.reference))
        if self._is_part:
            if len(set(sizes)) > 1:
                raise ValueError(f"the processes' DataLoaders give parts of different sizes, {sizes}; make them equal")
            parts = distributed.everyones(_mapped(self.reference, lambda t: t.cpu()))
            self.reference = _joined(parts, self.reference)
        elif len({tuple(sums) for sums in distributed.everyones(_checksums(self.reference))}) > 1:
            raise ValueError(
                "the DataLoader gives each process another batch; give all the same data in the same order (the seed "
                "is fit's), or the loader a torch.utils.data.DistributedSampler"
            )

    def next(self) -> Arguments:
        """This process's part of the arguments of the next step.

        Raises:
            TypeError, ValueError: as in the constructor.
        """
        batch = self._inner.next()
        self.epoch, n = self._inner.epoch, _size(batch)
        if self._is_part:
            self.division = equal_parts(n)
            return batch
        self.division = divide("batch size", n, "let the DataLoader drop its last batch (drop_last=True)")
        part: Arguments = _mapped(batch, self.division.own)
        return part

    def settings(self) -> dict[str, Any] | None:
        return self._inner.settings()

    def state_dict(self) -> dict[str, Any] | None:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self._inner.load_state_dict(state)
        self.epoch = self._inner.epoch


def divided_batches(batches: Batches, args: Arguments, amortised: bool) -> Batches:
    """The source itself, or of several processes one that gives each of them its part.

    Raises:
        TypeError: the data of an amortised fit do not come from a DataLoader.
        TypeError, ValueError: as for :class:`DividedBatches`.
    """
    if distributed.world_size() == 1 or not amortised:
        return batches
    if isinstance(batches, FixedArguments):
        raise TypeError(
            f"{distributed.world_size()} processes divide the batches of a DataLoader among them, and the model's "
            "arguments are none; give fit(model, DataLoader(data, batch_size=...)), of one batch if need be, or run it "
            "inside avbvi.distributed.alone()"
        )
    return DividedBatches(batches, args[0])


def own_part_of(batches: Batches) -> AbstractContextManager[None]:
    """Context of a step on the last batch."""
    return data_divided(batches.division) if isinstance(batches, DividedBatches) else nullcontext()


def whole_size(batches: Batches, size: int, full_size: int) -> int:
    """Data that the loss of a step is about: all that a plate stands for, or all processes' parts of a minibatch."""
    division = batches.division if isinstance(batches, DividedBatches) else None
    return full_size if division is None or size != full_size else division.whole


def _size(batch: Arguments) -> int:
    """Number of data in a batch.

    Raises:
        TypeError, ValueError: its tensors do not have one row each for every datum, or there are none.
    """
    sizes = {len(t) if t.dim() else None for t in _tensors(batch)}
    if len(sizes) != 1 or None in sizes:
        shapes = [tuple(t.shape) for t in _tensors(batch)]
        raise ValueError(
            "to be divided among processes, the tensors of a batch must have one row for each datum along their first "
            f"dimension; found shapes {shapes}. Hand over what is not about single data as model_kwargs"
        )
    (size,) = sizes
    assert size is not None
    return size


def _tensors(value: Any) -> list[Tensor]:
    result: list[Tensor] = []
    _mapped(value, lambda t: result.append(t))
    return result


def _mapped(value: Any, function: Any) -> Any:
    """The same structure with a function of each tensor in a tensor's place.

    Raises:
        TypeError: there is something other than tensors, tuples, lists and mappings.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(v, function) for key, v in value.items()}
    if isinstance(value, tuple | list):
        mapped = [_mapped(v, function) for v in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    raise TypeError(
        f"a batch that is divided among processes must consist of tensors, found {found(value)}; give the DataLoader a "
        "collate_fn that makes them"
    )


def _joined(parts: list[Any], like: Any) -> Any:
    """One structure of tensors from those of all processes, row below row, on the devices of ``like``."""
    columns = zip(*(_tensors(part) for part in parts), strict=True)
    rows = iter([torch.cat(column) for column in columns])
    return _mapped(like, lambda t: next(rows).to(t.device))


def _checksums(batch: Arguments) -> list[float]:
    return [float(t.detach().double().sum()) for t in _tensors(batch)]
