"""The plate over the data and modules under a name."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from models.minibatches import data_plate, flat, register


@pytest.mark.parametrize(("size", "scale"), [(None, 1.0), (3, 1.0), (12, 4.0)])
def test_terms_are_scaled_to_all_data(size: int | None, scale: float) -> None:
    x = torch.randn(3, 2)

    def model() -> None:
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum()
    torch.testing.assert_close(poutine.trace(model).get_trace().log_prob_sum(), scale * expected)


def test_flat_gives_each_datum_a_row() -> None:
    x = torch.arange(12.0).reshape(2, 1, 2, 3)
    assert torch.equal(flat(x), torch.arange(12.0).reshape(2, 6))


def test_a_name_stands_for_one_module() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    register("net", first)
    register("net", first)
    register("other", second)
    assert pyro.get_param_store()["net$$$weight"] is first.weight
    with pytest.raises(ValueError, match="name='net' belongs to another module"):
        register("net", second)
    pyro.clear_param_store()
    register("net", second)


def test_errors() -> None:
    with pytest.raises(ValueError, match="size is the number of all data, at least the 3"):
        data_plate(torch.zeros(3, 2), 2)
    with pytest.raises(TypeError, match="size must be an integer"):
        data_plate(torch.zeros(3, 2), 4.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have shape \(B, "):
        flat(torch.zeros(3))
