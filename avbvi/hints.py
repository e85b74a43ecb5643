"""Hints: what a fixed target tells a guide's adversary about a draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .adversaries import Adversary, Hint
from .distributions import Draw

if TYPE_CHECKING:
    from .guides import AVBGuide
    from .targets import UnconstrainedTarget


def hint(
    guide: AVBGuide, target: UnconstrainedTarget | None, draw: Draw, log_r: Tensor, *, log_p: Tensor | None = None
) -> Hint | None:
    """What the target tells the adversary about a draw; ``None`` if it does not ask or the target is not fixed.

    During annealing the hint is that of the annealed target. ``log_p``, the target's log-density in base coordinates at
    the draw, spares its evaluation where it is known.
    """
    adversary: Adversary = guide.part("adversary")
    if not adversary.uses_target or target is None or target.has_parameters:
        return None
    if not adversary.uses_score:
        return Hint(_finite((guide.log_p(target, draw) if log_p is None else log_p) - log_r))
    # The score is a gradient in e, so z must be a function of e in the graph; the sampler's step then
    # differentiates the score once more.
    differentiable = torch.is_grad_enabled() and draw.base.requires_grad
    with torch.enable_grad():
        if not (differentiable and draw.forward):
            draw = guide.carried(draw.base if differentiable else draw.base.detach().requires_grad_())
            log_p = None
        if log_p is None:
            log_p = guide.log_p(target, draw)
        (score,) = torch.autograd.grad(log_p.sum(), draw.base, create_graph=differentiable, retain_graph=True)
    if not differentiable:
        log_p, score = log_p.detach(), score.detach()
    return Hint(_finite(log_p - log_r), _finite(score))


@torch.no_grad()
def hint_at(guide: AVBGuide, base: Tensor, log_r: Tensor) -> Hint | None:
    """:func:`hint` at base coordinates (n, base_dim), without gradient."""
    if not guide.part("adversary").uses_target:
        return None
    # With the score, z is computed anew from e, so that it can be differentiated.
    draw = Draw(base, base, base) if guide.part("adversary").uses_score else guide.carried(base)
    return hint(guide, guide.target(), draw, log_r)


def _finite(x: Tensor) -> Tensor:
    """NaN and infinities replaced by large numbers, which the adversary squashes."""
    return x.nan_to_num(-1e6, 1e6, -1e6)
