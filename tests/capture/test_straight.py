"""What a captured step must not do is noted, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from avbvi.capture.constants import Constants
from avbvi.capture.graphs import WARM_UP, CapturedStep, EagerTwin
from avbvi.capture.straight import StraightLine
from tests.capture.tape import TapeBackend

X = torch.arange(12.0).reshape(4, 3) + torch.eye(4, 3)
MASK = torch.tensor([True, False, True, True])
SQUARE = torch.eye(3) + 0.1


@pytest.mark.parametrize(
    ("does", "what"),
    [
        (lambda: float(X.sum()), "_local_scalar_dense reads"),
        (lambda: bool((X > 0).all()), "_local_scalar_dense reads"),
        (lambda: X[MASK], "index with a mask"),
        (lambda: X.clone().masked_select(MASK[:, None]), "masked_select reads"),
        (lambda: MASK.nonzero(), "nonzero reads"),
        (lambda: torch.equal(X, X), "equal reads"),
        (lambda: torch.unique(X), "_unique2 reads"),
        (lambda: torch.tensor([1.0, 2.0]), "lift_fresh makes a tensor of Python's numbers"),
        (lambda: torch.multinomial(X, 1, replacement=True), "multinomial of one draw"),
        (lambda: torch.multinomial(X, 2), "multinomial of one draw, or without replacement"),
        (lambda: torch.linalg.cholesky(SQUARE @ SQUARE), "_linalg_check_errors waits"),
        (lambda: torch.linalg.eigh(SQUARE + SQUARE.T), "_linalg_eigh waits"),
        (lambda: X.to("meta"), "_to_copy from cpu to meta"),
        (lambda: torch.empty(4, 3, device="meta").copy_(X), "copy_ from cpu to meta"),
    ],
)
def test_forbidden_operations_are_named(does: Callable[[], object], what: str) -> None:
    with StraightLine() as line:
        does()
    assert any(found.startswith(what) for found in line.found), line.found


def test_all_else_passes() -> None:
    with StraightLine() as line:
        x = X.clone().requires_grad_()
        k = torch.multinomial(torch.ones(4), 9, replacement=True)
        factor, info = torch.linalg.cholesky_ex(SQUARE @ SQUARE.mT)
        y = torch.where(info == 0, factor, SQUARE) @ x[k].mT
        y = torch.where(torch.isfinite(y), y, 0.0).lerp(y, torch.ones(()))
        torch.autograd.grad(y.logsumexp(0).sum(), x)
        y = y.clone()
        y[y.detach() > 1e6] = 0.0 * y.detach().sum()  # fills, whatever the mask
        torch.randn(3, device="cpu").to(torch.float64).clamp_max(0.5)
    assert line.found == []


def test_what_stays_on_the_host_may_be_read_there() -> None:
    count = torch.tensor(3)
    with StraightLine([count]) as line:
        assert int(count) == 3
    assert line.found == []


def test_what_is_done_on_the_host_is_constant_and_random_numbers_are_not() -> None:
    with StraightLine(device="meta") as line:
        half = 0.5 * float(X.sum())
        torch.tensor([half, 2.0])
        X[MASK] = X[MASK].clone()
    assert line.found == []
    with StraightLine(device="meta") as line:
        torch.randperm(4)
        torch.randn(3, device="meta").sum()
    assert line.found == ["randperm draws on cpu: its numbers would be the same in each replay"]


def test_constants_are_made_once_and_are_the_same() -> None:
    constants = Constants()
    values: list[Any] = [1, 1.0, True, [0.0, -0.0], ((1, 2), (3, 4))]
    for _ in range(2):
        with constants, StraightLine() as line:
            found = [torch.tensor(v) for v in values] + [torch.tensor(2.0, dtype=torch.float64)]
            torch.distributions.Normal(0.0, 1.0, validate_args=False)
    assert line.found == []
    for own, value in zip(found, values, strict=False):
        expected = torch.tensor(value)
        assert own.dtype == expected.dtype
        assert torch.equal(own, expected)
        assert torch.equal(own.signbit(), expected.signbit())
    assert found[-1].dtype == torch.float64
    found[0].add_(1)  # a copy: the next one is as it was
    with constants:
        assert int(torch.tensor(1)) == 1


def test_other_arguments_of_a_factory_pass_untouched() -> None:
    with Constants():
        given = torch.ones(2)
        assert torch.as_tensor(given) is given
        assert torch.tensor(1.0, requires_grad=True).requires_grad


def test_a_step_is_run_then_inspected_then_captured() -> None:
    count, backend, python = torch.zeros(()), TapeBackend(), []

    def step() -> None:
        python.append(1)
        count.add_(1.0)

    captured = CapturedStep(step, backend)
    for i in range(1, 8):
        captured.run()
        assert float(count) == i  # every run is a step, the warm-up's and the recorded one too
    assert len(python) == WARM_UP + 1
    assert captured.replays == 7 - WARM_UP
    assert captured.reason is None


def test_a_step_that_reads_is_never_captured() -> None:
    count, backend = torch.zeros(()), TapeBackend()
    captured = CapturedStep(lambda: count.fill_(float(count) + 1.0), backend)
    for i in range(1, 6):
        captured.run()
        assert float(count) == i
    assert captured.reason == "_local_scalar_dense reads numbers back from the device"
    assert backend.captures == captured.replays == 0


def test_a_capture_that_fails_leaves_the_step_as_it_is() -> None:
    class Failing(TapeBackend):
        def capture(self, step: Callable[[], object]) -> Any:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    count = torch.zeros(())
    captured, twin = CapturedStep(lambda: count.add_(1.0), Failing()), EagerTwin(lambda: count.add_(1.0))
    for _ in range(5):
        captured.run()
    twin.run()
    assert float(count) == 6.0
    assert captured.reason == "the capture failed: CUDA error: operation not permitted when stream is capturing"
