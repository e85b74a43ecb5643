"""The learned densities of a guide in its adversarial stage, at points of its unconstrained latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..amortised.guide import AmortisedAVBGuide
from ..arguments import instance, real_tensor
from ..distributions import Draw
from ..guides import AVBGuide
from ..model_state import modules_at_hand
from ..posterior import Posterior
from ..rng import seeded
from .coordinates import Coordinate, coordinate_name

#: Draws for the point through which a slice goes, and for its limits.
DRAWS = 2000


class Learned:
    """q, the contrast r and the log-ratio between them, as functions of unconstrained latents z (n, dim).

    Args:
        posterior: a fit whose adversarial stage was kept, or a guide in that stage.
        datum: of an amortised one, the data of which it is about one: as the model takes them, a minibatch of one row.

    Raises:
        TypeError: ``posterior`` is neither.
        ValueError: no adversary is in force, or ``datum`` is missing, not of one row, or given to a guide of one
            posterior.
    """

    def __init__(self, posterior: Posterior | AVBGuide, datum: Any = None) -> None:
        instance("posterior", posterior, (Posterior, AVBGuide), "what avbvi.fit returned, or an AVBGuide")
        guide: AVBGuide = posterior.guide if isinstance(posterior, Posterior) else posterior
        if guide.layout is None and getattr(guide, "plate_layout", None) is None:
            raise ValueError("posterior is a guide that has not been set up; train it, or call guide.setup(...) first")
        if not guide.is_adversarial:
            raise ValueError(
                "posterior is in its trunk's stage, where log q is exact and no adversary is in force; "
                "posterior.log_prob gives log q there"
            )
        self.guide = guide
        self.args: tuple[Any, ...] = posterior.args if isinstance(posterior, Posterior) else ()
        self.kwargs: dict[str, Any] = posterior.kwargs if isinstance(posterior, Posterior) else {}
        self.data: Any = None
        if isinstance(guide, AmortisedAVBGuide):
            if datum is None:
                raise ValueError("datum must be given: an amortised guide has a posterior for each datum")
            with modules_at_hand():
                self.data = guide.minibatch(datum, **self.kwargs)
            if self.data.frame.size != 1:
                raise ValueError(f"datum must be a minibatch of 1 datum, found {self.data.frame.size}")
        elif datum is not None:
            raise ValueError("datum is for amortised guides; this one has a single posterior")
        layout: Any = guide.plate_layout if isinstance(guide, AmortisedAVBGuide) else guide.layout
        self.layout = layout
        self.dim: int = int(layout.dim)

    def column(self, name: str, which: Coordinate) -> int:
        """The place in z of a coordinate.

        Raises:
            ValueError: there is no such site or element, or a site of several is named as one.
        """
        site_name = which if isinstance(which, str) else which[0]
        for site in self.layout.sites:
            if site.name == site_name:
                width = site.stop - site.start
                if isinstance(which, str) and width > 1:
                    raise ValueError(f"{name} must be one scalar; site {which!r} has {width}: name ({which!r}, 0), say")
                index = 0 if isinstance(which, str) else which[1]
                if not 0 <= index < width:
                    raise ValueError(f"{name} names element {index} of site {site_name!r}, which has {width}")
                return int(site.start) + index
        raise ValueError(f"{name} names no latent site: {site_name!r}; there are {[s.name for s in self.layout.sites]}")

    def label(self, column: int) -> str:
        """Name of a coordinate of z, with a remark where it is not the site's own."""
        for site in self.layout.sites:
            if site.start <= column < site.stop:
                width = site.stop - site.start
                which: Coordinate = site.name if width == 1 else (site.name, column - int(site.start))
                own = getattr(site.support, "base_constraint", site.support) is torch.distributions.constraints.real
                return coordinate_name(which) + ("" if own else " (unconstrained)")
        raise ValueError(f"column must be less than {self.dim}, found {column}")

    @torch.no_grad()
    def draws(self, n: int = DRAWS) -> Tensor:
        """n draws of q (n, dim), the same at each call."""
        with seeded(0):
            if self.data is not None:
                assert isinstance(self.guide, AmortisedAVBGuide)
                return self.guide.draw_for(self.data, n)[:, 0]
            return self.guide.draw(n).z

    @torch.no_grad()
    def contrast_draws(self, n: int = DRAWS) -> Tensor:
        """n draws of r (n, dim), the same at each call."""
        with seeded(0), modules_at_hand():
            if self.data is not None:
                assert isinstance(self.guide, AmortisedAVBGuide)
                drawn: Tensor = self.guide.given(self.data).sample(n)[:, 0]
                return drawn
            z: Tensor = self.guide.part("trunk")(self.guide.part("contrast").sample(n))[0]
            return z

    def point(self, at: Mapping[str, Any] | None) -> Tensor:
        """z (dim,): the mean of q's draws, with the sites in ``at`` at these values of their own scale.

        Raises:
            TypeError: ``at`` is no dict of numbers.
            ValueError: it has unknown sites, or values of another shape or outside the support.
        """
        mean = self.draws().mean(0, keepdim=True)
        if at is None:
            return mean[0]
        instance("at", at, Mapping, "a dict {site: value}")
        layout, z = self.layout, mean[:, None] if self.data is not None else mean
        values, _ = layout.constrain(z)
        unknown = set(at) - set(values)
        if unknown:
            raise ValueError(f"at has {sorted(unknown)}, which are no latent sites; there are {sorted(values)}")
        for name, value in at.items():
            given = real_tensor(f"at[{name!r}]", value).to(mean)
            shape = next(site.shape for site in layout.sites if site.name == name)
            if given.shape != shape:
                raise ValueError(f"at[{name!r}] must have shape {tuple(shape)}, found {tuple(given.shape)}")
            values[name] = given.reshape(values[name].shape)
        z, _ = layout.unconstrain(values)
        return z.reshape(self.dim)

    @torch.no_grad()
    def densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log q - log r and log r (nats) at points z (n, dim): two (n,), both of unconstrained coordinates."""
        with modules_at_hand():
            if self.data is not None:
                assert isinstance(self.guide, AmortisedAVBGuide)
                given, z = self.guide.given(self.data), z[:, None]
                log_r = given.log_prob(z)
                log_q = self.guide.log_ratio_and_contrast(z, self.data, given)
                return (log_q - log_r)[:, 0], log_r[:, 0]
            base, log_det = self.guide.part("trunk").inverse(z)
            log_r = self.guide.part("contrast").log_prob(base)
            log_q = self.guide.base_log_prob(Draw(z, base, log_det, forward=False), self.args, self.kwargs)
            return log_q - log_r, log_r - log_det
