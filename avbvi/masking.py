"""Steps that are masked where they are computed, instead of being skipped by a host that has read what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from .gradients import GradientBound


class MaskedBound:
    """A :class:`~avbvi.gradients.GradientBound` whose running mean stays on the gradients' device.

    Its arithmetic is the same, in float64, but nothing is read back, so that it can be part of a captured graph: a
    gradient that is not finite leaves the mean as it is, and is told to the optimiser by a flag.

    Args:
        bound: settings and running mean to begin with.
        like: gives the device.
    """

    def __init__(self, bound: GradientBound, like: Tensor) -> None:
        self.longest, self.decay = bound.longest, bound.decay
        self.mean = torch.zeros((), dtype=torch.float64, device=like.device)
        self.count = torch.zeros((), dtype=torch.float64, device=like.device)
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


@contextmanager
def unless(wrong: Tensor, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run the block, then give the modules' buffers their former values where ``wrong`` () is true; reads nothing."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    yield
    with torch.no_grad():
        for buffer, former in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(wrong, former, buffer))
