"""The timed targets: their two forms are one density."""

import pytest
import torch

from avbvi import AVBGuide
from avbvi.targets import UnconstrainedTarget
from benchmarks.step_problems import EIGHT_SCHOOLS, REGRESSION, StepProblem, regression_data


@pytest.mark.parametrize("problem", [EIGHT_SCHOOLS, REGRESSION], ids=lambda p: p.name)
def test_model_and_density_by_hand_agree(problem: StepProblem) -> None:
    arguments = problem.arguments(torch.float64)
    torch.set_default_dtype(torch.float64)
    layout = AVBGuide(problem.model).setup(*arguments).layout
    assert layout is not None
    target = UnconstrainedTarget(problem.model, layout, arguments, {})
    z = torch.randn(7, problem.dim)
    torch.testing.assert_close(problem.by_hand(torch.float64)(z), target.log_prob(z), rtol=1e-12, atol=1e-12)


def test_regression_data_are_the_same_in_every_precision() -> None:
    (x, y), (x_single, y_single) = regression_data(torch.float64), regression_data(torch.float32)
    torch.testing.assert_close(x.float(), x_single, rtol=0.0, atol=0.0)
    assert y.tolist() == y_single.tolist()
    # Outcomes of both kinds, so that the posterior is no prior.
    assert 40 < y.sum() < 160
