"""Improper posteriors, optima at infinity and unbounded densities are said, and proper ones left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from avbvi import AVBGuide, LogDensity

SIGNS = torch.tensor([1.0, 1.0, -1.0, -1.0])
COVARIATE = torch.tensor([2.0, 1.0, -1.0, -3.0])


def separable(z: Tensor) -> Tensor:
    """A logistic regression whose covariate separates the outcomes, with a flat prior."""
    return torch.nn.functional.logsigmoid(SIGNS * COVARIATE * z[:, :1]).sum(-1) - 0.5 * z[:, 1].square()


def collapsing(z: Tensor) -> Tensor:
    """Five equal observations with a normal likelihood, flat in its mean and log-scale: unbounded as the scale -> 0."""
    return -5.0 * z[:, 1] - 2.5 * ((z[:, 0] - 1.3) * torch.exp(-z[:, 1])).square()


def started(log_prob: Callable[[Tensor], Tensor], dim: int) -> AVBGuide:
    guide = AVBGuide(LogDensity(log_prob, (dim,))).setup()
    guide.start(guide.target())
    loc = guide.part("trunk")(torch.zeros(1, dim))[0]
    assert bool(torch.isfinite(loc).all())
    return guide


@pytest.mark.parametrize(
    ("log_prob", "dim", "named"),
    [
        (lambda z: z[:, 0] - 0.5 * z[:, 1].square(), 2, "z[0]"),
        (lambda z: -0.5 * z[:, 1].square(), 2, "z[0]"),
        (separable, 2, "z[0]"),
        (collapsing, 2, "z[0]"),
    ],
    ids=["rising", "flat", "separable", "collapsing"],
)
def test_what_has_no_finite_integral_is_suspect(log_prob: Callable[[Tensor], Tensor], dim: int, named: str) -> None:
    guide = started(log_prob, dim)
    assert guide.start_suspect
    assert any(named in note for note in guide.start_notes)


@pytest.mark.parametrize("power", [2.0, 1.0])
def test_proper_tails_are_not(power: float) -> None:
    guide = started(lambda z: -(1.0 + z.square()).pow(power / 2).sum(-1), 2)
    assert guide.start_notes == []
    assert not guide.start_suspect
