"""Chains whose density is less precise: exact evidence all the same, and what the rounding costs."""

from __future__ import annotations

import math

import pytest
import torch

from avbvi import CheckpointError
from avbvi.annealed import (
    GaussianStart,
    SigmoidTemperatures,
    annealed_importance_sampling,
    bidirectional_sandwich,
)
from avbvi.annealed.precision import LowPrecisionDensity
from avbvi.precision import Precision
from tests.annealed.known import LinearGaussian

LOW = Precision(autocast=torch.bfloat16)


def options(density: LinearGaussian, **others):
    loc, covariance = density.posterior()
    start = GaussianStart((loc + 0.3 * covariance.diagonal(dim1=-2, dim2=-1).sqrt()).float(), covariance.float(),
                          inflation=1.3)  # fmt: skip
    return {"start": start, "temperatures": SigmoidTemperatures(40), "chains": 20, "leapfrog_steps": 4, "seed": 0,
            "progress": False, **others}  # fmt: skip


def test_the_evidence_is_exact_though_the_products_are_rounded():
    density = LinearGaussian.simulated(40, 50, 4, noise=0.1)
    exact = density.log_evidence()
    low = annealed_importance_sampling(density, **options(density, precision=LOW))
    full = annealed_importance_sampling(density, **options(density))
    # Rounding is no small matter here: at its own draws the density is off by more than its weights' error.
    with torch.no_grad():
        rounded = LowPrecisionDensity(density, LOW).log_joint(low.draws)
    error = (rounded.double() - density.log_joint(low.draws).double()).abs().mean()
    assert float(error) > 0.2
    # Student's t with 19 degrees of freedom, 40 of them.
    for result in (low, full):
        assert ((result.log_evidence - exact) / result.stderr).abs().max() < 5.0
        assert abs(result.mean.value - float(exact.mean())) < 4.0 * result.mean.stderr
    assert low.mean.stderr < 0.1
    # What it costs is seen in the weights.
    assert float(low.log_weights.var(0).mean()) > 1.5 * float(full.log_weights.var(0).mean())


def test_last_states_carry_the_exact_density_and_weights():
    density = LinearGaussian.simulated(30, 20, 3)
    result = annealed_importance_sampling(density, **options(density, precision=LOW, chains=200))
    weight = torch.softmax(result.log_weights, 0)[..., None]
    loc, _ = density.posterior()
    mean = (weight * result.draws).sum(0)
    stderr = (weight.square() * (result.draws - mean).square()).sum(0).sqrt()
    assert ((mean - loc) / stderr).abs().max() < 5.0


def test_the_sandwich_closes_around_the_exact_evidence():
    density = LinearGaussian.simulated(60, 8, 2, noise=1.0)
    result = bidirectional_sandwich(
        density, temperatures=SigmoidTemperatures(60), chains=10, seed=0, progress=False, precision=LOW
    )
    full = bidirectional_sandwich(density, temperatures=SigmoidTemperatures(60), chains=10, seed=0, progress=False)
    assert abs(result.gap.value) < 0.2
    # The same simulated data in both.
    assert abs(result.mean_lower.value - full.mean_lower.value) < 4.0 * math.hypot(
        result.mean_lower.stderr, full.mean_lower.stderr
    )


def test_tf32_changes_nothing_on_the_cpu_and_leaves_the_global_setting():
    density = LinearGaussian.simulated(4, 5, 2)
    before = torch.get_float32_matmul_precision()
    low = annealed_importance_sampling(density, **options(density, precision=Precision(tf32=True)))
    full = annealed_importance_sampling(density, **options(density))
    assert torch.equal(low.log_weights, full.log_weights)
    assert torch.get_float32_matmul_precision() == before


def test_the_default_precision_is_none_at_all():
    density = LinearGaussian.simulated(4, 5, 2)
    runs = [annealed_importance_sampling(density, **options(density, precision=p)) for p in (None, Precision())]
    assert torch.equal(runs[0].log_weights, runs[1].log_weights)


def test_starts_and_weights_stay_in_full_precision():
    density = LinearGaussian.simulated(4, 5, 2)
    result = annealed_importance_sampling(density, **options(density, precision=LOW))
    assert result.draws.dtype == torch.float32
    assert result.log_weights.dtype == torch.float64


def test_a_file_of_another_precision_is_refused(tmp_path):
    density = LinearGaussian.simulated(4, 5, 2)
    file = tmp_path / "run.pt"
    first = annealed_importance_sampling(density, **options(density, precision=LOW, checkpoint=file))
    again = annealed_importance_sampling(density, **options(density, precision=LOW, checkpoint=file))
    assert torch.equal(first.log_weights, again.log_weights)
    with pytest.raises(CheckpointError, match="another precision"):
        annealed_importance_sampling(density, **options(density, checkpoint=file))


def test_precisions_are_objects():
    density = LinearGaussian.simulated(4, 5, 2)
    with pytest.raises(TypeError, match="precision must be a Precision, such as"):
        annealed_importance_sampling(density, **options(density, precision="bfloat16"))
