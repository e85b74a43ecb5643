"""Recordings: the same values as the function, without what changes nothing, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avbvi.recording.graphs import ModuleGraph, TracingError, record


def operations(graph_module: Any) -> list[str]:
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


def test_recording_gives_the_function_s_values_at_other_points() -> None:
    matrix = torch.randn(3, 3)

    def function(x: Tensor) -> Tensor:
        return (x @ (matrix @ matrix.mT) + torch.zeros_like(x)).square().sum(-1) * torch.ones(len(x))

    graph = record(function, torch.randn(5, 3))
    x = torch.randn(5, 3)
    torch.testing.assert_close(graph(x), function(x), rtol=0, atol=0)
    # The product of constants, the zeros and the ones are gone.
    assert [name.split(".")[1] for name in operations(graph)] == ["mm", "pow", "sum"]


def test_gradient_taken_inside_is_recorded() -> None:
    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(x.sin().sum(), x)
        return gradient

    x = torch.randn(4)
    torch.testing.assert_close(record(score, torch.randn(4))(x), x.cos())


def test_equal_operations_are_merged_but_not_draws() -> None:
    graph = record(lambda x: x.exp() + x.exp() * 2.0, torch.randn(3))
    assert operations(graph).count("aten.exp.default") == 1
    module = nn.Linear(2, 2)
    drawn = ModuleGraph(module, lambda m, x: m(x) + torch.randn(2) - torch.randn(2), (torch.randn(3, 2),))
    x = torch.randn(3, 2)
    torch.manual_seed(1)
    expected = module(x) + torch.randn(2) - torch.randn(2)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn(x), expected.detach())
    assert not torch.equal(drawn(x), drawn(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.rand(3), "draws random numbers"),
        (lambda x: x if bool((x > 0).all()) else -x, "data-dependent"),
        (lambda x: x * float(x.sum()), "get value out of a tracing tensor"),
    ],
)
def test_what_can_t_be_recorded_is_refused(function: Any, message: str) -> None:
    with pytest.raises(TracingError, match=message):
        record(function, torch.ones(3))


def test_loops_written_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avbvi.recording.graphs.MOST_OPERATIONS", 50)

    def loop(x: Tensor) -> Tensor:
        for _ in range(60):
            x = x.sin()
        return x

    with pytest.raises(TracingError, match="60 operations, more than 50"):
        record(loop, torch.ones(2))


def test_checks_of_singular_matrices_are_kept() -> None:
    """Without the check a factor of a matrix that is not positive definite would be taken for one."""
    graph = record(lambda x: torch.linalg.cholesky(x).diagonal().log().sum(), 2.0 * torch.eye(3))
    with pytest.raises(torch.linalg.LinAlgError, match="positive-definite"):
        graph(-torch.eye(3))


def test_changes_in_place_within_the_function_are_kept() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.zeros(3, 2)
        y[:, 0] = x
        y[:, 1] = 2.0 * x
        return y

    x = torch.randn(3)
    torch.testing.assert_close(record(function, torch.randn(3))(x), torch.stack([x, 2.0 * x], 1))


class Counting(nn.Module):
    """A module with a parameter, a running mean and a number that directs it."""

    mean: Tensor
    power: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("power", torch.tensor(2))

    def loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.5)
        return ((x - self.mean) * self.weight ** int(self.power)).square().sum()


def loss_of(module: Counting, x: Tensor) -> Tensor:
    return module.loss(x)


def test_graph_of_a_module_reads_and_changes_its_tensors() -> None:
    own, other = Counting(), Counting()
    graph = ModuleGraph(own, loss_of, (torch.randn(4, 2),), constant={"power"}, with_gradient=["weight"])
    assert torch.equal(own.mean, torch.zeros(2))  # recording moved nothing
    for _ in range(3):
        x = torch.randn(4, 2)
        value, gradient = graph(x)
        expected = other.loss(x)
        (expected_gradient,) = torch.autograd.grad(expected, other.weight)
        torch.testing.assert_close((value, gradient), (expected.detach(), expected_gradient))
        torch.testing.assert_close(own.mean, other.mean)
        with torch.no_grad():
            for module in (own, other):
                module.weight.sub_(0.1)  # an optimiser's step is seen


def test_graph_that_differs_from_its_function_is_refused() -> None:
    calls = []

    def restless(module: nn.Module, x: Tensor) -> Tensor:
        calls.append(None)
        return x * len(calls)

    with pytest.raises(TracingError, match="other values than the function"):
        ModuleGraph(nn.Linear(1, 1), restless, (torch.ones(2),))
