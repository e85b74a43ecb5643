"""Gradients that are not finite, or larger by far than they use to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .errors import NonFiniteError

if TYPE_CHECKING:
    from .guides import AVBGuide

#: A gradient may be as many times longer than the mean of those before.
LONGEST = 10.0
DECAY = 0.98
MOST_SKIPPED_IN_A_ROW = 50


class GradientBound:
    """Bounds a gradient's norm by a multiple of the running mean of the bounded norms before it.

    Adam divides by a root mean square over a thousand steps: a single gradient that is a thousand times as long as
    usual moves all parameters by about (1 - beta1) / sqrt(1 - beta2), some sixteen times the learning rate, and
    brings them to a halt afterwards. The bound follows a lasting change of scale within some dozens of steps.

    Args:
        longest: the multiple, > 1.
        decay: of the running mean, in (0, 1); the first steps count for more.

    Raises:
        ValueError: ``longest`` or ``decay`` is out of range.
    """

    def __init__(self, longest: float = LONGEST, decay: float = DECAY) -> None:
        if not longest > 1.0:
            raise ValueError(f"longest must be more than 1, found {longest}")
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must be in (0, 1), found {decay}")
        self.longest = longest
        self.decay = decay
        self.mean: float = 0.0
        self.count: int = 0

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor]) -> bool:
        """Shorten gradients of one step, in place, if they are too long together; False if they are not finite."""
        if not gradients:
            return True
        norm = float(get_total_norm(gradients))
        if not math.isfinite(norm):
            return False
        factor = self.factor(norm)
        if factor < 1.0:
            torch._foreach_mul_(list(gradients), factor)
        return True

    def factor(self, norm: float) -> float:
        """What a gradient of this norm is to be multiplied by, in (0, 1]; the running mean moves on."""
        bounded = min(norm, self.longest * self.mean) if self.mean > 0.0 else norm
        decay = min(self.decay, (1.0 + self.count) / (10.0 + self.count)) if self.mean > 0.0 else 0.0
        self.mean = decay * self.mean + (1.0 - decay) * bounded
        self.count += 1
        return 1.0 if bounded >= norm else bounded / norm

    def state_dict(self) -> dict[str, float]:
        """The running mean, as plain data."""
        return {"mean": self.mean, "count": float(self.count)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.mean, self.count = state["mean"], int(state["count"])


class MaskedBound:
    """A :class:`GradientBound` whose running mean stays on the gradients' device.

    Its arithmetic is the same, in float64, but nothing is read back, so that it can be part of a captured graph: a
    gradient that is not finite leaves the mean as it is, and is told to the optimiser by a flag.

    Args:
        bound: settings and running mean to begin with.
        like: gives the device.
    """

    def __init__(self, bound: GradientBound, like: Tensor) -> None:
        self.longest: float = bound.longest
        self.decay: float = bound.decay
        self.mean: Tensor = torch.zeros((), dtype=torch.float64, device=like.device)
        self.count: Tensor = torch.zeros((), dtype=torch.float64, device=like.device)
        self.load_state_dict(bound.state_dict())

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor], admitted: Tensor) -> Tensor:
        """Shorten gradients of one step, in place, if they are too long together.

        Args:
            gradients: the step's gradients.
            admitted: () boolean; where it is false the step counts as not finite.

        Returns:
            () float32: 1 where the step must not be taken, else 0, as fused optimisers take it in ``found_inf``.
        """
        if not gradients:
            return (~admitted).float()
        norm = get_total_norm(gradients).double()
        finite = torch.isfinite(norm) & admitted
        known = self.mean > 0.0
        bounded = torch.where(known, torch.minimum(norm, self.longest * self.mean), norm)
        decay = torch.where(known, ((1.0 + self.count) / (10.0 + self.count)).clamp_max(self.decay), 0.0)
        mean = decay * self.mean + (1.0 - decay) * bounded
        self.mean.copy_(torch.where(finite, mean, self.mean))
        self.count.add_(finite)
        factor = torch.where(bounded < norm, bounded / norm, 1.0)
        torch._foreach_mul_(list(gradients), factor.to(gradients[0].dtype))
        return (~finite).float()

    def state_dict(self) -> dict[str, float]:
        """The running mean, as plain data; waits for the device."""
        return {"mean": float(self.mean), "count": float(self.count)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what :meth:`state_dict` gave, in place."""
        self.mean.fill_(state["mean"])
        self.count.fill_(state["count"])

    def unmasked(self) -> GradientBound:
        """The same bound with its running mean on the host; waits for the device."""
        bound = GradientBound(self.longest, self.decay)
        bound.load_state_dict(self.state_dict())
        return bound


class StepGuard:
    """Admits steps of one loss: bounds their gradients, and counts those that have to be skipped.

    Raises:
        NonFiniteError: (when counting) too many were skipped in a row.
    """

    def __init__(self) -> None:
        self.bound: GradientBound | MaskedBound = GradientBound()
        self.skipped_in_a_row: int = 0

    def mask(self, like: Tensor) -> None:
        """Let :meth:`judge` take the place of :meth:`admits`; the bound on gradients moves to ``like``'s device."""
        if isinstance(self.bound, GradientBound):
            self.bound = MaskedBound(self.bound, like)

    def judge(self, loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Shorten a masked step's gradients in place; gives () float32, 1 where it must not be taken, else 0."""
        assert isinstance(self.bound, MaskedBound)
        return self.bound.apply(gradients, torch.isfinite(loss))

    def admits(self, loss: float, gradients: Sequence[Tensor], guides: Sequence[AVBGuide]) -> bool:
        """Whether loss and gradients are finite; shortens the gradients in place, or counts a skipped step."""
        assert isinstance(self.bound, GradientBound)
        if math.isfinite(loss) and self.bound.apply(gradients):
            self.skipped_in_a_row = 0
            return True
        self.count(guides)
        return False

    def count(self, guides: Sequence[AVBGuide]) -> None:
        """Count a step that was skipped, in the guides too."""
        self.skipped_in_a_row += 1
        for g in guides:
            g.skipped_steps += 1
        if self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(explain_non_finite(f"{self.skipped_in_a_row} steps in a row had to be skipped"))

    def state_dict(self) -> dict[str, Any]:
        """The bound's running mean and the count, as plain data."""
        return {"bound": self.bound.state_dict(), "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.bound.load_state_dict(state["bound"])
        self.skipped_in_a_row = state["skipped_in_a_row"]


def with_gradient(guide: Any) -> list[Tensor]:
    """All parameters that the outer step may have given a gradient: the guide's and those in Pyro's store."""
    unwrapped = poutine.unwrap(guide)
    own = _parameters(unwrapped) if isinstance(unwrapped, nn.Module) else []
    stored = [p for _, p in pyro.get_param_store().named_parameters()]
    return [p for p in {id(p): p for p in (*own, *stored)}.values() if p.grad is not None]


#: Parameters of guides that have been set up, with the parts that they were found in: a walk through all modules at
#: every step costs as much as a layer of their networks.
_walked: WeakKeyDictionary[nn.Module, tuple[list[nn.Module | None], list[nn.Parameter]]] = WeakKeyDictionary()


def _parameters(guide: nn.Module) -> list[nn.Parameter]:
    parts = list(guide._modules.values())
    if getattr(guide, "prototype_trace", None) is None:
        return list(guide.parameters())  # its parts have yet to be built
    known = _walked.get(guide)
    if known is None or len(known[0]) != len(parts) or any(a is not b for a, b in zip(known[0], parts, strict=True)):
        known = _walked[guide] = parts, list(guide.parameters())
    return known[1]


def explain_non_finite(what: str) -> str:
    """What was found, why it is so and what to look at."""
    return (
        f"{what}: the log-density or its gradient is NaN or infinite where the guide draws. Check the model for "
        "divisions by zero, overflows and hard constraints (declare a support instead), and the data for NaN; an "
        "adversary's objective with exponentials may overflow by itself, which Logistic() does not"
    )
