"""How annealed chains run: what is the same for all parts of the data."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..arguments import instance, integer, number
from ..precision import Precision
from .temperatures import SigmoidTemperatures, Temperatures

#: Numbers that data may have, far below where integers overflow.
MOST_DATA = 2**53


class Settings(NamedTuple):
    """How the chains run."""

    temperatures: Temperatures
    chains: int
    leapfrog_steps: int
    target_acceptance: float
    chains_at_once: int | None
    precision: Precision
    first_datum: int

    @classmethod
    def checked(
        cls,
        temperatures: Temperatures | None,
        chains: int,
        leapfrog_steps: int,
        target_acceptance: float,
        chains_at_once: int | None,
        precision: Precision | None,
        first_datum: int,
    ) -> Settings:
        if temperatures is None:
            temperatures = SigmoidTemperatures(1000)
        instance("temperatures", temperatures, Temperatures, "a schedule such as SigmoidTemperatures(1000)")
        if not 0.0 < number("target_acceptance", target_acceptance) < 1.0:
            raise ValueError(f"target_acceptance must lie between 0 and 1, found {target_acceptance}")
        precision = Precision() if precision is None else precision
        instance("precision", precision, Precision, "a Precision, such as Precision(autocast=torch.bfloat16)")
        if integer("first_datum", first_datum, 0) > MOST_DATA:
            raise ValueError(f"first_datum must be at most {MOST_DATA}, found {first_datum}")
        return cls(
            temperatures, integer("chains", chains, 1), integer("leapfrog_steps", leapfrog_steps, 1),
            float(target_acceptance), None if chains_at_once is None else integer("chains_at_once", chains_at_once, 1),
            precision, int(first_datum),
        )  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """What a run must share with the file that it resumes."""
        return {
            "temperatures": self.temperatures.betas().tolist(),
            "chains": self.chains,
            "leapfrog_steps": self.leapfrog_steps,
            "target_acceptance": self.target_acceptance,
            "precision": self.precision.settings(),
            "first_datum": self.first_datum,
        }
