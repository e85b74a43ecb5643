"""Scalar coordinates of a fit's draws: their names, how much HMC moved each, the worst of them first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..diagnostics import limits
from ..paired import paired_changes

#: Coordinates that a report lists.
MOST_COORDINATES = 50


@dataclass(frozen=True)
class Coordinates:
    """Draws of some scalar coordinates of a fit, on the constrained scale.

    ``draws`` (n, k) are the posterior's. ``before`` and ``after`` (m, j) are chains before and after a short HMC, of
    the first j coordinates, those that are latent; ``None`` where there are none. ``changes`` holds for each of these j
    what HMC changed: shift of the mean in standard deviations, its standard error, ratio of the standard deviations
    (after over before), its standard error (j, 4). ``total`` counts all coordinates; ``order`` (k,) is the
    coordinates' order from the worst on.
    """

    names: list[str]
    draws: Tensor
    before: Tensor | None
    after: Tensor | None
    changes: Tensor | None
    order: list[int]
    total: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return dict(vars(self))


def flattened(values: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names ``mu``, ``eta[3]``, ``w[0, 2]`` and values (n, k) of draws {site: (n, *shape)}."""
    names: list[str] = []
    columns = []
    for site, value in values.items():
        value = value.detach()
        shape = value.shape[1:]
        if not shape:
            names.append(site)
        else:
            names += [f"{site}[{', '.join(map(str, index))}]" for index in itertools.product(*map(range, shape))]
        columns.append(value.reshape(len(value), -1).cpu().double())
    return names, torch.cat(columns, -1)


def select(
    draws: Mapping[str, Tensor], chains: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None
) -> Coordinates:
    """The coordinates that a report shows: all, or the worst 50.

    They stay in the model's order where all are shown, and come worst first where some are left out. The worst are
    those that HMC changes most in units of the verdict's limits; without chains, those with the most skewed draws.

    Args:
        draws: of the posterior {site: (n, *shape)}, constrained.
        chains: the same latent sites before and after HMC, the first entries of ``draws``.
    """
    names, values = flattened(draws)
    total = len(names)
    if chains is None:
        badness = _skewness(values).abs()
        before = after = changes = None
    else:
        before, after = (flattened(c)[1] for c in chains)
        found = paired_changes(before, after)
        changes = torch.stack([found.shift, found.shift_stderr, found.ratio, found.ratio_stderr], -1)
        size = torch.maximum(
            found.shift.abs() / limits.MEAN_SHIFT, found.ratio.log().abs() / math.log(limits.SD_RATIO[1])
        )
        # Deterministic sites follow from the latent ones.
        badness = torch.cat([size, size.new_zeros(total - len(size))])
    ranked = badness.nan_to_num(math.inf).argsort(descending=True, stable=True).tolist()
    shown = list(range(total)) if total <= MOST_COORDINATES else ranked[:MOST_COORDINATES]
    moved: list[int] = []
    if before is not None:
        moved = [column for column in shown if column < before.shape[1]]
        shown = moved + [column for column in shown if column >= before.shape[1]]
    place = {column: i for i, column in enumerate(shown)}
    return Coordinates(
        names=[names[i] for i in shown],
        draws=values[:, shown].float(),
        before=None if before is None else before[:, moved].float(),
        after=None if after is None else after[:, moved].float(),
        changes=None if changes is None else changes[moved].float(),
        order=[place[i] for i in ranked if i in place],
        total=total,
    )


def _skewness(x: Tensor) -> Tensor:
    standard = (x - x.mean(0)) / x.std(0).clamp_min(1e-30)
    return standard.pow(3).mean(0)


def read_coordinates(plain: dict[str, Any]) -> Coordinates:
    """What :meth:`Coordinates.to_dict` gave.

    Raises:
        TypeError, ValueError: the data are none of coordinates, or do not fit each other.
    """
    made = Coordinates(**plain)
    k = len(made.names)
    if not isinstance(made.draws, Tensor) or made.draws.dim() != 2 or made.draws.shape[1] != k:
        raise ValueError("a report's draws must have one column for each of its coordinates")
    if sorted(made.order) != list(range(k)) or not all(isinstance(name, str) for name in made.names):
        raise ValueError("a report's coordinates must be named and ordered")
    for value in (made.before, made.after, made.changes):
        if value is not None and not (isinstance(value, Tensor) and value.dim() == 2):
            raise TypeError("a report's chains must be matrices")
    return made
