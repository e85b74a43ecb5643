"""Two-sample judges: how far draws of q are from draws of p.

All see draws only. None reads a density of q, so they serve samplers without one, and none shares
any code with the fitting of such a sampler. Read each beside its noise floor: the figure that it
gives for two independent samples of the same law and the same size.
"""

from .classifiers import classifier_two_sample_test
from .nearest import knn_kl

__all__ = ["classifier_two_sample_test", "knn_kl"]
