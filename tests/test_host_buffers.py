"""Counters and flags that stay on the host when their module is moved."""

from __future__ import annotations

import copy

import torch
from torch import nn

from avbvi import AVBGuide, LogDensity
from avbvi.host_buffers import HostBuffers


class Counting(HostBuffers, nn.Module):
    ON_HOST = ("count", "share")

    def __init__(self) -> None:
        super().__init__()
        self.register_on_host(count=3, share=0.1)
        self.register_buffer("moment", torch.ones(2))


def test_they_keep_device_and_dtype_where_others_move() -> None:
    with torch.device("meta"):
        module = Counting()
    assert module.count.device.type == "cpu"
    module = Counting().to(device="meta", dtype=torch.float16)
    assert (module.moment.device.type, module.moment.dtype) == ("meta", torch.float16)
    assert int(module.count) == 3
    assert float(module.share) == 0.1  # not float16's nearest
    assert list(module.state_dict()) == ["count", "share", "moment"]


def test_they_are_copied_and_loaded_like_others() -> None:
    module, other = Counting(), Counting()
    module.count += 2
    clone = copy.deepcopy(module)
    module.count += 1
    other.load_state_dict(module.state_dict())
    assert [int(m.count) for m in (module, clone, other)] == [6, 5, 6]


def test_all_that_directs_a_guide_stays() -> None:
    """What is left behind by a move is read by the host alone; everything else must go."""
    guide = AVBGuide(LogDensity(lambda z: -0.5 * z.square().sum(-1), (2,))).setup()
    guide.to("meta")
    stay = {name for name, buffer in guide.named_buffers() if buffer.device.type == "cpu"}
    assert stay == {*AVBGuide.ON_HOST, "trunk.active"}
    assert all(p.device.type == "meta" for p in guide.parameters())
