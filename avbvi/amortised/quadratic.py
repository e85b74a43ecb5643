"""A quadratic form of latents and context, for adversaries to add to their networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: How far a step of the optimiser moves the form beside one coefficient alone, all terms being 1.
REACH = 100.0


class QuadraticForm(nn.Module):
    """a'u + b'x + u'Au + c'x^2 + u'Bx of features u (*S, B, dim) and context x (B, width), 0 at the start: (*S, B).

    The log-ratio of two Gaussians is one; that of others is nearer to one far from where the draws lie, where no loss
    tells a network what to be, than to the straight lines in which networks continue.

    Coefficients are stored divided by REACH / their number: Adam moves each stored one by about its rate, so that the
    form moves as fast as a wide network does, whatever the widths.

    Args:
        dim: width of u.
        width: width of x.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.of_features: nn.Parameter = nn.Parameter(torch.zeros(dim))
        self.of_context: nn.Parameter = nn.Parameter(torch.zeros(width))
        self.features_squared: nn.Parameter = nn.Parameter(torch.zeros(dim, dim))
        self.context_squared: nn.Parameter = nn.Parameter(torch.zeros(width))
        self.product: nn.Parameter = nn.Parameter(torch.zeros(dim, width))
        self.gain: float = REACH / sum(p.numel() for p in self.parameters())

    def forward(self, features: Tensor, context: Tensor) -> Tensor:
        # What depends on x alone is computed once per datum, not per draw.
        of_context = context @ self.of_context + (context.square() - 1.0) @ self.context_squared / 3.0
        slope = self.of_features + context @ self.product.mT + features @ self.features_squared / 3.0
        return self.gain * (of_context + (features * slope).sum(-1))
