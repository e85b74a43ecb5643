"""Several processes on one fit: which they are, and what they tell each other.

Every process makes the same calls. Searches, looks at a run's health and verdicts are repeated by each of them from the
same seed; the draws or data of a training step are divided (:mod:`avbvi.divided.division`), its gradients are averaged.
What a run decides is what the first process decides.

Nothing is shared outside of :func:`together`, which :func:`avbvi.fit` enters by itself where a process group is there.
Independent fits in the processes of one group, those of a simulation study, say, belong into :func:`alone`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import positive_number
from .rng import rng_state, set_rng_state

__all__ = [
    "alone",
    "close",
    "device",
    "init",
    "is_first",
    "is_initialised",
    "rank",
    "sum_",
    "together",
    "world_size",
]

T = TypeVar("T")

#: What the launcher (torchrun) tells each process.
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: Whether the work is shared here; ``None`` where nobody has said so, which :func:`avbvi.fit` takes for yes.
_shared: ContextVar[bool | None] = ContextVar("avbvi_shared", default=None)


def init(backend: str | None = None, *, minutes: float = 30.0) -> torch.device:
    """Join the processes that torchrun has started; returns the device of this one, for ``fit(device=...)``.

    Without torchrun it does nothing, and a group that is there is kept: a script runs as one process or as many.

    Args:
        backend: of ``torch.distributed``; NCCL where there is a GPU for each process of the machine, else Gloo.
        minutes: how long a process waits for the others before it gives up.

    Returns:
        The GPU number LOCAL_RANK with NCCL, else the CPU, or without torchrun the GPU, if there is one.

    Raises:
        RuntimeError: this torch has no ``torch.distributed``, or only some of torchrun's variables are set.
        TypeError: ``minutes`` is no number.
        ValueError: ``minutes`` is not positive, or there is no GPU number LOCAL_RANK for NCCL.

    Example:
        >>> from avbvi import distributed
        >>> device = distributed.init()  # the same script runs as one process, or as many by torchrun
        >>> distributed.world_size(), distributed.rank(), distributed.is_first()
        (1, 0, True)
        >>> distributed.close()
    """
    minutes = positive_number("minutes", minutes)
    gpus = torch.cuda.device_count()
    if not is_initialised():
        missing = [name for name in ENVIRONMENT if name not in os.environ]
        if "RANK" in missing or "WORLD_SIZE" in missing:
            return torch.device("cuda" if gpus else "cpu")
        if missing:
            raise RuntimeError(
                f"the environment says that there are {os.environ['WORLD_SIZE']} processes, but lacks {missing}: start "
                "the script by torchrun, or set these variables as it does (docs/distributed.md has a SLURM script)"
            )
        if not dist.is_available():
            raise RuntimeError("this build of torch has no torch.distributed; install another one")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        backend = backend or ("nccl" if gpus >= local else "gloo")
        if backend == "nccl":
            _choose_gpu(gpus)
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    if dist.get_backend() == "nccl":
        _choose_gpu(gpus)
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def close() -> None:
    """Leave the group, if this process belongs to one, when all others are as far; at the end of a script."""
    if is_initialised():
        dist.barrier()
        dist.destroy_process_group()


def _choose_gpu(gpus: int) -> None:
    if "LOCAL_RANK" not in os.environ:
        return
    number = int(os.environ["LOCAL_RANK"])
    if number >= gpus:
        raise ValueError(
            f"backend='nccl' needs a GPU for each process, and this is number {number} on a machine with {gpus}; start "
            "fewer processes on it, or use backend='gloo'"
        )
    torch.cuda.set_device(number)


def is_initialised() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def together() -> Iterator[None]:
    """Share the work in the block among all processes of the group; each has to run it.

    ``fit`` does so by itself. For ``SVI`` with :class:`~avbvi.AdversarialELBO`: in this block the gradients of a
    training call are those of all processes.
    """
    token = _shared.set(True)
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Share nothing in the block, whatever group this process belongs to."""
    token = _shared.set(False)
    try:
        yield
    finally:
        _shared.reset(token)


@contextmanager
def together_unless_alone() -> Iterator[None]:
    """:func:`together`, but in a block of :func:`alone` nothing."""
    token = _shared.set(_shared.get() is not False)
    try:
        yield
    finally:
        _shared.reset(token)


def world_size() -> int:
    """Number of processes that share the work here; 1 outside of :func:`together`."""
    return dist.get_world_size() if _shared.get() and is_initialised() else 1


def rank() -> int:
    """Number of this process among those that share the work here, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return rank() == 0


def device() -> torch.device | None:
    """Where tensors have to be for the processes to exchange them; ``None`` if anywhere."""
    if world_size() == 1 or dist.get_backend() != "nccl":
        return None
    return torch.device("cuda", torch.cuda.current_device())


# -- what the processes tell each other: all of them have to call these, in the same order -----------------


def sum_(tensors: Sequence[Tensor], weight: float = 1.0) -> None:
    """Replace tensors by their sum over processes, in place.

    One message for all tensors of a dtype and device.

    Args:
        tensors: of the same shapes in all processes.
        weight: by what this process's are multiplied.

    Example:
        >>> import torch
        >>> from avbvi import distributed
        >>> total = torch.ones(2)
        >>> with distributed.together():
        ...     distributed.sum_([total])
        >>> total  # of one process
        tensor([1., 1.])
    """
    if world_size() == 1:
        return
    for same in _alike(tensors):
        flat = _sent(torch.cat([t.detach().reshape(-1) for t in same]) * weight)
        dist.all_reduce(flat)
        _unpack(flat, same)


def copy_from_first_(tensors: Sequence[Tensor]) -> None:
    """Give tensors the values that they have in the first process, in place."""
    if world_size() == 1:
        return
    for same in _alike(tensors):
        flat = _sent(torch.cat([t.detach().reshape(-1) for t in same]))
        dist.broadcast(flat, 0)
        _unpack(flat, same)


def gathered(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all processes one below the other, in the processes' order; ``counts`` tells how many each one has.

    (n, *shape) to (sum of counts, *shape), without gradient.
    """
    if world_size() == 1:
        return rows
    home, most = rows.device, max(counts)
    rows = _sent(rows.detach().contiguous())
    if len(rows) < most:
        rows = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(rows) for _ in counts]
    dist.all_gather(parts, rows)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(home)


def agreed(value: T) -> T:
    """The first process's value: any object that can be pickled."""
    if world_size() == 1:
        return value
    held = [value if is_first() else None]
    dist.broadcast_object_list(held, 0, device=device())
    return held[0]  # type: ignore[return-value]


def from_first(make: Callable[[], T]) -> T:
    """What ``make()`` returns in the first process, which alone calls it.

    Raises:
        Exception: what it raises there, in all processes.
    """
    if world_size() == 1:
        return make()
    value: Any = None
    failure: Exception | None = None
    if is_first():
        try:
            value = make()
        except Exception as error:  # the others wait for an answer
            failure = error
    value, failure = agreed((value, failure))
    if failure is not None:
        raise failure
    result: T = value
    return result


def everyones(value: T) -> list[T]:
    """The values of all processes, in their order: any objects that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest(numbers: Sequence[float]) -> list[float]:
    """The largest of each of these numbers over processes."""
    if world_size() == 1:
        return list(numbers)
    held = torch.tensor(list(numbers), dtype=torch.float64, device=device() or "cpu")
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return [float(x) for x in held.tolist()]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return largest([float(flag)])[0] > 0.0


def same_seed(seed: int | None) -> int | None:
    """A seed for all processes: the first one's, drawn from its generator where ``seed`` is ``None``."""
    if world_size() == 1:
        return seed
    return agreed(int(torch.randint(2**31, (), device="cpu")) if seed is None else seed)


def same_generators() -> None:
    """Give this process's random generators, that of the device it works on too, the states of the first one's."""
    if world_size() == 1:
        return
    on_gpu = device() is not None
    own = rng_state()
    state, gpu = agreed((own, torch.cuda.get_rng_state() if on_gpu else None))
    set_rng_state({**state, "cuda": own["cuda"]})
    if gpu is not None:
        torch.cuda.set_rng_state(gpu)


def _sent(tensor: Tensor) -> Tensor:
    """The tensor where it can be sent from.

    NCCL sends from the GPU, and counters of a guide lie on the host; Gloo gathers from the host alone.
    """
    return tensor.to(device() or "cpu")


def _alike(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.dtype, t.device), []).append(t)
    return list(groups.values())


@torch.no_grad()
def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for t, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(values.view(t.shape))
