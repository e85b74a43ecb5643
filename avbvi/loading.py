"""load: read a saved fit."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .amortised.posterior import AmortisedPosterior
from .arguments import function, instance
from .data.batches import is_loader, reference_batch
from .diagnostics import Verdict
from .diagnostics.evidence import Evidence
from .errors import CheckpointError
from .fit_files import ROLES, read_comparison, read_content, site_table
from .guides import AVBGuide
from .integrity import check_entries, damage
from .model_state import claim_parameters, model_buffers, model_parameters, put_to_rest
from .parts import rebuild
from .posterior import Posterior
from .runs import Run
from .targets import Model


def load(
    path: str | os.PathLike[str], model: Model, *args: Any, guide: AVBGuide | None = None, **kwargs: Any
) -> Posterior:
    """Read a saved fit of ``model`` with these arguments.

    Args:
        path: a file written by :meth:`Posterior.save`.
        model: the model that was fitted.
        args: its positional arguments; one DataLoader stands for its first batch, as in :func:`avbvi.fit`.
        guide: an untrained guide with the same parts; needed only where some part is not built in, or an amortised
            guide has a ``context`` function.
        kwargs: its keyword arguments.

    Returns:
        The posterior that was saved; an :class:`~avbvi.AmortisedPosterior` of an amortised guide.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, foreign, belongs to another model, or has custom parts and no
            ``guide`` is given.
        TypeError: ``model`` can't be called, or ``guide`` is no :class:`~avbvi.AVBGuide`.

    Example:
        >>> import avbvi
        >>> model = avbvi.LogDensity(lambda z: -0.5 * z.square().sum(-1), event_shape=(2,))
        >>> guide = avbvi.AVBGuide(model, trunk=avbvi.MixtureTrunk(2))
        >>> posterior = avbvi.fit(model, guide=guide, steps=20, seed=0, progress=False)
        >>> posterior.save("fit.pt")
        >>> again = avbvi.load("fit.pt", model)
        >>> again.verdict.status == posterior.verdict.status
        True
    """
    function("model", model)
    if guide is not None:
        instance("guide", guide, AVBGuide, "an AVBGuide")
    content = read_content(path)
    check_entries(content, path, ROLES)
    if is_loader(args):
        args = reference_batch(args[0])
    claim_parameters(model, args, kwargs)
    if guide is None:
        custom = sorted(role for role, plain in content["parts"].items() if plain is None)
        if custom:
            raise CheckpointError(
                f"{str(path)!r} was fitted with custom parts {custom}; pass guide=AVBGuide(model, ...)"
            )
        if content["own_context"]:
            raise CheckpointError(
                f"{str(path)!r} was fitted with a context function, which no file can hold; pass guide=AVBGuide(model, "
                "sampler=..., context=...)"
            )
        with damage(path):
            parts: dict[str, Any] = {role: rebuild(content["parts"][role]) for role in ROLES}
        guide = AVBGuide(model, **parts)
    with damage(path):
        verdict, run = Verdict(**content["verdict"]), Run(**content["run"])
        comparison = read_comparison(content["comparison"])
        evidence = Evidence.from_dict(content["evidence"])
        _check_report(content["report"])
    guide.setup(*args, **kwargs)
    if site_table(guide) != content["sites"]:
        raise CheckpointError(
            f"{str(path)!r} belongs to another model: its latent sites are {content['sites']}, this model's are "
            f"{site_table(guide)} (name, shape, unconstrained width)"
        )
    adversary = content["parts"]["adversary"]
    if adversary is not None:
        with damage(path):
            saved = rebuild(adversary).configuration()  # with arguments that came after the file, at their defaults
        if guide.part("adversary").configuration() != saved:
            raise CheckpointError(f"guide has another adversary than {str(path)!r}: {saved}")
    try:
        guide.load_state_dict(content["guide"])
    except RuntimeError as error:
        raise CheckpointError(f"guide's parts do not fit {str(path)!r}: {error}") from error
    _restore(model_parameters(model, args, kwargs), content["model"], path, "parameters")
    _restore(model_buffers(model, guide), content["buffers"], path, "buffers")
    guide.bind(model, args, kwargs, vectorize=content["vectorize"])
    put_to_rest(model, guide)
    kind = AmortisedPosterior if guide.is_amortised else Posterior
    return kind(
        model,
        guide,
        args,
        kwargs,
        verdict=verdict,
        run=run,
        comparison=comparison,
        hmc_steps=content["hmc_steps"],
        evidence=evidence,
    )


@torch.no_grad()
def _restore(mine: dict[str, Tensor], values: dict[str, Tensor], path: str | os.PathLike[str], what: str) -> None:
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in values.items()}:
        raise CheckpointError(
            f"{str(path)!r} belongs to another model: its learned {what} are {sorted(values)}, this model's are "
            f"{sorted(mine)}"
        )
    for name, value in values.items():
        mine[name].copy_(value)


def _check_report(plain: dict[str, Any] | None) -> None:
    """Raise what can't be read of a file's report as :func:`~avbvi.reports.material.read_summary` does."""
    if plain is not None:
        from .reports.material import read_summary  # needed for files with a report only: templates and pictures

        read_summary(plain)
