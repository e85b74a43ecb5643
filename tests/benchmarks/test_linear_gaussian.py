"""The linear-Gaussian board: its judges on known errors, its jobs."""

from __future__ import annotations

import math

import pytest
import torch

from avbvi.joint import JointAdversarialLoss, SymmetricAdversarialELBO
from benchmarks import linear_gaussian as board
from benchmarks.runner import Job
from models.linear_gaussian import Laws
from tests.joint.known import ExactPairs, built, frozen, truth, unrelated


def optimistic(laws: Laws, by: tuple[float, float]) -> SymmetricAdversarialELBO:
    """Adversaries that are wrong by constants."""
    f1 = ExactPairs(lambda x, z: laws.encoded_ratio(x.double(), z.double()) + by[0])
    f2 = ExactPairs(lambda x, z: laws.decoded_ratio(x.double(), z.double()) - by[1])
    return SymmetricAdversarialELBO((f1, f2), densities=False)


@torch.no_grad()
def test_errors_of_adversaries_are_seen_in_both_of_their_laws() -> None:
    known = unrelated()
    laws = frozen(known)
    loss = built(optimistic(laws, (0.3, 0.2)), known)
    row = board.adversary_errors(loss, ("f1", "f2"), laws, 2000)
    assert row == {
        "error_f1_joint": pytest.approx(0.3, abs=1e-4),
        "error_f1_product": pytest.approx(0.3, abs=1e-4),
        "error_f2_joint": pytest.approx(0.2, abs=1e-4),
        "error_f2_product": pytest.approx(0.2, abs=1e-4),
    }


@torch.no_grad()
def test_errors_are_means_over_the_law_that_is_named() -> None:
    # T is wrong by |z_1| where x_1 and z_1 have one sign: the mean tells the joint law from the product of marginals.
    known = truth()
    laws = frozen(known)

    def wrong(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        alike = (x[..., 0] - laws.data.loc[0]) * z[..., 0] > 0.0
        return laws.encoded_ratio(x.double(), z.double()) + z[..., 0].abs() * alike

    loss = built(SymmetricAdversarialELBO((ExactPairs(wrong), ExactPairs(wrong)), densities=False), known)
    n = 40_000
    row = board.adversary_errors(loss, ("f1", "f2"), laws, n)
    joint = laws.decoded.covariance_matrix
    correlation = float(joint[0, 3] / (joint[0, 0] * joint[3, 3]).sqrt())
    assert abs(correlation) > 0.1
    # E |z| [x z > 0] of standard normals with this correlation.
    expected = (1.0 + correlation) / math.sqrt(2.0 * math.pi)
    half = 1.0 / math.sqrt(2.0 * math.pi)
    for name in ("f1", "f2"):
        assert row[f"error_{name}_joint"] == pytest.approx(expected, abs=5.0 / math.sqrt(n))
        assert row[f"error_{name}_product"] == pytest.approx(half, abs=5.0 / math.sqrt(n))


def test_the_data_are_those_of_the_stated_model() -> None:
    law = board.data_law()
    weight = torch.tensor(board.WEIGHT)
    torch.testing.assert_close(law.loc, torch.tensor(board.BIAS))
    torch.testing.assert_close(law.covariance_matrix, weight @ weight.mT + torch.diag(torch.tensor(board.SCALES) ** 2))


@torch.no_grad()
def test_nothing_is_left_between_the_joints_at_the_truth() -> None:
    assert all(abs(value) < 1e-9 for value in board.divergences(truth().laws).values())
    assert all(value > 0.01 for value in board.divergences(unrelated().laws).values())


@pytest.mark.parametrize("method", list(board.LOSSES))
def test_a_short_run_fills_a_record(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "QUICK_STEPS", 3)
    monkeypatch.setattr(board, "JUDGED", 500)
    (row,) = board.run(Job(board.TARGET, method, 0, 0.05))
    assert row["steps"] == 3
    figures = ["kl_data", "kl_posterior", "kl_aggregate"]
    figures += [f"error_{f}_{law}" for f in board.RATIOS[method] for law in ("joint", "product")]
    assert all(math.isfinite(row[key]) and row[key] > 0.0 for key in figures)
    loss = board.LOSSES[method](1)
    assert len(loss.games if isinstance(loss, JointAdversarialLoss) else ()) == len(board.RATIOS[method])
