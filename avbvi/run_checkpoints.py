"""Checkpoints of a run: all that its later steps depend on, written to a file and taken up again."""

from __future__ import annotations

import logging
from os import PathLike
from typing import TYPE_CHECKING

import torch
from pyro import poutine

from . import distributed
from .checkpoints import read_file, write_atomically
from .errors import CheckpointError
from .fit_files import part_configurations, plain_comparison, read_comparison, site_table
from .rng import rng_state, set_rng_state
from .starts import LaplaceModes
from .training_state import named_parameters

if TYPE_CHECKING:
    from .training import Trainer

logger: logging.Logger = logging.getLogger(__name__)

FORMAT = "avbvi-checkpoint"
VERSION = 3
#: What a checkpoint has beside format and version.
KEYS = frozenset(
    {
        "fingerprint",
        "parts",
        "sites",
        "state",
        "batches",
        "recovery",
        "rng",
        "elapsed",
        "smoothed",
        "history",
        "open_ended",
        "iterates",
        "comparison",
        "modes",
        "start_notes",
        "start_suspect",
    }
)


def save_run(path: str | PathLike[str], trainer: Trainer, elapsed: float) -> None:
    """Write the state of a run between two of its steps; ``elapsed`` is in seconds since its very beginning."""
    guide, open_ended = trainer.guide, trainer.open_ended
    write_atomically(
        path,
        {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": trainer.fingerprint,
            "parts": part_configurations(guide),
            "sites": site_table(guide),
            "state": trainer.state.capture(),
            "batches": trainer.batches.state_dict(),
            "recovery": trainer.recovery.state_dict(),
            "rng": rng_state(),
            "elapsed": elapsed,
            "open_ended": None if open_ended is None else open_ended.state_dict(),
            "smoothed": trainer.smoothed,
            "history": trainer.run.history,
            "iterates": trainer.iterates.state_dict(),
            "comparison": plain_comparison(guide.comparison),
            "modes": None if guide.modes is None else guide.modes._asdict(),
            "start_notes": guide.start_notes,
            "start_suspect": guide.start_suspect,
        },
    )
    logger.debug("saved the run to %s at step %d", path, int(guide.step_count))


def resume_run(path: str | PathLike[str], trainer: Trainer) -> None:
    """Take up a run where :func:`save_run` left it, in a trainer with the same arguments whose guide is set up.

    Raises:
        CheckpointError: the file is damaged, or belongs to another run.
    """
    content = distributed.from_first(lambda: read_file(path, FORMAT, VERSION, KEYS))
    guide = trainer.guide
    for key, mine in (
        ("fingerprint", trainer.fingerprint),
        ("parts", part_configurations(guide)),
        ("sites", site_table(guide)),
    ):
        if content[key] != mine:
            raise CheckpointError(
                f"checkpoint={str(path)!r} belongs to another run: its {key} is {content[key]}, this run's is "
                f"{mine}; repeat that run's arguments or choose another file"
            )
    guide.load_state_dict(content["state"]["guide"])
    # One evaluation on throw-away state registers the parameters with Pyro, then all of it is restored.
    with torch.no_grad(), poutine.trace(param_only=True) as capture, poutine.block(hide_types=["sample"]):
        trainer.elbo.loss(trainer.model, guide, *trainer.args, **trainer.kwargs)
    trainer.state.resume(content["state"], named_parameters(capture.trace))
    trainer.batches.load_state_dict(content["batches"])
    trainer.recovery.load_state_dict(content["recovery"])
    if trainer.open_ended is not None:
        trainer.open_ended.load_state_dict(content["open_ended"])
        trainer.elbo.steps = trainer.open_ended.steps
    trainer.run.history = content["history"]
    trainer.iterates.load_state_dict(content["iterates"])
    guide.comparison = read_comparison(content["comparison"])
    guide.modes = None if content["modes"] is None else LaplaceModes(**content["modes"])
    guide.start_notes, guide.start_suspect = content["start_notes"], content["start_suspect"]
    trainer.elapsed_before = content["elapsed"]
    trainer.smoothed = content["smoothed"]
    set_rng_state(content["rng"])
    logger.info("resuming %s at step %d", path, int(guide.step_count))
    distributed.same_generators()
