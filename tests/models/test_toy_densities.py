"""Normalisers of the toy densities against quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.toy_densities import (
    LOG_EVIDENCE,
    banana,
    quadrature_log_evidence,
    ring,
    two_moons,
)

BOXES = {
    "ring": (ring, -6.0, 6.0),
    "banana": (banana, (-14.0, -10.0), (14.0, 105.0)),
    "two_moons": (two_moons, -8.0, 8.0),
}


@pytest.mark.parametrize("name", sorted(LOG_EVIDENCE))
def test_stated_log_evidence(name: str) -> None:
    log_prob, lo, hi = BOXES[name]
    assert quadrature_log_evidence(log_prob, lo, hi, 801) == pytest.approx(LOG_EVIDENCE[name], abs=1e-8)


@pytest.mark.parametrize("log_prob", [ring, banana, two_moons])
def test_shapes_and_dtype(log_prob: Callable[[Tensor], Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        value = log_prob(torch.randn(4, 3, 2, dtype=dtype))
        assert value.shape == (4, 3)
        assert value.dtype == dtype
    with pytest.raises(ValueError, match="z must have shape"):
        log_prob(torch.zeros(2, 3))


def test_quadrature_of_a_normal_on_a_rectangle_and_its_errors() -> None:
    def normal(z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1)

    exact = math.log(2.0 * math.pi)
    assert quadrature_log_evidence(normal, (-9.0, -8.0), 10.0, 101) == pytest.approx(exact)
    with pytest.raises(ValueError, match="n must be"):
        quadrature_log_evidence(normal, -1.0, 1.0, 1)
    with pytest.raises(ValueError, match="lo must lie below hi"):
        quadrature_log_evidence(normal, 1.0, -1.0, 10)
    with pytest.raises(ValueError, match="log_prob must map"):
        quadrature_log_evidence(lambda z: z, -1.0, 1.0, 10)
    with pytest.raises(ValueError, match="NaN"):
        quadrature_log_evidence(lambda z: z.sum(-1).log(), -1.0, 1.0, 10)
