"""The Python code of a page of the documentation, run as a reader would: block after block, in an empty folder.

What takes long is short here: fits make few steps, loops, chains and studies few rounds. A block that can't run by
itself is left out where the page says so, in an HTML comment above it: ``<!-- fragment: needs torchrun -->``.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest

import avbvi
import avbvi.training
from avbvi.training import Trainer

ROOT = Path(__file__).resolve().parents[1]
STEPS, ROUNDS, DRAWS = 10, 5, 2000
BLOCK = re.compile(
    r"^(?P<mark><!--[^\n]*-->\n+)?(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
FRAGMENT = re.compile(r"<!-- fragment: .+ -->")


def blocks(text: str) -> list[tuple[int, str]]:
    """Line and code of each block that runs."""
    found = []
    for block in BLOCK.finditer(text):
        if not FRAGMENT.match(block["mark"] or ""):
            line = text.count("\n", 0, block.start("code"))
            code = "".join(row[len(block["indent"]) :] for row in block["code"].splitlines(keepends=True))
            found.append((line, code))
    return found


def shorten(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let fits, loops and studies end soon; returns the names that code is to be run with."""
    whole = Trainer.train

    def train(self: Trainer, steps: int | None, minutes: float | None, **options: Any) -> avbvi.Posterior:
        return whole(self, min(steps or STEPS, STEPS), None, **options)

    whole_study, whole_hmc, whole_annealing = avbvi.sbc, avbvi.hmc_posterior, avbvi.annealed_importance_sampling

    def study(*args: Any, simulations: int = 100, **options: Any) -> avbvi.Calibration:
        return whole_study(*args, simulations=min(simulations, 2), **options)

    def hmc(*args: Any, **options: Any) -> avbvi.HMCPosterior:
        return whole_hmc(*args, chains=50, warmup=20, draws=8, thin=1, max_leapfrog_steps=8, **options)

    def annealing(*args: Any, **options: Any) -> avbvi.AnnealedEvidence:
        return whole_annealing(*args, temperatures=avbvi.SigmoidTemperatures(20), **options)

    def short(number: object, *more: int) -> range:
        return range(min(number, ROUNDS)) if isinstance(number, int) and not more else range(number, *more)  # type: ignore[arg-type]

    patch.setattr(Trainer, "train", train)
    patch.setattr(avbvi.training, "judge", functools.partial(avbvi.training.judge, n=DRAWS))
    patch.setattr(avbvi, "sbc", study)
    patch.setattr(avbvi, "hmc_posterior", hmc)
    patch.setattr(avbvi, "annealed_importance_sampling", annealing)
    return {"__name__": "__main__", "range": short}


def run(page: Path, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a page's blocks with these names; the names as they were after each block."""
    after = []
    for line, code in blocks(page.read_text("utf-8")):
        exec(compile("\n" * line + code, str(page), "exec"), names)
        after.append(dict(names))
    return after
