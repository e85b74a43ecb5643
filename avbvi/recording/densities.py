"""A target's log-density without the model's own code: recorded once, with its score and second derivatives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ..second_order import SecondOrder
from .graphs import TracingError, record

logger: logging.Logger = logging.getLogger(__name__)

#: Relative agreement with the model itself that is asked of a recording, by the size of the dtype's rounding error.
AGREEMENT = 1e4

LogProb = Callable[[Tensor], Tensor]


def value_and_score(log_prob: LogProb, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p (*batch,) and its gradient in z (*batch, dim), with no graph behind them."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_prob(z)
        (score,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), score


class Recorded:
    """Graphs of a log-density for one number of draws, dtype and device, each recorded when it is first asked for.

    Args:
        log_prob: the log-density by the model itself, (n, dim) -> (n,).
        like: draws (n, dim) of that number, dtype and device.

    Raises:
        TracingError: (when asked) it can't be recorded, or gives other values at other draws.
    """

    def __init__(self, log_prob: LogProb, like: Tensor) -> None:
        self._plain, self._like = _recordable(log_prob), like.detach()

    @cached_property
    def log_prob(self) -> Callable[[Tensor], Tensor]:
        """z (n, dim) -> log p (n,)."""
        graph = record(self._plain, self._like)
        self._check(graph(self._elsewhere))
        return graph

    @cached_property
    def with_score(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """z (n, dim) -> log p (n,), score (n, dim)."""
        graph = record(self._with_score, self._like)
        self._check(graph(self._elsewhere)[0])
        return graph

    @cached_property
    def curvature(self) -> Callable[[Tensor, Tensor], Tensor]:
        """z, v (n, dim) -> Hessian of log p at z times v (n, dim)."""
        return record(self._curvature, self._like, torch.ones_like(self._like))

    def times_curvature(self, z: Tensor, v: Tensor) -> Tensor:
        """:attr:`curvature`, by the model itself where it can't be recorded."""
        try:
            return self.curvature(z, v)
        except TracingError:
            return self._curvature(z, v)

    def _with_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_score(self._plain, z)

    def _curvature(self, z: Tensor, v: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(self._plain(z).sum(), z, create_graph=True)
            if not score.requires_grad:
                return torch.zeros_like(z)  # a density that is linear in z
            (along,) = torch.autograd.grad((score * v).sum(), z, allow_unused=True)
        return torch.zeros_like(z) if along is None else along

    @property
    def _elsewhere(self) -> Tensor:
        """Other draws in the same region: each halfway to the next."""
        return 0.5 * (self._like + self._like.roll(1, 0))

    def _check(self, found: Tensor) -> None:
        with torch.no_grad():
            _compare(found, self._plain(self._elsewhere))

    @torch.no_grad()
    def review(self, z: Tensor) -> None:
        """Compare a recording with the model as it is now, at z (n, dim)."""
        if "with_score" not in vars(self):
            _compare(self.log_prob(z), self._plain(z))
            return
        for found, expected in zip(self.with_score(z), self._with_score(z), strict=True):
            _compare(found, expected)


class TracedDensity:
    """log p (n, dim) -> (n,) of a fixed target, evaluated from recordings where that can be done.

    Where the model draws random numbers, branches on values or gives other values later than when it was recorded,
    it is run as it is, and ``reason`` says why. Recordings are compared with the model at other draws when they are
    made, and by :meth:`review` later. The first call is from a recording already, so that a run that is resumed does
    the same arithmetic as one that was never interrupted.

    Gradients are right up to the second order in z, which is as far as an adversary with a score asks.

    Args:
        log_prob: the log-density by the model itself.
    """

    def __init__(self, log_prob: LogProb) -> None:
        self._plain = log_prob
        #: Why the model is run as it is; None while it is not.
        self.reason: str | None = None
        self._stopped = False
        self._recorded: dict[Any, Recorded] = {}

    def __call__(self, z: Tensor) -> Tensor:
        """log p at z (n, dim), as the model gives it: (n,)."""
        # Within a larger recording the model's own operations are part of it.
        if self._stopped or self.reason is not None or get_proxy_mode() is not None:
            return self._plain(z)
        key = (z.shape, z.dtype, z.device)
        if key not in self._recorded:
            self._recorded[key] = Recorded(self._plain, z)
        recorded = self._recorded[key]
        try:
            if not torch.is_grad_enabled() or not z.requires_grad:
                return recorded.log_prob(z)
            value: Tensor = _LogProb.apply(z, recorded.with_score, recorded)
            return value
        except TracingError as error:
            self._give_up(error)
            return self._plain(z)

    def review(self, z: Tensor) -> None:
        """Compare a recording for as many draws as z (n, dim) has with the model as it is now; make it if need be."""
        if self._stopped or self.reason is not None:
            return
        recorded = self._recorded.setdefault((z.shape, z.dtype, z.device), Recorded(self._plain, z))
        try:
            recorded.review(z.detach())
        except TracingError as error:
            self._give_up(error)

    def stop(self) -> None:
        """Run the model itself from now on."""
        self._recorded.clear()
        self._stopped = True

    def _give_up(self, error: TracingError) -> None:
        self.reason = str(error)
        self._recorded.clear()
        logger.info("the model is run as it is at every step, since it can't be recorded: %s", error)


def _recordable(log_prob: LogProb) -> LogProb:
    """The function without Pyro's validation, which reads values and so can't be recorded, and twice differentiable."""

    def function(z: Tensor) -> Tensor:
        with pyro.validation_enabled(False), SecondOrder():
            return log_prob(z)

    return function


def _compare(found: Tensor, expected: Tensor) -> None:
    """Raise unless two log-densities are equal but for rounding, NaN and infinities included."""
    finite = torch.isfinite(expected)
    scale = 1.0 + expected[finite].abs()
    bound = AGREEMENT * torch.finfo(expected.dtype).eps * scale
    equal = bool((finite == torch.isfinite(found)).all())
    if not equal or not bool(((found[finite] - expected[finite]).abs() <= bound).all()):
        raise TracingError("its log-density is no function of the latents alone, it changes from call to call")


class _LogProb(torch.autograd.Function):
    """log p, whose derivative is the recorded score."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, with_score: Any, recorded: Recorded) -> Tensor:
        log_p, score = with_score(z)
        ctx.save_for_backward(z, score)
        ctx.recorded = recorded
        return log_p

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        z, score = ctx.saved_tensors
        if torch.is_grad_enabled():
            score = _Score.apply(z, score, ctx.recorded)
        return gradient[:, None] * score, None, None


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
        return ctx.recorded.times_curvature(z, gradient), None, None
