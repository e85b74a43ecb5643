"""The public names: those of ``avbvi`` and of its modules that users import from, in their ``__all__``."""

from __future__ import annotations

import importlib

MODULES = (
    "avbvi",
    "avbvi.annealed",
    "avbvi.diagnostics",
    "avbvi.distributed",
    "avbvi.divergences",
    "avbvi.divided.judges",
    "avbvi.errors",
    "avbvi.estimates",
    "avbvi.hmc",
    "avbvi.joint",
    "avbvi.latent_figures",
    "avbvi.plots",
    "avbvi.runs",
    "avbvi.sample_figures",
)


def public_names() -> dict[str, object]:
    """Each public object once: {shortest dotted path: object}."""
    found: dict[object, tuple[str, object]] = {}
    for module in MODULES:
        holder = importlib.import_module(module)
        for name in holder.__all__:
            made = getattr(holder, name)
            known = made if callable(made) else (module, name)
            found.setdefault(known, (f"{module}.{name}", made))
    return dict(found.values())
