"""A Monte Carlo figure together with its standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Estimate"]


class Estimate(NamedTuple):
    """A value with its standard error, both in the value's own units.

    ``float(estimate)`` is the value; ``str(estimate)`` reads "-12.712 ± 0.003", with as many
    decimals as the standard error warrants. ``stderr`` is 0 for an exact figure and NaN where
    no error could be estimated.

    Attributes:
        value: the figure.
        stderr: its standard error.

    Example:
        >>> from avbvi import Estimate
        >>> str(Estimate(-12.7123, 0.0031))
        '-12.712 ± 0.003'
        >>> float(Estimate(0.5, 0.0))
        0.5
    """

    value: float
    stderr: float

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        value, stderr = float(self.value), float(self.stderr)
        if not (math.isfinite(value) and math.isfinite(stderr)) or stderr <= 0.0:
            return f"{value:.6g} ± {stderr:.2g}"
        exponent = math.floor(math.log10(stderr))
        # One significant digit of the error, two where the first is a 1 (rounding 0.0014 to
        # 0.001 would misstate it by 40 %).
        decimals = -exponent + (1 if stderr < 2.0 * 10.0**exponent else 0)
        if decimals > 8:
            return f"{value:.{decimals}g} ± {stderr:.1e}"
        decimals = max(decimals, 0)
        return f"{value:.{decimals}f} ± {stderr:.{decimals}f}"
