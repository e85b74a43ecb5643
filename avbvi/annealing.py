"""Annealing of a model and its guides by the same inverse temperature."""

from __future__ import annotations

from pyro import poutine

from .guides import AVBGuide
from .targets import Model


class Annealed:
    """Context in which the guides' terms are annealed; gives the model scaled to match."""

    def __init__(self, model: Model | None, guides: list[AVBGuide], beta: float) -> None:
        self.model, self.guides, self.beta = model, guides, beta

    def __enter__(self) -> Model | None:
        for g in self.guides:
            g._beta = self.beta
        return self.model if self.beta == 1.0 or self.model is None else poutine.scale(self.model, scale=self.beta)

    def __exit__(self, *exception: object) -> None:
        for g in self.guides:
            g._beta = 1.0
