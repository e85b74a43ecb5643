"""What a captured step must not do: wait for the device, or let shapes depend on numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that read numbers back, or whose result's shape depends on them, by name.
READING = frozenset(
    {
        "_local_scalar_dense",
        "item",
        "equal",
        "nonzero",
        "masked_select",
        "unique_dim",
        "unique_consecutive",
        "_unique",
        "_unique2",
        "linalg_eig",
        "linalg_lstsq",
        "repeat_interleave",
        "is_nonzero",
    }
)
#: What holds Python's numbers in a tensor, which reach a device by a copy that blocks.
FROM_HOST = frozenset({"lift_fresh", "lift_fresh_copy"})
COPIES = frozenset({"copy_", "_to_copy", "copy"})


class StraightLine(TorchDispatchMode):
    """Context that notes every operation which a CUDA graph can't hold, or which waits for the device.

    It is a matter of the operations alone, so that a step's arithmetic can be inspected on a CPU as well: what it
    would do on a GPU follows from the device of each operand, which is the same there. Kernels that wait inside are not
    seen; CUDA's own mode of reporting them is.

    Args:
        host: tensors that stay on the host and may be read there.
        device: where the step computes. What is done elsewhere waits for nothing; a graph takes it for constant, which
            random numbers are not.

    Attributes:
        found: descriptions of what was noted, in order, without repetition.
    """

    def __init__(self, host: Iterable[Tensor] = (), device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._kind = torch.device(device).type
        self._host = {id(tensor): tensor for tensor in host}
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        first = args[0] if args and isinstance(args[0], Tensor) else None
        elsewhere = first is not None and (first.device.type != self._kind or id(first) in self._host)
        wrong = None if elsewhere else _wrong(name, args, kwargs)
        result = func(*args, **kwargs)
        if wrong is None and name in COPIES:
            wrong = _crossing(name, args, result)
        if wrong is None and torch.Tag.nondeterministic_seeded in func.tags:
            wrong = self._drawn_elsewhere(name, result)
        if wrong is not None and wrong not in self.found:
            self.found.append(wrong)
        return result

    def _drawn_elsewhere(self, name: str, result: Any) -> str | None:
        if isinstance(result, Tensor) and result.device.type != self._kind:
            return f"{name} draws on {result.device.type}: its numbers would be the same in each replay"
        return None


def _wrong(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    if name in READING:
        return f"{name} reads numbers back from the device"
    if name in FROM_HOST:
        return f"{name} makes a tensor of Python's numbers"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = (i for i in args[1] if isinstance(i, Tensor))
        fills = name != "index" and isinstance(args[2], Tensor) and args[2].numel() == 1
        if not fills and any(i.dtype in (torch.bool, torch.uint8) for i in masks):
            return f"{name} with a mask: its shape depends on numbers"
    if name == "multinomial":
        replacement = args[2] if len(args) > 2 else kwargs.get("replacement", False)
        if not replacement or args[1] == 1:
            return "multinomial of one draw, or without replacement, reads numbers back from the device"
    if name in ("linalg_cholesky_ex", "linalg_inv_ex", "linalg_solve_ex", "linalg_lu_factor_ex"):
        if kwargs.get("check_errors", False):
            return f"{name} checks for errors on the host"
    elif name in ("cholesky", "_linalg_check_errors", "linalg_eigh", "_linalg_eigh", "_linalg_svd", "linalg_qr"):
        return f"{name} waits for the device"
    return None


def _crossing(name: str, args: tuple[Any, ...], result: Any) -> str | None:
    source = args[1] if name == "copy_" else args[0]
    if isinstance(source, Tensor) and isinstance(result, Tensor) and source.device.type != result.device.type:
        return f"{name} from {source.device.type} to {result.device.type}"
    return None
