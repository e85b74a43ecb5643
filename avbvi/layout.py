"""How a model's latent sites lie in one unconstrained vector."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to


class Site(NamedTuple):
    """One latent site: where it lies in the vector and how it is constrained."""

    name: str
    support: Any
    event_dim: int
    shape: torch.Size
    unconstrained_shape: torch.Size
    start: int
    stop: int


class LatentLayout:
    """Maps between the unconstrained vector of all latents and the sites' own values.

    The order is that of the model's trace, the same as in Pyro's ``AutoContinuous``.
    """

    def __init__(self, sites: list[Site]) -> None:
        self.sites = sites
        self.dim: int = sites[-1].stop if sites else 0

    @classmethod
    def from_trace(cls, trace: Trace) -> LatentLayout:
        """Read the layout off a prototype trace that holds only continuous latent sites."""
        sites: list[Site] = []
        start = 0
        for name, node in trace.iter_stochastic_nodes():
            support = node["fn"].support
            unconstrained = biject_to(support).inv(node["value"])
            stop = start + unconstrained.numel()
            sites.append(
                Site(name, support, node["fn"].event_dim, node["value"].shape, unconstrained.shape, start, stop)
            )
            start = stop
        return cls(sites)

    @property
    def coordinate_names(self) -> list[str]:
        """Names of the dim unconstrained coordinates: ``mu``, ``eta[3]``, ``weights[0, 2]``."""
        names = []
        for site in self.sites:
            if not site.unconstrained_shape:
                names.append(site.name)
                continue
            indices = itertools.product(*map(range, site.unconstrained_shape))
            names += [f"{site.name}[{', '.join(map(str, index))}]" for index in indices]
        return names

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """z (n, dim) to values {site: (n, *shape)} and log|det d values / d z| (n,)."""
        values: dict[str, Tensor] = {}
        log_det = z.new_zeros(z.shape[0])
        for site in self.sites:
            transform = biject_to(site.support)
            unconstrained = z[:, site.start : site.stop].reshape(-1, *site.unconstrained_shape)
            value = transform(unconstrained)
            term = transform.log_abs_det_jacobian(unconstrained, value)
            log_det = log_det + term.reshape(z.shape[0], -1).sum(-1)
            values[site.name] = value
        return values, log_det

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Values {site: (n, *shape)} to z (n, dim) and log|det d values / d z| (n,).

        Raises:
            ValueError: a site is missing, misshapen, or has values outside its support or infinite ones.
        """
        parts: list[Tensor] = []
        log_det: Tensor | None = None
        for site in self.sites:
            if site.name not in values:
                raise ValueError(
                    f"draws lack the site {site.name!r}; found {sorted(values)}, needed {[s.name for s in self.sites]}"
                )
            value = torch.as_tensor(values[site.name])
            if value.dim() != len(site.shape) + 1 or value.shape[1:] != site.shape:
                raise ValueError(
                    f"draws[{site.name!r}] must have shape (n, {', '.join(map(str, site.shape))}), "
                    f"found {tuple(value.shape)}"
                )
            if not len(value):
                raise ValueError(f"draws[{site.name!r}] must hold at least one draw, found shape {tuple(value.shape)}")
            if parts and value.shape[0] != parts[0].shape[0]:
                first = self.sites[0].name
                raise ValueError(
                    f"draws[{site.name!r}] must hold as many draws as draws[{first!r}], {parts[0].shape[0]}, found "
                    f"{value.shape[0]}"
                )
            if not bool(site.support.check(value).all()):
                raise ValueError(f"draws[{site.name!r}] has values outside the site's support {site.support}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"draws[{site.name!r}] must be finite, found NaN or infinite values")
            transform = biject_to(site.support)
            unconstrained = transform.inv(value)
            term = transform.log_abs_det_jacobian(unconstrained, value).reshape(value.shape[0], -1).sum(-1)
            log_det = term if log_det is None else log_det + term
            parts.append(unconstrained.reshape(value.shape[0], -1))
        assert log_det is not None
        return torch.cat(parts, -1), log_det

    def in_plates(self, values: dict[str, Tensor], max_plate_nesting: int) -> dict[str, Tensor]:
        """Values (n, *shape) with the n on the left of all of a model's plates, as an outer plate needs them."""
        placed = {}
        for site in self.sites:
            batch_dims = len(site.shape) - site.event_dim
            value = values[site.name]
            ones = (1,) * (max_plate_nesting - batch_dims)
            placed[site.name] = value.reshape(value.shape[0], *ones, *site.shape)
        return placed
