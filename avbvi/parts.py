"""What samplers, trunks, contrasts and adversaries share: a width known late, a plain configuration."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .objectives import Objective

Plain = dict[str, Any]


class Part(nn.Module):
    """A module that learns its width when the guide is set up, and that can be rebuilt from plain data.

    Subclasses store every constructor argument under the argument's own name (as scikit-learn's
    estimators do) and create their parameters in :meth:`_build`.
    """

    dim: int | None
    #: Built-in classes by name: those that a saved posterior may name.
    registry: ClassVar[dict[str, type[Part]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:
            Part.registry[cls.__name__] = cls

    def __init__(self) -> None:
        super().__init__()
        self.dim = None

    def build(self, dim: int) -> None:
        """Create the parameters for ``dim`` latent coordinates; a second call must name the same width.

        Raises:
            ValueError: the part was already built for another width.
        """
        if self.dim is None:
            self.dim = dim
            self._build(dim)
        elif self.dim != dim:
            raise ValueError(
                f"{type(self).__name__} was built for {self.dim} latent coordinates but the model has {dim}; "
                "give each guide its own part"
            )

    def _build(self, dim: int) -> None:
        """Create parameters and buffers; nothing by default."""

    @property
    def is_rebuildable(self) -> bool:
        """Whether :meth:`configuration` is enough to make this part again (true of built-in classes)."""
        return Part.registry.get(type(self).__name__) is type(self)

    def configuration(self) -> Plain:
        """Class name and constructor arguments as plain data (numbers, strings, lists, other configurations)."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n != "self"]
        return {"class": type(self).__name__, "arguments": {n: _plain(getattr(self, n)) for n in names}}


def _plain(value: Any) -> Any:
    if isinstance(value, Part | Objective):
        return value.configuration()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, dict):
        objective = Objective.registry.get(str(value.get("class")))
        return rebuild(value) if objective is None else objective(**value["arguments"])
    if isinstance(value, list):
        return tuple(_rebuilt(v) for v in value)
    return value


def rebuild(configuration: Plain) -> Part:
    """Make a built-in part from its configuration; the guide builds it at set-up.

    Raises:
        ValueError: the configuration names no built-in class.
    """
    name = configuration.get("class")
    cls = Part.registry.get(str(name))
    if cls is None:
        raise ValueError(f"{name!r} is not a built-in part of avbvi (known: {sorted(Part.registry)})")
    arguments = {k: _rebuilt(v) for k, v in configuration["arguments"].items()}
    return cls(**arguments)


def mlp(sizes: list[int], activation: type[nn.Module], *, zero_last: bool = False) -> nn.Sequential:
    """A fully connected network with ``activation`` between its layers; ``zero_last`` makes its output start at 0."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        if i:
            layers.append(activation())
        layers.append(nn.Linear(n_in, n_out))
    if zero_last:
        zero_(layers[-1])
    return nn.Sequential(*layers)


def with_dropout(activation: nn.Module, dropout: float) -> nn.Module:
    """The activation, followed by dropout at this rate if it is positive; the names of parameters stay the same."""
    return nn.Sequential(activation, nn.Dropout(dropout)) if dropout else activation


class ResidualNetwork(nn.Module):
    """A fully connected residual network; the ends of its blocks and its output start at zero.

    Args:
        n_in, n_out: widths of input and output.
        hidden: width of the blocks.
        blocks: number of blocks, each of two layers.
        activation: makes one activation module.
    """

    def __init__(
        self, n_in: int, n_out: int, *, hidden: int, blocks: int, activation: Callable[[], nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.enter: nn.Linear = nn.Linear(n_in, hidden)
        self.blocks: nn.ModuleList = nn.ModuleList()
        for _ in range(blocks):
            end = nn.Linear(hidden, hidden)
            zero_(end)
            self.blocks.append(nn.Sequential(activation(), nn.Linear(hidden, hidden), activation(), end))
        leave = nn.Linear(hidden, n_out)
        zero_(leave)
        self.leave: nn.Sequential = nn.Sequential(activation(), leave)

    def forward(self, x: Tensor) -> Tensor:
        """(*batch, n_in) -> (*batch, n_out)."""
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(h)
        return out


def zero_(layer: nn.Module) -> None:
    """Set weight and bias of a linear layer to zero in place."""
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()


#: Beyond it asinh, some 35 there, does not rise further.
LARGEST = 1e15


class _Asinh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size = x.abs().clamp_max(LARGEST)
        square = size * size
        root = (1.0 + square).sqrt()
        ctx.save_for_backward(root)
        return torch.copysign(torch.log1p(size + square / (1.0 + root)), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return gradient / root


def asinh(x: Tensor) -> Tensor:
    """The inverse hyperbolic sine, up to LARGEST; differentiable once.

    PyTorch's own is not vectorised on the CPU, where it took six times as long for (512, 50) numbers.
    """
    value: Tensor = _Asinh.apply(x)
    return value
