"""Counts of a step's work against counts by hand, and the arithmetic of the bound."""

import time

import pytest
import torch
from torch import nn

from benchmarks import step_bounds
from benchmarks.step_bounds import Work, bandwidth, best_seconds, bound, product_rate, product_seconds, work_of

CPU = torch.device("cpu")


def test_work_of_a_linear_layer_forward_and_backward() -> None:
    layer = nn.Linear(3, 5)
    x = torch.randn(7, 3)

    def step() -> None:
        layer(x).sum().backward()
        layer.zero_grad()

    step()
    work = work_of(step)
    # Forward 7 x 3 by 3 x 5, and the weight's gradient 5 x 7 by 7 x 3; the input needs none.
    assert work.flops == 2 * 7 * 3 * 5 * 2
    assert sum(work.products.values()) == 2
    assert work.products[(7, 3), (3, 5)] == 1
    assert work.products[(5, 7), (7, 3)] == 1


def test_bytes_and_kernels_of_elementwise_calls() -> None:
    a, b = torch.randn(10, 20), torch.randn(10, 20)
    work = work_of(lambda: (a + b).t().exp_())
    # The addition reads two and writes one, the exponential reads and writes the same one; a transpose moves nothing.
    assert work.kernels == 2
    assert work.bytes == work.other_bytes == 4 * 200 * (3 + 1)
    assert work.flops == 0


def test_an_expanded_tensor_is_read_once() -> None:
    a, b = torch.randn(1, 20).expand(10, 20), torch.randn(10, 20)
    assert work_of(lambda: a + b).bytes == 4 * (20 + 200 + 200)


def test_bytes_of_products_are_apart() -> None:
    a, b = torch.randn(4, 6), torch.randn(6, 8)
    work = work_of(lambda: (a @ b).neg())
    assert work.other_bytes == 4 * 2 * 32
    assert work.bytes == work.other_bytes + 4 * (24 + 48 + 32)


def test_work_of_several_steps_in_one_call() -> None:
    a, b = torch.randn(4, 6), torch.randn(6, 8)
    one = work_of(lambda: a @ b)
    assert work_of(lambda: [a @ b for _ in range(5)], 5) == one
    with pytest.raises(ValueError, match="count must be positive"):
        work_of(lambda: None, 0)


def test_a_batch_of_products() -> None:
    a, b = torch.randn(3, 4, 6), torch.randn(3, 6, 8)
    work = work_of(lambda: torch.baddbmm(torch.zeros(3, 4, 8), a, b))
    assert work.flops == 2 * 3 * 4 * 6 * 8
    assert work.products[(3, 4, 6), (3, 6, 8)] == 1


def test_bound_is_products_and_bytes_at_their_rates() -> None:
    found = bound(Work(flops=400, bytes=700, other_bytes=300), product_seconds=5.0, product_rate=100.0, bandwidth=50.0)
    assert found.seconds == 5.0 + 300 / 50.0
    assert found.seconds_large == 400 / 100.0 + 700 / 50.0


def test_rates_from_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_bounds, "best_seconds", lambda call, device: 0.5)
    assert product_rate(CPU, 16) == 2 * 16**3 / 0.5
    assert bandwidth(CPU, 4000) == 2 * 4000 / 0.5
    work = Work()
    work.products[(2, 3), (3, 4)] = 5
    work.products[(6, 2, 3), (6, 3, 4)] = 2
    assert product_seconds(work, CPU) == 7 * 0.5


def test_seconds_of_a_call_that_takes_known_time() -> None:
    found = best_seconds(lambda: time.sleep(2e-3), CPU, repeats=3)
    assert 2e-3 <= found < 20e-3
