"""Pictures of draws, densities, runs and diagnostics, in one style (:func:`~avbvi.plots.style`).

Panels draw in Matplotlib axes and return them; what has several panels returns a figure without a window
(``figure.savefig(path)`` writes it). No state of Matplotlib is changed, and pyplot is not used. Colours are told apart
by colour-blind readers and never alone: markers, line styles or names go with them. Panels look at the page of their
axes, so that those of a dark figure are drawn in dark mode.
"""

from .calibration import coverage_panel, ecdf_panel, plot_sbc, rank_panel
from .densities import density_panel, function_panel
from .draws import kde_grid, kde_panel, marginal_panel, pair_grid
from .images import image_grid, image_panel, reconstruction_panel
from .judges import importance_weights, moment_shift_panel, reliability_diagram
from .landscapes import contrast_marginal, contrast_panel, landscape_panel
from .latents import latent_map
from .theme import Theme, style
from .training import elbo_trace, loss_curve, training_curve

__all__ = [
    "Theme",
    "contrast_marginal",
    "contrast_panel",
    "coverage_panel",
    "density_panel",
    "ecdf_panel",
    "elbo_trace",
    "function_panel",
    "image_grid",
    "image_panel",
    "importance_weights",
    "kde_grid",
    "kde_panel",
    "landscape_panel",
    "latent_map",
    "loss_curve",
    "marginal_panel",
    "moment_shift_panel",
    "pair_grid",
    "plot_sbc",
    "rank_panel",
    "reconstruction_panel",
    "reliability_diagram",
    "style",
    "training_curve",
]
