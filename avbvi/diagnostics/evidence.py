"""What a verdict was based on, kept for pictures: draws before and after HMC, importance weights, reliability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .calibration import Reliability
from .movement import Movement

#: Numbers that are kept of the draws before HMC, and as many of those after it.
MOST_NUMBERS = 2**18
#: Fewer draws show nothing; none are kept of a model with so many latents.
LEAST_DRAWS = 100
MOST_WEIGHTS = 20_000


@dataclass
class Evidence:
    """Draws and figures that a verdict was based on; each is ``None`` where there was none.

    ``before`` and ``after`` (n, dim) are the same chains before and after a short HMC, in unconstrained coordinates;
    ``log_weights`` (m,) are log p - log q in nats, of the density that ``weights_of`` names; ``reliability`` is that
    of the adversary on held-out draws.
    """

    before: Tensor | None = None
    after: Tensor | None = None
    log_weights: Tensor | None = None
    weights_of: str = ""
    reliability: Reliability | None = None

    def note_movement(self, movement: Movement) -> None:
        """Keep the chains, fewer of them where there are many latents."""
        before, after = movement.z_before, movement.z_after
        if before is None or after is None:
            return
        rows = min(len(before), MOST_NUMBERS // before.shape[1])
        if rows >= LEAST_DRAWS:
            self.before, self.after = (z[:rows].detach().cpu().clone() for z in (before, after))

    def note_weights(self, log_weights: Tensor, weights_of: str) -> None:
        """Keep the first of the log weights (n,)."""
        self.log_weights = log_weights[:MOST_WEIGHTS].detach().float().cpu().clone()
        self.weights_of = weights_of

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        reliability = None if self.reliability is None else dict(vars(self.reliability))
        return {**vars(self), "reliability": reliability}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Evidence:
        """What :meth:`to_dict` gave.

        Raises:
            TypeError, ValueError: the data are none of an evidence.
        """
        made = cls(**plain)
        for name in ("before", "after", "log_weights"):
            value = getattr(made, name)
            if value is not None and not (isinstance(value, Tensor) and value.is_floating_point()):
                raise TypeError(f"{name} must be a tensor of floats or None, found {type(value).__name__}")
        if (made.before is None) != (made.after is None):
            raise ValueError("before and after must both be given, or neither")
        if made.before is not None and made.after is not None and made.before.shape != made.after.shape:
            raise ValueError(f"before and after must have one shape, found {made.before.shape} and {made.after.shape}")
        if plain.get("reliability") is not None:
            made.reliability = Reliability(**plain["reliability"])
            if not all(isinstance(t, Tensor) for t in (made.reliability.predicted, made.reliability.observed)):
                raise TypeError("reliability must hold tensors")
        return made
