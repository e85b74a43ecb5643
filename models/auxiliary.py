"""The auxiliary-variable encoder (Maaløe et al. 2016)."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from avbvi.arguments import integer

from .encoders import Drawn, DrawnDistribution, Encoder, features_of, parameter_count, scale_of

__all__ = ["AuxiliaryEncoder"]


class AuxiliaryEncoder(Encoder):
    """q(z | x) = ∫ q(a | x) q(z | a, x) da with Gaussian factors: a mixture of Gaussians without a known density.

    The model is extended by p(a | x, z), learned like the encoder, which leaves log p(x) what it is. With
    "log q" of a draw for log q(a | x) + log q(z | a, x) - log p(a | x, z), a and z the draw's own,

    - E[log p(x, z) - "log q"] is the bound of Maaløe et al. (2016, eq. 6), below the ELBO of q(z | x) by
      E KL(q(a | x, z), p(a | x, z)), and
    - exp(log p(x, z) - "log q") has expectation p(x), as importance weights need.

    Args:
        body: data (B, *shape) to features (B, body.out_features), for q(a | x) and q(z | a, x).
        reverse_body: the same for p(a | x, z); a module of its own.
        latent_dim: width of z.
        auxiliary_dim: width of a.
        hidden: width of the layer that joins features and a (or z).
        name: of the encoder in Pyro's parameter store.

    Raises:
        ValueError: body and reverse_body share parameters.
    """

    def __init__(
        self,
        body: nn.Module,
        reverse_body: nn.Module,
        latent_dim: int,
        auxiliary_dim: int,
        hidden: int = 100,
        name: str = "encoder",
    ) -> None:
        super().__init__(latent_dim, name)
        self.auxiliary_dim = integer("auxiliary_dim", auxiliary_dim, 1)
        width, reverse_width = features_of(body), features_of(reverse_body)
        if {id(p) for p in body.parameters()} & {id(p) for p in reverse_body.parameters()}:
            raise ValueError("reverse_body must have parameters of its own, found some of body's")
        self.body, self.reverse_body = body, reverse_body
        self.auxiliary = nn.Linear(width, 2 * self.auxiliary_dim)
        self.conditional = JointGaussian(width, self.auxiliary_dim, self.latent_dim, hidden)
        self.reverse = JointGaussian(reverse_width, self.latent_dim, self.auxiliary_dim, hidden)

    def posterior(self, x: Tensor) -> TorchDistribution:
        features, reverse_features = self.body(x), self.reverse_body(x)
        loc, log_scale = self.auxiliary(features).chunk(2, -1)
        of_a = dist.Normal(loc, scale_of(log_scale), validate_args=False).to_event(1)

        def draw(shape: torch.Size) -> Drawn:
            a = of_a.expand(shape).rsample()
            of_z = self.conditional(features, a)
            z = of_z.rsample()
            return Drawn(z, of_a.log_prob(a) + of_z.log_prob(z) - self.reverse(reverse_features, z).log_prob(a))

        return DrawnDistribution(draw, loc.shape[:1], self.latent_dim)

    def sampling_parameters(self) -> int:
        """Number of parameters that a draw needs: p(a | x, z) does not belong to the sampler."""
        return parameter_count(self) - parameter_count(self.reverse_body) - parameter_count(self.reverse)


class JointGaussian(nn.Module):
    """A diagonal Gaussian given features of the data and another draw, by one hidden layer.

    Args:
        features: width of the features, whose part of the layer is computed once per datum.
        given: width of the draw.
        dim: of the Gaussian.
        hidden: width of the layer.
    """

    def __init__(self, features: int, given: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.from_features = nn.Linear(features, integer("hidden", hidden, 1))
        self.from_given = nn.Linear(given, hidden, bias=False)
        self.head = nn.Sequential(nn.ELU(), nn.Linear(hidden, 2 * dim))

    def forward(self, features: Tensor, given: Tensor) -> TorchDistribution:
        """Features (B, features) and a draw (*S, B, given) to a Gaussian of batch shape (*S, B), event shape (dim,)."""
        loc, log_scale = self.head(self.from_features(features) + self.from_given(given)).chunk(2, -1)
        return dist.Normal(loc, scale_of(log_scale), validate_args=False).to_event(1)
