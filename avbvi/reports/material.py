"""What a report is made of: plain data, gathered from a posterior once, or read from its file without the model."""

from __future__ import annotations

import datetime
import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pyro
import torch
from torch import Tensor

from .. import distributed
from ..diagnostics import StageComparison, Verdict, move
from ..diagnostics.evidence import Evidence
from ..fit_files import ROLES, VERSION, read_comparison, read_content
from ..integrity import check_entries, damage
from ..log_density import LogDensity
from ..predictive import observed_sites, single_run
from ..rng import seeded
from ..runs import Run
from . import system
from .checks import PredictiveCheck, predictive_check, read_check
from .coordinates import Coordinates, read_coordinates, select
from .latents import LatentFigures, latent_figures, read_latents

if TYPE_CHECKING:
    from ..posterior import Posterior

T = TypeVar("T")

#: Draws that a report shows, and of a model that is run draw by draw.
DRAWS, DRAWS_ONE_BY_ONE = 4000, 200
REPLICATIONS = 400
#: Numbers that draws or replications may have.
MOST_NUMBERS = 2**21
OLDER = "the file was written by an older avbvi, which kept no draws; load it with its model and save it again"
LEFT_OUT = "the fit was saved with report=False"


@dataclass(frozen=True)
class Summary:
    """What is gathered of a posterior for a report: bounded figures and draws, no code.

    ``coordinates`` are those of a fit, ``latents`` those of an amortised one; the other is ``None``. ``checks`` are of
    the observed sites. ``missing`` says in words why a part is not there.
    """

    model: str
    written: str
    parts: dict[str, str]
    sites: list[list[Any]]
    hmc_steps: int
    exact: bool
    versions: dict[str, str]
    hardware: dict[str, str]
    coordinates: Coordinates | None = None
    latents: LatentFigures | None = None
    checks: list[PredictiveCheck] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {
            **vars(self),
            "coordinates": None if self.coordinates is None else self.coordinates.to_dict(),
            "latents": None if self.latents is None else self.latents.to_dict(),
            "checks": [check.to_dict() for check in self.checks],
        }


@dataclass(frozen=True)
class Material:
    """All that a report shows."""

    summary: Summary
    verdict: Verdict
    run: Run
    comparison: StageComparison | None
    evidence: Evidence


def read_summary(plain: dict[str, Any]) -> Summary:
    """What :meth:`Summary.to_dict` gave.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the data are none of a summary.
    """
    coordinates, latents = plain["coordinates"], plain["latents"]
    return Summary(
        **{
            **plain,
            "coordinates": None if coordinates is None else read_coordinates(coordinates),
            "latents": None if latents is None else read_latents(latents),
            "checks": [read_check(check) for check in plain["checks"]],
        }
    )


def from_file(path: str | os.PathLike[str]) -> Material:
    """Read what a report needs from a file of a fit; the model's code is not needed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or no file of a fit.
    """
    content = read_content(path)
    check_entries(content, path, ROLES)
    with damage(path):
        verdict, run = Verdict(**content["verdict"]), Run(**content["run"])
        comparison = read_comparison(content["comparison"])
        evidence = Evidence.from_dict(content["evidence"])
        if content["report"] is not None:
            return Material(read_summary(content["report"]), verdict, run, comparison, evidence)
        parts = {role: "own" if p is None else str(p["class"]) for role, p in content["parts"].items()}
        summary = Summary(
            model="a model",
            written="",
            parts=parts,
            sites=[[str(name), list(shape)] for name, shape, _ in content["sites"]],
            hmc_steps=int(content["hmc_steps"]),
            exact=not verdict.figures.get("adversarial", 1.0),
            versions={},
            hardware={},
            missing=dict.fromkeys(("draws", "predictive"), OLDER if content["version"] < VERSION else LEFT_OUT),
        )
    return Material(summary, verdict, run, comparison, evidence)


def collect(posterior: Posterior) -> Material:
    """Gather what a report needs from a posterior; the caller's random state is left alone."""
    with distributed.alone(), seeded(0), warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        evidence = posterior.evidence
        if not posterior.guide.is_amortised and evidence.before is None:
            evidence = _moved(posterior, evidence)
        return Material(_summary(posterior, evidence), posterior.verdict, posterior.run, posterior.comparison, evidence)


def _moved(posterior: Posterior, evidence: Evidence) -> Evidence:
    """The evidence with chains, where the verdict has left none (a fit of an older file, or one by hand)."""
    made = Evidence(**vars(evidence))
    _attempt(lambda: made.note_movement(move(posterior.guide, posterior._target)), {}, "")
    return made


def _attempt(compute: Callable[[], T], missing: dict[str, str], name: str) -> T | None:
    """A part of a report, or the reason why it can't be had: a page must not fail for the model's sake."""
    try:
        return compute()
    except Exception as error:  # any error that a model's code may raise
        missing[name] = f"{type(error).__name__}: {error}"
        return None


def _summary(posterior: Posterior, evidence: Evidence) -> Summary:
    guide, missing = posterior.guide, dict[str, str]()
    coordinates = latents = None
    checks = _attempt(lambda: _checks(posterior), missing, "predictive") or []
    if not checks and "predictive" not in missing:
        missing["predictive"] = (
            "a LogDensity has no observed sites, so that there is nothing to predict"
            if isinstance(posterior.model, LogDensity)
            else "the model has no observed sites (a factor is none), so that there is nothing to predict"
        )
    if guide.is_amortised:
        latents = _attempt(lambda: _latents(posterior), missing, "draws")
    else:
        coordinates = _attempt(lambda: _coordinates(posterior, evidence), missing, "draws")
    return Summary(
        model=_name_of(posterior.model),
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        parts={role: type(guide.part(role)).__name__ for role in ROLES},
        sites=[[site.name, list(site.shape)] for site in posterior._layout.sites],
        hmc_steps=posterior.hmc_steps,
        exact=posterior.elbo_is_exact,
        versions=system.versions(),
        hardware=system.hardware(guide.anchor.device),
        coordinates=coordinates,
        latents=latents,
        checks=checks,
        missing=missing,
    )


def _name_of(model: Any) -> str:
    while isinstance(model, functools.partial):
        model = model.func
    return str(getattr(model, "__qualname__", None) or type(model).__name__)


def _number(posterior: Posterior, most: int, width: int) -> int:
    """A number of draws that a report can afford, of so many numbers each."""
    most = most if posterior._vectorize else DRAWS_ONE_BY_ONE
    return max(min(most, MOST_NUMBERS // max(width, 1)), 50)


def _coordinates(posterior: Posterior, evidence: Evidence) -> Coordinates:
    layout = posterior._layout
    draws = posterior.sample(_number(posterior, DRAWS, layout.dim))
    chains = None
    if evidence.before is not None and evidence.after is not None:
        like = posterior.guide.anchor
        before, after = (layout.constrain(z.to(like))[0] for z in (evidence.before, evidence.after))
        chains = before, after
    return select(draws, chains)


def _latents(posterior: Posterior) -> LatentFigures:
    from ..amortised.posterior import AmortisedPosterior

    assert isinstance(posterior, AmortisedPosterior)
    return latent_figures(posterior, _observed(posterior))


def _observed(posterior: Posterior) -> dict[str, Tensor]:
    """The values of the model's observed sites, with the fit's arguments."""
    from ..amortised.posterior import AmortisedPosterior

    if isinstance(posterior, AmortisedPosterior):
        data = posterior._data((), {})
        target = posterior._joint_target(data)
        values = posterior._values(posterior._draws(1, data))
    else:
        target = posterior._target
        values = posterior._layout.constrain(posterior.guide.draw(1).z)[0]
    found = observed_sites(single_run(target, values), values)
    return {name: node["value"] for name, node in found.items()}


@torch.no_grad()
def _checks(posterior: Posterior) -> list[PredictiveCheck]:
    observed = _observed(posterior)
    if not observed:
        return []
    width = sum(value.numel() for value in observed.values())
    replications = posterior.predict(n=_number(posterior, REPLICATIONS, width))
    return [
        predictive_check(name, value, replications[name])
        for name, value in observed.items()
        if name in replications and replications[name].shape[1:] == value.shape
    ]
