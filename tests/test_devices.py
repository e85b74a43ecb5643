"""Moving arguments: every kind of container keeps its kind."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avbvi.devices import moved


class Pair(NamedTuple):
    x: Tensor
    size: int


def test_tensors_in_containers_are_moved() -> None:
    x = torch.ones(2)
    value = moved((Pair(x, 3), [x], {"x": (x, None)}), "meta")
    pair, (listed,), table = value
    assert isinstance(pair, Pair)
    assert pair.size == 3
    assert table["x"][1] is None
    assert all(t.device.type == "meta" for t in (pair.x, listed, table["x"][0]))
    assert x.device.type == "cpu"
