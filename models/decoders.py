"""Decoders: networks from a latent vector to the pixels of a picture, as log odds or means.

`FullyConnectedDecoder` and `ConvolutionalDecoder` cover the decoders of Mescheder, Nowozin and Geiger (2017);
`shallow_convolutional`, `dcgan` and `residual` make those of the second kind by name. Whether the output is read as
log odds or as means is the likelihood's affair. No decoder normalises over a batch: the likelihood of one picture must
not depend on the others. Activations are smooth, for the sake of Hamiltonian Monte Carlo over z.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor, nn

from avbvi.arguments import function, integer, integers, positive_integer, share
from avbvi.parts import with_dropout, zero_

__all__ = [
    "ConvolutionalDecoder",
    "Decoder",
    "FullyConnectedDecoder",
    "ResidualBlock",
    "dcgan",
    "residual",
    "shallow_convolutional",
]

Activation = Callable[[], nn.Module]
Shape = tuple[int, int, int]

_MNIST: Shape = (1, 28, 28)


class Decoder(nn.Module):
    """Base class: leading dimensions of z, such as particles, chains and plates, are handled here.

    Subclasses define `decode`.

    Args:
        latent_dim: width of z.
        image_shape: (channels, height, width) of a picture.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is not positive, or the shape has not three of them.
    """

    def __init__(self, latent_dim: int, image_shape: Shape) -> None:
        super().__init__()
        self.latent_dim = positive_integer("latent_dim", latent_dim)
        shape = integers("image_shape", image_shape, "channels, height and width")
        if len(shape) != 3:
            raise ValueError(f"image_shape must be (channels, height, width), such as (1, 28, 28), found {image_shape}")
        self.image_shape: Shape = (shape[0], shape[1], shape[2])

    @property
    def pixels(self) -> int:
        """Numbers in a picture: channels * height * width."""
        return math.prod(self.image_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (*batch, latent_dim) to pixels (*batch, pixels).

        Raises:
            ValueError: z has another width.
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"z must have shape (*batch, {self.latent_dim}), found {tuple(z.shape)}")
        rows = self.decode(z.reshape(-1, self.latent_dim))
        return rows.reshape(*z.shape[:-1], self.pixels)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (n, latent_dim) to pictures (n, pixels) or (n, *image_shape)."""
        raise NotImplementedError

    def as_images(self, pixels: Tensor) -> Tensor:
        """Pixels (*batch, pixels) as pictures (*batch, channels, height, width)."""
        return pixels.reshape(*pixels.shape[:-1], *self.image_shape)


class FullyConnectedDecoder(Decoder):
    """Fully connected layers; by default two of 300 ELU units (paper, supplement IV, Table 3a).

    Args:
        latent_dim, image_shape: as for `Decoder`.
        hidden: widths of the hidden layers.
        activation: makes one activation module.
        dropout: share of the hidden units that is left out in training mode; `eval()` is the caller's to call.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Shape = _MNIST,
        *,
        hidden: tuple[int, ...] = (300, 300),
        activation: Activation = nn.ELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(latent_dim, image_shape)
        self.hidden = integers("hidden", hidden, "widths of the hidden layers")
        function("activation", activation)
        self.dropout = share("dropout", dropout)
        body = _dense((self.latent_dim, *self.hidden), activation, self.dropout)
        last = (self.latent_dim, *self.hidden)[-1]
        self.network = nn.Sequential(*body, nn.Linear(last, self.pixels))

    def decode(self, z: Tensor) -> Tensor:
        """(n, latent_dim) -> (n, pixels)."""
        out: Tensor = self.network(z)
        return out


class ConvolutionalDecoder(Decoder):
    """Fully connected layers to small feature maps, then transposed convolutions that double their side each.

    Args:
        latent_dim, image_shape: as for `Decoder`. A side is halved, rounding up, once for each entry of `channels`:
            that gives the sides of the first maps (28: 4 after three halvings, 2 after four) and of those in between.
        channels: number of feature maps at each scale, from the smallest maps to the largest; the last transposed
            convolution leads from there to the picture.
        hidden: widths of fully connected hidden layers before the first maps.
        kernel_size: of the transposed convolutions; odd.
        blocks: residual blocks at each scale.
        activation: makes one activation module.
        dropout: share of the hidden units that is left out in training mode; `eval()` is the caller's to call.

    Raises:
        ValueError: no channels, or an even kernel size, besides what `Decoder` raises.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Shape,
        channels: tuple[int, ...],
        *,
        hidden: tuple[int, ...] = (),
        kernel_size: int = 5,
        blocks: int = 0,
        activation: Activation = nn.ELU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(latent_dim, image_shape)
        self.channels = integers("channels", channels, "numbers of feature maps")
        if not self.channels:
            raise ValueError("channels must have at least one entry, such as (64,), found none")
        self.hidden = integers("hidden", hidden, "widths of the hidden layers")
        self.kernel_size = positive_integer("kernel_size", kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that maps stay centred, found {kernel_size}")
        self.blocks = integer("blocks", blocks, 0)
        function("activation", activation)
        self.dropout = share("dropout", dropout)

        sides = self.sides
        first = (self.channels[0], *sides[0])
        dense = _dense((self.latent_dim, *self.hidden), activation, self.dropout)
        last = (self.latent_dim, *self.hidden)[-1]
        self.project = nn.Sequential(*dense, nn.Linear(last, math.prod(first)), nn.Unflatten(1, first))

        layers: list[nn.Module] = []
        widths = (*self.channels, self.image_shape[0])
        for (n_in, n_out), (small, large) in zip(itertools.pairwise(widths), itertools.pairwise(sides), strict=True):
            layers += [ResidualBlock(n_in, activation, self.dropout) for _ in range(self.blocks)]
            layers += [with_dropout(activation(), self.dropout), _doubling(n_in, n_out, self.kernel_size, small, large)]
        self.upsample = nn.Sequential(*layers)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the maps at each scale, the picture's last."""
        _, height, width = self.image_shape
        result = [(height, width)]
        for _ in self.channels:
            height, width = -(-height // 2), -(-width // 2)
            result.insert(0, (height, width))
        return tuple(result)

    def decode(self, z: Tensor) -> Tensor:
        """(n, latent_dim) -> (n, *image_shape)."""
        out: Tensor = self.upsample(self.project(z))
        return out


class ResidualBlock(nn.Module):
    """h + conv(a(conv(a(h)))), 3 x 3, the identity at the start (He et al. 2016, with activation before convolution).

    Args:
        channels: number of feature maps.
        activation: makes one activation module.
        dropout: share of the units between the convolutions that is left out in training mode.
    """

    def __init__(self, channels: int, activation: Activation = nn.ELU, dropout: float = 0.0) -> None:
        super().__init__()
        channels = positive_integer("channels", channels)
        end = nn.Conv2d(channels, channels, 3, padding=1)
        zero_(end)
        middle = with_dropout(activation(), share("dropout", dropout))
        self.change = nn.Sequential(activation(), nn.Conv2d(channels, channels, 3, padding=1), middle, end)

    def forward(self, h: Tensor) -> Tensor:
        """(n, channels, height, width) -> the same shape."""
        out: Tensor = h + self.change(h)
        return out


def shallow_convolutional(latent_dim: int, image_shape: Shape = _MNIST, *, hidden: int = 800) -> ConvolutionalDecoder:
    """The shallow convolutional decoder of Salimans, Kingma and Welling (2015) (paper, supplement IV, Table 3b, c).

    One fully connected hidden layer, 32 maps of 4 x 4, then 5 x 5 transposed convolutions to 32, 16 and 1 channels: the
    mirror image of three convolutions with stride 2. Softplus throughout.

    Args:
        latent_dim, image_shape: as for `Decoder`.
        hidden: units of the fully connected layer.
    """
    width = positive_integer("hidden", hidden)
    return ConvolutionalDecoder(latent_dim, image_shape, (32, 32, 16), hidden=(width,), activation=nn.Softplus)


def dcgan(
    latent_dim: int, image_shape: Shape = _MNIST, *, width: int = 64, dropout: float = 0.0
) -> ConvolutionalDecoder:
    """The 5-layer decoder after DCGAN (Radford, Metz and Chintala 2015; paper, section 5.2 and Table 2).

    A projection to 8 * width maps, then four 5 x 5 transposed convolutions that halve the number of maps and double
    their side. ELU in place of ReLU with batch normalisation.

    Args:
        latent_dim, image_shape: as for `Decoder`.
        width: maps at the largest scale.
        dropout: as for `ConvolutionalDecoder`.
    """
    return ConvolutionalDecoder(latent_dim, image_shape, _doubled(width), dropout=dropout)


def residual(
    latent_dim: int = 64, image_shape: Shape = (3, 64, 64), *, width: int = 64, blocks: int = 3
) -> ConvolutionalDecoder:
    """`dcgan` with three residual blocks at each scale, for colour pictures (paper, supplement IV, celebA).

    Args:
        latent_dim, image_shape: as for `Decoder`.
        width: maps at the largest scale.
        blocks: residual blocks at each scale.
    """
    return ConvolutionalDecoder(latent_dim, image_shape, _doubled(width), blocks=blocks)


def _doubled(width: int) -> tuple[int, ...]:
    width = positive_integer("width", width)
    return (8 * width, 4 * width, 2 * width, width)


def _dense(widths: tuple[int, ...], activation: Activation, dropout: float) -> list[nn.Module]:
    """Layers of these widths, an activation after each."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), with_dropout(activation(), dropout)]
    return layers


def _doubling(n_in: int, n_out: int, kernel: int, small: tuple[int, int], large: tuple[int, int]) -> nn.Module:
    """The adjoint of a convolution with stride 2 that maps `large` to `small`."""
    # A transposed convolution gives 2 * side - 1 rows; one more is wanted where the larger side is even.
    extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
    return nn.ConvTranspose2d(n_in, n_out, kernel, stride=2, padding=kernel // 2, output_padding=extra)
