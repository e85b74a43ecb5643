"""What a report shows of an amortised fit: its latent map, the use of each latent, reconstructions, reliability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..amortised.evaluation import activity, draw_terms, held_out_logits
from ..diagnostics import Reliability, reliability

if TYPE_CHECKING:
    from ..amortised.posterior import AmortisedPosterior

#: Draws for each datum, data that are kept, coordinates that are kept.
DRAWS, MOST_DATA, MOST_LATENTS = 100, 1000, 50
#: Numbers that the draws for all data may have.
MOST_NUMBERS = 2**23


@dataclass(frozen=True)
class LatentFigures:
    """Figures of q(z | x) over a minibatch, in unconstrained coordinates.

    ``names`` of the k most active coordinates, most active first, ``activity`` (k,) the share of each one's variance
    that lies between data, ``within`` and ``between`` (k,) the standard deviations for one datum and of the data's
    means; ``means`` (b, 2) of the first two of them for b data. ``dim`` counts all coordinates, ``data`` all data.
    ``errors`` maps an observed site to the root mean squared error of its reconstruction and to that of the data's
    mean. ``reliability`` is that of the adversary on held-out draws.
    """

    names: list[str]
    activity: Tensor
    within: Tensor
    between: Tensor
    means: Tensor
    dim: int
    data: int
    errors: dict[str, list[float]]
    reliability: Reliability

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {**vars(self), "reliability": dict(vars(self.reliability))}


@torch.no_grad()
def latent_figures(posterior: AmortisedPosterior, observed: dict[str, Tensor]) -> LatentFigures:
    """Figures of an amortised posterior for the fit's own data.

    Args:
        posterior: what :func:`~avbvi.fit` returned.
        observed: values of the observed sites, for the errors of reconstructions.
    """
    data, guide = posterior._data((), {}), posterior.guide
    assert guide.plate_layout is not None
    n = min(max(MOST_NUMBERS // (data.frame.size * guide.plate_layout.dim), 8), DRAWS)
    z = draw_terms(guide, data, n).z.double()
    active = activity(z) if z.shape[1] > 1 else torch.zeros(z.shape[2], dtype=torch.float64)
    order = active.argsort(descending=True, stable=True)[:MOST_LATENTS]
    means = z.mean(0)
    between = means.std(0) if len(means) > 1 else torch.zeros_like(active)
    t_q, t_r = (guide.part("adversary").objective.log_ratio(t.double()) for t in held_out_logits(guide, data, 100))
    names = _names(guide.plate_layout.sites)
    return LatentFigures(
        names=[names[i] for i in order.tolist()],
        activity=active[order].float().cpu(),
        within=z.var(0).mean(0).sqrt()[order].float().cpu(),
        between=between[order].float().cpu(),
        means=means[:MOST_DATA, order[:2]].float().cpu(),
        dim=z.shape[2],
        data=data.frame.size,
        errors=_errors(posterior, observed),
        reliability=reliability(t_q.cpu(), t_r.cpu()),
    )


def _names(sites: list[Any]) -> list[str]:
    return [
        site.name if site.stop - site.start == 1 else f"{site.name}[{i}]"
        for site in sites
        for i in range(site.stop - site.start)
    ]


def _errors(posterior: AmortisedPosterior, observed: dict[str, Tensor]) -> dict[str, list[float]]:
    errors = {}
    for name, mean in posterior.reconstruct(n=10).items():
        value = observed.get(name)
        if value is None or value.shape != mean.shape or len(value) < 2:
            continue
        value = value.to(mean)
        errors[name] = [float((guess - value).square().mean().sqrt()) for guess in (mean, value.mean(0))]
    return errors


def read_latents(plain: dict[str, Any]) -> LatentFigures:
    """What :meth:`LatentFigures.to_dict` gave.

    Raises:
        TypeError, ValueError: the data are none of such figures.
    """
    made = LatentFigures(**{**plain, "reliability": Reliability(**plain["reliability"])})
    k = len(made.names)
    if any(value.shape != (k,) for value in (made.activity, made.within, made.between)) or made.means.dim() != 2:
        raise ValueError("a report's latent figures must have one entry for each coordinate")
    return made
