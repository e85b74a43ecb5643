"""Encoders with a density as rivals of AVB's, each with as many parameters as that has.

rival = RIVALS["iaf-vae"]
encoder = rival.encoder(lambda width: MLPBody(784, (width, width)), latent_dim=32, budget=345_000)
train(rival.elbo(), vae.model, encoder.guide, loader, parameters, recipe, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from models.auxiliary import AuxiliaryEncoder
from models.encoders import Encoder, FullGaussianEncoder, GaussianEncoder, width_for
from models.flows import FlowEncoder, autoregressive, couplings, householder, planar
from models.importance_weighting import ImportanceWeightedELBO

__all__ = ["RIVALS", "Rival"]

CONTEXT_DIM = 64
#: Of planar flows, each of whose 80 transforms has parameters for each context.
PLANAR_CONTEXT_DIM = 16
IMPORTANCE_SAMPLES = 5

Body = Callable[[int], nn.Module]


def _trace_elbo() -> ELBO:
    return Trace_ELBO(num_particles=1, max_plate_nesting=1)


@dataclass(frozen=True)
class Rival:
    """A way to encode and the bound that it is trained by.

    Args:
        name: its key in the records.
        label: as it reads in tables.
        make: (width -> body, latent_dim, width) -> encoder.
        elbo: makes the loss.
    """

    name: str
    label: str
    make: Callable[[Body, int, int], Encoder]
    elbo: Callable[[], ELBO] = _trace_elbo

    def encoder(self, body: Body, latent_dim: int, budget: int) -> Encoder:
        """A new encoder.

        Args:
            body: width -> body of that width.
            latent_dim: width of z.
            budget: number of parameters that it must have within 10 %, those that a draw needs.

        Raises:
            ValueError: no width comes near the budget.
        """
        return self.make(body, latent_dim, width_for(budget, lambda width: self.make(body, latent_dim, width)))


def _auxiliary(body: Body, latent_dim: int, width: int) -> Encoder:
    # p(a | x, z) is to the sampler what AVB's adversary is: it is not counted, and gets as wide a body of its own.
    return AuxiliaryEncoder(body(width), body(width), latent_dim, auxiliary_dim=latent_dim, hidden=max(1, width // 2))


def _autoregressive(body: Body, latent_dim: int, width: int) -> Encoder:
    return FlowEncoder(body(width), latent_dim, autoregressive(latent_dim, CONTEXT_DIM), CONTEXT_DIM)


def _couplings(body: Body, latent_dim: int, width: int) -> Encoder:
    return FlowEncoder(body(width), latent_dim, couplings(latent_dim, CONTEXT_DIM), CONTEXT_DIM)


def _planar(body: Body, latent_dim: int, width: int) -> Encoder:
    return FlowEncoder(body(width), latent_dim, planar(latent_dim, PLANAR_CONTEXT_DIM), PLANAR_CONTEXT_DIM)


def _householder(body: Body, latent_dim: int, width: int) -> Encoder:
    return FlowEncoder(body(width), latent_dim, householder(latent_dim, CONTEXT_DIM), CONTEXT_DIM)


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival("vae", "VAE", lambda body, d, width: GaussianEncoder(body(width), d)),
        Rival("full-vae", "VAE, full covariance", lambda body, d, width: FullGaussianEncoder(body(width), d)),
        Rival("aux-vae", "VAE with auxiliary variables", _auxiliary),
        Rival("iaf-vae", "VAE with IAF", _autoregressive),
        Rival("nvp-vae", "VAE with RealNVP", _couplings),
        Rival("planar-vae", "VAE with 80 planar flows", _planar),
        Rival("householder-vae", "VAE with Householder flow", _householder),
        Rival(
            "iwae",
            f"importance-weighted VAE, K = {IMPORTANCE_SAMPLES}",
            lambda body, d, width: GaussianEncoder(body(width), d),
            lambda: ImportanceWeightedELBO(IMPORTANCE_SAMPLES),
        ),
    )
}
