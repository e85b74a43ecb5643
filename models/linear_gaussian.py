"""Linear-Gaussian latent-variable models and encoders, in which every law of the two joints is known.

p(x, z) = p(z) p(x | z) with a linear decoder, q(x, z) = q(x) q(z | x) with Gaussian data and a linear encoder: all
marginals, conditionals and divergences are closed forms, and so are the optimal adversaries of AS-VAE (Pu et al.
2017, eq. 7). The closed forms keep the gradient to the modules' parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor, nn

from avbvi.arguments import integer, real_tensor

from .encoders import Encoder
from .minibatches import flat
from .vaes import VAE

__all__ = ["Laws", "LinearConditional", "LinearDecoder", "LinearEncoder", "laws_of", "linear_vae", "scaled_normal"]


@dataclass(frozen=True)
class LinearConditional:
    """y | x ~ N(weight x + bias, covariance).

    Args:
        weight: shape (m, n).
        bias: shape (m,).
        covariance: shape (m, m).

    Raises:
        ValueError: the shapes do not fit.
    """

    weight: Tensor
    bias: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise ValueError(f"weight must have shape (m, n), found {tuple(self.weight.shape)}")
        m = self.weight.shape[0]
        for name, shape in (("bias", (m,)), ("covariance", (m, m))):
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(
                    f"{name} must have shape {shape} with a weight of {tuple(self.weight.shape)}, found {found}"
                )

    def given(self, x: Tensor) -> MultivariateNormal:
        """The law of y given x (*batch, n): batch shape (*batch,), event shape (m,)."""
        return MultivariateNormal(x @ self.weight.mT + self.bias, self.covariance)

    def marginal(self, x: MultivariateNormal) -> MultivariateNormal:
        """The law of y when x has the given one."""
        return MultivariateNormal(
            self.weight @ x.loc + self.bias, self.weight @ x.covariance_matrix @ self.weight.mT + self.covariance
        )

    def joint(self, x: MultivariateNormal) -> MultivariateNormal:
        """The law of (y, x), event shape (m + n,), when x has the given one."""
        y, cross = self.marginal(x), self.weight @ x.covariance_matrix
        upper = torch.cat([y.covariance_matrix, cross], -1)
        lower = torch.cat([cross.mT, x.covariance_matrix], -1)
        return MultivariateNormal(torch.cat([y.loc, x.loc], -1), torch.cat([upper, lower], -2))

    def reverse(self, x: MultivariateNormal) -> LinearConditional:
        """x given y, by Bayes' rule."""
        y = self.marginal(x)
        gain = torch.linalg.solve(y.covariance_matrix, self.weight @ x.covariance_matrix).mT
        covariance = x.covariance_matrix - gain @ self.weight @ x.covariance_matrix
        # Symmetric but for rounding, which the Cholesky factor of a small one would see.
        return LinearConditional(gain, x.loc - gain @ y.loc, 0.5 * (covariance + covariance.mT))


class LinearDecoder(nn.Module):
    """z (*batch, latent_dim) to (*batch, 2 n): W z + b, then the log-scales of the n coordinates.

    Goes with :func:`scaled_normal`. W starts at random by torch's rule for linear layers.

    Args:
        latent_dim: width of z.
        n_out: number n of coordinates of x.
        scales: standard deviations of the n coordinates, which are not trained; ``None`` learns them, from 1. With
            fewer than about d + sqrt(2 d) coordinates for d latents many W and scales have the same p(x) (Ledermann).

    Raises:
        ValueError: scales of another shape, or not positive.
    """

    log_scale: Tensor

    def __init__(self, latent_dim: int, n_out: int, scales: Tensor | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(integer("latent_dim", latent_dim, 1), integer("n_out", n_out, 1))
        if scales is None:
            self.log_scale = nn.Parameter(torch.zeros(n_out))
        else:
            scales = real_tensor("scales", scales).to(self.linear.weight)
            if tuple(scales.shape) != (n_out,) or not bool((scales > 0.0).all()):
                raise ValueError(f"scales must be {n_out} positive numbers, found {scales}")
            self.register_buffer("log_scale", scales.log())

    def forward(self, z: Tensor) -> Tensor:
        loc = self.linear(z)
        return torch.cat([loc, self.log_scale.expand_as(loc)], -1)

    def conditional(self) -> LinearConditional:
        """p(x | z), float64."""
        linear = self.linear
        covariance = (2.0 * self.log_scale.double()).exp().diag_embed()
        return LinearConditional(linear.weight.double(), linear.bias.double(), covariance)


def scaled_normal(output: Tensor) -> TorchDistribution:
    """Independent normal coordinates whose means and log-scales a decoder gives, (*batch, 2 n)."""
    loc, log_scale = output.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def linear_vae(decoder: LinearDecoder) -> VAE:
    """z ~ N(0, I), x | z ~ N(W z + b, diag(s^2))."""
    return VAE(decoder, decoder.linear.in_features, scaled_normal)


class LinearEncoder(Encoder):
    """q(z | x) = N(A x + c, L L'), L lower triangular: the family of a linear decoder's posteriors.

    L starts at the identity.

    Args:
        n_in: number of values in a datum.
        latent_dim: width of z.
        name: of the encoder in Pyro's parameter store.
    """

    def __init__(self, n_in: int, latent_dim: int, name: str = "encoder") -> None:
        super().__init__(latent_dim, name)
        self.linear = nn.Linear(integer("n_in", n_in, 1), self.latent_dim)
        self.below = nn.Parameter(torch.zeros(self.latent_dim, self.latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(self.latent_dim))

    def factor(self) -> Tensor:
        """L (latent_dim, latent_dim)."""
        return self.below.tril(-1) + self.log_scale.exp().diag_embed()

    def posterior(self, x: Tensor) -> TorchDistribution:
        return MultivariateNormal(self.linear(flat(x)), scale_tril=self.factor(), validate_args=False)

    def conditional(self) -> LinearConditional:
        """q(z | x), float64."""
        factor = self.factor().double()
        return LinearConditional(self.linear.weight.double(), self.linear.bias.double(), factor @ factor.mT)


@dataclass(frozen=True)
class Laws:
    """The two joint laws of x (n,) and z (d,): p(z) p(x | z), and q(x) q(z | x).

    Args:
        prior: p(z).
        decoding: p(x | z).
        data: q(x).
        encoding: q(z | x).
    """

    prior: MultivariateNormal
    decoding: LinearConditional
    data: MultivariateNormal
    encoding: LinearConditional

    @property
    def evidence(self) -> MultivariateNormal:
        """p(x)."""
        return self.decoding.marginal(self.prior)

    @property
    def aggregate(self) -> MultivariateNormal:
        """q(z), the aggregated posterior."""
        return self.encoding.marginal(self.data)

    @property
    def posterior(self) -> LinearConditional:
        """p(z | x)."""
        return self.decoding.reverse(self.prior)

    @property
    def decoded(self) -> MultivariateNormal:
        """p(x, z), event (n + d,), x first."""
        return self.decoding.joint(self.prior)

    @property
    def encoded(self) -> MultivariateNormal:
        """q(x, z), event (n + d,), x first."""
        z_first = self.encoding.joint(self.data)
        d, width = len(self.prior.loc), len(z_first.loc)
        order = torch.arange(width, device=z_first.loc.device).roll(-d)
        return MultivariateNormal(z_first.loc[order], z_first.covariance_matrix[order][:, order])

    def encoded_ratio(self, x: Tensor, z: Tensor) -> Tensor:
        """f1* = log q(x, z) - log p(x) p(z) (Pu et al. 2017, eq. 7) of x (*batch, n) and z (*batch, d): (*batch,)."""
        log_q = self.data.log_prob(x) + self.encoding.given(x).log_prob(z)
        return log_q - self.evidence.log_prob(x) - self.prior.log_prob(z)

    def decoded_ratio(self, x: Tensor, z: Tensor) -> Tensor:
        """f2* = log p(x, z) - log q(x) q(z) (Pu et al. 2017, eq. 7) of x (*batch, n) and z (*batch, d): (*batch,)."""
        log_p = self.prior.log_prob(z) + self.decoding.given(z).log_prob(x)
        return log_p - self.data.log_prob(x) - self.aggregate.log_prob(z)

    def kl_data(self) -> Tensor:
        """KL(q(x), p(x))."""
        return torch.distributions.kl_divergence(self.data, self.evidence)

    def kl_aggregate(self) -> Tensor:
        """KL(q(z), p(z))."""
        return torch.distributions.kl_divergence(self.aggregate, self.prior)

    def kl_posterior(self) -> Tensor:
        """E_q(x) KL(q(z | x), p(z | x))."""
        posterior = self.posterior
        # Both means are linear in x: beside the divergence at the mean there is their difference's spread over q(x).
        at_mean = torch.distributions.kl_divergence(self.encoding.given(self.data.loc), posterior.given(self.data.loc))
        difference = self.encoding.weight - posterior.weight
        spread = difference @ self.data.covariance_matrix @ difference.mT
        return at_mean + 0.5 * torch.linalg.solve(posterior.covariance, spread).trace()

    def kl_encoded(self) -> Tensor:
        """KL(q(x, z), p(x, z)), what AS-VAE-r's gradient lowers."""
        return torch.distributions.kl_divergence(self.encoded, self.decoded)

    def kl_decoded(self) -> Tensor:
        """KL(p(x, z), q(x, z)), what AS-VAE-g's gradient lowers."""
        return torch.distributions.kl_divergence(self.decoded, self.encoded)


def laws_of(decoder: LinearDecoder, data: MultivariateNormal, encoder: LinearEncoder | LinearConditional) -> Laws:
    """The laws of modules as they are now, float64, with gradient to their parameters.

    Args:
        decoder: p(x | z).
        data: q(x), event (n,).
        encoder: q(z | x), a module or its law.

    Raises:
        ValueError: widths that do not fit.
    """
    decoding = decoder.conditional()
    encoding = encoder.conditional() if isinstance(encoder, LinearEncoder) else encoder
    n, d = decoding.weight.shape
    if tuple(data.event_shape) != (n,):
        raise ValueError(f"data must have event shape ({n},) with this decoder, found {tuple(data.event_shape)}")
    if tuple(encoding.weight.shape) != (d, n):
        raise ValueError(f"encoder must map {n} values to {d}, found a weight of {tuple(encoding.weight.shape)}")
    loc, covariance = data.loc.to(decoding.weight), data.covariance_matrix.to(decoding.weight)
    prior = MultivariateNormal(decoding.weight.new_zeros(d), torch.eye(d).to(decoding.weight))
    return Laws(prior, decoding, MultivariateNormal(loc, covariance), encoding)
