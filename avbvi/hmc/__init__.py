"""Hamiltonian Monte Carlo for many chains at once: the transition, its tuning, and whether the chains have mixed."""

from .adaptation import DenseMass, DenseMetric, DiagonalMass, DiagonalMetric, Mass, Metric
from .kernel import ChainState, Jump, Transition, evaluate, hmc_step
from .mode_jumps import ModeJump
from .sampling import Chains, HMCRun, run_hmc, short_hmc

__all__ = [
    "ChainState",
    "Chains",
    "DenseMass",
    "DenseMetric",
    "DiagonalMass",
    "DiagonalMetric",
    "HMCRun",
    "Jump",
    "Mass",
    "Metric",
    "ModeJump",
    "Transition",
    "evaluate",
    "hmc_step",
    "run_hmc",
    "short_hmc",
]
