"""Small targets, unnormalised, each with exact independent draws and its exact log-evidence.

`TOYS` holds them by name. The functions map points of shape (*batch, dim) to an unnormalised log
density of shape (*batch,) and follow the points' device and dtype. Draws come from closed forms
or from rejection under a proven bound, never from a Markov chain or a grid.

| name | dim | what makes it hard |
|---|---|---|
| figure_1 | 2 | a wave that forks: curved and of two branches |
| banana | 2 | curved |
| ring | 2 | a hole |
| eight_modes | 2 | eight separated modes |
| cross | 2 | two narrow directions at right angles |
| two_moons | 2 | two curved modes |
| funnel | 10 | scales that differ by e^9 between neck and mouth |
| gaussian_20, gaussian_50 | 20, 50 | sds from .01 to 100, strong correlation (`CorrelatedNormal`) |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .correlated_normal import CorrelatedNormal
from .quadrature import quadrature_log_evidence

__all__ = [
    "LOG_EVIDENCE",
    "TOYS",
    "ToyDensity",
    "banana",
    "cross",
    "eight_modes",
    "figure_1",
    "funnel",
    "quadrature_log_evidence",
    "ring",
    "two_moons",
]

_RING_RADIUS = 2.0
_RING_WIDTH = 0.3
_BANANA_SCALE = 2.0
_BANANA_BEND = 0.5
_MOONS_RADIUS = 2.0
_MOONS_WIDTH = 0.4
_MOONS_REACH = 0.6
_FORK_SCALE = 2.0
_FORK_WIDTHS = (0.4, 0.35)
_MODES = 8
_MODES_RADIUS = 4.0
_MODES_WIDTH = 0.3
_CROSS_SDS = (math.sqrt(3.8), math.sqrt(0.2))
_FUNNEL_DIM = 10
_FUNNEL_SCALE = 3.0


@dataclass(frozen=True)
class ToyDensity:
    """An unnormalised density with exact draws and known log-evidence.

    Args:
        name: its key in `TOYS`.
        dim: number of coordinates.
        log_prob: maps points (*batch, dim) to unnormalised log densities (*batch,) in nats.
        draw: maps (n, generator) to n independent exact draws, (n, dim), float64 on the CPU.
        log_evidence: log of the integral of exp(log_prob), in nats.
    """

    name: str
    dim: int
    log_prob: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    log_evidence: float

    def sample(self, n: int, seed: int) -> Tensor:
        """Independent exact draws.

        Args:
            n: number of draws, at least 1.
            seed: of a local generator; the global random state is not touched.

        Returns:
            Shape (n, dim), float64 on the CPU.

        Raises:
            ValueError: n < 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        return self.draw(n, torch.Generator("cpu").manual_seed(seed))


def ring(z: Tensor) -> Tensor:
    """A ring of radius 2 and width 0.3 about the origin: connected, with a hole.

    Args:
        z: points, shape (*batch, 2).

    Returns:
        -(|z| - 2)^2 / (2 * 0.3^2), shape (*batch,).
    """
    _check(z, 2)
    radius: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return -0.5 * ((radius - _RING_RADIUS) / _RING_WIDTH).square()


def banana(z: Tensor) -> Tensor:
    """A normal distribution bent along a parabola (Haario, Saksman and Tamminen 1999).

    z_1 ~ N(0, 2) and z_2 - 0.5 (z_1^2 - 4) ~ N(0, 1): mean 0, sds 2 and 3 (variances 4 and 9).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        The log density without its constant, shape (*batch,).
    """
    _check(z, 2)
    first, second = z[..., 0], z[..., 1]
    straight = second - _BANANA_BEND * (first.square() - _BANANA_SCALE**2)
    return -0.5 * ((first / _BANANA_SCALE).square() + straight.square())


def two_moons(z: Tensor) -> Tensor:
    """Two facing crescents, left and right (potential U_1 of Rezende and Mohamed 2015).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        -((|z| - 2) / 0.4)^2 / 2 + log(exp(-((z_1 - 2) / 0.6)^2 / 2)
        + exp(-((z_1 + 2) / 0.6)^2 / 2)), shape (*batch,).
    """
    _check(z, 2)
    radius: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return -0.5 * ((radius - _MOONS_RADIUS) / _MOONS_WIDTH).square() + _log_moons(z[..., 0])


def figure_1(z: Tensor) -> Tensor:
    """A sine wave that forks in two: stand-in for the target of the AVB paper's Figure 1.

    Figure 1 of Mescheder, Nowozin and Geiger (2017) shows a sampler trained on "a non-trivial
    unnormalized probability density" in the plane, as a picture. Neither paper nor supplement
    gives its formula, and the authors' public notebooks do not contain it. Results here do not
    compare with that picture. The stand-in is potential U_4 of Rezende and Mohamed (2015, Table
    1), which alone cannot be normalised, times the density of N(0, 2) in z_1. Given z_1, z_2 is
    then a mixture of two normals with weights .4 : .35, and z_1 ~ N(0, 2).

    Args:
        z: points, shape (*batch, 2).

    Returns:
        log(exp(-((z_2 - w) / 0.4)^2 / 2) + exp(-((z_2 - w + v) / 0.35)^2 / 2)) - z_1^2 / 8 with
        w = sin(pi z_1 / 2) and v = 3 sigmoid((z_1 - 1) / 0.3), shape (*batch,).
    """
    _check(z, 2)
    first, second = z[..., 0], z[..., 1]
    upper, lower = _fork(first)
    branches = torch.logaddexp(
        -0.5 * ((second - upper) / _FORK_WIDTHS[0]).square(), -0.5 * ((second - lower) / _FORK_WIDTHS[1]).square()
    )
    return branches - 0.5 * (first / _FORK_SCALE).square()


def eight_modes(z: Tensor) -> Tensor:
    """Eight equal normals of sd 0.3 on a circle of radius 4: neighbours lie ten sds apart.

    Args:
        z: points, shape (*batch, 2).

    Returns:
        log sum_k exp(-|z - m_k|^2 / (2 * 0.3^2)) with m_k = 4 (cos(k pi / 4), sin(k pi / 4)), shape (*batch,).
    """
    _check(z, 2)
    distance = (z.unsqueeze(-2) - _mode_centres(z)).square().sum(-1)
    return torch.logsumexp(-0.5 * distance / _MODES_WIDTH**2, -1)


def cross(z: Tensor) -> Tensor:
    """An X: two normals with variances 2 and covariances +1.8 and -1.8 (Yin and Zhou 2018).

    Along the diagonals the sds are sqrt(3.8) = 1.95 and sqrt(0.2) = 0.45.

    Args:
        z: points, shape (*batch, 2).

    Returns:
        log(exp(-z' A^-1 z / 2) + exp(-z' B^-1 z / 2)) for the two covariances A and B, shape (*batch,).
    """
    _check(z, 2)
    sum_, difference = z[..., 0] + z[..., 1], z[..., 0] - z[..., 1]
    long, short = (-0.25 / sd**2 for sd in _CROSS_SDS)
    rising = long * sum_.square() + short * difference.square()
    falling = short * sum_.square() + long * difference.square()
    return torch.logaddexp(rising, falling)


def funnel(z: Tensor) -> Tensor:
    """Neal's funnel in ten dimensions (Neal 2003, section 8): z_1 = v ~ N(0, 3), the others N(0, exp(v / 2)).

    Args:
        z: points, shape (*batch, 10).

    Returns:
        -v^2 / 18 - (|z_2..10|^2 exp(-v) + 9 v) / 2, shape (*batch,).
    """
    _check(z, _FUNNEL_DIM)
    v = z[..., 0]
    rest = z[..., 1:].square().sum(-1)
    return -0.5 * ((v / _FUNNEL_SCALE).square() + rest * (-v).exp() + (_FUNNEL_DIM - 1) * v)


def _check(z: Tensor, dim: int) -> None:
    if z.shape[-1:] != (dim,):
        raise ValueError(f"z must have shape (*batch, {dim}), got {tuple(z.shape)}.")


def _log_moons(first: Tensor) -> Tensor:
    """Log of the factor that cuts a ring into two moons."""
    right = -0.5 * ((first - _MOONS_RADIUS) / _MOONS_REACH).square()
    left = -0.5 * ((first + _MOONS_RADIUS) / _MOONS_REACH).square()
    return torch.logaddexp(left, right)


def _fork(first: Tensor) -> tuple[Tensor, Tensor]:
    """Where the two branches of `figure_1` lie."""
    wave = (0.5 * math.pi * first).sin()
    return wave, wave - 3.0 * ((first - 1.0) / 0.3).sigmoid()


def _mode_centres(like: Tensor) -> Tensor:
    angle = torch.arange(_MODES, dtype=like.dtype, device=like.device) * (2.0 * math.pi / _MODES)
    return _MODES_RADIUS * torch.stack([angle.cos(), angle.sin()], -1)


def normal_draws(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers of this shape, float64 on the CPU."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def uniform_draws(generator: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) of this shape, float64 on the CPU."""
    return torch.rand(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _accepted(
    n: int, generator: torch.Generator, propose: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
) -> Tensor:
    """The first n accepted of as many proposals as it takes; propose(m) gives points (m, *) and probabilities (m,)."""
    kept: list[Tensor] = []
    missing = n
    while missing > 0:
        points, probability = propose(2 * missing + 16, generator)
        points = points[uniform_draws(generator, len(points)) < probability][:missing]
        kept.append(points)
        missing -= len(points)
    return torch.cat(kept)


def draw_ring(n: int, generator: torch.Generator, *, radius: float, width: float) -> Tensor:
    """Draws from exp(-(|z| - radius)^2 / (2 width^2)) in the plane."""

    def propose(m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # |z| = r has density r f(r) with f normal about `radius`. As r <= radius exp(r / radius - 1), it lies
        # below a normal about radius + width^2 / radius.
        r = radius + width**2 / radius + width * normal_draws(generator, m)
        return r, (r / radius * (1.0 - r / radius).exp()).clamp_min(0.0)

    r = _accepted(n, generator, propose)
    angle = 2.0 * math.pi * uniform_draws(generator, n)
    return r.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def _draw_banana(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, 2)
    first = _BANANA_SCALE * noise[:, 0]
    return torch.stack([first, noise[:, 1] + _BANANA_BEND * (first.square() - _BANANA_SCALE**2)], -1)


def _draw_two_moons(n: int, generator: torch.Generator) -> Tensor:
    # The nearer moon's term is at most 1; the other centre is at least `radius` away.
    bound = math.log1p(math.exp(-0.5 * (_MOONS_RADIUS / _MOONS_REACH) ** 2))

    def propose(m: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = draw_ring(m, generator, radius=_MOONS_RADIUS, width=_MOONS_WIDTH)
        return z, (_log_moons(z[:, 0]) - bound).exp()

    return _accepted(n, generator, propose)


def _draw_figure_1(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, 2)
    first = _FORK_SCALE * noise[:, 0]
    upper, lower = _fork(first)
    on_upper = uniform_draws(generator, n) < _FORK_WIDTHS[0] / sum(_FORK_WIDTHS)
    branches = upper + _FORK_WIDTHS[0] * noise[:, 1], lower + _FORK_WIDTHS[1] * noise[:, 1]
    return torch.stack([first, torch.where(on_upper, *branches)], -1)


def _draw_eight_modes(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, 2)
    mode = torch.randint(_MODES, (n,), generator=generator, device="cpu")
    return _mode_centres(noise)[mode] + _MODES_WIDTH * noise


def _draw_cross(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, 2)
    along, across = _CROSS_SDS[0] * noise[:, 0], _CROSS_SDS[1] * noise[:, 1]
    sign = torch.randint(2, (n,), generator=generator, device="cpu").mul(2).sub(1)
    # Rotation by 45 degrees; a change of the second coordinate's sign mirrors one arm into the other.
    return torch.stack([along - across, sign * (along + across)], -1) * math.sqrt(0.5)


def _draw_funnel(n: int, generator: torch.Generator) -> Tensor:
    noise = normal_draws(generator, n, _FUNNEL_DIM)
    v = _FUNNEL_SCALE * noise[:, :1]
    return torch.cat([v, (0.5 * v).exp() * noise[:, 1:]], -1)


def ring_evidence(radius: float, width: float) -> float:
    """Integral of exp(-(|z| - radius)^2 / (2 width^2)) over the plane."""
    # 2 pi times the integral of r exp(-(r - radius)^2 / (2 width^2)) over r > 0
    inside = 0.5 * math.erfc(-radius / (width * math.sqrt(2.0)))
    tail = width**2 * math.exp(-0.5 * (radius / width) ** 2)
    return 2.0 * math.pi * (tail + radius * width * math.sqrt(2.0 * math.pi) * inside)


def _normal_toy(dim: int) -> ToyDensity:
    normal = CorrelatedNormal(dim)
    return ToyDensity(f"gaussian_{dim}", dim, normal.log_prob, normal.draw, normal.log_evidence)


_LOG_2_PI = math.log(2.0 * math.pi)

TOYS: dict[str, ToyDensity] = {
    toy.name: toy
    for toy in (
        ToyDensity("figure_1", 2, figure_1, _draw_figure_1, _LOG_2_PI + math.log(_FORK_SCALE * sum(_FORK_WIDTHS))),
        ToyDensity("banana", 2, banana, _draw_banana, _LOG_2_PI + math.log(_BANANA_SCALE)),
        ToyDensity(
            "ring",
            2,
            ring,
            partial(draw_ring, radius=_RING_RADIUS, width=_RING_WIDTH),
            math.log(ring_evidence(_RING_RADIUS, _RING_WIDTH)),
        ),
        ToyDensity("eight_modes", 2, eight_modes, _draw_eight_modes, _LOG_2_PI + math.log(_MODES * _MODES_WIDTH**2)),
        ToyDensity("cross", 2, cross, _draw_cross, _LOG_2_PI + math.log(2.0 * _CROSS_SDS[0] * _CROSS_SDS[1])),
        ToyDensity("two_moons", 2, two_moons, _draw_two_moons, 1.87750162611),  # by quadrature on (-8, 8)^2
        ToyDensity(
            "funnel", _FUNNEL_DIM, funnel, _draw_funnel, 0.5 * _FUNNEL_DIM * _LOG_2_PI + math.log(_FUNNEL_SCALE)
        ),
        _normal_toy(20),
        _normal_toy(50),
    )
}

LOG_EVIDENCE: dict[str, float] = {name: toy.log_evidence for name, toy in TOYS.items()}
