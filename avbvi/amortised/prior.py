"""The prior of a minibatch's latents, as contrasts and adversaries see it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..divided.division import own_stream
from .target import DatumTarget, path_only


class MinibatchPrior:
    """p(z) of every datum of a minibatch; the model is asked when somebody first does.

    Args:
        target: gives the minibatch's target; ``None`` where there is none.

    Raises:
        ValueError: (when asked) there is no target.
    """

    def __init__(self, target: Callable[[], DatumTarget | None]) -> None:
        self._find = target
        self._known: DatumTarget | None = None

    def _target(self) -> DatumTarget:
        self._known = self._known or self._find()
        if self._known is None:
            raise ValueError(
                "the prior of the latents (PriorContrast, or an adversary with log p(z)) needs the joint density of "
                "the model, which a guide inside an AutoGuideList does not have; use ConditionalGaussianContrast()"
            )
        return self._known

    def sample_prior(self, n: int) -> Tensor:
        """n draws of p(z) for every datum, (n, B, dim)."""
        with own_stream():  # a model draws as it likes: no rows of somebody else's draws
            return self._target().sample_prior(n)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) at (*S, B, dim) -> (*S, B), with a gradient in z alone: a learned prior learns by the ELBO."""
        return path_only(self._target().log_prior, z)
