"""How one datum's latent sites lie in one unconstrained vector, for a model with a plate over data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from ..errors import ModelError

#: How to fit global latents beside local ones.
SPLIT = (
    "an AutoGuideList(model) with an amortised AVBGuide(poutine.block(model, hide={hide}), sampler=...) for the local "
    "sites and any other guide (AVBGuide or AutoNormal of poutine.block(model, expose={hide})) for the global ones"
)


class LocalSite(NamedTuple):
    """One latent site of one datum: where it lies in the datum's vector and how it is constrained."""

    name: str
    support: Any
    shape: torch.Size
    unconstrained_shape: torch.Size
    start: int
    stop: int


class Frame(NamedTuple):
    """The plate over data: its name and dimension, the size of the minibatch and that of all data."""

    name: str
    dim: int
    size: int
    full_size: int

    @property
    def scale(self) -> float:
        """N / B, by which Pyro multiplies every term inside the plate."""
        return self.full_size / self.size


class PlateLayout:
    """Maps between one datum's unconstrained vector and the values of its sites.

    Every latent site of the model lies in one plate, over data; the order is that of the model's trace. Shapes have
    any leading dimensions S, then the B data of a minibatch.

    Attributes:
        sites: the sites.
        dim: width of one datum's vector.
        plate: name of the plate.
        plate_dim: its (negative) dimension.
    """

    def __init__(self, sites: list[LocalSite], plate: str, plate_dim: int) -> None:
        self.sites = sites
        self.dim: int = sites[-1].stop
        self.plate: str = plate
        self.plate_dim: int = plate_dim

    @classmethod
    def from_trace(cls, trace: Trace) -> PlateLayout:
        """Read the layout off a model's trace whose unobserved sites are all continuous.

        Raises:
            ModelError: a latent site lies in no plate, or in several, or sites lie in different ones.
        """
        frame = data_frame(trace)
        sites: list[LocalSite] = []
        start = 0
        for name, node in _latents(trace):
            value = node["value"]
            batch = value.shape[: value.dim() - node["fn"].event_dim]
            if batch.numel() != frame.size:
                raise ModelError(
                    f"site {name!r} has batch shape {tuple(batch)} inside plate {frame.name!r} of size {frame.size}; "
                    "declare the other dimensions as the event's (to_event)"
                )
            unconstrained = biject_to(node["fn"].support).inv(value)
            shape, free = value.shape[len(batch) :], unconstrained.shape[len(batch) :]
            stop = start + free.numel()
            sites.append(LocalSite(name, node["fn"].support, shape, free, start, stop))
            start = stop
        return cls(sites, frame.name, frame.dim)

    @property
    def trailing(self) -> int:
        """How many dimensions of plates a site has on the right of the data's."""
        return -self.plate_dim - 1

    def each(self, z: Tensor) -> Iterator[tuple[LocalSite, Tensor, Tensor]]:
        """z (*S, B, dim) to site, value (*S, B, *shape) and log|det d value / d z| (*S, B), one after the other."""
        for site in self.sites:
            transform = biject_to(site.support)
            free = z[..., site.start : site.stop].reshape(*z.shape[:-1], *site.unconstrained_shape)
            value = transform(free)
            term = transform.log_abs_det_jacobian(free, value)
            yield site, value, term.reshape(*z.shape[:-1], -1).sum(-1)

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """z (*S, B, dim) to values {site: (*S, B, *shape)} and log|det d values / d z| (*S, B)."""
        values: dict[str, Tensor] = {}
        log_det = z.new_zeros(z.shape[:-1])
        for site, value, term in self.each(z):
            values[site.name] = value
            log_det = log_det + term
        return values, log_det

    def unconstrain(self, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Values {site: (*S, B, *shape)} to z (*S, B, dim) and log|det d values / d z| (*S, B).

        Raises:
            ValueError: a site is missing or misshapen, or has values outside its support.
        """
        parts: list[Tensor] = []
        log_det: Tensor | None = None
        for site in self.sites:
            if site.name not in values:
                raise ValueError(
                    f"draws lack the site {site.name!r}; found {sorted(values)}, needed {[s.name for s in self.sites]}"
                )
            value = torch.as_tensor(values[site.name])
            batch = value.shape[: value.dim() - len(site.shape)]
            if not batch or value.shape[len(batch) :] != site.shape or (parts and batch != parts[0].shape[:-1]):
                first = "" if not parts else f", the leading ones as draws[{self.sites[0].name!r}]"
                raise ValueError(
                    f"draws[{site.name!r}] must have shape (..., data, {', '.join(map(str, site.shape))}){first}; "
                    f"found {tuple(value.shape)}"
                )
            if not bool(site.support.check(value).all()):
                raise ValueError(f"draws[{site.name!r}] has values outside the site's support {site.support}")
            transform = biject_to(site.support)
            free = transform.inv(value)
            term = transform.log_abs_det_jacobian(free, value).reshape(*batch, -1).sum(-1)
            log_det = term if log_det is None else log_det + term
            parts.append(free.reshape(*batch, -1))
        assert log_det is not None
        return torch.cat(parts, -1), log_det

    def in_plate(self, value: Tensor, site: LocalSite) -> Tensor:
        """A site's value (*S, B, *shape) as its plate has it, (*S, B, 1..., *shape)."""
        batch = value.dim() - len(site.shape)
        return value.reshape(*value.shape[:batch], *(1,) * self.trailing, *site.shape)

    def out_of_plate(self, value: Tensor, site: LocalSite) -> Tensor:
        """The inverse of :meth:`in_plate`."""
        batch = value.dim() - len(site.shape) - self.trailing
        return value.reshape(*value.shape[:batch], *site.shape)


def _latents(trace: Trace) -> list[tuple[str, Any]]:
    return [(name, node) for name, node in trace.iter_stochastic_nodes() if not site_is_subsample(node)]


def data_frame(trace: Trace) -> Frame:
    """The one plate in which all latent sites of a trace lie.

    Raises:
        ModelError: there is none, or more than one, or some sites lie outside.
    """
    plates: dict[str, list[Any]] = {}
    for name, node in _latents(trace):
        plates[name] = [f for f in node["cond_indep_stack"] if f.vectorized]
    outside = [name for name, frames in plates.items() if not frames]
    if len(outside) == len(plates):
        raise ModelError(
            f"sampler takes a context, so its guide is amortised over a plate of data, but the latent sites {outside} "
            "lie in no pyro.plate; sample them inside the plate of the data, or use a sampler without a context"
        )
    if outside:
        raise ModelError(
            f"sites {outside} are global latents beside the local ones {sorted(set(plates) - set(outside))}, which an "
            f"amortised guide alone can't fit; use {SPLIT.format(hide=outside)}"
        )
    names = {name: sorted(f.name for f in frames) for name, frames in plates.items()}
    if len({tuple(found) for found in names.values()}) > 1 or any(len(found) > 1 for found in names.values()):
        raise ModelError(
            f"an amortised guide needs all latent sites in one plate, that of the data; found {names}. Declare further "
            "dimensions as the event's (to_event), or fit the sites of each plate by a guide of their own: "
            "AutoGuideList and poutine.block"
        )
    frame = next(iter(plates.values()))[0]
    return Frame(frame.name, frame.dim, frame.size, frame.full_size or frame.size)
