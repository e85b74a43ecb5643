"""TensorLoader: the batches of a DataLoader over a TensorDataset, on the tensors' device, from any place on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from avbvi.data.tensor_loader import TensorLoader

N = 23
X = torch.arange(2.0 * N).reshape(N, 2)
Y = torch.arange(N)


def passes(loader: DataLoader[Any], n: int = 1) -> list[list[Any]]:
    return [list(loader) for _ in range(n)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_in_order_it_gives_what_a_loader_of_a_tensor_data_set_gives(drop_last: bool) -> None:
    loader = TensorLoader(X, Y, batch_size=5, shuffle=False, drop_last=drop_last)
    other = DataLoader(TensorDataset(X, Y), batch_size=5, drop_last=drop_last)
    assert len(loader) == len(other) == 5 - drop_last
    for batch, expected in zip(loader, other, strict=True):
        assert isinstance(batch, tuple)
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_every_pass_has_every_datum_once_in_another_order(device: torch.device) -> None:
    loader = TensorLoader(X, Y, batch_size=5).to(device)
    orders = []
    for batches in passes(loader, 2):
        assert all(t.device.type == device.type for batch in batches for t in batch)
        x, y = (torch.cat(columns).cpu() for columns in zip(*batches, strict=True))
        assert torch.equal(x, X[y])
        assert torch.equal(y.sort().values, Y)
        orders.append(y)
    assert not torch.equal(*orders)


def test_the_device_does_not_change_the_order(device: torch.device) -> None:
    torch.manual_seed(1)
    here = [y for (y,) in TensorLoader(Y, batch_size=5)]
    torch.manual_seed(1)
    there = [y.cpu() for (y,) in TensorLoader(Y, batch_size=5).to(device)]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("skipped", [0, 2, 5])
def test_a_pass_can_begin_anywhere(skipped: int) -> None:
    generator = torch.Generator().manual_seed(2)
    loader = TensorLoader(Y, batch_size=5, generator=generator)
    state = generator.get_state()
    whole, following = passes(loader, 2)
    generator.set_state(state)
    loader.skip(skipped)
    for expected in (whole[skipped:], following):
        found = list(loader)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for (a,), (b,) in zip(found, expected, strict=True))


def test_a_moved_loader_keeps_its_settings() -> None:
    generator = torch.Generator()
    loader = TensorLoader(X, batch_size=4, shuffle=False, drop_last=True, generator=generator).to("meta")
    assert (loader.batch_size, loader.shuffle, loader.drop_last) == (4, False, True)
    assert loader.generator is generator
    assert loader.tensors[0].device.type == "meta"


def test_refusals() -> None:
    with pytest.raises(TypeError, match="at least one tensor"):
        TensorLoader(batch_size=3)
    with pytest.raises(TypeError, match=r"tensors must be torch.Tensors, found list"):
        TensorLoader([1.0], batch_size=3)  # type: ignore[arg-type]
    for wrong in (torch.tensor(1.0), X[:0]):
        with pytest.raises(ValueError, match=r"shape \(N, \*shape of a datum\), found Tensor of dtype"):
            TensorLoader(wrong, batch_size=3)
    with pytest.raises(ValueError, match=r"the same rows, found \[23, 22\]"):
        TensorLoader(X, Y[1:], batch_size=3)
    with pytest.raises(ValueError, match=r"the same device, found \['cpu', 'meta'\]"):
        TensorLoader(X, Y.to("meta"), batch_size=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        TensorLoader(X, batch_size=0)
    with pytest.raises(ValueError, match="batch_size=24 with drop_last=True leaves no batch of 23 data"):
        TensorLoader(X, batch_size=24, drop_last=True)
    with pytest.raises(TypeError, match="shuffle must be True or False, found int 1"):
        TensorLoader(X, batch_size=3, shuffle=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches must be at least 0, found -1"):
        TensorLoader(X, batch_size=3).skip(-1)
