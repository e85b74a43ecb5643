"""Convolutional parts: their formula by hand, and that the vector enters every layer.

What every sampler and adversary must do is tested of these in test_samplers.py and test_adversaries.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from avbvi.amortised.convolutional import ConvolutionalSampler, ImageAdversary, InjectedConvolutions
from avbvi.objectives import KullbackLeibler
from avbvi.parts import rebuild

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
        shifts = [vector @ projection.weight.mT for projection in scale.projections]
        shifts = shifts or [torch.zeros(1, 1)] * (1 + len(scale.first))
        h = h + shifts[0][:, :, None, None]
        for first, second, shift in zip(scale.first, scale.second, shifts[1:], strict=True):
            inner = first(nn.functional.silu(h)) + shift[:, :, None, None]
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


def image_adversary(blocks: int = 1) -> ImageAdversary:
    """Built for small images and moved away from its start."""
    adversary = ImageAdversary((2, 5, 7), channels=(3, 4), blocks=blocks)
    adversary.build_for(70, 70)
    with torch.no_grad():
        for p in adversary.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return adversary


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_adversary_of_images_computes_its_formula(blocks: int) -> None:
    adversary, images = image_adversary(blocks), torch.randn(6, BATCH, 70)
    t = adversary(images)
    assert t.shape == (6, BATCH)
    for s, b in ((0, 0), (5, 1), (3, 2)):
        expected = by_hand(adversary.network, torch.zeros(1, 0), images[s, b].reshape(1, 2, 5, 7))
        torch.testing.assert_close(t[s, b].reshape(1, 1), expected)
    assert not [n for n, _ in adversary.named_parameters() if "projection" in n]


def test_the_adversary_of_images_is_differentiable_in_them_and_its_parameters() -> None:
    adversary, images = image_adversary(), torch.randn(BATCH, 70, requires_grad=True)
    assert torch.autograd.gradcheck(adversary, (images,))
    adversary(images).square().sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0.0).all())
    assert [n for n, p in adversary.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def test_the_adversary_of_images_starts_at_zero_and_is_made_again() -> None:
    adversary = ImageAdversary((1, 4, 4), channels=(3,), slope=0.2, dropout=0.1, objective=KullbackLeibler())
    adversary.build_for(16, 16)
    images = torch.randn(BATCH, 16)
    assert not bool(adversary(images).any())
    again = rebuild(adversary.configuration())
    assert again.configuration() == adversary.configuration()
    assert isinstance(again, ImageAdversary)
    assert isinstance(again.objective, KullbackLeibler)
    with pytest.raises(ValueError, match=r"image_shape=\(1, 4, 4\) has 16 pixels, but the features 17 numbers"):
        ImageAdversary((1, 4, 4)).build_for(17, 17)
    with pytest.raises(ValueError, match=r"ImageAdversary\(\) sees no context"):
        ImageAdversary((1, 4, 4)).build_for(16, 16, 16)


def test_the_adversary_of_images_tells_the_log_ratio_of_two_laws() -> None:
    # Data N(m, I) against N(0, I) on 2 x 2 images: T* = m . x - |m|^2 / 2.
    mean, n, steps = torch.tensor([0.8, -0.5, 0.3, -0.2]), 256, 300
    adversary = ImageAdversary((1, 2, 2), channels=(32,))
    adversary.build_for(4, 4)
    optimiser = torch.optim.Adam(adversary.parameters(), lr=1e-2, betas=(0.5, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = adversary.objective.loss(adversary(mean + torch.randn(n, 4)), adversary(torch.randn(n, 4)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x = mean + torch.randn(2000, 4)
    expected = x @ mean - 0.5 * mean.square().sum()
    with torch.no_grad():
        error = adversary(x) - expected
    assert float(expected.std()) > 0.9
    assert float(error.abs().mean()) < 0.15
