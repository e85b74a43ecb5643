"""What the host decides of a step before its arithmetic: plain numbers, which a captured step reads as tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: A factor of a step: a number, or a tensor () that is filled anew before each replay of a captured step.
Factor = float | Tensor


def is_one(factor: Factor) -> bool:
    """Whether a factor is known to be 1 and can be left out; one that changes from replay to replay can't."""
    return not isinstance(factor, Tensor) and factor == 1.0


class StepPlan(NamedTuple):
    """The schedule's word on one step of one guide."""

    #: Inverse temperature of the target.
    beta: Factor = 1.0
    #: Factor of the outer rate.
    outer: Factor = 1.0
    #: Factor of the adversary's rate; ``None`` where the adversary has no steps.
    adversary: Factor | None = None
    #: Decay of the average of the sampler's weights; ``None`` where it does not move.
    average: Factor | None = None
    #: Weight of log q - log p(z) of an amortised guide.
    kl_weight: Factor = 1.0
    #: Whether the adversary has yet to be given its head start.
    begins: bool = False

    def shape(self) -> tuple[bool, ...]:
        """What of a plan the arithmetic itself depends on; steps whose plans agree in it differ in numbers alone."""
        return (
            is_one(self.beta),
            self.adversary is None,
            self.average is None,
            is_one(self.kl_weight),
            self.begins,
        )

    def numbers(self) -> list[float]:
        """The numbers of the plan, 0 for those that are not there."""
        given = (self.beta, self.outer, self.adversary, self.average, self.kl_weight)
        return [0.0 if value is None else float(value) for value in given]

    def filled(self, numbers: Tensor) -> StepPlan:
        """The plan with tensors in place of numbers: ``numbers`` (5,) as :meth:`numbers` gives them."""
        beta, outer, adversary, average, kl_weight = numbers.unbind()
        return StepPlan(
            beta=1.0 if is_one(self.beta) else beta,
            outer=outer,
            adversary=None if self.adversary is None else adversary,
            average=None if self.average is None else average,
            kl_weight=1.0 if is_one(self.kl_weight) else kl_weight,
            begins=self.begins,
        )
