"""What an error inside a user's model may come from, and what to do about it: for the messages of refusals."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .errors import ModelError

_TABLE = "\nTrace Shapes:"
#: Characters of an error's own text that are repeated: Pyro prints whole tensors.
_MOST = 300
_PLATE = re.compile(r"Shape mismatch inside plate\('([^']*)'\) at site (\S+) dim (-?\d+), (\d+) vs (\d+)")
_DTYPE = re.compile(r"\bdtypes?\b|scalar type", re.IGNORECASE)
_DEVICE = re.compile(r"same device|expected device|meta tensor|on device", re.IGNORECASE)
_PRODUCT = re.compile(
    r"cannot be multiplied|size mismatch, got|must match the size of tensor|inconsistent tensor size|of batch2 tensor"
)
_INVALID = re.compile(r"invalid values|\bnan\b", re.IGNORECASE)
#: What to do about a model that fails for many draws at once, where nothing better is known.
BROADCAST = (
    "If it runs for one draw, make its arithmetic broadcast over leading dimensions, or use "
    "AdversarialELBO(vectorize_particles=False)"
)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def spelled(function: _Function) -> _Function:
    """The function; a keyword that it does not have is refused with the name that was probably meant.

    It is for functions without ``**kwargs`` alone: those take any keyword.

    Raises:
        TypeError: (by the function) a keyword that it does not have.
    """
    parameters = inspect.signature(function).parameters.values()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters), function
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"]
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(names)}"
                raise TypeError(f"{called}() has no argument {name!r}{meant}")
        return function(*args, **kwargs)

    return cast(_Function, checked)


def innermost(error: ModelError) -> ModelError:
    """The refusal as it was raised: Pyro raises it again, with a table of shapes behind its text."""
    while isinstance(error.__cause__, ModelError):
        error = error.__cause__
    return error


def shortened(error: Exception) -> str:
    """The error's text without the table of shapes that Pyro appends, and without the values of long tensors."""
    text = str(error).partition(_TABLE)[0].strip().rstrip(".!")
    text = re.sub(r"found invalid values:\s*tensor\(.*", "found invalid values", text, flags=re.DOTALL)
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


def remedy(error: Exception, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> str | None:
    """What to do about an error inside a model called with these arguments; None where nothing is known.

    Told apart are a dimension that is neither a plate's nor an event's, data of another dtype or on another device
    than the latents, NaN among the arguments, and products that do not broadcast.
    """
    text = str(error)
    given = list(_tensors(args, kwargs or {}))
    if plate := _PLATE.search(text):
        name, site, dim, _, size = plate.groups()
        advice = (
            f"Site {site!r} has size {size} in dimension {dim}, which belongs to a plate: declare the dimensions of "
            f"one draw with .to_event(n) (.to_event(1) for a vector), or open a plate of size {size} for them"
        )
        # In the plate over draws that the fit itself opens, the arithmetic may be at fault as well.
        return f"{advice}. {BROADCAST}" if name.startswith("_avbvi") else advice
    if _DEVICE.search(text):
        here = torch.get_default_device()
        where = ", ".join(f"{name} on {value.device}" for name, value in given if value.device != here)
        return (
            f"The latents are on {here}, {where or 'what the function closes over may be elsewhere'}: name one device "
            "for all, fit(..., device=...), which moves arguments and modules, and move what the function closes over"
        )
    if _DTYPE.search(text):
        usual = torch.get_default_dtype()
        other = ", ".join(
            f"{name} is {value.dtype}" for name, value in given if value.is_floating_point() and value.dtype != usual
        )
        return (
            f"The latents are {usual}, {other or 'what the function closes over may be of another dtype'}: convert it "
            f"(.to({usual})), or call torch.set_default_dtype(torch.float64) first and give all data in float64"
        )
    if _INVALID.search(text):
        for name, value in given:
            nan = int(torch.isnan(value).sum()) if value.is_floating_point() and not value.is_meta else 0
            if nan:
                return f"{name[0].upper()}{name[1:]} has NaN in {nan} of {value.numel()} places: remove or replace them"
    if _PRODUCT.search(text):
        return (
            "The model is run for many draws at once, along a first dimension that a plate adds: let its arithmetic "
            "broadcast over leading dimensions (x @ w, of rows in a plate and one vector, becomes (x * w).sum(-1)), or "
            "use AdversarialELBO(vectorize_particles=False), which runs it draw by draw"
        )
    return None


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors among the arguments, with a name for each."""
    named = [*((f"argument {i} of the model", a) for i, a in enumerate(args, 1)), *kwargs.items()]
    for name, value in named:
        parts = value if isinstance(value, tuple | list) else [value]
        yield from ((name, part) for part in parts if isinstance(part, Tensor))
