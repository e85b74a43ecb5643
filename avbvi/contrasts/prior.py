"""The model's prior as contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import Contrast, DatumPrior, GivenContrast

if TYPE_CHECKING:
    from ..samplers import Sampler
    from ..targets import UnconstrainedTarget


class PriorContrast(Contrast):
    """r = the model's prior: the paper's Algorithm 1. Needs a Pyro model with a prior and the identity trunk.

    In an amortised guide r(z | x) is the prior of each datum's latents, and the features are z itself.

    Example:
        >>> import avbvi, pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("mu", dist.Normal(0.0, 1.0))
        >>> guide = avbvi.AVBGuide(model, trunk=avbvi.IdentityTrunk(), contrast=avbvi.PriorContrast())

    Source: AVB (Mescheder, Nowozin and Geiger 2017), Algorithm 1.
    """

    def _build(self, dim: int) -> None:
        self._target: UnconstrainedTarget | None = None

    def bind(self, target: UnconstrainedTarget | None) -> None:
        if target is None:
            raise ValueError(
                "contrast=PriorContrast() needs the joint density of the model, which a guide inside an "
                "AutoGuideList does not have; use GaussianContrast()"
            )
        target.require_prior("contrast=PriorContrast()")
        self._target = target

    def _prior(self) -> UnconstrainedTarget:
        if self._target is None:
            raise RuntimeError("PriorContrast is not bound to a model yet: train the guide, or load it with its model")
        return self._target

    def sample(self, n: int) -> Tensor:
        return self._prior().sample_prior(n)

    def log_prob(self, e: Tensor) -> Tensor:
        return self._prior().log_prior(e)

    def given(self, sampler: Sampler, context: Tensor, prior: DatumPrior) -> GivenContrast:
        return GivenPrior(prior)


class GivenPrior:
    """The prior of each datum's latents as a contrast."""

    def __init__(self, prior: DatumPrior) -> None:
        self._prior = prior

    def sample(self, n: int) -> Tensor:
        return self._prior.sample_prior(n)

    def log_prob(self, z: Tensor) -> Tensor:
        return self._prior.log_prior(z)

    def features(self, z: Tensor) -> Tensor:
        return z
