"""Draws of the outer step: how many, and where the plate over them lies."""

from __future__ import annotations

import math
from typing import Any

from pyro.infer import ELBO, TraceEnum_ELBO

from .rng import seeded
from .targets import Model

#: Draws in the outer step by default; for each datum, where the guide is amortised.
PARTICLES, PARTICLES_PER_DATUM = 512, 1
LEAST_ADVERSARY_BATCH = 64


def set_particles(elbo: ELBO, n: int) -> None:
    """Change the number of draws of a Pyro ELBO."""
    if n != elbo.num_particles:
        elbo.num_particles = n
        elbo.max_plate_nesting = math.inf  # the plate over draws may have come or gone


def default_adversary_batch(particles: int, *, amortised: bool) -> int:
    """Draws of q and of r in an adversary step by default; for each datum, where the guide is amortised."""
    return particles if amortised else max(particles // 2, LEAST_ADVERSARY_BATCH)


def set_plate_nesting(elbo: ELBO, model: Model, guide: Any, target: Any, args: Any, kwargs: Any) -> None:
    """Tell a Pyro ELBO how deep the plates are nested, which it would find out by a run of its own.

    ``target`` knows it; ``None`` if the guide's part in the model is not all there is.
    """
    if not (elbo.vectorize_particles or isinstance(elbo, TraceEnum_ELBO)):
        return
    if target is None:
        # Pyro draws from the caller's generators: unseeded, a resumed run would go another way.
        with seeded(0):
            elbo._guess_max_plate_nesting(model, guide, args, kwargs)
        return
    elbo.max_plate_nesting = target.max_plate_nesting + int(elbo.vectorize_particles and elbo.num_particles > 1)
