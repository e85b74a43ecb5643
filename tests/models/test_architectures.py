"""Architectures: sizes counted by hand, gradients everywhere, and starting weights that keep the variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from avbvi import AdversarialELBO, AVBGuide
from models.architectures import CELEBA, CIFAR10, IMAGENET64, MNIST, Architecture, preserve_variance_
from models.decoders import ConvolutionalDecoder, ResidualBlock
from models.encoders import ConvBody, GaussianEncoder
from models.vaes import VAE, NormalLikelihood

NAMED = {"MNIST": MNIST, "CIFAR10": CIFAR10, "IMAGENET64": IMAGENET64, "CELEBA": CELEBA}


@pytest.fixture(params=NAMED)
def named(request: pytest.FixtureRequest) -> Architecture:
    return NAMED[request.param]


@pytest.fixture
def narrow(named: Architecture) -> Architecture:
    """The same with few feature maps."""
    return replace(named, channels=tuple(c // 32 for c in named.channels), hidden=16)


def images(architecture: Architecture, n: int = 2) -> torch.Tensor:
    return torch.rand(n, architecture.pixels)


def away(network: nn.Module) -> nn.Module:
    """Moved away from layers that start at zero."""
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return network


def check_gradients(network: nn.Module, output: torch.Tensor) -> None:
    output.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


def parts(architecture: Architecture) -> dict[str, Callable[[], tuple[nn.Module, torch.Tensor, tuple[int, ...]]]]:
    """Each network, its output for two made images, and the shape that this must have."""
    x, z, dim = images(architecture), torch.randn(2, architecture.latent_dim), architecture.latent_dim

    def decoder() -> Any:
        network = away(architecture.decoder())
        return network, network(z), (2, architecture.pixels)

    def body() -> Any:
        network = away(architecture.body())
        return network, network(x), (2, architecture.hidden)

    def sampler() -> Any:
        network = architecture.sampler()
        network.build(dim)
        away(network)
        return network, network(network.sample_noise(torch.Size((2,)), like=x), x), (2, dim)

    def joint() -> Any:
        network = architecture.joint_adversary()
        network.build_for(dim, dim, architecture.pixels)
        away(network)
        return network, network(z, x), (2,)

    def data() -> Any:
        network = architecture.data_adversary()
        network.build_for(architecture.pixels, architecture.pixels)
        away(network)
        return network, network(x), (2,)

    return {"decoder": decoder, "body": body, "sampler": sampler, "joint": joint, "data": data}


@pytest.mark.parametrize("part", ["decoder", "body", "sampler", "joint", "data"])
def test_each_network_runs_on_made_images_and_every_parameter_learns(narrow: Architecture, part: str) -> None:
    network, output, shape = parts(narrow)[part]()
    assert output.shape == shape
    assert float(output.detach().std()) > 0.0
    check_gradients(network, output)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["decoder", "body", "sampler", "joint", "data"])
def test_each_network_runs_in_full_size(named: Architecture, part: str) -> None:
    network, output, shape = parts(named)[part]()
    assert output.shape == shape
    check_gradients(network, output)


def dense(n_in: int, n_out: int) -> int:
    return (n_in + 1) * n_out


def conv(n_in: int, n_out: int, side: int) -> int:
    return n_in * n_out * side**2 + n_out


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes_counted_by_hand() -> None:
    small = replace(IMAGENET64, channels=(2, 3, 4, 5))
    # 100-(5, 4, 4), 5 x 5 to 4, 3, 2, 3 maps.
    decoder = small.decoder()
    assert decoder.sides == ((4, 4), (8, 8), (16, 16), (32, 32), (64, 64))
    assert count(decoder) == dense(100, 5 * 16) + sum(conv(a, b, 5) for a, b in [(5, 4), (4, 3), (3, 2), (2, 3)])
    # 28 to 14, 7, 4; 32 to 16, 8, 4.
    body = replace(MNIST, channels=(2, 3, 4)).body()
    assert count(body) == conv(1, 2, 5) + conv(2, 3, 5) + conv(3, 4, 5) + dense(4 * 16, 512)
    small = replace(CIFAR10, channels=(2, 3, 4))
    assert count(small.body(7)) == conv(3, 2, 5) + conv(2, 3, 5) + conv(3, 4, 5) + dense(4 * 16, 7)
    data, joint = small.data_adversary(), small.joint_adversary()
    data.build_for(3072, 3072)
    assert count(data) == conv(3, 2, 3) + conv(2, 3, 3) + conv(3, 4, 3) + dense(4 * 16, 1)
    # The features of z and their squares, 200 numbers, are projected into every scale.
    joint.build_for(100, 100, 3072)
    assert count(joint) == count(data) + 200 * (2 + 3 + 4)


def test_celeba_is_what_the_supplement_tells() -> None:
    assert (CELEBA.latent_dim, CELEBA.image_shape) == (64, (3, 64, 64))
    small = replace(CELEBA, channels=(2, 3, 4, 5))
    decoder, sampler, adversary = small.decoder(), small.sampler(), small.joint_adversary(log_prior=True)
    sampler.build(64)
    adversary.build_for(64, 64, CELEBA.pixels)
    assert sum(isinstance(m, ResidualBlock) for m in decoder.modules()) == 12  # three at each of four scales
    assert [len(scale.first) for scale in sampler.network.scales] == [3, 3, 3, 3]
    assert [len(scale.first) for scale in adversary.network.scales] == [0, 0, 0, 0]
    assert adversary.uses_log_prior
    assert not MNIST.joint_adversary().uses_log_prior


def test_nothing_normalises_over_a_batch(narrow: Architecture) -> None:
    x, z = images(narrow, 5), torch.randn(5, narrow.latent_dim)
    for network, rows in ((away(narrow.decoder()), z), (away(narrow.body()), x)):
        together = network(rows)
        torch.testing.assert_close(together, torch.cat([network(row[None]) for row in rows]))


def test_dropout_and_blocks_go_where_they_should() -> None:
    small = replace(MNIST, channels=(3, 4, 5), hidden=6, blocks=1, dropout=0.25)
    joint, data = small.joint_adversary(), small.data_adversary()
    joint.build_for(32, 32, 784)
    data.build_for(784, 784)
    for network in (small.decoder(), small.body(), joint, data):
        rates = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
        assert rates
        assert set(rates) == {0.25}
    assert small.decoder().blocks == small.body().blocks == small.sampler().blocks == 1
    assert joint.blocks == data.blocks == 0
    assert not [m for m in MNIST.body().modules() if isinstance(m, nn.Dropout)]


def test_the_parts_train_together(narrow: Architecture) -> None:
    # One step each of a Gaussian encoder and of AVB: shapes and ranges of the whole chain fit.
    x = images(narrow, 4)
    likelihood = NormalLikelihood(0.1)
    vae = VAE(narrow.decoder(), narrow.latent_dim, likelihood)
    encoder = GaussianEncoder(narrow.body(), narrow.latent_dim)
    adam = pyro.optim.Adam({"lr": 1e-3})
    svi = SVI(vae.model, encoder.guide, adam, loss=Trace_ELBO(max_plate_nesting=1))
    losses = [svi.step(x) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[2] < losses[0]
    pyro.clear_param_store()
    vae = VAE(narrow.decoder(), narrow.latent_dim, likelihood)
    guide = AVBGuide(vae.model, sampler=narrow.sampler(), adversary=narrow.joint_adversary(log_prior=False))
    elbo = AdversarialELBO(adversary_batch=1, adversary_steps=1)
    loss = SVI(vae.model, guide, elbo.optimizer(lr=1e-3), loss=elbo).step(x)
    assert math.isfinite(loss)


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    network = make()
    preserve_variance_(network)
    return network


@pytest.mark.parametrize(
    ("make", "shape", "inner"),
    [
        (lambda: nn.Linear(30, 20), (30,), ()),
        (lambda: nn.Conv2d(8, 6, 3, padding=1), (8, 10, 10), (slice(1, -1),) * 2),
        (lambda: nn.Conv2d(8, 6, 5, stride=2, padding=2, groups=2), (8, 12, 12), (slice(1, -1),) * 2),
        (lambda: nn.ConvTranspose2d(6, 8, 5, stride=2, padding=2, output_padding=1), (6, 8, 8), (slice(4, -4),) * 2),
        (lambda: nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1), (6, 8, 8), (slice(4, -4),) * 2),
        (lambda: nn.ConvTranspose2d(6, 8, 3, stride=1, padding=1, groups=2), (6, 8, 8), (slice(2, -2),) * 2),
    ],
    ids=["linear", "convolution", "strided, grouped", "transposed 5", "transposed 4", "transposed, grouped"],
)
def test_a_linear_layer_keeps_the_variance(
    make: Callable[[], nn.Module], shape: tuple[int, ...], inner: tuple[slice, ...]
) -> None:
    # Away from the border, on average over weights and inputs of variance 1. Over an even number of pixels: the part of
    # a kernel that reaches them alternates with the stride.
    n, squares = 400, []
    for _ in range(n):
        with torch.no_grad():
            out = fresh(make)(torch.randn(2, *shape))
        squares.append(float(out[(slice(None), slice(None), *inner)].square().mean()))
    values = torch.tensor(squares).double()
    error = float(values.std()) / math.sqrt(n)
    assert error < 0.02
    assert abs(float(values.mean()) - 1.0) < 4.5 * error


def test_zero_layers_stay_and_biases_vanish() -> None:
    block = ResidualBlock(3)
    preserve_variance_(block)
    h = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(h), h)
    layer = fresh(lambda: nn.Linear(3, 4))
    assert not bool(layer.bias.any())
    assert fresh(lambda: nn.Linear(3, 4, bias=False)).bias is None
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module"):
        preserve_variance_(torch.zeros(3))  # type: ignore[arg-type]


def test_signals_arrive_at_the_far_end() -> None:
    # What batch normalisation is for: the output of an untrained network depends on its input at all depths.
    small = replace(IMAGENET64, channels=(16, 32, 64, 128))
    z, x = torch.randn(16, small.latent_dim), images(small, 16)
    with torch.no_grad():
        assert 0.2 < float(small.decoder()(z).std(0).mean()) < 0.6
        assert 0.08 < float(small.body()(x).std(0).mean()) < 0.3
        plain = ConvolutionalDecoder(small.latent_dim, small.image_shape, small.channels[::-1])
        body = ConvBody(small.image_shape, small.channels, small.hidden)
        assert float(plain(z).std(0).mean()) < 0.05
        assert float(body(x).std(0).mean()) < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (28, 28)}, r"image_shape must be channels, height and width.*found \(28, 28\)"),
        ({"image_shape": (1, 0, 28)}, r"image_shape\[1\] must be at least 1, found 0"),
        ({"latent_dim": 0}, "latent_dim must be positive, found 0"),
        ({"channels": ()}, "channels must have at least one entry"),
        ({"channels": 64}, "channels must be a tuple of numbers of feature maps"),
        ({"hidden": -1}, "hidden must be positive, found -1"),
        ({"blocks": -1}, "blocks must be at least 0, found -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), found 1\.0"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        replace(MNIST, **changes)
    with pytest.raises(ValueError, match="width must be positive, found 0"):
        MNIST.body(0)
