"""Where a fit starts: optimisation from several points, Laplace and Pathfinder, Gaussians kept by their evidence."""

from .laplace import laplace_modes
from .lbfgs import InverseHessian, LogDensityFunction, Pairs, Paths, climb_paths
from .modes import CANDIDATES, LaplaceModes, gaussian_bounds, importance_bound, judged_by_draws
from .pathfinder import PathGaussians, pathfinder
from .refine import improved_gaussians, weights_by_draws
from .search import FULL_EFFORT, SMALL_EFFORT, Effort, Start, find_start

__all__ = [
    "CANDIDATES",
    "FULL_EFFORT",
    "SMALL_EFFORT",
    "Effort",
    "InverseHessian",
    "LaplaceModes",
    "LogDensityFunction",
    "Pairs",
    "PathGaussians",
    "Paths",
    "Start",
    "climb_paths",
    "find_start",
    "gaussian_bounds",
    "importance_bound",
    "improved_gaussians",
    "judged_by_draws",
    "laplace_modes",
    "pathfinder",
    "weights_by_draws",
]
