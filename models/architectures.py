"""Networks for images by name, after DCGAN: all that the methods of a comparison need, in matching sizes.

    from dataclasses import replace
    small = replace(MNIST, channels=(16, 32, 64), dropout=0.1)
    vae = VAE(small.decoder(), small.latent_dim)
    encoder = GaussianEncoder(small.body(), small.latent_dim)

An `Architecture` is a set of numbers. Decoders, bodies of encoders, AVB's sampler and the adversaries are built from
the modules that exist, each with the same numbers of feature maps at the same scales, as DCGAN's generator and
discriminator are (Radford, Metz and Chintala 2015). AS-VAE's own (Pu et al. 2017, Appendix B) are lost: the pictures
that show them are not in the text. `MNIST`, `CIFAR10` and `IMAGENET64` are in their spirit; `CELEBA` is what AVB's
supplement, section IV, tells.

None of them normalises over a batch as DCGAN does: the likelihood of one picture, and the posterior of its latents,
must not depend on the others. In its place decoders and bodies start with weights that preserve the variance
(`preserve_variance_`), their residual blocks as the identity, and adversaries at T = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from avbvi.amortised import ConvolutionalAdversary, ConvolutionalSampler, ImageAdversary
from avbvi.arguments import instance, integer, integers, positive_integer, share

from .decoders import ConvolutionalDecoder, Shape
from .encoders import ConvBody

__all__ = ["CELEBA", "CIFAR10", "IMAGENET64", "MNIST", "Architecture", "preserve_variance_"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks for one kind of images; `dataclasses.replace` makes others of it.

    Args:
        image_shape: channels, height and width.
        latent_dim: width of z.
        channels: numbers of feature maps, from the largest scale to the smallest; each halves the image.
        hidden: features that a body gives.
        blocks: residual blocks at each scale of decoder, body and sampler.
        dropout: of decoder, body and adversaries, in training mode.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number is out of range.
    """

    image_shape: Shape
    latent_dim: int
    channels: tuple[int, ...]
    hidden: int = 512
    blocks: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(integers("image_shape", self.image_shape, "channels, height and width")) != 3:
            raise ValueError(
                f"image_shape must be channels, height and width, such as (1, 28, 28); found {self.image_shape}"
            )
        positive_integer("latent_dim", self.latent_dim)
        if not integers("channels", self.channels, "numbers of feature maps"):
            raise ValueError("channels must have at least one entry, such as (64, 128), found none")
        positive_integer("hidden", self.hidden)
        integer("blocks", self.blocks, 0)
        share("dropout", self.dropout)

    @property
    def pixels(self) -> int:
        """Numbers in an image: channels * height * width."""
        return math.prod(self.image_shape)

    def decoder(self) -> ConvolutionalDecoder:
        """z (*batch, latent_dim) -> (*batch, pixels): log odds or means, as the likelihood takes them."""
        decoder = ConvolutionalDecoder(
            self.latent_dim, self.image_shape, self.channels[::-1], blocks=self.blocks, dropout=self.dropout
        )
        preserve_variance_(decoder)
        return decoder

    def body(self, width: int | None = None) -> ConvBody:
        """x (B, pixels) -> (B, width), for encoders with a density.

        Args:
            width: number of features; ``hidden`` by default.
        """
        features = self.hidden if width is None else positive_integer("width", width)
        body = ConvBody(self.image_shape, self.channels, features, self.blocks, self.dropout)
        preserve_variance_(body)
        return body

    def sampler(self) -> ConvolutionalSampler:
        """AVB's encoder without density: noise and x (B, pixels) -> z, for `avbvi.AVBGuide`."""
        return ConvolutionalSampler(self.image_shape, self.channels, self.blocks)

    def joint_adversary(self, log_prior: bool = False) -> ConvolutionalAdversary:
        """T(x, z).

        Args:
            log_prior: take log p(z) off T, as AVB does for celebA, with the prior as contrast.
        """
        return ConvolutionalAdversary(self.image_shape, self.channels, log_prior=log_prior, dropout=self.dropout)

    def data_adversary(self) -> ImageAdversary:
        """T(x), of a generative adversarial network."""
        return ImageAdversary(self.image_shape, self.channels, dropout=self.dropout)


@torch.no_grad()
def preserve_variance_(network: nn.Module) -> None:
    """Draw weights anew so that a linear layer's output has the mean square of its input; biases become 0.

    Normal weights of variance 1 / n (LeCun et al. 1998), where n is the number of inputs that reach an output: of a
    transposed convolution with stride s, on average, 1 / s^2 of those that its kernel covers. Layers whose weights are
    all 0, as those that end a residual block, stay so.

    With torch's weights the output of an untrained decoder for 64 x 64 pixels varies with z by .03, and the features of
    a body with x by .01; with these by .3 and .13.

    Args:
        network: the network, changed in place.

    Raises:
        TypeError: it is no module.
    """
    instance("network", network, nn.Module, "a torch.nn.Module")
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            reaching = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride) / layer.groups
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            reaching = layer.weight[0].numel()
        else:
            continue
        if bool(layer.weight.any()):
            layer.weight.normal_(0.0, 1.0 / math.sqrt(reaching))
            if layer.bias is not None:
                layer.bias.zero_()


#: 28 x 28 pixels of grey; as many latents as AVB takes for them (supplement, section IV).
MNIST = Architecture((1, 28, 28), latent_dim=32, channels=(64, 128, 256))

#: 32 x 32 pixels of red, green and blue; as many latents as DCGAN has.
CIFAR10 = Architecture((3, 32, 32), latent_dim=100, channels=(128, 256, 512))

#: 64 x 64 pixels of red, green and blue: the sizes of DCGAN with 64 maps at the largest scale.
IMAGENET64 = Architecture((3, 64, 64), latent_dim=100, channels=(64, 128, 256, 512))

#: Faces of 64 x 64 pixels: three residual blocks at each scale of encoder and decoder, none in the adversary, 64
#: latents (AVB, supplement, section IV). AVB's adversary is ``CELEBA.joint_adversary(log_prior=True)``.
CELEBA = Architecture((3, 64, 64), latent_dim=64, channels=(64, 128, 256, 512), blocks=3)
