"""Networks of amortised parts: what depends on the context alone is computed once per datum, not per draw."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..arguments import instance, integer, integers, number
from ..parts import with_dropout, zero_
from ..rng import rng_untouched, seeded


def unit(slope: float | None, dropout: float = 0.0) -> nn.Module:
    """One activation: leaky ReLU of this negative slope (0 is ReLU), or smooth SiLU for ``None``; dropout behind it."""
    return with_dropout(nn.SiLU() if slope is None else nn.LeakyReLU(slope), dropout)


def checked_slope(value: float | None) -> float | None:
    """The argument ``slope`` of a part, for :func:`unit`."""
    if value is None:
        return None
    slope = number("slope", value)
    if not abs(slope) < 1.0:
        raise ValueError(f"slope must lie between -1 and 1, found {value}")
    return slope


def checked_layers(name: str, value: tuple[int, ...], what: str = "widths of layers") -> tuple[int, ...]:
    """An argument that is a tuple of widths, of one layer at least."""
    widths = integers(name, value, what)
    if not widths:
        raise ValueError(f"{name} must name at least one layer, found ()")
    return widths


def checked_noise(name: str, value: int | None, least: int = 1) -> int | None:
    """An argument that is the width of some noise, or ``None``."""
    return None if value is None else integer(name, value, least)


def checked_body(body: nn.Module | None) -> nn.Module | None:
    """The argument ``body`` of a part: a module (B, context_dim) -> (B, width), or ``None``."""
    if body is None:
        return None
    instance("body", body, nn.Module, "a torch.nn.Module or None")
    for name, part in body.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise ValueError(
                f"body={type(body).__name__} normalises over the minibatch ({name}), so that a datum's posterior would "
                "depend on the other data; use LayerNorm or GroupNorm, or hand the module over in eval mode"
            )
    return body


class ContextNetwork(nn.Module):
    """A fully connected network with a unit after each of its layers: (B, context_dim) -> (B, width)."""

    def __init__(self, context_dim: int, hidden: tuple[int, ...], slope: float | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.width: int = hidden[-1] if hidden else context_dim
        self.layers: nn.Sequential = nn.Sequential()
        for n_in, n_out in itertools.pairwise((context_dim, *hidden)):
            self.layers.extend([nn.Linear(n_in, n_out), unit(slope, dropout)])

    def forward(self, context: Tensor) -> Tensor:
        features: Tensor = self.layers(context)
        return features


def body_width(body: nn.Module, context_dim: int) -> int:
    """How many features a user's body gives for a context of this width.

    Raises:
        ValueError: it fails on such a context, or does not return (B, width).
    """
    like = next(body.parameters(), torch.zeros(()))
    zeros = torch.zeros(2, context_dim, dtype=like.dtype, device=like.device)
    with torch.no_grad(), rng_untouched():
        try:
            features = body(zeros)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(
                f"body failed on a context of shape (2, {context_dim}): {error}. The context comes flattened per "
                "datum; reshape it inside the body"
            ) from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"body must map a context (2, {context_dim}) to features (2, width), found {found}")
    return features.shape[1]


class InjectedNetwork(nn.Module):
    """A fully connected network of noise and context, both of which are added into every hidden layer.

    h_1 = U_1 n + P_1 c and h_{l+1} = [h_l +] W_l act(h_l) + U_l n + P_l c, with the skip between layers of equal
    width; the output is linear in act(h_L) (the projections of AVB's supplement, section IV, fully connected).

    Args:
        noise_dim: width of what differs from draw to draw.
        context_width: width of what a datum's draws share.
        hidden: widths of the hidden layers, at least one.
        n_out: width of the output.
        slope: see :func:`unit`.
        zero_last: let the output start at 0.
        dropout: share of the hidden units that is left out in training mode.
    """

    def __init__(
        self,
        noise_dim: int,
        context_width: int,
        hidden: tuple[int, ...],
        n_out: int,
        slope: float | None,
        *,
        zero_last: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.widths = hidden
        self.from_noise: nn.Linear = nn.Linear(noise_dim, sum(hidden), bias=False)
        self.from_context: nn.Linear = nn.Linear(context_width, sum(hidden))
        self.between: nn.ModuleList = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(hidden))
        self.leave: nn.Linear = nn.Linear(hidden[-1], n_out)
        self.unit: nn.Module = unit(slope, dropout)
        if zero_last:
            zero_(self.leave)

    def forward(self, noise: Tensor, features: Tensor) -> Tensor:
        """Noise (*S, B, noise_dim) and features (B, context_width) to (*S, B, n_out)."""
        injected = (self.from_noise(noise) + self.from_context(features)).split(self.widths, dim=-1)
        h: Tensor = injected[0]
        for layer, more in zip(self.between, injected[1:], strict=True):
            new = layer(self.unit(h)) + more
            h = h + new if h.shape[-1] == new.shape[-1] else new
        out: Tensor = self.leave(self.unit(h))
        return out


class Smoothing(nn.Module):
    """Standard deviation (B, dim) of independent noise that is added last, a function of the features (B, width).

    It bounds how thin a sheet or a fold the draws can lie on: no adversary sees those, and what it misses the sampler
    exploits. At the start it is ``start`` everywhere, and it stays within a factor exp(2) of that.
    """

    def __init__(self, width: int, dim: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.log_scale: nn.Linear = nn.Linear(width, dim)
        zero_(self.log_scale)

    def forward(self, features: Tensor) -> Tensor:
        return smoothing_scale(self.log_scale(features), self.start)


def smoothing_scale(log_scale: Tensor, start: float) -> Tensor:
    """start * exp(log_scale), kept smoothly within a factor exp(2) of ``start``."""
    return start * (2.0 * torch.tanh(0.5 * log_scale)).exp()


def checked_smoothing(value: float) -> float:
    """The argument ``smoothing`` of a sampler: a share of a standard deviation, in [0, 1)."""
    smoothing = number("smoothing", value)
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"smoothing must be in [0, 1), found {value}")
    return smoothing


class BasisNetworks(nn.Module):
    """Small fully connected networks side by side, each of its own noise: (*batch, m * n_in) -> (*batch, m, n_out)."""

    def __init__(self, count: int, sizes: tuple[int, ...], slope: float | None) -> None:
        super().__init__()
        self.count = count
        self.unit: nn.Module = unit(slope)
        self.weights: nn.ParameterList = nn.ParameterList()
        self.biases: nn.ParameterList = nn.ParameterList()
        for n_in, n_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(n_in)
            self.weights.append(nn.Parameter(torch.empty(count, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, n_out).uniform_(-bound, bound)))

    def forward(self, noise: Tensor) -> Tensor:
        h = noise.reshape(-1, self.count, noise.shape[-1] // self.count).transpose(0, 1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, self.unit(h) if i else h, weight)
        return h.transpose(0, 1).reshape(*noise.shape[:-1], self.count, -1)


def small_positive(x: Tensor, offset: float) -> Tensor:
    """elu(x - offset) + 1: positive, about exp(-offset) at x = 0, and linear where it is large."""
    return functional.elu(x - offset) + 1.0


def scaled_rows(noise_dim: int, dim: int, scale: float) -> nn.Linear:
    """A matrix that gives each coordinate standard deviation ``scale``, uncorrelated where the noise is wide enough."""
    linear = nn.Linear(noise_dim, dim, bias=False)
    if noise_dim >= dim:
        nn.init.orthogonal_(linear.weight, scale)
    else:
        with torch.no_grad():
            linear.weight.copy_(scale * functional.normalize(torch.randn(dim, noise_dim), dim=-1))
    return linear


def fixed_noise(draws: int, width: int) -> Tensor:
    """Standard normal noise (draws, width) that is the same whenever it is drawn."""
    with seeded(0):
        return torch.randn(draws, width)
