"""Limits of the verdict, set on the toy densities alone (``docs/decisions.md``) and frozen.

A figure casts doubt if it exceeds its limit and, where it has a standard error, zero by SIGMAS of them.
"""

SIGMAS = 3.0

#: Least share of draws at which the log-density is finite.
FINITE_SHARE = 0.99
#: Share of steps skipped for non-finite gradients.
SKIPPED_SHARE = 0.01
#: Standard error of the ELBO (nats).
ELBO_STDERR = 0.1

#: Mean log weight after HMC less before (nats): Jeffreys' divergence if the chains have converged.
JEFFREYS = 0.35
#: Jensen-Shannon divergence (nats) of the draws before and after HMC, as a fresh classifier sees it.
JENSEN_SHANNON = 0.015
#: Shift of the mean by HMC (sds), over all directions.
MEAN_SHIFT = 0.12
#: Ratio of sds, before over after HMC, over all directions: below the first or above the second.
SD_RATIO = (0.8, 1.25)
#: Mean change of log p by HMC (nats).
ENERGY = 0.5
#: Error of Stein's identity in some direction.
STEIN = 0.3

#: KL divergence (nats) by importance weights: log-evidence less ELBO.
KL_BY_WEIGHTS = 0.2
#: The same by a freshly learned density.
LEARNED_KL_BY_WEIGHTS = 0.25
#: Excess of the learned ELBO over the log-evidence by the trunk's weights (nats).
ELBO_EXCESS = 0.05

#: Expected calibration error of the adversary; above the second its log q is called rough, without doubt in the draws.
CALIBRATION_ERROR, ROUGH_CALIBRATION_ERROR = 0.15, 0.05
#: Cross-entropy (nats per draw, chance .693) below which the adversary is called saturated, without doubt in the draws.
SATURATED_CROSS_ENTROPY = 0.1
#: Cross-entropy (nats per draw) by which a fresh adversary does better.
CROSS_ENTROPY_EXCESS = 0.05

#: A mode of at least the first weight that gets less than the second times it was lost.
LEAST_MODE_WEIGHT, LEAST_MODE_SHARE = 0.05, 0.1
#: Total variation distance of the modes' shares from their weights.
MODE_SHARES = 0.3

#: Drift between the halves of the iterates (sds, or logarithm of the sds), with an R-hat of at least the second.
DRIFT, DRIFT_RHAT = 0.3, 1.2
