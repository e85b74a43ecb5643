"""Iterates: moments of a guide's draws along a run, and whether the two halves of them agree."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..hmc.diagnostics import rank_rhat
from ..rng import rng_untouched

if TYPE_CHECKING:
    from ..guides import AVBGuide

RECORDS, DRAWS = 64, 512
#: Records below which halves are not compared: four chains of four, as R-hat needs.
LEAST_RECORDS = 16


class Iterates:
    """Means and standard deviations of a guide's draws at evenly spaced times of a run.

    Args:
        records: how many times.
        draws: number of draws at each.

    Raises:
        ValueError: fewer than one record or two draws.

    Source: Dhaka, Catalina, Andersen, Magnusson, Huggins and Vehtari (2020), Robust, accurate stochastic optimization
    for variational inference, NeurIPS: moments along the run, judged by :func:`agreement`.
    """

    def __init__(self, records: int = RECORDS, draws: int = DRAWS) -> None:
        for name, value, least in (("records", records, 1), ("draws", draws, 2)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        self.records: int = records
        self.draws: int = draws
        self._due = 0
        self._moments: list[Tensor] = []
        self._stages: list[int] = []

    def update(self, guide: AVBGuide, progress: float) -> None:
        """Take a record of a guide if its time has come.

        ``progress`` is the share of the run that is done, in [0, 1]; ``guide`` is set up. Later steps are as if nobody
        had looked: the random state is restored.
        """
        if progress * self.records < self._due:
            return
        self._due = math.floor(progress * self.records) + 1
        with rng_untouched(), torch.no_grad():
            z = guide.draw(self.draws).z
        self._moments.append(torch.stack([z.mean(0), z.std(0)]).cpu())
        self._stages.append(int(guide.stage))

    def last_half(self, stage: int) -> Tensor | None:
        """Records (n, 2, dim) of the later half of a stage, means and sds; ``None`` if they are fewer than 16."""
        mine = [m for m, s in zip(self._moments, self._stages, strict=True) if s == stage]
        late = mine[len(mine) // 2 :]
        return torch.stack(late) if len(late) >= LEAST_RECORDS else None

    def state_dict(self) -> dict[str, object]:
        """As plain data and tensors, for a checkpoint."""
        return {"due": self._due, "moments": list(self._moments), "stages": list(self._stages)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore ``state``, what :meth:`state_dict` gave."""
        due, moments, stages = state["due"], state["moments"], state["stages"]
        assert isinstance(due, int)
        assert isinstance(moments, list)
        assert isinstance(stages, list)
        self._due, self._moments, self._stages = due, list(moments), list(stages)


class Agreement(NamedTuple):
    """How the two halves of iterates agree, of means (first row) and standard deviations (second row).

    Attributes:
        rhat: R-hat (2, dim), dimensionless; 1 where the halves agree.
        drift: from the earlier half to the later (2, dim): of a mean in standard deviations, of an sd in logarithms.
        stderr: error of the drift (2, dim) if records were independent.
    """

    rhat: Tensor
    drift: Tensor
    stderr: Tensor


def agreement(iterates: Tensor) -> Agreement:
    """Compare the halves of records (n, 2, dim) of means and standard deviations, n >= 16 in the order of the run.

    R-hat is rank-normalised and split, with the two halves as chains. It rises with any trend that stands out of
    the draws' noise, however small; the drift says whether it matters.

    Args:
        iterates: of :meth:`Iterates.last_half`, (n, 2, dim).

    Returns:
        R-hat and drift (2, dim) with its error.

    Raises:
        ValueError: another shape, or fewer than 16 records.

    Example:
        Means that move by one standard deviation in the second half of 32 records:

        >>> import torch
        >>> from avbvi.diagnostics import agreement
        >>> _ = torch.manual_seed(0)
        >>> means = torch.cat([torch.zeros(16, 1), torch.ones(16, 1)]) + 0.05 * torch.randn(32, 1)
        >>> found = agreement(torch.stack([means, torch.ones(32, 1)], 1))
        >>> round(float(found.drift[0, 0]), 1), bool(found.rhat[0, 0] > 1.5)
        (1.0, True)

    Source: Dhaka, Catalina, Andersen, Magnusson, Huggins and Vehtari (2020), Robust, accurate stochastic optimization
    for variational inference, NeurIPS, section 4: R-hat of iterates.
    """
    if iterates.dim() != 3 or iterates.shape[1] != 2 or len(iterates) < LEAST_RECORDS:
        raise ValueError(
            f"iterates must have shape (n, 2, dim) with n >= {LEAST_RECORDS}, found {tuple(iterates.shape)}"
        )
    half = len(iterates) // 2
    halves = torch.stack([iterates[-2 * half : -half], iterates[-half:]]).double()
    rhat = rank_rhat(halves.flatten(2)).reshape(halves.shape[2:])
    scale = halves[:, :, 1].mean((0, 1)).clamp_min(1e-300)
    # Means in sds, sds by their logarithms.
    series = torch.stack([halves[:, :, 0] / scale, halves[:, :, 1].clamp_min(1e-300).log()], 2)
    drift = series[1].mean(0) - series[0].mean(0)
    stderr = (series.var(1).sum(0) / half).sqrt()
    return Agreement(rhat, drift, stderr)
