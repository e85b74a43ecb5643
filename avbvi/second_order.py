"""Operations whose second derivatives PyTorch gets wrong, replaced while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SecondOrder"]

_LOGADDEXP = frozenset({torch.logaddexp, torch.Tensor.logaddexp})


class SecondOrder(TorchFunctionMode):
    """Context in which ``torch.logaddexp`` has a second derivative wherever its terms are finite.

    That of PyTorch is NaN where the terms are further apart than the logarithm of the dtype's largest number (88.7 in
    single precision): its first derivative is 1 / (1 + exp(b - a)), whose own is computed as 0 times infinity. A
    Laplace approximation and an adversary that sees the score need it. ``torch.logsumexp``, which takes its place,
    subtracts the larger term first.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _LOGADDEXP and not (kwargs and kwargs.get("out") is not None):
            return _logaddexp(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), elementwise, of tensors that broadcast."""
    dtype = torch.promote_types(input.dtype, other.dtype)
    terms = torch.broadcast_tensors(input.to(dtype), other.to(dtype))
    return torch.stack(terms).logsumexp(0)
