"""What a model has learned: its parameters in Pyro's store, and the buffers of its modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from .log_density import LogDensity
from .rng import seeded
from .targets import Model


def modules_of(model: Model) -> dict[str, nn.Module]:
    """The modules that a model works with, by name, as far as they can be seen.

    These are the model itself, the object whose method it is, or modules among that object's attributes; for a
    function, modules that it closes over or that are global variables which it names.
    """
    found: Any = model
    while isinstance(found, functools.partial):
        found = found.func
    owner = getattr(found, "__self__", found)
    if isinstance(owner, nn.Module):
        return {"": owner}
    if owner is not found or not inspect.isfunction(found):
        held = dict(getattr(owner, "__dict__", {}))
    else:
        seen = inspect.getclosurevars(found)
        held = {**seen.globals, **seen.nonlocals}
    return {f"{name}.": value for name, value in held.items() if isinstance(value, nn.Module)}


def put_to_rest(model: Model, guide: nn.Module) -> None:
    """Put the guide and the modules that the model works with in evaluation mode: without dropout, say."""
    for module in (guide, *modules_of(model).values()):
        module.eval()


def model_parameters(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The model's own learned parameters, unconstrained, by their names in Pyro's store.

    Of a module's parameters it is the module's own that count, also where the store has another's under the name.
    """
    with torch.no_grad(), seeded(0), poutine.block(), poutine.trace(param_only=True) as capture:
        model(*args, **kwargs)
    result = {}
    for name, site in capture.trace.nodes.items():
        given = site["args"][1] if len(site["args"]) > 1 else None
        result[name] = given if isinstance(given, nn.Parameter) else site["value"].unconstrained()
    return result


def model_buffers(model: Model, apart_from: nn.Module | None = None) -> dict[str, Tensor]:
    """Buffers of the model's modules by name, without those of another module (the guide)."""
    others = set() if apart_from is None else {id(b) for b in apart_from.buffers()}
    return {
        prefix + name: buffer
        for prefix, module in modules_of(model).items()
        for name, buffer in module.named_buffers()
        if id(buffer) not in others
    }


def claim_parameters(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Drop the entries of Pyro's store that other modules have left under the names of this model's modules.

    Pyro would train those instead, and this model's would stay as they are, silently. The other modules keep their
    values. Entries of ``pyro.param`` go on from the store, as in Pyro.
    """
    if isinstance(model, LogDensity):
        return
    store = pyro.get_param_store()
    try:
        with store.scope(), torch.no_grad(), seeded(0), poutine.block(), poutine.trace(param_only=True) as capture:
            model(*args, **kwargs)
            own = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    except Exception:  # the guide's set-up runs the model too, and says more about what is wrong
        return
    there: Mapping[str, Tensor] = dict(store.named_parameters())
    for name, parameter in own.items():
        if isinstance(parameter, nn.Parameter) and there.get(name, parameter) is not parameter:
            del store[name]


@contextmanager
def modules_at_hand() -> Iterator[None]:
    """Run models in the block with the modules that they hold, whatever others Pyro's store has under their names.

    Several fits can so be asked side by side. Parameters of ``pyro.param`` are the store's, as ever; the store is
    afterwards as it was.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    kept = {name: value for name, value in state["params"].items() if not isinstance(value, nn.Parameter)}
    constraints = {name: state["constraints"][name] for name in kept}
    with store.scope({"params": kept, "constraints": constraints}):
        yield
