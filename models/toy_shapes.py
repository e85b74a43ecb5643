"""Small targets of harder shapes than `models.toy_densities`, each with exact draws and its exact log-evidence.

`SHAPES` holds them by name, `MODES` the modes of those that have several, with their weights.

| name | dim | what makes it hard |
|---|---|---|
| eight_modes_05 | 2 | eight modes, neighbours six sds apart |
| eight_modes_02 | 2 | eight modes, neighbours fifteen sds apart |
| bananas_10d | 10 | four modes of unequal weight, each curved in a plane of its own |
| thin_ring | 2 | a hole, and a width of a twentieth of the radius |
| soft_square | 2 | flat inside, steep edges, corners |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .toy_densities import ToyDensity, banana, draw_ring, normal_draws, ring_evidence, uniform_draws

__all__ = ["MODES", "SHAPES", "CircleOfModes", "Modes", "bananas", "soft_square", "thin_ring"]

_CIRCLE_MODES = 8
_CIRCLE_RADIUS = 4.0
_BANANAS_DIM = 10
_BANANAS_OFFSET = 6.0
_BANANA_WEIGHTS = (0.1, 0.2, 0.3, 0.4)
# Where the last two coordinates of each banana are centred, in the order of the weights.
_BANANA_CORNERS = ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0))
_BANANA_SCALE = 2.0  # as in `banana`
_BANANA_BEND = 0.5
_THIN_RADIUS = 2.0
_THIN_WIDTH = 0.1
_SQUARE_HALF = 2.0
_SQUARE_EDGE = 0.1
#: A mode counts as lost when its share of the draws is below this part of its weight.
LOST_BELOW = 0.1


@dataclass(frozen=True)
class Modes:
    """The modes of a target: how to tell them apart and what they weigh.

    Args:
        weights: probability of each mode's region, adding up to one.
        assign: maps points (n, dim) to the number of the mode that each belongs to, (n,), int64.
    """

    weights: tuple[float, ...]
    assign: Callable[[Tensor], Tensor]

    def shares(self, z: Tensor) -> Tensor:
        """Shares of draws z (n, dim) that fall to each mode, shape (modes,), float64."""
        return torch.bincount(self.assign(z), minlength=len(self.weights)).double() / len(z)

    def figures(self, z: Tensor) -> dict[str, float]:
        """How draws z (n, dim) serve the modes.

        Returns:
            ``mode_weight_error``, the largest relative error of a mode's weight, and ``modes_lost``, how many have
            less than a tenth of their weight.
        """
        ratio = self.shares(z) / torch.tensor(self.weights, dtype=torch.float64, device=z.device)
        return {
            "mode_weight_error": float((ratio - 1.0).abs().max()),
            "modes_lost": int((ratio < LOST_BELOW).sum()),
        }


@dataclass(frozen=True)
class CircleOfModes:
    """Equal round normals, evenly spaced on a circle in the plane.

    Args:
        width: their standard deviation.
        modes: how many.
        radius: of the circle.
    """

    width: float
    modes: int = _CIRCLE_MODES
    radius: float = _CIRCLE_RADIUS

    @property
    def log_evidence(self) -> float:
        """Log of the integral of exp(log_prob), in nats."""
        return math.log(2.0 * math.pi * self.modes * self.width**2)

    def centres(self, like: Tensor) -> Tensor:
        """Centres of the modes, shape (modes, 2), with the device and dtype of ``like``."""
        angle = torch.arange(self.modes, dtype=like.dtype, device=like.device) * (2.0 * math.pi / self.modes)
        return self.radius * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density without its constant.

        Args:
            z: points, shape (*batch, 2).

        Returns:
            log sum_k exp(-|z - m_k|^2 / (2 width^2)) over the centres m_k, shape (*batch,).

        Raises:
            ValueError: the last dimension of z is not 2.
        """
        return torch.logsumexp(-0.5 * self._square_distances(z) / self.width**2, -1)

    def assign(self, z: Tensor) -> Tensor:
        """Number of the nearest centre: (*batch, 2) -> (*batch,). By symmetry all regions weigh the same."""
        return self._square_distances(z).argmin(-1)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Independent draws, shape (n, 2), float64 on the CPU."""
        noise = normal_draws(generator, n, 2)
        mode = torch.randint(self.modes, (n,), generator=generator, device="cpu")
        return self.centres(noise)[mode] + self.width * noise

    def _square_distances(self, z: Tensor) -> Tensor:
        _check(z, 2)
        return (z.unsqueeze(-2) - self.centres(z)).square().sum(-1)


def bananas(z: Tensor) -> Tensor:
    """Four bananas in ten dimensions with weights .1, .2, .3 and .4.

    Banana k is `models.toy_densities.banana` in coordinates (2k - 1, 2k), standard normal in the other six of the
    first eight, and normal with sd 1 about one of the corners (+-6, +-6) in the last two: modes lie twelve sds apart.

    Args:
        z: points, shape (*batch, 10).

    Returns:
        log sum_k w_k exp(log density of banana k without its constant), shape (*batch,).

    Raises:
        ValueError: the last dimension of z is not 10.
    """
    _check(z, _BANANAS_DIM)
    square = z[..., :-2].square()
    others = square.sum(-1)
    parts = []
    for k, (weight, corner) in enumerate(zip(_BANANA_WEIGHTS, _BANANA_CORNERS, strict=True)):
        plane = slice(2 * k, 2 * k + 2)
        straight = others - square[..., plane].sum(-1)
        last = sum((z[..., i - 2] - _BANANAS_OFFSET * corner[i]).square() for i in range(2))
        parts.append(math.log(weight) + banana(z[..., plane]) - 0.5 * (straight + last))
    return torch.logsumexp(torch.stack(parts, -1), -1)


def soft_square(z: Tensor) -> Tensor:
    """A square of side 4 whose edges fall off over a tenth: a product of two convolutions of uniform and logistic.

    With the logistic function s, s((x + a) / b) s((a - x) / b) is, but for a constant, the density of the sum of a
    uniform number in (-a, a) and b times a standard logistic one; its integral is 2a / (1 - exp(-2a / b)).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        sum_i log s((z_i + 2) / .1) + log s((2 - z_i) / .1), shape (*batch,).

    Raises:
        ValueError: the last dimension of z is not 2.
    """
    _check(z, 2)
    inside = torch.nn.functional.logsigmoid
    edges = inside((_SQUARE_HALF + z) / _SQUARE_EDGE) + inside((_SQUARE_HALF - z) / _SQUARE_EDGE)
    return edges.sum(-1)


def thin_ring(z: Tensor) -> Tensor:
    """A ring of radius 2 and width 0.1 about the origin.

    Args:
        z: points, shape (*batch, 2).

    Returns:
        -(|z| - 2)^2 / (2 * 0.1^2), shape (*batch,).

    Raises:
        ValueError: the last dimension of z is not 2.
    """
    _check(z, 2)
    radius: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return -0.5 * ((radius - _THIN_RADIUS) / _THIN_WIDTH).square()


def _check(z: Tensor, dim: int) -> None:
    if z.shape[-1:] != (dim,):
        raise ValueError(f"z must have shape (*batch, {dim}), got {tuple(z.shape)}.")


def _corner(z: Tensor) -> Tensor:
    """Banana that a point (n, 10) belongs to, by the signs of its last two coordinates; 1e-9 of each lie across."""
    _check(z, _BANANAS_DIM)
    return (z[..., -2] > 0).long() + 2 * (z[..., -1] > 0).long()


def _side(z: Tensor) -> Tensor:
    return (z[..., 0] > 0).long()


def _draw_bananas(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, _BANANAS_DIM)
    weights = torch.tensor(_BANANA_WEIGHTS, dtype=torch.float64)
    mode = torch.multinomial(weights, n, replacement=True, generator=generator)
    rows = torch.arange(n)
    z = noise.clone()
    first = _BANANA_SCALE * noise[rows, 2 * mode]
    z[rows, 2 * mode] = first
    z[rows, 2 * mode + 1] += _BANANA_BEND * (first.square() - _BANANA_SCALE**2)
    z[:, -2:] += _BANANAS_OFFSET * torch.tensor(_BANANA_CORNERS, dtype=torch.float64)[mode]
    return z


def _draw_soft_square(n: int, generator: torch.Generator) -> Tensor:
    uniform = _SQUARE_HALF * (2.0 * uniform_draws(generator, n, 2) - 1.0)
    # The log of a ratio of two exponential numbers is logistic; the clamp keeps a uniform number of 0 finite.
    exponential = (-torch.log1p(-uniform_draws(generator, 2, n, 2))).clamp_min(1e-300)
    return uniform + _SQUARE_EDGE * (exponential[0].log() - exponential[1].log())


_CIRCLES = {"eight_modes_05": CircleOfModes(0.5), "eight_modes_02": CircleOfModes(0.2)}
_EQUAL = (1.0 / _CIRCLE_MODES,) * _CIRCLE_MODES

SHAPES: dict[str, ToyDensity] = {
    toy.name: toy
    for toy in (
        *(ToyDensity(name, 2, circle.log_prob, circle.draw, circle.log_evidence) for name, circle in _CIRCLES.items()),
        ToyDensity(
            "bananas_10d",
            _BANANAS_DIM,
            bananas,
            _draw_bananas,
            0.5 * _BANANAS_DIM * math.log(2.0 * math.pi) + math.log(_BANANA_SCALE),
        ),
        ToyDensity(
            "thin_ring",
            2,
            thin_ring,
            partial(draw_ring, radius=_THIN_RADIUS, width=_THIN_WIDTH),
            math.log(ring_evidence(_THIN_RADIUS, _THIN_WIDTH)),
        ),
        ToyDensity(
            "soft_square",
            2,
            soft_square,
            _draw_soft_square,
            2.0 * (math.log(2.0 * _SQUARE_HALF) - math.log1p(-math.exp(-2.0 * _SQUARE_HALF / _SQUARE_EDGE))),
        ),
    )
}

#: By name of the target; two_moons is one of `models.toy_densities`, its modes mirror each other.
MODES: dict[str, Modes] = {
    **{name: Modes(_EQUAL, circle.assign) for name, circle in _CIRCLES.items()},
    "bananas_10d": Modes(_BANANA_WEIGHTS, _corner),
    "two_moons": Modes((0.5, 0.5), _side),
}
