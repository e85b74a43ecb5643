"""Pieces of a guide's training step as graphs that ``torch.compile`` has fused."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..control import is_one
from .graphs import ModuleGraph, TracingError

if TYPE_CHECKING:
    from ..elbo import AdversarialELBO
    from ..guides import AVBGuide

logger: logging.Logger = logging.getLogger(__name__)


def compiler() -> str | None:
    """The C++ compiler that ``torch.compile`` needs on the CPU, if there is one."""
    names = (os.environ.get("CXX"), "g++", "clang++", sysconfig.get_config_var("CXX"))
    found = (shutil.which(name.split()[0]) for name in names if name)
    return next((path for path in found if path), None)


def why_not_compiled(elbo: AdversarialELBO, guide: AVBGuide) -> str | None:
    """Why steps of a guide can't be compiled, in words; ``None`` if nothing is known to speak against it."""
    # The loss builds on this module.
    from ..direct import is_direct

    if guide.is_amortised or not is_direct(elbo.elbo, guide):
        return "only steps of one guide, not amortised, of a model without parameters and Trace_ELBO are compiled"
    if compiler() is None:
        return "there is no C++ compiler (g++ or clang++), which torch.compile needs"
    return None


class CompiledStep:
    """Runs pieces of one guide's steps from compiled graphs, where that can be done.

    A piece is a function of the guide and some tensors. Each combination of piece, stage, trunk in force and shapes
    has its own graph, which is checked against the function before its first use. Where one can't be recorded, all
    pieces are run as they are from then on and ``reason`` says why.

    Args:
        guide: the guide, set up; its parts keep their tensors.
    """

    def __init__(self, guide: AVBGuide) -> None:
        #: Why pieces are run as they are; None while they are not.
        self.reason: str | None = None
        #: Parameters of the outer step, by their names in the guide.
        self.outer: dict[str, nn.Parameter] = {
            name: p for name, p in guide.named_parameters() if name.split(".")[0] in ("sampler", "trunk")
        }
        self._stages: set[tuple[int, int]] = set()
        self._graphs: dict[Any, ModuleGraph] = {}
        self._constant = frozenset(
            f"{prefix}.{name}" if prefix else name
            for prefix, module in guide.named_modules()
            for name in getattr(module, "ON_HOST", ())
        )

    def first_in_stage(self, guide: AVBGuide) -> bool:
        """Whether this has not been asked before with the guide's stage and the trunk in force."""
        before, place = len(self._stages), _whereabouts(guide)
        self._stages.add(place)
        return len(self._stages) > before

    def describe(self) -> str:
        """What came of it, in words."""
        return f"{len(self._graphs)} graphs compiled" if self.reason is None else f"not compiled, since {self.reason}"

    def run(self, guide: AVBGuide, piece: Callable[..., Any], *tensors: Tensor, **numbers: int) -> Any:
        """The piece's value without gradient: ``piece(guide, *tensors, **numbers)``."""
        graph = self._graph(guide, piece, tensors, numbers, ())
        if graph is not None:
            return graph(*tensors)
        with torch.no_grad():
            return piece(guide, *tensors, **numbers)

    def with_gradients(
        self, guide: AVBGuide, piece: Callable[..., Tensor], names: Sequence[str], *tensors: Tensor, **numbers: int
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The piece's value and its gradients in the guide's parameters of these names, None for one not met."""
        graph = self._graph(guide, piece, tensors, numbers, tuple(names))
        if graph is not None:
            value, *gradients = graph(*tensors)
            return value, gradients
        with torch.enable_grad():
            value = piece(guide, *tensors, **numbers)
        return value.detach(), list(
            torch.autograd.grad(value, [guide.get_parameter(name) for name in names], allow_unused=True)
        )

    def _graph(
        self,
        guide: AVBGuide,
        piece: Callable[..., Any],
        tensors: Sequence[Tensor],
        numbers: dict[str, int],
        names: tuple[str, ...],
    ) -> ModuleGraph | None:
        if self.reason is not None:
            return None
        key = (piece, *_whereabouts(guide), *(tuple(t.shape) for t in tensors), *numbers.items())
        if key not in self._graphs:
            try:
                self._graphs[key] = self._compiled(guide, partial(piece, **numbers), tensors, names)
            except TracingError as error:
                self.reason = str(error)
                self._graphs.clear()
                logger.warning("steps are not compiled, since they can't be recorded: %s", error)
                return None
        return self._graphs[key]

    def _compiled(
        self,
        guide: AVBGuide,
        piece: Callable[..., Any],
        tensors: Sequence[Tensor],
        names: tuple[str, ...],
    ) -> ModuleGraph:
        graph = ModuleGraph(guide, piece, tensors, constant=self._constant, with_gradient=names)
        graph.compile()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler about itself
            try:
                graph.try_out(*tensors)
            except Exception as error:  # whatever a compiler that is missing or broken raises
                raise TracingError(f"torch.compile failed: {type(error).__name__}: {error}") from error
        return graph


def _whereabouts(guide: AVBGuide) -> tuple[int, int]:
    """Stage, and the trunk in force."""
    return int(guide.stage), int(getattr(guide.part("trunk"), "active", 0))


def annealing(guide: AVBGuide) -> tuple[Tensor, ...]:
    """The guide's inverse temperature as a tensor () that a graph reads anew, nothing where it is 1."""
    if is_one(guide._beta):
        return ()
    # Not as_tensor for both: it would move a tensor to the default device.
    beta = guide._beta if isinstance(guide._beta, Tensor) else torch.tensor(guide._beta)
    return (beta.to(guide.anchor),)


@contextmanager
def annealed_by(guide: AVBGuide, beta: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the guide's inverse temperature is what :func:`annealing` gave."""
    before = guide._beta
    guide._beta = beta[0] if beta else 1.0
    try:
        yield
    finally:
        guide._beta = before
