"""Inverse temperatures of annealed importance sampling: how fast the path goes from the start to the joint density."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..arguments import integer, positive_number


class Temperatures(ABC):
    """A schedule 0 = beta_0 < beta_1 < ... < beta_n = 1 of inverse temperatures.

    Args:
        count: n, the number of intermediate steps.

    Raises:
        TypeError: count is no integer.
        ValueError: it is not positive.
    """

    def __init__(self, count: int) -> None:
        self.count: int = integer("count", count, 1)

    @abstractmethod
    def betas(self) -> Tensor:
        """The inverse temperatures (n + 1,), float64 on the CPU: increasing, the first 0 and the last 1."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class LinearTemperatures(Temperatures):
    """Equidistant inverse temperatures.

    Args:
        count: n, the number of intermediate steps.

    Example:
        >>> from avbvi import LinearTemperatures
        >>> LinearTemperatures(4).betas().tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def betas(self) -> Tensor:
        return torch.linspace(0.0, 1.0, self.count + 1, dtype=torch.float64, device="cpu")


class SigmoidTemperatures(Temperatures):
    """beta_t = (s(t) - s(0)) / (s(n) - s(0)) with s(t) = sigmoid(rate (2 t / n - 1)): short steps near both ends.

    Args:
        count: n, the number of intermediate steps.
        rate: how much shorter; towards 0 the schedule becomes linear.

    Raises:
        TypeError, ValueError: a count that is no positive integer, a rate that is not positive and finite.

    Example:
        >>> from avbvi import SigmoidTemperatures
        >>> [round(beta, 2) for beta in SigmoidTemperatures(4).betas().tolist()]
        [0.0, 0.1, 0.5, 0.9, 1.0]

    Source: Grosse, Maddison and Salakhutdinov (2013), Annealing between distributions by averaging moments, NIPS;
    with rate 4 in Wu, Burda, Salakhutdinov and Grosse (2017), On the quantitative analysis of decoder-based
    generative models, ICLR.
    """

    def __init__(self, count: int, rate: float = 4.0) -> None:
        super().__init__(count)
        self.rate: float = positive_number("rate", rate)
        if self.rate > 30.0:
            raise ValueError(f"rate must be at most 30, found {rate}: the steps at the ends would vanish")

    def betas(self) -> Tensor:
        s = torch.sigmoid(self.rate * torch.linspace(-1.0, 1.0, self.count + 1, dtype=torch.float64, device="cpu"))
        betas = (s - s[0]) / (s[-1] - s[0])
        # Exactly, so that the path ends at the joint density.
        betas[0], betas[-1] = 0.0, 1.0
        return betas
