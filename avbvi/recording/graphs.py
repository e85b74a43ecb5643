"""Functions of tensors recorded once as graphs of ATen operations, to be run without the Python that wrote them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from ..rng import rng_untouched, seeded

#: Operations beyond which a graph is not worth its recording: loops written out in Python.
MOST_OPERATIONS = 20_000
#: Largest result that is computed beforehand because it depends on no input, in elements.
MOST_FOLDED = 1_000_000


class TracingError(RuntimeError):
    """A function can't be recorded; the message says why."""


def record(function: Callable[..., Any], *example: Tensor) -> fx.GraphModule:
    """The operations that ``function`` runs on tensors like these, as a graph without autograd.

    What the function computes from anything but its arguments is taken to be constant: so are shapes, dtypes and
    Python's branches. Gradients that are taken inside are recorded as operations too.

    Raises:
        TracingError: it draws random numbers, branches on values, or is longer than MOST_OPERATIONS.
    """
    if any(torch.is_grad_enabled() and e.requires_grad for e in example):
        example = tuple(e.detach() for e in example)
    try:
        with torch.no_grad():
            # Of a bound method make_fx would count its self among the arguments.
            graph_module = make_fx(partial(function), record_module_stack=False)(*example)
    except Exception as error:  # whatever a model's own code raises on tensors that have no values
        raise TracingError(f"{type(error).__name__}: {error}") from error
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    if len(calls) > MOST_OPERATIONS:
        raise TracingError(f"it runs {len(calls)} operations, more than {MOST_OPERATIONS}")
    drawn = sorted({str(node.target) for node in calls if _is_random(node.target)})
    if drawn:
        raise TracingError(f"it draws random numbers ({', '.join(drawn)})")
    if not any(_changes_arguments(node.target) for node in calls):
        simplify(graph_module)
    return graph_module


class ModuleGraph:
    """``function(module, *tensors)`` as a graph whose inputs are the module's own tensors too.

    Changes of its buffers in place are kept, and so are draws of random numbers: they come from the same generator in
    the same order. All else that the function reads is constant. The module must keep its tensors, whose values change.

    Args:
        module: the module.
        function: of the module and ``example``, to a tensor, or a tuple of tensors and ``None``.
        example: tensors like those that the graph is to be called with.
        constant: names of the module's tensors that only direct the function and are constant, too.
        with_gradient: names of parameters; the graph then gives (value, *gradients) of the function's one value.

    Raises:
        TracingError: it can't be recorded, or the graph gives other values than the function.
    """

    def __init__(
        self,
        module: nn.Module,
        function: Callable[..., Any],
        example: Sequence[Tensor],
        *,
        constant: Collection[str] = (),
        with_gradient: Sequence[str] = (),
    ) -> None:
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        named = {name: value.detach() for name, value in named.items() if name not in constant}
        self._names, self._tensors = list(named), list(named.values())
        caller = _Caller(module, function)

        def flat(own: list[Tensor], *tensors: Tensor) -> Any:
            by_name = dict(zip(self._names, own, strict=True))
            leaves = [by_name[name].detach().requires_grad_() for name in with_gradient]
            by_name.update(zip(with_gradient, leaves, strict=True))
            own_names = {f"module.{name}": value for name, value in by_name.items()}
            with torch.set_grad_enabled(bool(leaves)):
                value = functional_call(caller, own_names, tensors)
            if not leaves:
                return value
            return value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True)

        with rng_untouched():
            self._graph: Callable[..., Any] = _without_in_place(flat, self._copies(), *example)
            self._check(flat, example)

    def __call__(self, *tensors: Tensor) -> Any:
        """The function's value, at the module's tensors as they are."""
        with torch.no_grad():
            return self._graph(self._tensors, *tensors)

    def try_out(self, *tensors: Tensor) -> None:
        """Call the graph on copies: nothing changes, no random number is used up."""
        with rng_untouched(), torch.no_grad():
            self._graph(self._copies(), *tensors)

    def compile(self) -> None:
        """Let ``torch.compile`` fuse the graph's operations, which takes some seconds on the first call after this."""
        # Its own random numbers would be others.
        self._graph = torch.compile(self._graph, dynamic=False, options={"fallback_random": True})

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors]

    def _check(self, flat: Callable[..., Any], example: Sequence[Tensor]) -> None:
        results = []
        for run in (flat, self._graph):
            own = self._copies()
            with seeded(0), torch.no_grad():
                value = run(own, *example)
            results.append([v for v in (*(value if isinstance(value, tuple) else (value,)), *own) if v is not None])
        for expected, found in zip(*results, strict=True):
            if not torch.allclose(expected, found, rtol=1e-3, atol=1e-4, equal_nan=True):
                raise TracingError("its graph gives other values than the function itself")


class _Caller(nn.Module):
    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self.module, *tensors)


def _without_in_place(function: Callable[..., Any], *example: Any) -> fx.GraphModule:
    """Record a function whose changes of its arguments in place are copied into them at the end."""
    try:
        with torch.no_grad():
            recorded = make_fx(function, record_module_stack=False)(*example)
            graph_module = make_fx(functionalize(recorded), record_module_stack=False)(*example)
    except Exception as error:  # as in record()
        raise TracingError(f"{type(error).__name__}: {error}") from error
    simplify(graph_module)
    return graph_module


def simplify(graph_module: fx.GraphModule) -> None:
    """Fold constants, drop operations that change nothing, merge equal ones; for graphs without in-place operations."""
    graph = graph_module.graph
    _fold_constants(graph_module)
    _drop_idle(graph_module)
    _merge_equal(graph)
    graph.eliminate_dead_code(is_impure_node=_acts)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _is_random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _changes_arguments(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _acts(node: fx.Node) -> bool:
    """Whether a node does more than give a result: draws, changes a tensor, checks whether a matrix was singular."""
    schema = getattr(node.target, "_schema", None)
    if _is_random(node.target) or node.is_impure():
        return True
    return schema is not None and (schema.is_mutable or not schema.returns)


def _value(graph_module: fx.GraphModule, node: Any) -> Any:
    """A constant of the graph."""
    return operator.attrgetter(str(node.target))(graph_module) if isinstance(node, fx.Node) else node


def _fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute beforehand what depends on no input's values."""
    graph, count = graph_module.graph, 0
    for node in list(graph.nodes):
        if node.op != "call_function" or _acts(node):
            continue
        filled = _filled(node)
        if filled is not None:
            value = filled
        elif all(n.op == "get_attr" for n in node.all_input_nodes):
            arguments, keywords = fx.map_arg((node.args, node.kwargs), lambda n: _value(graph_module, n))
            with torch.no_grad():
                value = node.target(*arguments, **keywords)
        else:
            continue
        if not isinstance(value, Tensor) or value.numel() > MOST_FOLDED:
            continue
        name = f"_folded_{count}"
        count += 1
        graph_module.register_buffer(name, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        graph.erase_node(node)


def _filled(node: fx.Node) -> Tensor | None:
    """The result of an operation that takes but the shape from its input: zeros_like(x), x ** 0 and the like."""
    aten = torch.ops.aten
    meta = node.meta.get("tensor_meta")
    if meta is None or not node.all_input_nodes or meta.shape.numel() > MOST_FOLDED:
        return None
    like = node.meta.get("val")
    device = None if like is None else like.device
    if node.target in (aten.zeros_like.default, aten.new_zeros.default):
        number: Any = 0
    elif node.target in (aten.ones_like.default, aten.new_ones.default):
        number = 1
    elif node.target in (aten.full_like.default, aten.new_full.default):
        number = node.args[-1]
    elif node.target is aten.pow.Tensor_Scalar and node.args[1] == 0:
        number = 1
    else:
        return None
    return torch.full(meta.shape, number, dtype=meta.dtype, device=device)


def _same_kind(a: Any, b: Any) -> bool:
    """Whether two nodes have the same shape and dtype, as far as the recording knows."""
    one, other = (getattr(n, "meta", {}).get("tensor_meta") for n in (a, b))
    return one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype)


def _drop_idle(graph_module: fx.GraphModule) -> None:
    """Drop detach, views as the same shape, sums with zeros, products and quotients with ones."""
    aten = torch.ops.aten
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        kept: Any = None
        if node.target in (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default):
            kept = node.args[0]
        elif node.target in (aten.view.default, aten.expand.default, aten._unsafe_view.default):
            kept = node.args[0] if _same_kind(node, node.args[0]) else None
        elif node.target in (aten.add.Tensor, aten.sub.Tensor) and not node.kwargs:
            first, second = node.args[:2]
            if _is_filled_with(graph_module, second, 0.0):
                kept = first
            elif node.target is aten.add.Tensor and _is_filled_with(graph_module, first, 0.0):
                kept = second
        elif node.target is aten.pow.Tensor_Scalar:
            kept = node.args[0] if node.args[1] == 1 else None
        elif node.target in (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar) and not node.kwargs:
            first, second = node.args[:2]
            if _is_filled_with(graph_module, second, 1.0):
                kept = first
            elif node.target is aten.mul.Tensor and _is_filled_with(graph_module, first, 1.0):
                kept = second
        if isinstance(kept, fx.Node) and _same_kind(node, kept):
            node.replace_all_uses_with(kept)
            graph_module.graph.erase_node(node)


def _is_filled_with(graph_module: fx.GraphModule, operand: Any, number: float) -> bool:
    if isinstance(operand, int | float):
        return float(operand) == number
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return False
    return bool((_value(graph_module, operand) == number).all())


def _merge_equal(graph: fx.Graph) -> None:
    """Compute once what is computed twice (common subexpressions)."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or _acts(node):
            continue
        key = (node.op, node.target, _hashable(node.args), _hashable(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    if isinstance(value, float):
        # -0.0 == 0.0 and 1 == 1.0 == True are different arguments.
        return ("float", math.copysign(1.0, value), value)
    return (type(value).__name__, value)
