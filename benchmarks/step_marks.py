"""Which functions of avbvi, and of the yardstick, belong to which part of a training step."""

from __future__ import annotations

from avbvi import adversaries, amortised, contrasts, guides, hints, objectives, samplers, targets, trunks
from avbvi.adversarial import AdversaryTrainer
from avbvi.gradients import StepGuard
from avbvi.optimisers import AdversaryAdam
from avbvi.training_state import TrainingState
from benchmarks import reference_step
from benchmarks.step_split import Marks

__all__ = ["AVBVI", "REFERENCE"]

AVBVI: Marks = {
    (samplers.Sampler, "sample_noise"): "sampler",
    (samplers.ResidualSampler, "forward"): "sampler",
    (amortised.ConditionalSampler, "forward"): "sampler",
    # A trunk by itself is the sampler of its stage.
    (trunks.AffineTrunk, "forward"): "sampler",
    (trunks.FlowTrunk, "forward"): "sampler",
    (trunks.MixtureTrunk, "weighted_base"): "sampler",
    (trunks.MixtureTrunk, "base_log_prob"): "sampler",
    (contrasts.MixtureContrast, "update"): "contrast",
    (contrasts.MixtureContrast, "sample"): "contrast",
    (contrasts.MixtureContrast, "log_prob"): "contrast",
    (contrasts.MixtureContrast, "features"): "contrast",
    (amortised.ConditionalGaussianContrast, "given"): "contrast",
    (adversaries.ResidualAdversary, "observe"): "adversary",
    (adversaries.ResidualAdversary, "forward"): "adversary",
    (amortised.ConditionalAdversary, "forward"): "adversary",
    (objectives.FDivergence, "loss"): "adversary",
    (targets.UnconstrainedTarget, "log_prob"): "log p",
    (hints, "hint"): "log p",
    (guides, "hint"): "log p",
    (AdversaryAdam, "move_along"): "optimiser",
    (AdversaryTrainer, "update_average"): "optimiser",
    (StepGuard, "admits"): "optimiser",
    (TrainingState, "optimise"): "optimiser",
}

REFERENCE: Marks = {
    (reference_step.Sampler, "forward"): "sampler",
    (reference_step.Mixture, "update"): "contrast",
    (reference_step.Mixture, "sample"): "contrast",
    (reference_step.Mixture, "log_prob"): "contrast",
    (reference_step.Mixture, "features"): "contrast",
    (reference_step.Adversary, "observe"): "adversary",
    (reference_step.Adversary, "forward"): "adversary",
    (reference_step.ReferenceStep, "log_p"): "log p",
    (reference_step.BoundedAdam, "descend"): "optimiser",
}
