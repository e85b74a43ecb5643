"""Models with short fits, for reports."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch

import avbvi

NAME = "<script>alert(1)</script>"
DATA = torch.tensor([0.3, -0.4, 1.2, 0.8, 0.1])


def model() -> None:
    """Two sites, one of a name that no page may take at its word, and five observations."""
    a = pyro.sample(NAME, dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.deterministic("twice", 2.0 * a)
    with pyro.plate("data", len(DATA)):
        pyro.sample("y & z", dist.Normal(a, scale), obs=DATA)


def quick_fit(model: Any, *args: Any, **options: Any) -> avbvi.Posterior:
    pyro.clear_param_store()
    elbo = avbvi.AdversarialELBO(num_particles=32, pretrain_steps=1)
    return avbvi.fit(model, *args, seed=0, steps=40, elbo=elbo, progress=False, **options)


class Pictures(torch.nn.Module):
    """Binary data of two pixels with one latent each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))

    def model(self, x: torch.Tensor) -> None:
        pyro.module("pictures", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z * self.weight).to_event(1), obs=x)
