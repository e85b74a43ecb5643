"""Convolutional parts: their formula by hand, and that the vector enters every layer.

What every sampler and adversary must do is tested of these in test_samplers.py and test_adversaries.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from avbvi.amortised.convolutional import ConvolutionalSampler, InjectedConvolutions

BATCH = 4


@pytest.fixture(autouse=True)
def _double(_same_start: None) -> None:
    torch.set_default_dtype(torch.float64)


def by_hand(net: InjectedConvolutions, vector: Tensor, image: Tensor) -> Tensor:
    """The output for one vector (1, dim) and image (1, channels, height, width)."""
    h = image
    for i, scale in enumerate(net.scales):
        h = nn.functional.conv2d(
            nn.functional.silu(h) if i else h, scale.enter.weight, scale.enter.bias, stride=2, padding=1
        )
        h = h + (vector @ scale.projections[0].weight.mT)[:, :, None, None]
        for first, second, projection in zip(scale.first, scale.second, scale.projections[1:], strict=True):
            inner = first(nn.functional.silu(h)) + (vector @ projection.weight.mT)[:, :, None, None]
            h = h + second(nn.functional.silu(inner))
    return nn.functional.silu(h).flatten(1) @ net.leave.weight.mT + net.leave.bias


@pytest.mark.parametrize("blocks", [0, 2])
def test_injected_convolutions_compute_their_formula(blocks: int) -> None:
    net = InjectedConvolutions((2, 5, 7), (3, 4), blocks, 2, 3, None)
    vector, images = torch.randn(6, BATCH, 2), torch.randn(BATCH, 2, 5, 7)
    out = net(vector, images.flatten(1))
    assert out.shape == (6, BATCH, 3)
    for s, b in ((0, 0), (0, 3), (5, 1), (3, 2)):
        torch.testing.assert_close(out[s, b], by_hand(net, vector[s, b][None], images[b][None])[0])


def test_the_vector_enters_every_layer_of_the_convolutions() -> None:
    net = InjectedConvolutions((1, 5, 7), (3, 4), 1, 2, 2, None)
    vector, image = torch.randn(6, BATCH, 2), torch.randn(BATCH, 35)
    before = net(vector, image).detach()
    projections = [p for scale in net.scales for p in scale.projections]
    assert len(projections) == 4
    for projection in projections:
        weight = projection.weight.detach().clone()
        with torch.no_grad():
            projection.weight.zero_()
        assert float((net(vector, image).detach() - before).abs().max()) > 1e-6
        with torch.no_grad():
            projection.weight.copy_(weight)
    with torch.no_grad():
        for projection in projections:
            projection.weight.zero_()
    # Without projections only the image is left.
    torch.testing.assert_close(net(vector, image), net(torch.zeros(6, BATCH, 2), image))


def test_the_sampler_computes_its_formula() -> None:
    sampler = ConvolutionalSampler((1, 5, 7), channels=(3,), start_scale=0.3, smoothing=0.6)
    sampler.build(2)
    noise, image = torch.randn(6, BATCH, 10), torch.randn(BATCH, 35)
    with torch.no_grad():
        sampler.network.leave.weight.mul_(20.0)  # the bound of the scale is exercised
        out = sampler.network(noise[..., :8], image)
        scale = 0.18 * (2.0 * torch.tanh(0.5 * out[..., 2:])).exp()
        expected = noise[..., :8] @ sampler.linear.weight.mT + out[..., :2] + scale * noise[..., 8:]
        torch.testing.assert_close(sampler(noise, image), expected)
        weight = sampler.linear.weight
    assert float(scale.max() / scale.min()) > 4.0
    assert float(scale.max()) <= 0.18 * math.exp(2.0)
    torch.testing.assert_close(weight @ weight.mT, 0.09 * (1.0 - 0.36) * torch.eye(2))
