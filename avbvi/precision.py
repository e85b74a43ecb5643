"""Lower precision of the networks' matrix products, where a fit asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import flag, found
from .model_state import modules_of
from .targets import Model


@dataclass(frozen=True)
class Precision:
    """Precision of a fit's matrix products; the default is that of the parameters throughout.

    Args:
        autocast: ``torch.bfloat16`` runs the networks of sampler, adversary and model under ``torch.autocast``. What
            they return is float32 again: densities, contrast, trunk, losses and optimisers never see bfloat16.
        tf32: let float32 matrix products be rounded to TF32 on GPUs that have it, in all of a fit's steps.

    Raises:
        TypeError: ``autocast`` is no dtype, or ``tf32`` no bool.
        ValueError: ``autocast`` is another dtype: float16 would need its losses scaled.

    Example:
        >>> import torch, avbvi
        >>> avbvi.Precision(autocast=torch.bfloat16).settings()  # fit(..., precision=...)
        {'autocast': 'torch.bfloat16', 'tf32': False}
    """

    autocast: torch.dtype | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.autocast is not None and not isinstance(self.autocast, torch.dtype):
            raise TypeError(f"Precision(autocast=...) must be torch.bfloat16 or None, found {found(self.autocast)}")
        if self.autocast not in (None, torch.bfloat16):
            raise ValueError(f"Precision(autocast=...) must be torch.bfloat16 or None, found {self.autocast}")
        flag("Precision(tf32=...)", self.tf32)

    def settings(self) -> dict[str, Any]:
        """The arguments, as plain data."""
        return {"autocast": None if self.autocast is None else str(self.autocast), "tf32": self.tf32}

    @contextmanager
    def applied(self, networks: Iterable[nn.Module], like: Tensor) -> Iterator[None]:
        """Run the block with these networks' forward passes in this precision; everything is as before afterwards.

        Args:
            networks: modules that are called, at whatever depth they lie.
            like: a tensor of any shape, which gives device and dtype of the parameters.

        Raises:
            ValueError: there is to be autocast and the parameters are not float32.
        """
        if self.autocast is not None and like.dtype != torch.float32:
            raise ValueError(f"precision: autocast is for float32 parameters, found {like.dtype}; leave it out")
        before = torch.get_float32_matmul_precision()
        handles = []
        if self.autocast is not None:
            for network in networks:
                passes = _Passes(self.autocast, like)
                handles.append(network.register_forward_pre_hook(passes.enter))
                handles.append(network.register_forward_hook(passes.leave, always_call=True))
        if self.tf32:
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            for handle in handles:
                handle.remove()


class _Passes:
    """Hooks that put one module's forward passes under autocast and give its output its usual dtype."""

    def __init__(self, dtype: torch.dtype, like: Tensor) -> None:
        self._dtype, self._kind, self._usual = dtype, like.device.type, like.dtype
        self._entered: list[torch.autocast] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        # Casts that were cached without gradient would be reused with it, and in a captured step from another replay.
        context = torch.autocast(self._kind, self._dtype, cache_enabled=False)
        context.__enter__()
        self._entered.append(context)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._entered:
            self._entered.pop().__exit__(None, None, None)
        return self._restored(output)

    def _restored(self, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output.to(self._usual) if output.dtype == self._dtype else output
        if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
            return type(output)(self._restored(value) for value in output)
        return output


def networks_in(module: nn.Module) -> list[nn.Module]:
    """The outermost modules inside one that are called themselves; members of lists and dicts instead of those."""
    networks: list[nn.Module] = []
    for child in module.children():
        networks += networks_in(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return networks


def networks_of(guide: nn.Module, model: Model) -> list[nn.Module]:
    """The networks of a guide's sampler and adversary, and those that the model works with."""
    parts = [guide._modules[role] for role in ("sampler", "adversary")]
    networks = [network for part in parts if part is not None for network in networks_in(part)]
    for name, module in modules_of(model).items():
        # The model itself computes densities too, which are left as they are.
        networks += [module] if name else networks_in(module)
    return list({id(network): network for network in networks}.values())
