"""Reference draws by long HMC runs, for posteriors without exact draws; kept on disk, as they take minutes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import avbvi
from avbvi.targets import Model
from benchmarks.judging import distinct_rows
from benchmarks.problems import Draws

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(__file__).resolve().parent / ".cache"
RHAT_LIMIT = 1.01
#: Keys of what is recorded of the chains.
EVIDENCE = ("rhat_max", "ess_min", "divergences", "reference_seconds")


@dataclass(frozen=True)
class HMCReference:
    """Draws of a posterior by many chains of batched HMC, made once for each state of the files that define it.

    The sampler's own settings are part of what a file on disk is known by, its code is not: whatever a later version
    of it does, R-hat vouches for the draws that are there.

    Args:
        name: of the file.
        model: the Pyro model.
        args: its arguments.
        matrix: draws by site -> (n, d) in float64, in judging coordinates.
        sources: files that define the posterior, relative to the repository's root.
        chains, draws, warmup, thin: see :func:`avbvi.hmc_posterior`.
        seed: of the run.
        folder: where the file lies.
    """

    name: str
    model: Model
    args: tuple[Any, ...]
    matrix: Callable[[Draws], Tensor]
    sources: tuple[str, ...]
    chains: int = 1000
    draws: int = 20
    warmup: int = 300
    thin: int = 10
    seed: int = 0
    folder: Path = CACHE

    @property
    def path(self) -> Path:
        """The file: its name changes with sources and settings."""
        settings = (self.chains, self.draws, self.warmup, self.thin, self.seed)
        digest = hashlib.sha256(repr(settings).encode())
        for source in self.sources:
            digest.update((ROOT / source).read_bytes())
        return self.folder / f"{self.name}-{digest.hexdigest()[:16]}.npz"

    def prepare(self) -> None:
        """Make the draws unless they are on disk already.

        Raises:
            RuntimeError: the chains have not mixed, so that there is no reference.
        """
        if self.path.exists():
            return
        run = avbvi.hmc_posterior(
            self.model,
            *self.args,
            chains=self.chains,
            draws=self.draws,
            warmup=self.warmup,
            thin=self.thin,
            seed=self.seed,
        )
        rhat = max(run.rhat.values())
        if not rhat <= RHAT_LIMIT:
            raise RuntimeError(f"the reference chains of {self.name} have not mixed: R-hat {rhat:.3f} > {RHAT_LIMIT}")
        matrix = self.matrix(run.draws)
        evidence = (rhat, min(run.ess.values()), float(run.divergences), run.seconds)
        # A chain that rejects for all of ``thin`` transitions leaves a repeated row, which the judges refuse.
        write(self.path, matrix[distinct_rows(matrix)], evidence)

    @cached_property
    def _content(self) -> tuple[Tensor, dict[str, float]]:
        self.prepare()
        with np.load(self.path) as file:
            return torch.from_numpy(file["matrix"]), dict(zip(EVIDENCE, file["evidence"].tolist(), strict=True))

    @property
    def figures(self) -> dict[str, float]:
        """Largest R-hat, least effective sample size, divergences and seconds of the run."""
        return dict(self._content[1])

    def __call__(self, n: int, seed: int) -> Tensor:
        """At most n of the draws (m, d), in random order."""
        matrix, _ = self._content
        return matrix[torch.randperm(len(matrix), generator=torch.Generator().manual_seed(seed))[:n]]

    def halves(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two disjoint halves of the draws at random, for a judge's noise floor."""
        everything = self(len(self._content[0]), seed)
        middle = len(everything) // 2
        return everything[:middle], everything[middle : 2 * middle]


def write(path: Path, matrix: Tensor, evidence: Sequence[float]) -> None:
    """Write draws (n, d) with the figures of `EVIDENCE`; a reader finds the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez(file, matrix=matrix.numpy(), evidence=np.asarray(evidence))
    partial.replace(path)
