"""What a call's arguments say of its data: the plate they lie in, their places there and their context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from ..rng import seeded
from ..targets import Model
from .layout import Frame, PlateLayout
from .target import Reached, StopAfter

#: Plates remembered by the shapes of arguments; those of very old shapes are forgotten.
MOST_FRAMES = 256
OWN_CONTEXT = "give AVBGuide(context=...) a function of the model's arguments"


class Minibatch(NamedTuple):
    """The data of one call: their plate, their places in it (B,), their context (B, context_dim), the arguments.

    ``subsampled`` tells that the guide chose the places, among data that it was given whole.
    """

    frame: Frame
    indices: Tensor
    context: Tensor
    subsampled: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def known_indices(self) -> Tensor | None:
        """The places, where they are the guide's choice and not the model's."""
        return self.indices if self.subsampled else None


class MinibatchReader:
    """Reads minibatches off a model's arguments.

    Args:
        model: the model that opens the plate.
        layout: its latent sites.
        frame: the plate as the arguments ``example`` (args, kwargs) make it.
        context: function of the arguments that gives the context; ``None`` takes the first.
        width: numbers of context for each datum.
        like: gives dtype and device.
    """

    def __init__(
        self,
        model: Model,
        layout: PlateLayout,
        frame: Frame,
        example: tuple[tuple[Any, ...], dict[str, Any]],
        context: Callable[..., Any] | None,
        width: int,
    ) -> None:
        self._model = model
        self._layout = layout
        self._context = context
        self._width = width
        # The sizes of a plate follow from the arguments' shapes, so that the model need not be run for each call.
        self._frames: dict[Any, Frame] = {_signature(example): frame}
        self._factors: dict[Any, float] = {}

    def frame(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
        """The model's plate for these arguments; for new shapes the model is run up to its first latent site."""
        key = _signature((args, kwargs))
        if key not in self._frames:
            (plate,) = [f for f in self._first_site(args, kwargs)["cond_indep_stack"] if f.name == self._layout.plate]
            if len(self._frames) >= MOST_FRAMES:  # arguments with ever new numbers, say
                del self._frames[next(iter(self._frames))]
            self._frames[key] = Frame(plate.name, plate.dim, plate.size, plate.full_size or plate.size)
        return self._frames[key]

    def factor(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """By what the model multiplies a datum's terms for these arguments, beside its plate's N / B."""
        key = _signature((args, kwargs))
        if key not in self._factors:
            scale = float(self._first_site(args, kwargs)["scale"])
            self._factors[key] = scale / self.frame(args, kwargs).scale
        return self._factors[key]

    def subsamples(self, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor) -> bool:
        """Whether the model is given more data than its plate takes, and chooses among them."""
        return len(self._rows(args, kwargs, like)) != self.frame(args, kwargs).size

    def _first_site(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The first latent site of a run of the model, which ends there."""
        first = self._layout.sites[0].name
        traced = poutine.trace(StopAfter({first})(self._model))
        with torch.no_grad(), seeded(0), poutine.block(), suppress(Reached):
            traced.get_trace(*args, **kwargs)
        node: dict[str, Any] = traced.trace.nodes[first]
        return node

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor) -> Minibatch:
        """The data of a call; of data that are given whole but subsampled by the model, places drawn at random.

        Raises:
            TypeError: the context is no tensor, or there is no first argument to take it from.
            ValueError: the context does not have one row for each datum, or rows of another width.
        """
        context = self._rows(args, kwargs, like)
        frame = self.frame(args, kwargs)
        n, size, full = len(context), frame.size, frame.full_size
        if n not in (size, full):
            sizes = f"{size}" if size == full else f"{size} (its minibatch) or {full} (all of it)"
            raise ValueError(
                f"the context must have one row for each datum of plate {frame.name!r}, {sizes}; found {n}. "
                f"{OWN_CONTEXT.capitalize()} that returns such rows"
            )
        if n == size:
            return Minibatch(frame, torch.arange(size, device=context.device), context, False, args, kwargs)
        indices = torch.randperm(full, device=context.device)[:size]
        return Minibatch(frame, indices, context[indices], True, args, kwargs)

    def at(self, indices: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor) -> Minibatch:
        """The same at places (B,) that somebody else has chosen."""
        context = self._rows(args, kwargs, like)
        frame = self.frame(args, kwargs)
        if len(context) == len(indices):
            return Minibatch(frame, indices, context, False, args, kwargs)
        return Minibatch(frame, indices, context[indices], True, args, kwargs)

    def _rows(self, args: tuple[Any, ...], kwargs: dict[str, Any], like: Tensor) -> Tensor:
        if self._context is None and not args:
            raise TypeError(
                "the context of an amortised guide is the model's first argument by default, and there is none; "
                f"{OWN_CONTEXT}"
            )
        context = args[0] if self._context is None else self._context(*args, **kwargs)
        if not isinstance(context, Tensor) or context.dim() == 0:
            what = (
                f"a tensor of shape {tuple(context.shape)}" if isinstance(context, Tensor) else type(context).__name__
            )
            raise TypeError(
                f"the context must be a torch.Tensor with one row for each datum, found {what}; {OWN_CONTEXT} that "
                "returns one"
            )
        flat = context.reshape(len(context), -1).to(like)
        if flat.shape[1] != self._width:
            raise ValueError(
                f"the context must have {self._width} numbers for each datum, the sampler's context_dim; found "
                f"{flat.shape[1]} (shape {tuple(context.shape)}). Change the sampler's context_dim, or {OWN_CONTEXT}"
            )
        return flat


def _signature(value: Any) -> Any:
    """What the sizes of a model's plates may depend on: shapes of tensors, and plain numbers, by their places."""
    if isinstance(value, Tensor):
        return ("tensor", tuple(value.shape))
    if isinstance(value, Mapping):
        return ("dict", tuple((str(key), _signature(v)) for key, v in value.items()))
    if isinstance(value, tuple | list):
        return ("list", tuple(_signature(v) for v in value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return ("object", id(value))
