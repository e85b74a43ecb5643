"""Constants that follow the points."""

from __future__ import annotations

import torch

from models.constants import Constant


def test_one_copy_per_device_and_dtype(device: torch.device) -> None:
    value = torch.tensor([1.0, 1.0 / 3.0], dtype=torch.float64)
    constant = Constant(value)
    for dtype in (torch.float32, torch.float64):
        other = torch.zeros(3, dtype=dtype, device=device)
        copy = constant.like(other)
        assert (copy.dtype, copy.device.type) == (dtype, device.type)
        assert torch.equal(copy.cpu(), value.to(dtype))
        assert constant.like(other + 1.0) is copy
