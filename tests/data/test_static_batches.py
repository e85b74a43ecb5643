"""StaticBatch: fixed memory, values that follow, and batches that do not fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from avbvi.data.static_batches import StaticBatch


class Pair(NamedTuple):
    x: Tensor
    size: int


MODULE = nn.Linear(1, 1)


def batch(value: float, rows: int = 4, size: int = 100, **more: Any) -> tuple[Any, ...]:
    """Arguments of every kind, all tensors with one value."""
    x = torch.full((rows, 3), value)
    return (x, size, [x.double(), None], {"y": (2.0 * x).long(), "name": "a"}, Pair(x + 1.0, 7), MODULE, *more.values())


def pointers(static: StaticBatch) -> list[int]:
    x, _, (z, _), table, pair, _ = static.arguments
    return [t.data_ptr() for t in (x, z, table["y"], pair.x)]


def test_values_follow_and_memory_stays(device: torch.device) -> None:
    example = batch(0.0)
    static = StaticBatch(example, device)
    before, held = pointers(static), static.arguments
    for value in (1.0, 2.5):
        assert static.fill(batch(value))
        x, size, (z, none), table, pair, module = static.arguments
        assert static.arguments is held
        assert pointers(static) == before
        assert {t.device.type for t in (x, z, table["y"], pair.x)} == {device.type}
        for tensor, expected in ((x, value), (z, value), (table["y"], int(2 * value)), (pair.x, value + 1.0)):
            assert (tensor == expected).all()
        assert (z.dtype, table["y"].dtype) == (torch.float64, torch.int64)
        assert (size, none, table["name"], pair.size) == (100, None, "a", 7)
        assert module is MODULE
    # The example is a copy's source, no buffer.
    assert (example[0] == 0.0).all()


@pytest.mark.parametrize(
    "other",
    [
        batch(1.0, rows=3),
        batch(1.0, size=99),
        batch(1.0, size=100.0),  # type: ignore[arg-type]
        batch(1.0, more=1),
        batch(1.0)[:-1],
        (batch(1.0)[0].double(), *batch(1.0)[1:]),
        (*batch(1.0)[:-1], nn.Linear(1, 1)),
        (*batch(1.0)[:4], (torch.ones(4, 3), 7), MODULE),
        (*batch(1.0)[:3], {"x": torch.ones(4, 3).long(), "name": "a"}, *batch(1.0)[4:]),
    ],
    ids=["rows", "size", "kind of number", "longer", "shorter", "dtype", "module", "kind of tuple", "keys"],
)
def test_what_does_not_fit_changes_nothing(other: tuple[Any, ...]) -> None:
    static = StaticBatch(batch(0.5))
    assert static.fits(batch(1.0))
    assert not static.fits(other)
    assert not static.fill(other)
    x, _, (z, _), table, pair, _ = static.arguments
    assert all((t == e).all() for t, e in ((x, 0.5), (z, 0.5), (table["y"], 1), (pair.x, 1.5)))


def test_strides_of_a_batch_do_not_matter() -> None:
    columns = torch.arange(12.0).reshape(3, 4).mT
    static = StaticBatch((torch.zeros(1, 3).expand(4, 3),))
    assert static.fill((columns,))
    assert torch.equal(static.arguments[0], columns)
    assert static.arguments[0].is_contiguous()
    # The buffers themselves as arguments: nothing to copy.
    assert static.fill(static.arguments)
    assert torch.equal(static.arguments[0], columns)


def test_arguments_can_be_their_own_buffers() -> None:
    x = torch.arange(6.0).reshape(2, 3).mT
    static = StaticBatch((x, [x]), copy=False)
    assert static.arguments[0] is x
    assert static.arguments[1][0] is x
    assert static.fill((x, [x]))
    # Others are still copied there.
    other = torch.ones(3, 2)
    assert static.fill((other, [other]))
    assert (x == 1.0).all()


def test_later_changes_of_a_batch_are_not_seen() -> None:
    (x,) = source = (torch.ones(2, 2),)
    static = StaticBatch((torch.zeros(2, 2),))
    static.fill(source)
    x.zero_()
    assert (static.arguments[0] == 1.0).all()


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"example must be a tuple of the model's arguments, found list"):
        StaticBatch([torch.ones(2)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"dense tensor, found Tensor of dtype torch.float32 and shape \(2, 2\)"):
        StaticBatch((torch.eye(2).to_sparse(),))
    with pytest.raises(ValueError, match="requires a gradient, which a static buffer cuts off"):
        StaticBatch((torch.ones(2, requires_grad=True),))
