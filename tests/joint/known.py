"""A linear-Gaussian model and encoder whose adversaries are the exact log-ratios, for the tests of the joint losses."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn

from avbvi.adversaries import Adversary
from avbvi.amortised.adversaries import ConditionalAdversary
from avbvi.joint import JointAdversarialLoss, JointDraws, LatentVariableModel
from models.linear_gaussian import Laws, LinearConditional, LinearDecoder, LinearEncoder, laws_of, linear_vae
from models.vaes import VAE

DIM, LATENT = 3, 2
#: Standard errors by which a mean over draws may miss.
SIGMAS = 5.0


class Known(NamedTuple):
    """A model, its encoder and the law of the data, all float64."""

    vae: VAE
    encoder: LinearEncoder
    data: MultivariateNormal

    @property
    def laws(self) -> Laws:
        """As the modules are now."""
        return laws_of(self.vae.decoder, self.data, self.encoder)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The decoder's, then the encoder's."""
        return [*self.vae.parameters(), *self.encoder.parameters()]

    def draws(self, n: int) -> JointDraws:
        """Of a minibatch of fresh data."""
        x = self.data.sample((n,))
        return JointDraws(LatentVariableModel(self.vae.model, (x,), {}), self.encoder.guide, (x,), {})


@torch.no_grad()
def unrelated() -> Known:
    """Decoder, encoder and data that have nothing to do with each other."""
    decoder, encoder = LinearDecoder(LATENT, DIM).double(), LinearEncoder(DIM, LATENT).double()
    for p in (*decoder.parameters(), *encoder.parameters()):
        p.normal_(0.0, 0.35)
    root = torch.randn(DIM, DIM, dtype=torch.float64)
    covariance = 0.5 * root @ root.mT + 0.5 * torch.eye(DIM, dtype=torch.float64)
    return Known(linear_vae(decoder), encoder, MultivariateNormal(torch.randn(DIM).double(), covariance))


@torch.no_grad()
def truth() -> Known:
    """The data come from the decoder, and the encoder is the exact posterior."""
    known = unrelated()
    known = known._replace(data=known.laws.evidence)
    posterior: LinearConditional = known.laws.posterior
    encoder = known.encoder
    encoder.linear.weight.copy_(posterior.weight)
    encoder.linear.bias.copy_(posterior.bias)
    tril = torch.linalg.cholesky(posterior.covariance)
    encoder.below.copy_(tril)
    encoder.log_scale.copy_(tril.diagonal().log())
    return known


class ExactPairs(ConditionalAdversary):
    """T(x, z), a given function."""

    def __init__(self, ratio: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(squares=False)
        self.ratio = ratio

    def _build(self, dim: int) -> None:
        self.unused = nn.Parameter(torch.zeros(()))

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        return self.ratio(context, features) + 0.0 * self.unused


class ExactSingle(Adversary):
    """T of one input, a given function."""

    def __init__(self, ratio: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ratio = ratio

    def _build(self, dim: int) -> None:
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, hint: Any = None) -> Tensor:
        return self.ratio(features) + 0.0 * self.unused


def frozen(known: Known) -> Laws:
    """The laws as constants."""
    decoder, encoder = deepcopy((known.vae.decoder, known.encoder))
    return laws_of(decoder.requires_grad_(False), known.data, encoder.requires_grad_(False))


def built(loss: JointAdversarialLoss, known: Known) -> JointAdversarialLoss:
    """The loss with its adversaries made."""
    with torch.no_grad():
        loss.loss(known.vae.model, known.encoder.guide, known.data.sample((4,)))
    return loss


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the first dimension and its standard error."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


def flat_gradient(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """All gradients in one row; those that are not used are 0."""
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


def monte_carlo_gradient(
    loss: JointAdversarialLoss, known: Known, chunks: int = 50, n: int = 2000
) -> tuple[Tensor, Tensor]:
    """The loss's gradient per datum, averaged over chunks of fresh draws, and its standard error."""
    rows = [flat_gradient(loss.terms(known.draws(n), 1.0).mean(), known.parameters) for _ in range(chunks)]
    return mean_and_error(torch.stack(rows))
