"""The trapezoidal rule in the plane."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.quadrature import quadrature_log_evidence


def normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1)


def test_quadrature_of_a_normal_on_a_rectangle() -> None:
    exact = math.log(2.0 * math.pi)
    assert quadrature_log_evidence(normal, (-9.0, -8.0), 10.0, 101) == pytest.approx(exact, abs=1e-12)


def test_quadrature_is_exact_for_a_linear_density_and_counts_the_edges_half() -> None:
    # The integral of 1 + x + 2 y over [0, 2] x [0, 3] is 6 + 6 + 18.
    value = quadrature_log_evidence(lambda z: (1.0 + z[..., 0] + 2.0 * z[..., 1]).log(), 0.0, (2.0, 3.0), 2)
    assert value == pytest.approx(math.log(30.0), abs=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match="n must be"):
        quadrature_log_evidence(normal, -1.0, 1.0, 1)
    with pytest.raises(ValueError, match="lo must lie below hi"):
        quadrature_log_evidence(normal, 1.0, -1.0, 10)
    with pytest.raises(ValueError, match="log_prob must map"):
        quadrature_log_evidence(lambda z: z, -1.0, 1.0, 10)
    with pytest.raises(ValueError, match="NaN"):
        quadrature_log_evidence(lambda z: z.sum(-1).log(), -1.0, 1.0, 10)
    assert quadrature_log_evidence(lambda z: torch.zeros(len(z)).double(), 0.0, 1.0, 3) == pytest.approx(0.0)
