"""Scalars among draws: how they are named, taken out and bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..arguments import found, real_tensor

#: A scalar of a draw: a site's name, or the name and the index of one of its elements (those in row-major order).
Coordinate = str | tuple[str, int]
#: x from, x to, y from, y to.
Limits = tuple[float, float, float, float]


def array(value: Any) -> np.ndarray:
    """The value as an array of float64, detached and on the host."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def finite(name: str, value: Any) -> np.ndarray:
    """:func:`array` of finite numbers.

    Raises:
        TypeError: it holds no real numbers.
        ValueError: NaN or infinity among them.
    """
    if not isinstance(value, Tensor | np.ndarray):
        value = real_tensor(name, value)
    try:
        numbers = array(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold real numbers, found {found(value)}") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite, found NaN or infinite values")
    return numbers


def coordinate(draws: Mapping[str, Any], which: Coordinate) -> np.ndarray:
    """One scalar (n,) of draws {site: (n, *shape)}.

    Raises:
        KeyError: the draws lack the site.
        ValueError: it is no scalar, has no such element, or is not finite.
    """
    site = which if isinstance(which, str) else which[0]
    if site not in draws:
        raise KeyError(f"the draws have no site {site!r}; they have {sorted(draws)}")
    value = finite(f"draws[{site!r}]", draws[site])
    if not isinstance(which, str):
        value = value.reshape(len(value), -1)
        if not 0 <= which[1] < value.shape[1]:
            raise ValueError(f"site {site!r} has {value.shape[1]} elements; {which!r} names none of them")
        value = value[:, which[1]]
    elif value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1:
        raise ValueError(f"site {site!r} has draws of shape {value.shape[1:]}; name one element: ({site!r}, 0)")
    return value


def scalars(draws: Mapping[str, Any], most: int) -> list[Coordinate]:
    """The first ``most`` scalars of draws {site: (n, *shape)}, in order."""
    first: list[Coordinate] = []
    for site, value in draws.items():
        width = int(np.prod(np.shape(value)[1:]))
        first += [site] if len(np.shape(value)) == 1 else [(site, i) for i in range(width)]
    return first[:most]


def coordinate_name(which: Coordinate) -> str:
    """Label of a coordinate, counted from 1 as formulas do: eta_1."""
    if not isinstance(which, str):
        return rf"{_symbol(which[0])}$_{{{which[1] + 1}}}$"
    return _symbol(which)


def window(points: Sequence[np.ndarray]) -> Limits:
    """Limits that hold the central 99 % of each set of draws (2, n), with a margin."""
    low = np.min([np.quantile(p, 0.005, axis=1) for p in points], axis=0)
    high = np.max([np.quantile(p, 0.995, axis=1) for p in points], axis=0)
    margin = 0.08 * (high - low) + 1e-9
    (x_from, y_from), (x_to, y_to) = low - margin, high + margin
    return float(x_from), float(x_to), float(y_from), float(y_to)


def grid(limits: Limits, n: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (n, n) of a grid over the limits.

    Raises:
        ValueError: the limits are not four, or not in order.
    """
    if len(limits) != 4:
        raise ValueError(f"limits must be (x from, x to, y from, y to), found {limits}")
    x_from, x_to, y_from, y_to = limits
    if not (x_from < x_to and y_from < y_to):
        raise ValueError(f"limits must be (x from, x to, y from, y to) in order, found {limits}")
    x, y = np.meshgrid(np.linspace(x_from, x_to, n), np.linspace(y_from, y_to, n))
    return x, y


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` rows of values (n, ...), evenly spaced."""
    return values[:: max(1, -(-len(values) // most))]


def _symbol(name: str) -> str:
    greek = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
    return rf"$\{name}$" if name in greek.split() else name
