"""A target's log-density without the model's own code: recorded once, with its score and second derivatives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .tracing import TracingError, record

logger = logging.getLogger("avbvi")

#: A number of draws is worth a recording from this request on.
WORTHWHILE = 3
#: Relative agreement with the model itself that is asked of a recording, by the size of the dtype's rounding error.
AGREEMENT = 1e4

LogProb = Callable[[Tensor], Tensor]


class Recorded(NamedTuple):
    """Graphs for one number of draws, dtype and device."""

    #: z (n, dim) -> log p (n,)
    log_prob: Callable[[Tensor], Tensor]
    #: z (n, dim) -> log p (n,), score (n, dim)
    with_score: Callable[[Tensor], tuple[Tensor, Tensor]]
    #: z, v (n, dim) -> Hessian of log p at z times v (n, dim)
    curvature: Callable[[Tensor, Tensor], Tensor]


class TracedDensity:
    """log p (n, dim) -> (n,) of a fixed target, evaluated from recordings where that can be done.

    Where the model draws random numbers, branches on values or gives other values later than when it was recorded,
    it is run as it is, and ``reason`` says why. Recordings are compared with the model at other draws when they are
    made, and again after 2, 4, 8, ... calls.

    Gradients are right up to the second order in z, which is as far as an adversary with a score asks.

    Args:
        log_prob: the log-density by the model itself.
    """

    def __init__(self, log_prob: LogProb) -> None:
        self._plain = log_prob
        #: Why the model is run as it is; None while it is not.
        self.reason: str | None = None
        self._stopped = False
        self._requests: dict[Any, int] = {}
        self._recorded: dict[Any, Recorded] = {}

    def __call__(self, z: Tensor) -> Tensor:
        """log p at z (n, dim), as the model gives it: (n,)."""
        recorded = self._at(z)
        if recorded is None:
            return self._plain(z)
        if torch.is_grad_enabled() and z.requires_grad:
            value: Tensor = _LogProb.apply(z, recorded)
            return value
        return recorded.log_prob(z)

    def stop(self) -> None:
        """Run the model itself from now on."""
        self._requests.clear()
        self._recorded.clear()
        self._stopped = True

    def _at(self, z: Tensor) -> Recorded | None:
        if self._stopped or self.reason is not None:
            return None
        key = (z.shape, z.dtype, z.device)
        if get_proxy_mode() is not None:
            return self._recorded.get(key)  # part of a larger recording
        count = self._requests[key] = self._requests.get(key, 0) + 1
        if count < WORTHWHILE:
            return None
        try:
            if key not in self._recorded:
                recorded = recordings(self._plain, z)
                self._compare(recorded, _elsewhere(z))
                self._recorded[key] = recorded
            elif count & (count - 1) == 0:
                self._compare(self._recorded[key], z.detach())
        except TracingError as error:
            self.reason = str(error)
            self._recorded.clear()
            logger.info("the model is run as it is at every step, since it can't be recorded: %s", error)
            return None
        return self._recorded[key]

    @torch.no_grad()
    def _compare(self, recorded: Recorded, z: Tensor) -> None:
        log_p = self._plain(z)
        if not _agree(recorded.log_prob(z), log_p) or not _agree(recorded.with_score(z)[0], log_p):
            raise TracingError("its log-density is no function of the latents alone, it changes from call to call")


def recordings(log_prob: LogProb, z: Tensor) -> Recorded:
    """Graphs of a log-density, its score and its curvature, for as many draws as z (n, dim) has.

    Raises:
        TracingError: it can't be recorded.
    """

    def with_score(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = log_prob(z)
            (score,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), score

    def curvature(z: Tensor, v: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(log_prob(z).sum(), z, create_graph=True)
            # A density that is linear in z has no second derivatives.
            product = (score * v).sum() if score.requires_grad else (0.0 * z).sum()
            (along,) = torch.autograd.grad(product, z, allow_unused=True)
        return torch.zeros_like(z) if along is None else along

    z = z.detach()
    return Recorded(record(log_prob, z), record(with_score, z), record(curvature, z, torch.ones_like(z)))


def _elsewhere(z: Tensor) -> Tensor:
    """Other draws in the same region: each halfway to the next."""
    z = z.detach()
    return 0.5 * (z + z.roll(1, 0))


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two log-densities are equal but for rounding, NaN and infinities included."""
    finite = torch.isfinite(expected)
    if not bool((finite == torch.isfinite(found)).all()):
        return False
    found, expected = found[finite], expected[finite]
    scale = 1.0 + expected.abs()
    return bool(((found - expected).abs() <= AGREEMENT * torch.finfo(expected.dtype).eps * scale).all())


class _LogProb(torch.autograd.Function):
    """log p, whose derivative is the recorded score."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, recorded: Recorded) -> Tensor:
        log_p, score = recorded.with_score(z)
        ctx.save_for_backward(z, score)
        ctx.recorded = recorded
        return log_p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, score = ctx.saved_tensors
        if torch.is_grad_enabled():
            score = _Score.apply(z, score, ctx.recorded)
        return gradient[:, None] * score, None


class _Score(torch.autograd.Function):
    """The score that was computed with log p, whose derivative is the recorded curvature."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, score: Tensor, recorded: Recorded) -> Tensor:
        ctx.save_for_backward(z)
        ctx.recorded = recorded
        return score.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return ctx.recorded.curvature(z, gradient), None, None
