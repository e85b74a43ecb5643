"""Problems: reference draws in judging coordinates, against the models' exact moments."""

import math

import pytest
import torch

from benchmarks.problems import EIGHT_SCHOOLS_CLASSIC, EIGHT_SCHOOLS_PAPER, Problem, stacked
from models import eight_schools

PROBLEMS = (EIGHT_SCHOOLS_PAPER, EIGHT_SCHOOLS_CLASSIC)


def test_stacked_flattens_sites_in_the_order_given() -> None:
    draws = {"b": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), "a": torch.tensor([5.0, 6.0])}
    matrix = stacked(draws, "a", "b")
    assert matrix.dtype == torch.float64
    assert matrix.tolist() == [[5.0, 1.0, 2.0], [6.0, 3.0, 4.0]]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_reference_draws_have_the_exact_moments(problem: Problem) -> None:
    n = 20_000
    draws = problem.exact(n, 5)
    assert draws.shape == (n, len(problem.columns))
    assert torch.equal(draws, problem.exact(n, 5))
    paper = problem is EIGHT_SCHOOLS_PAPER
    moments = eight_schools.exact_moments() if paper else eight_schools.classic_exact_moments()
    mean, sd = (torch.cat([moments[k][i].reshape(-1) for k in ("mu", "eta")]) for i in (0, 1))
    columns = [0, *range(2, 10)]
    assert bool(((draws[:, columns].mean(0) - mean).abs() < 4 * sd / math.sqrt(n)).all())


def test_classic_problem_is_judged_in_log_tau() -> None:
    draws = eight_schools.classic_exact_posterior(4, 0)
    matrix = EIGHT_SCHOOLS_CLASSIC.matrix(draws)
    assert torch.allclose(matrix[:, 1].exp(), draws["tau"])
    assert torch.equal(matrix[:, 2:], draws["eta"])
    assert bool((draws["tau"] > 0).all())


def test_figures_are_read_off_the_matrix() -> None:
    matrix = torch.zeros(4, 10, dtype=torch.float64)
    matrix[:, 1] = torch.tensor([1.0, -1.0, 2.0, 3.0])
    assert EIGHT_SCHOOLS_PAPER.figures(matrix) == {"p_tau_positive": 0.75}


@pytest.mark.usefixtures("posteriordb")
def test_exact_draws_agree_with_posteriordb() -> None:
    figures = EIGHT_SCHOOLS_CLASSIC.figures(EIGHT_SCHOOLS_CLASSIC.exact(20_000, 3))
    # The reference has about 10,000 independent draws: four standard errors of mean and of sd.
    assert figures["reference_mean_error_sd"] < 4 * math.sqrt(1 / 20_000 + 1 / 10_000)
    # tau and theta have heavier tails than a normal's, so that their sds are known less well.
    assert 0.94 < figures["reference_sd_ratio_min"] <= figures["reference_sd_ratio_max"] < 1.06
