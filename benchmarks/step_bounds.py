"""What a training step has to do, and how fast this machine could do it at best.

Counted: floating-point operations (of matrix products, by the formulas of PyTorch's
``FlopCounterMode``, which itself fails on gradients with respect to a leaf), calls that start a kernel (those
that are not views of other tensors), and the bytes that they read and write. The bound is the time of the step's own
matrix products, each measured alone in a tight loop, plus the bytes of all other kernels at the bandwidth of a copy.
It is a bound of an eager step: a compiled one may fuse kernels and move fewer bytes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Bound", "Work", "bandwidth", "bound", "product_rate", "product_seconds", "work_of"]

LARGE_PRODUCT, LARGE_COPY = 1024, 2**26
#: Shapes of the two factors of a matrix product, (m, k), (k, n), with one more axis for a batch of them.
Product = tuple[tuple[int, ...], tuple[int, ...]]
#: Positions of the factors among the arguments.
PRODUCTS = {
    torch.ops.aten.mm: (0, 1),
    torch.ops.aten.bmm: (0, 1),
    torch.ops.aten.addmm: (1, 2),
    torch.ops.aten.baddbmm: (1, 2),
}


@dataclass
class Work:
    """The work of one step.

    Args:
        flops: floating-point operations of its matrix products.
        kernels: calls that start a kernel.
        bytes: read and written by them, once for each call.
        other_bytes: the same without matrix products.
        products: the matrix products by their shapes.
    """

    flops: int = 0
    kernels: int = 0
    bytes: int = 0
    other_bytes: int = 0
    products: Counter[Product] = field(default_factory=Counter)


class _Count(TorchDispatchMode):
    """Counts calls, bytes and products below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        touched = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        # An expanded tensor is read once.
        moved = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in touched.values())
        work = self.work
        work.kernels += 1
        work.bytes += moved
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            work.flops += formula(*args, **(kwargs or {}), out_val=out)
        where = PRODUCTS.get(func.overloadpacket)
        if where is None:
            work.other_bytes += moved
        else:
            work.products[tuple(args[where[0]].shape), tuple(args[where[1]].shape)] += 1
        return out


def work_of(step: Callable[[], object], count: int = 1) -> Work:
    """Count the work of a call of ``step``, which must run eagerly, or of one of ``count`` equal steps that it takes.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be positive, found {count}")
    with _Count() as counter:
        step()
    work = counter.work
    return Work(
        work.flops // count,
        work.kernels // count,
        work.bytes // count,
        work.other_bytes // count,
        Counter({product: -(-n // count) for product, n in work.products.items()}),
    )


@dataclass(frozen=True)
class Bound:
    """The least seconds of a step, and the rates that they were found by.

    Args:
        seconds: products at the rates of their own shapes, other bytes at the bandwidth.
        seconds_large: all FLOPs at the rate of one large product, all bytes at the bandwidth.
        product_rate: FLOPs per second of a large matrix product.
        bandwidth: bytes per second of a copy.
    """

    seconds: float
    seconds_large: float
    product_rate: float
    bandwidth: float


def bound(work: Work, product_seconds: float, product_rate: float, bandwidth: float) -> Bound:
    """The bound of some work from measured rates.

    Args:
        work: of one step.
        product_seconds: what its matrix products take alone.
        product_rate: FLOPs per second of a large product.
        bandwidth: bytes per second.
    """
    return Bound(
        product_seconds + work.other_bytes / bandwidth,
        work.flops / product_rate + work.bytes / bandwidth,
        product_rate,
        bandwidth,
    )


def product_rate(device: torch.device, size: int = LARGE_PRODUCT) -> float:
    """FLOPs per second of one large product in single precision."""
    a, b = torch.randn(2, size, size, device=device)
    out = torch.empty_like(a)
    return 2.0 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out), device)


def product_seconds(work: Work, device: torch.device) -> float:
    """Seconds of the work's matrix products, each shape measured alone in single precision."""
    total = 0.0
    for (left, right), count in work.products.items():
        a, b = torch.randn(left, device=device), torch.randn(right, device=device)
        out = torch.matmul(a, b)
        total += count * best_seconds(_multiply(a, b, out), device)
    return total


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], object]:
    product = torch.mm if a.dim() == 2 else torch.bmm
    return lambda: product(a, b, out=out)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a copy of so many bytes; a small one stays in the caches."""
    source = torch.randn(max(size // 4, 1), device=device)
    target = torch.empty_like(source)
    return 2.0 * 4 * source.numel() / best_seconds(lambda: target.copy_(source), device)


def best_seconds(
    call: Callable[[], object], device: torch.device, *, at_least: float = 2e-3, repeats: int = 7
) -> float:
    """Least seconds of a call over some repetitions, each of as many calls as take ``at_least`` seconds.

    On CUDA the calls are captured and replayed, so that what starting a kernel costs is not counted.
    """
    many = _captured(call, 50) if device.type == "cuda" else call
    each = 50 if device.type == "cuda" else 1

    def timed(n: int) -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(n):
            many()
        _wait(device)
        return time.perf_counter() - began

    timed(2)
    n = max(1, math.ceil(at_least / max(statistics.median(timed(1) for _ in range(3)), 1e-7)))
    return min(timed(n) for _ in range(repeats)) / (n * each)


def _captured(call: Callable[[], object], n: int) -> Callable[[], object]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(n):
            call()
    return graph.replay


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
