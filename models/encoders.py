"""Encoders with a density: networks that give a distribution over the latents of each datum.

One protocol serves all of them. `Encoder.posterior(x)` is a Pyro distribution over the latents of a minibatch; the
Pyro guide, draws with their log-density for importance weights, and moments are made from it once. This module has
the protocol, bodies (data to features) and the Gaussian encoders; `models.flows` and `models.auxiliary` have others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from avbvi.arguments import instance, integer, integers, share
from avbvi.parts import with_dropout
from avbvi.rng import rng_untouched

from .decoders import ResidualBlock
from .minibatches import data_plate, flat, register

__all__ = [
    "ConvBody",
    "Drawn",
    "DrawnDistribution",
    "Encoder",
    "FullGaussianEncoder",
    "GaussianEncoder",
    "MLPBody",
    "parameter_count",
    "width_for",
]

#: Bounds of the log-scales that networks give.
LOG_SCALE_LOW, LOG_SCALE_HIGH = -8.0, 4.0
#: Share by which parameters may differ from a budget.
BUDGET_TOLERANCE = 0.1


class Drawn(NamedTuple):
    """Draws z (*S, B, dim) with their log q (*S, B)."""

    z: Tensor
    log_q: Tensor


class DrawnDistribution(TorchDistribution):
    """A distribution whose draws come with their density; whether other points have one is for its maker to say.

    What Monte Carlo bounds need of maps without an inverse (planar flows) and of auxiliary variables, for which
    ``log_prob`` is a value whose exponential's inverse is right on average.

    Args:
        draw: shape (*sample_shape, *batch_shape) -> :class:`Drawn`, differentiable.
        batch_shape: shape of the batch.
        dim: width of z.
        density: any z (*S, *batch_shape, dim) -> log q (*S, *batch_shape), differentiable in z too; None if unknown.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        draw: Callable[[torch.Size], Drawn],
        batch_shape: torch.Size,
        dim: int,
        density: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._draw = draw
        self._density = density
        self._last: Drawn | None = None
        super().__init__(batch_shape, torch.Size((dim,)), validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: TorchDistribution | None = None) -> DrawnDistribution:
        return DrawnDistribution(self._draw, torch.Size(batch_shape), self.event_shape[0], self._density)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        self._last = self._draw(torch.Size(sample_shape) + self.batch_shape)
        return self._last.z

    def log_prob(self, value: Tensor) -> Tensor:
        """log q: of the tensor that ``rsample`` gave last, as it came with it; elsewhere from the density.

        Raises:
            NotImplementedError: there is no density, and value is not that tensor.
            ValueError: value has not dim coordinates.
        """
        if self._last is not None and value is self._last.z:
            return self._last.log_q
        if self._density is None:
            raise NotImplementedError(
                "the density is known at the distribution's own draws only: pass the very tensor that rsample() "
                "returned last, or take an encoder with a density elsewhere: GaussianEncoder, FullGaussianEncoder, or "
                "FlowEncoder with transforms that have an inverse (couplings, autoregressive, householder)"
            )
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must have shape (*batch, {self.event_shape[0]}), found {tuple(value.shape)}")
        return self._density(value)


class Encoder(nn.Module):
    """Base class: a distribution over the latents of each datum, with a density.

    A subclass defines :meth:`posterior`, computing what depends on the data alone once per datum.

    Args:
        latent_dim: width of z.
        name: of the encoder in Pyro's parameter store.
    """

    def __init__(self, latent_dim: int, name: str = "encoder") -> None:
        super().__init__()
        self.latent_dim = integer("latent_dim", latent_dim, 1)
        instance("name", name, str, "a string")
        self.name = name

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) of a minibatch (B, *shape): batch shape (B,), event shape (latent_dim,), reparameterised.

        ``log_prob`` of an encoder that has a density everywhere is differentiable in z, x and the parameters.
        """
        raise NotImplementedError

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Pyro guide for `models.vaes.VAE.model`, of the same arguments."""
        register(self.name, self)
        with data_plate(x, size):
            pyro.sample("z", self.posterior(x))

    def propose(self, x: Tensor, n: int) -> Drawn:
        """n draws per datum, z (n, B, latent_dim) and log q (n, B): exp(log p(x, z) - log q) has expectation p(x)."""
        posterior = self.posterior(x)
        z = posterior.rsample(torch.Size((integer("n", n, 1),)))
        return Drawn(z, posterior.log_prob(z))

    @torch.no_grad()
    def moments(self, x: Tensor, draws: int = 1000) -> tuple[Tensor, Tensor]:
        """Mean (B, latent_dim) and covariance (B, latent_dim, latent_dim) of q(z | x), from this many draws."""
        z = self.propose(x, integer("draws", draws, 2)).z
        loc = z.mean(0)
        centred = (z - loc).movedim(0, -1)
        return loc, centred @ centred.mT / (len(z) - 1)

    def sampling_parameters(self) -> int:
        """Number of parameters that a draw needs, to be held equal when encoders are compared."""
        return parameter_count(self)


class MLPBody(nn.Module):
    """A fully connected body: data (B, *shape) to features (B, hidden[-1]), ELU after every layer.

    Args:
        n_in: number of values in a datum.
        hidden: widths of the layers.
        dropout: share of the units of each layer that is left out in training mode; `eval()` is the caller's to call.
    """

    def __init__(self, n_in: int, hidden: tuple[int, ...] = (300, 300), dropout: float = 0.0) -> None:
        super().__init__()
        self.n_in = integer("n_in", n_in, 1)
        self.hidden = integers("hidden", hidden, "widths of the layers")
        if not hidden:
            raise ValueError("hidden must have at least one width, found none")
        self.out_features = self.hidden[-1]
        self.dropout = share("dropout", dropout)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise((self.n_in, *self.hidden)):
            layers += [nn.Linear(n_in, n_out), with_dropout(nn.ELU(), self.dropout)]
        # The nesting keeps the parameters' names in files of older runs.
        self.network = nn.Sequential(nn.Sequential(*layers[:-1]), layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(flat(x))
        return features


class ConvBody(nn.Module):
    """A convolutional body: images, flattened or not, to features (B, hidden), ELU after every layer.

    Convolutions of 5 x 5 with stride 2, residual blocks behind each if asked for, then one fully connected layer.

    Args:
        image: channels, height and width.
        channels: of the convolutions' outputs.
        hidden: number of features.
        blocks: residual blocks at each scale.
        dropout: share of the units of each layer that is left out in training mode; `eval()` is the caller's to call.
    """

    def __init__(
        self,
        image: tuple[int, int, int] = (1, 28, 28),
        channels: tuple[int, ...] = (16, 32, 32),
        hidden: int = 300,
        blocks: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image = integers("image", image, "channels, height and width")
        if len(self.image) != 3:
            raise ValueError(f"image must have channels, height and width, such as (1, 28, 28), found {image}")
        self.channels = integers("channels", channels, "numbers of channels")
        self.out_features = integer("hidden", hidden, 1)
        self.blocks = integer("blocks", blocks, 0)
        self.dropout = share("dropout", dropout)
        layers: list[nn.Module] = []
        n_in, height, width = self.image
        for n_out in self.channels:
            layers.append(nn.Conv2d(n_in, n_out, kernel_size=5, stride=2, padding=2))
            layers += [ResidualBlock(n_out, dropout=self.dropout) for _ in range(self.blocks)]
            layers.append(with_dropout(nn.ELU(), self.dropout))
            n_in, height, width = n_out, -(-height // 2), -(-width // 2)
        layers += [nn.Flatten(), nn.Linear(n_in * height * width, self.out_features)]
        layers.append(with_dropout(nn.ELU(), self.dropout))
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x.reshape(len(x), *self.image))
        return features


class GaussianEncoder(Encoder):
    """q(z | x) = N(m(x), diag(s(x)^2)), the encoder of Kingma and Welling (2014).

    Args:
        body: data (B, *shape) to features (B, body.out_features).
        latent_dim: width of z.
        name: of the encoder in Pyro's parameter store.
    """

    def __init__(self, body: nn.Module, latent_dim: int, name: str = "encoder") -> None:
        super().__init__(latent_dim, name)
        self.body = body
        self.head = nn.Linear(features_of(body), 2 * self.latent_dim)

    def posterior(self, x: Tensor) -> TorchDistribution:
        loc, log_scale = self.head(self.body(x)).chunk(2, -1)
        return dist.Normal(loc, scale_of(log_scale), validate_args=False).to_event(1)

    @torch.no_grad()
    def moments(self, x: Tensor, draws: int = 1000) -> tuple[Tensor, Tensor]:
        """Exact mean (B, latent_dim) and covariance (B, latent_dim, latent_dim); ``draws`` is not needed."""
        posterior = self.posterior(x)
        return posterior.mean, posterior.variance.diag_embed()


class FullGaussianEncoder(Encoder):
    """q(z | x) = N(m(x), L(x) L(x)'), L lower triangular: a control for encoders that are richer than Gaussian.

    Args:
        body: data (B, *shape) to features (B, body.out_features).
        latent_dim: width of z.
        name: of the encoder in Pyro's parameter store.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, body: nn.Module, latent_dim: int, name: str = "encoder") -> None:
        super().__init__(latent_dim, name)
        self.body = body
        below = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.register_buffer("rows", below[0], persistent=False)
        self.register_buffer("columns", below[1], persistent=False)
        self.head = nn.Linear(features_of(body), 2 * self.latent_dim + below.shape[1])
        # The correlations start small beside the scales, whose head starts like that of the diagonal Gaussian.
        with torch.no_grad():
            self.head.weight[2 * self.latent_dim :].mul_(0.1)
            self.head.bias[2 * self.latent_dim :].zero_()

    def factor(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """m (B, latent_dim) and L (B, latent_dim, latent_dim)."""
        d = self.latent_dim
        out = self.head(self.body(x))
        scale = scale_of(out[:, d : 2 * d])
        tril = out.new_zeros(len(out), d, d)
        # Rows of L are scaled alike, so that the correlations do not depend on the scales.
        tril[:, self.rows, self.columns] = out[:, 2 * d :]
        return out[:, :d], scale.unsqueeze(-1) * (tril + torch.eye(d, dtype=out.dtype, device=out.device))

    def posterior(self, x: Tensor) -> TorchDistribution:
        loc, tril = self.factor(x)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)

        def draw(shape: torch.Size) -> Drawn:
            # At its own draws the density needs no triangular solve, as it is that of the noise.
            noise = torch.randn(*shape, self.latent_dim, dtype=loc.dtype, device=loc.device)
            z = loc + (tril @ noise.unsqueeze(-1)).squeeze(-1)
            return Drawn(z, standard_normal(noise) - log_det)

        def density(z: Tensor) -> Tensor:
            noise = torch.linalg.solve_triangular(tril, (z - loc).unsqueeze(-1), upper=False).squeeze(-1)
            return standard_normal(noise) - log_det

        return DrawnDistribution(draw, loc.shape[:1], self.latent_dim, density)

    @torch.no_grad()
    def moments(self, x: Tensor, draws: int = 1000) -> tuple[Tensor, Tensor]:
        """Exact mean (B, latent_dim) and covariance (B, latent_dim, latent_dim); ``draws`` is not needed."""
        loc, tril = self.factor(x)
        return loc, tril @ tril.mT


def scale_of(log_scale: Tensor) -> Tensor:
    """exp of a network's log-scale, kept within bounds."""
    return log_scale.clamp(LOG_SCALE_LOW, LOG_SCALE_HIGH).exp()


def standard_normal(z: Tensor) -> Tensor:
    """Log-density of N(0, I) at z (*batch, dim), shape (*batch,)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))


def features_of(body: nn.Module) -> int:
    """Number of features that a body gives.

    Raises:
        TypeError: it is no module, or does not say.
    """
    instance("body", body, nn.Module, "a torch.nn.Module")
    width = getattr(body, "out_features", None)
    if width is None:
        raise TypeError(f"body={type(body).__name__} must have an attribute out_features, the number of its features")
    return integer("body.out_features", width, 1)


def parameter_count(module: nn.Module) -> int:
    """Number of a module's trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def width_for(budget: int, make: Callable[[int], nn.Module]) -> int:
    """The width at which an encoder has as many parameters as another, within 10 %.

    Args:
        budget: number of parameters to meet.
        make: width -> module, with more parameters the wider it is; counted by its ``sampling_parameters()`` if it
            has that, else by all that are trainable.

    Raises:
        ValueError: no width comes within 10 % of the budget, or ``make`` takes no heed of the width.
    """
    budget = integer("budget", budget, 1)

    def count(width: int) -> int:
        module = make(width)
        return module.sampling_parameters() if isinstance(module, Encoder) else parameter_count(module)

    with rng_untouched():
        low, high = 1, 2
        while count(high) < budget:
            if count(high) <= count(low):
                raise ValueError(f"make must give more parameters the wider it is, found {count(high)} at width {high}")
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(middle) < budget else (low, middle)
        best = min((low, high), key=lambda width: abs(count(width) - budget))
        there = count(best)
    if abs(there - budget) > BUDGET_TOLERANCE * budget:
        raise ValueError(
            f"no width comes within {BUDGET_TOLERANCE:.0%} of budget={budget} parameters; width {best} has {there}"
        )
    return best
