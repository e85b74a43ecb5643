"""Long judgements by several processes: annealed chains by data, HMC by chains.

Nearest-neighbour estimators need nothing from here: inside of :func:`avbvi.distributed.together` their searches are
divided by queries (:func:`avbvi.divergences.neighbours.nearest`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..annealed import AnnealedEvidence
from ..arguments import function, instance, integer
from ..hmc import HMCRun
from .division import Division, divide

__all__ = [
    "divided_evidence",
    "divided_hmc",
]

#: Data that share step sizes in annealed importance sampling: parts begin at multiples of it.
TOGETHER = 32


def divided_evidence(anneal: Callable[..., AnnealedEvidence], *args: Any) -> AnnealedEvidence:
    """Annealed importance sampling of many data, of which each process takes a part; all get the whole result.

    The parts begin at multiples of 32. Noise is keyed by a datum's number: the figures of chains that start from a
    ``GaussianStart`` are, to rounding, those of one process (of a number of data that 32 divides: a last part of fewer
    has more pilot chains by datum); draws of a prior or a guide differ.

    Args:
        anneal: :func:`~avbvi.annealed_importance_sampling` with all but the data, as a ``functools.partial``, say:
            model and settings, with the same seed in all processes and ``progress`` in the first at most. It is called
            as ``anneal(*part, first_datum=...)``.
        args: the data, as the model's positional arguments. Tensors as long as the first one are divided along their
            first dimension.

    Raises:
        TypeError: there is no tensor among ``args``, or ``anneal`` is no function.
        ValueError: there are fewer groups of 32 data than processes.
    """
    function("anneal", anneal)
    rows = next((len(a) for a in args if isinstance(a, Tensor) and a.dim()), None)
    if rows is None:
        raise TypeError("args must hold the data that are to be divided among processes; found no tensor")
    if distributed.world_size() == 1:
        return anneal(*args)
    groups = divide("number of groups of 32 data", -(-rows // TOGETHER), "take fewer processes, or one")
    borders = [min(TOGETHER * sum(groups.counts[:i]), rows) for i in range(len(groups.counts) + 1)]
    first, last = borders[groups.rank : groups.rank + 2]
    part = [a[first:last] if isinstance(a, Tensor) and a.dim() and len(a) == rows else a for a in args]
    found = anneal(*part, first_datum=first)
    whole = Division(tuple(b - a for a, b in pairwise(borders)), groups.rank)

    def joined(values: Tensor) -> Tensor:
        """(chains, B, ...) of all processes."""
        return whole.gathered(values.transpose(0, 1)).transpose(0, 1)

    acceptance = found.acceptance.clone()
    distributed.sum_([acceptance], whole.share)
    (seconds,) = distributed.largest([found.seconds])
    return dataclasses.replace(
        found,
        log_weights=joined(found.log_weights),
        draws=joined(found.draws),
        acceptance=acceptance,
        seconds=seconds,
    )


def divided_hmc(run: Callable[..., HMCRun], states: Tensor, *, seed: int) -> HMCRun:
    """HMC with many chains, of which each process takes a part; all get the draws of all chains.

    A process tunes mass, step size and trajectories to its own chains, which should be hundreds. What is told of the
    tuning is that of the first process (but for the metric: each keeps its own), counts of divergences and gradient
    evaluations are sums.

    Args:
        run: :func:`~avbvi.hmc.run_hmc` with all but the states, as a ``functools.partial``, say; called as
            ``run(part, generator=...)``.
        states: starting points of all chains (n, dim), the same in all processes.
        seed: of the processes' generators, each of which has a stream of its own.

    Raises:
        TypeError: ``run`` is no function, or states no tensor.
        ValueError: there are fewer chains than processes.
    """
    function("run", run)
    instance("states", states, Tensor, "a tensor of starting points (n, dim)")
    seeds = torch.Generator().manual_seed(integer("seed", seed, 0))
    own = int(torch.randint(2**62, (distributed.world_size(),), generator=seeds, device="cpu")[distributed.rank()])
    generator = torch.Generator(states.device).manual_seed(own)
    if distributed.world_size() == 1:
        return run(states, generator=generator)
    part = divide("number of chains", len(states), "take fewer processes, or one")
    found = run(part.own(states), generator=generator)
    counts = torch.tensor([found.divergences, found.gradient_evaluations], dtype=torch.float64)
    distributed.sum_([counts])
    step_size, length, steps, jumps = distributed.agreed(
        (found.step_size, found.trajectory_length, found.leapfrog_steps, found.jump_acceptance)
    )
    return dataclasses.replace(
        found,
        draws=part.gathered(found.draws),
        log_prob=part.gathered(found.log_prob),
        acceptance=part.gathered(found.acceptance),
        diverging=part.gathered(found.diverging.to(torch.uint8)).bool(),
        divergences=int(counts[0]),
        gradient_evaluations=int(counts[1]),
        step_size=step_size,
        trajectory_length=length,
        leapfrog_steps=steps,
        jump_acceptance=jumps,
    )
