"""What a model of minibatches and its guide share: the plate over the data, modules under a name."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.params import param_with_module_name
from torch import Tensor, nn

from avbvi.arguments import integer

__all__ = ["data_plate", "flat", "register"]

PLATE = "data"


def flat(x: Tensor) -> Tensor:
    """A minibatch (B, *shape) with each datum in one row, (B, n).

    Raises:
        ValueError: x has no dimension for the data.
    """
    if x.dim() < 2:
        raise ValueError(f"x must have shape (B, *shape of a datum), found {tuple(x.shape)}")
    return x.flatten(1)


def data_plate(x: Tensor, size: int | None = None) -> Any:
    """The plate "data" over the rows of a minibatch; its terms are scaled by size / B.

    Args:
        x: minibatch, shape (B, *shape).
        size: number of data of which it is a part; None if it is all of them.

    Raises:
        ValueError: size is smaller than the minibatch.
    """
    if size is None:
        return pyro.plate(PLATE, len(x), dim=-1, device=x.device)
    if integer("size", size, 1) < len(x):
        raise ValueError(f"size is the number of all data, at least the {len(x)} of the minibatch, found {size}")
    # Which rows these are is nobody's concern, and drawing indices would cost more than the plate.
    return pyro.plate(PLATE, size, subsample=torch.arange(len(x), device=x.device), dim=-1)


def register(name: str, module: nn.Module) -> None:
    """Make a module's parameters known to Pyro under a name (``pyro.module``).

    Raises:
        ValueError: the name belongs to another module, whose parameters Pyro would train in its stead.
    """
    store = dict(pyro.get_param_store().named_parameters())
    for key, parameter in module.named_parameters():
        if store.get(param_with_module_name(name, key), parameter) is not parameter:
            raise ValueError(
                f"name={name!r} belongs to another module in Pyro's parameter store, whose parameters would be trained "
                "instead; call pyro.clear_param_store() before a new fit, or choose another name"
            )
    pyro.module(name, module)
