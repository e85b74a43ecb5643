"""Is this fit to be trusted? Importance weights, the choice of stage, checks that need no density of q, the verdict."""

from .calibration import Calibration, Reliability, calibrate, reliability
from .classify import held_out_log_ratio, information
from .iterates import Agreement, Iterates, agreement
from .modes import ModeShares, mode_shares
from .movement import MomentShift, Movement, moment_shift, move
from .stages import StageComparison, choose_stage
from .stein import stein_matrix
from .verdict import Findings, Verdict, judge
from .weights import (
    K_HAT_LIMIT,
    WeightSummary,
    fit_generalised_pareto,
    pareto_smooth,
    summarise_weights,
    trunk_log_weight,
    trunk_weights,
)

__all__ = [
    "K_HAT_LIMIT",
    "Agreement",
    "Calibration",
    "Findings",
    "Iterates",
    "ModeShares",
    "MomentShift",
    "Movement",
    "Reliability",
    "StageComparison",
    "Verdict",
    "WeightSummary",
    "agreement",
    "calibrate",
    "choose_stage",
    "fit_generalised_pareto",
    "held_out_log_ratio",
    "information",
    "judge",
    "mode_shares",
    "moment_shift",
    "move",
    "pareto_smooth",
    "reliability",
    "stein_matrix",
    "summarise_weights",
    "trunk_log_weight",
    "trunk_weights",
]
