"""Variational autoencoders: a decoder, a standard normal prior, a likelihood; one model for every encoder.

The encoders are in `models.encoders`, `models.flows` and `models.auxiliary`; `avbvi.AVBGuide` serves as one as well.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from avbvi.arguments import function, instance, integer

from .likelihoods import Likelihood, NormalLikelihood, QuantisedLikelihood, bernoulli
from .minibatches import data_plate, flat, register

__all__ = ["VAE", "Likelihood", "NormalLikelihood", "bernoulli"]


class VAE(nn.Module):
    """z_i ~ N(0, I), x_i | z_i ~ likelihood(decoder(z_i)) for the data i of a plate (Kingma and Welling 2014).

    Args:
        decoder: maps z (*S, B, latent_dim) to what the likelihood takes, (*S, B, n).
        latent_dim: width of z.
        likelihood: makes the distribution of a datum; Bernoulli pixels by default. One that is a module learns with
            the decoder, by Pyro too (under the decoder's name followed by ".likelihood").
        name: of the decoder in Pyro's parameter store.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: latent_dim is not positive.
    """

    def __init__(
        self, decoder: nn.Module, latent_dim: int, likelihood: Likelihood = bernoulli, name: str = "decoder"
    ) -> None:
        super().__init__()
        instance("decoder", decoder, nn.Module, "a torch.nn.Module")
        function("likelihood", likelihood)
        instance("name", name, str, "a string")
        self.decoder = decoder
        self.latent_dim = integer("latent_dim", latent_dim, 1)
        self.likelihood = likelihood
        self.name = name

    def model(self, x: Tensor, size: int | None = None) -> None:
        """Pyro model: sites "z", event (latent_dim,), and "x", observed, in the plate "data" (dim -1).

        Args:
            x: minibatch, shape (B, *shape of a datum).
            size: number of data of which it is a part, so that the terms are scaled by size / B; None if it is all.

        Raises:
            ValueError: a size smaller than B, or another VAE's decoder under this name in Pyro's parameter store.
        """
        register(self.name, self.decoder)
        if isinstance(self.likelihood, nn.Module):
            register(f"{self.name}.likelihood", self.likelihood)
        x = flat(x)
        with data_plate(x, size):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def prior(self, like: Tensor) -> TorchDistribution:
        """p(z), event (latent_dim,), with dtype and device of ``like``."""
        return dist.Normal(like.new_zeros(self.latent_dim), like.new_ones(self.latent_dim)).to_event(1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x_i, z_i) of x (B, *shape) and z (*S, B, latent_dim), shape (*S, B)."""
        return self.prior(z).log_prob(z) + self.likelihood(self.decoder(z)).log_prob(flat(x))

    def mean(self, z: Tensor) -> Tensor:
        """E[x | z] of z (*S, B, latent_dim), shape (*S, B, n): for Bernoulli pixels their probabilities."""
        return self.likelihood(self.decoder(z)).mean

    def sample(self, n: int, like: Tensor) -> Tensor:
        """Data x ~ p(x), shape (n, m), with dtype and device of ``like``."""
        return self.likelihood(self.decoder(self.prior(like).sample((n,)))).sample()

    def quantised(self, levels: int = 256) -> VAE:
        """The same model of images with so many levels: decoder and prior are shared, p(x | z) is that of bins.

        Raises:
            TypeError: levels is no integer; from its calls, a likelihood other than independent normals.
            ValueError: less than 2 levels.
        """
        return VAE(self.decoder, self.latent_dim, QuantisedLikelihood(self.likelihood, levels), self.name)
