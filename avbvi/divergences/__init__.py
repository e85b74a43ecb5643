"""Two-sample judges: how far draws of q are from draws of p.

All see draws only. None reads a density of q, so they serve samplers without one, and none shares
any code with the fitting of such a sampler. Read each beside its noise floor: the figure that it
gives for two independent samples of the same law and the same size.
"""

from .alpha import AlphaDivergence, Bhattacharyya, Hellinger, Renyi, Tsallis, knn_alpha_divergence
from .bounds import density_features, kl_lower_bound
from .classifiers import classifier_two_sample_test
from .kernels import MMDTest, energy_distance, mmd2
from .nearest import (
    knn_cross_entropy,
    knn_entropy,
    knn_j_divergence,
    knn_js_divergence,
    knn_kl,
    knn_kl_adaptive,
)
from .transport import marginal_wasserstein, sliced_wasserstein

__all__ = [
    "AlphaDivergence",
    "Bhattacharyya",
    "Hellinger",
    "MMDTest",
    "Renyi",
    "Tsallis",
    "classifier_two_sample_test",
    "density_features",
    "energy_distance",
    "kl_lower_bound",
    "knn_alpha_divergence",
    "knn_cross_entropy",
    "knn_entropy",
    "knn_j_divergence",
    "knn_js_divergence",
    "knn_kl",
    "knn_kl_adaptive",
    "marginal_wasserstein",
    "mmd2",
    "sliced_wasserstein",
]
