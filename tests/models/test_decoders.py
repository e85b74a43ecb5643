"""Decoders against hand-computed sizes, a formula written out, and the convolutions that they mirror."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoders import (
    ConvolutionalDecoder,
    Decoder,
    FullyConnectedDecoder,
    ResidualBlock,
    dcgan,
    residual,
    shallow_convolutional,
)

SMALL = {
    "fully connected": lambda: FullyConnectedDecoder(3, (1, 8, 8), hidden=(20, 10)),
    "linear": lambda: FullyConnectedDecoder(3, (1, 8, 8), hidden=()),
    "shallow": lambda: shallow_convolutional(3, hidden=20),
    "dcgan": lambda: dcgan(3, width=2),
    "residual": lambda: residual(3, (3, 32, 32), width=2, blocks=2),
    "odd sides": lambda: ConvolutionalDecoder(3, (2, 5, 9), (4, 3), kernel_size=3),
}


@pytest.fixture(params=SMALL)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    """A small decoder in double precision whose parameters are all away from zero."""
    torch.set_default_dtype(torch.float64)
    result: Decoder = SMALL[request.param]()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return result


def test_leading_dimensions_are_loops(decoder: Decoder) -> None:
    z = torch.randn(2, 3, 4, 3)
    together = decoder(z)
    assert together.shape == (2, 3, 4, decoder.pixels)
    alone = torch.stack([torch.stack([torch.stack([decoder(row) for row in b]) for b in a]) for a in z])
    assert alone.shape == together.shape
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    # An expanded z, as particles of a plate are, is no other case.
    expanded = z[0, 0].expand(5, 4, 3)
    torch.testing.assert_close(decoder(expanded), together[0, 0].expand(5, -1, -1), rtol=1e-10, atol=1e-12)
    pictures = decoder.as_images(together)
    assert pictures.shape == (2, 3, 4, *decoder.image_shape)
    assert torch.equal(pictures.flatten(-3), together)


def test_gradients_reach_all_parameters_and_z(decoder: Decoder) -> None:
    z = torch.randn(16, 3, requires_grad=True)
    weights = torch.randn(16, decoder.pixels)
    (decoder(z) * weights).sum().backward()
    for name, parameter in [("z", z), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0.0).all()), name


def test_gradient_in_z_is_right(decoder: Decoder) -> None:
    assert torch.autograd.gradcheck(decoder, (torch.randn(2, 3, requires_grad=True),), fast_mode=True)


def test_fully_connected_layers_written_out() -> None:
    torch.set_default_dtype(torch.float64)
    decoder = FullyConnectedDecoder(4)
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight, m.bias) for m in decoder.modules() if isinstance(m, nn.Linear))

    def elu(h: Tensor) -> Tensor:
        return torch.where(h > 0.0, h, h.clamp(max=0.0).exp() - 1.0)

    z = 3.0 * torch.randn(7, 4)
    expected = elu(elu(z @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
    torch.testing.assert_close(decoder(z), expected)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def dense(n_in: int, n_out: int) -> int:
    return (n_in + 1) * n_out


def conv(n_in: int, n_out: int, side: int) -> int:
    return n_in * n_out * side**2 + n_out


PARAMETERS = [
    # Table 3a: 32-300-300-784.
    (lambda: FullyConnectedDecoder(32), dense(32, 300) + dense(300, 300) + dense(300, 784), 336_184),
    # Table 3c: 32-800-(32, 4, 4), 5 x 5 to 32, 16, 1.
    (
        lambda: shallow_convolutional(32),
        dense(32, 800) + dense(800, 32 * 4 * 4) + conv(32, 32, 5) + conv(32, 16, 5) + conv(16, 1, 5),
        475_361,
    ),
    # Table 2: 32-(512, 2, 2), 5 x 5 to 256, 128, 64, 1: five layers.
    (
        lambda: dcgan(32),
        dense(32, 512 * 2 * 2) + conv(512, 256, 5) + conv(256, 128, 5) + conv(128, 64, 5) + conv(64, 1, 5),
        4_370_433,
    ),
    # celebA: 64-(512, 4, 4), the same to 3 channels, three blocks of two 3 x 3 convolutions at each scale.
    (
        lambda: residual(),
        dense(64, 512 * 4 * 4)
        + conv(512, 256, 5)
        + conv(256, 128, 5)
        + conv(128, 64, 5)
        + conv(64, 3, 5)
        + 6 * sum(conv(c, c, 3) for c in (512, 256, 128, 64)),
        23_644_931,
    ),
]


@pytest.mark.parametrize(("make", "by_layers", "total"), PARAMETERS, ids=["3a", "3c", "2", "celebA"])
def test_number_of_parameters(make: Any, by_layers: int, total: int) -> None:
    assert by_layers == total
    with torch.device("meta"):  # no memory is filled
        decoder = make()
    assert count(decoder) == total


def layers(decoder: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(module, kinds) for module in decoder.modules())


def test_facts_of_the_paper() -> None:
    assert FullyConnectedDecoder(32).hidden == (300, 300)
    with torch.device("meta"):
        shallow, deep, coloured = shallow_convolutional(32), dcgan(32), residual()
    assert shallow.hidden == (800,)
    assert shallow.sides == ((4, 4), (7, 7), (14, 14), (28, 28))
    assert layers(deep, nn.Linear, nn.ConvTranspose2d) == 5
    assert deep.sides == ((2, 2), (4, 4), (7, 7), (14, 14), (28, 28))
    assert coloured.latent_dim == 64
    assert coloured.image_shape == (3, 64, 64)
    assert coloured.sides == ((4, 4), (8, 8), (16, 16), (32, 32), (64, 64))
    assert layers(coloured, ResidualBlock) == 12  # three at each of four scales
    for decoder in (shallow, deep, coloured):
        assert not layers(decoder, nn.modules.batchnorm._BatchNorm, nn.Dropout)


@pytest.mark.parametrize(("shape", "kernel"), [((1, 28, 28), 5), ((3, 64, 64), 5), ((2, 5, 9), 3), ((1, 8, 8), 7)])
def test_upsampling_is_the_adjoint_of_convolutions_with_stride_two(shape: tuple[int, int, int], kernel: int) -> None:
    torch.set_default_dtype(torch.float64)
    decoder = ConvolutionalDecoder(2, shape, (4, 3, 2), kernel_size=kernel, activation=nn.Identity)
    transposed = [m for m in decoder.upsample if isinstance(m, nn.ConvTranspose2d)]
    assert len(transposed) == 3
    picture = torch.randn(1, *shape)
    small = picture
    with torch.no_grad():
        for layer in reversed(transposed):
            layer.bias.zero_()
            small = F.conv2d(small, layer.weight, stride=2, padding=kernel // 2)
        maps = torch.randn_like(small)
        assert small.shape[1:] == (4, *decoder.sides[0])
        torch.testing.assert_close((decoder.upsample(maps) * picture).sum(), (maps * small).sum())


def test_residual_blocks_start_as_the_identity() -> None:
    with_blocks = residual(5, (3, 16, 16), width=2)
    without = dcgan(5, (3, 16, 16), width=2)
    trained = {name for name, _ in with_blocks.named_parameters() if ".change." not in name}
    values = [value for name, value in with_blocks.state_dict().items() if name in trained]
    without.load_state_dict(dict(zip(without.state_dict(), values, strict=True)))
    z = torch.randn(4, 5)
    assert torch.equal(with_blocks(z), without(z))
    block = ResidualBlock(3)
    h = torch.randn(2, 3, 6, 6)
    assert torch.equal(block(h), h)
    block.change[-1].weight.data.normal_()
    first, last = block.change[1], block.change[3]
    torch.testing.assert_close(block(h), h + last(F.elu(first(F.elu(h)))))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: FullyConnectedDecoder(3, (1, 4, 4), hidden=(9,), dropout=p),
        lambda p: ConvolutionalDecoder(3, (2, 4, 4), (5,), dropout=p),
    ],
    ids=["fully connected", "convolutional"],
)
def test_dropout_leaves_units_out_in_training_alone(make: Any) -> None:
    torch.set_default_dtype(torch.float64)
    plain, dropping, n = make(0.0), make(0.3), 10_000
    dropping.load_state_dict(plain.state_dict())  # the names are the same
    z = torch.randn(3)
    with torch.no_grad():
        draws, expected = dropping(z.expand(n, 3)), plain(z)
        assert torch.equal(dropping.eval()(z), expected)
    # With one hidden layer the output is linear in the units: the mean over masks is the output of all of them.
    assert bool(((draws.mean(0) - expected).abs() < 4.5 * draws.std(0) / math.sqrt(n)).all())
    assert float(draws.std(0).min()) > 1e-3


def test_dropout_is_behind_every_hidden_activation_and_inside_blocks() -> None:
    decoder = ConvolutionalDecoder(3, (2, 8, 8), (5, 4), hidden=(6, 7), blocks=2, dropout=0.3)
    # Two dense layers, two scales, two blocks in each.
    assert [m.p for m in decoder.modules() if isinstance(m, nn.Dropout)] == [0.3] * 8
    assert layers(FullyConnectedDecoder(3, hidden=(6, 7), dropout=0.3), nn.Dropout) == 2
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), found 1"):
        FullyConnectedDecoder(3, dropout=1)


def test_device_and_dtype_follow_the_parameters(device: torch.device) -> None:
    for make in SMALL.values():
        decoder = make().to(device, torch.float64)
        out = decoder(torch.randn(2, 3, device=device, dtype=torch.float64))
        assert out.dtype == torch.float64
        assert out.device.type == device.type


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"z must have shape \(\*batch, 3\), found \(2, 4\)"):
        FullyConnectedDecoder(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"z must have shape \(\*batch, 1\), found \(\)"):
        FullyConnectedDecoder(1)(torch.zeros(()))
    with pytest.raises(ValueError, match="latent_dim must be positive, found 0"):
        FullyConnectedDecoder(0)
    with pytest.raises(ValueError, match=r"image_shape must be \(channels, height, width\).*found \(28, 28\)"):
        FullyConnectedDecoder(2, (28, 28))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"image_shape must be a tuple.*found int 784"):
        FullyConnectedDecoder(2, 784)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"hidden must be a tuple of widths.*found int 300"):
        FullyConnectedDecoder(2, hidden=300)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="activation must be callable, found str 'elu'"):
        FullyConnectedDecoder(2, activation="elu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must have at least one entry"):
        ConvolutionalDecoder(2, (1, 8, 8), ())
    with pytest.raises(ValueError, match=r"channels\[1\] must be at least 1, found 0"):
        ConvolutionalDecoder(2, (1, 8, 8), (2, 0))
    with pytest.raises(ValueError, match="kernel_size must be odd, so that maps stay centred, found 4"):
        ConvolutionalDecoder(2, (1, 8, 8), (2,), kernel_size=4)
    with pytest.raises(ValueError, match="blocks must be at least 0, found -1"):
        residual(blocks=-1)
    with pytest.raises(ValueError, match="width must be positive, found 0"):
        dcgan(2, width=0)
    with pytest.raises(TypeError, match=r"hidden must be an integer, found float 1\.5"):
        shallow_convolutional(2, hidden=1.5)  # type: ignore[arg-type]
