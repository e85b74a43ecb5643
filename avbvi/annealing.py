"""Annealing of a model and its guides by the same inverse temperature, and of single sites."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger

from .control import Factor, is_one
from .guides import AVBGuide
from .targets import Model


class ScaledSites(Messenger):
    """Multiplies the log-densities of single sites: a dict of site name to positive factor."""

    def __init__(self, factors: dict[str, Factor]) -> None:
        super().__init__()
        self.factors = factors

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.factors:
            msg["scale"] = self.factors[msg["name"]] * msg["scale"]


class Annealed:
    """Context in which the guides' terms are annealed; gives the model scaled to match."""

    def __init__(self, model: Model | None, guides: list[AVBGuide], beta: Factor) -> None:
        self.model: Model | None = model
        self.guides: list[AVBGuide] = guides
        self.beta: Factor = beta

    def __enter__(self) -> Model | None:
        factors: dict[str, Factor] = {}
        for g in self.guides:
            g._beta = self.beta
            factors |= g.site_scales
        model = self.model
        if model is None:
            return None
        if factors:
            model = ScaledSites(factors)(model)
        return model if is_one(self.beta) else poutine.scale(model, scale=self.beta)

    def __exit__(self, *exception: object) -> None:
        for g in self.guides:
            g._beta = 1.0
