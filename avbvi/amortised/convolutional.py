"""Convolutional sampler and adversaries: noise, or z, is projected into every layer (AVB, supplement, section IV)."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from ..adversaries import Adversary, Hint
from ..arguments import integer, integers, positive_number, share
from ..objectives import Logistic, Objective
from ..parts import zero_
from .adversaries import ConditionalAdversary
from .networks import (
    checked_layers,
    checked_noise,
    checked_slope,
    checked_smoothing,
    scaled_rows,
    smoothing_scale,
    unit,
)
from .samplers import LEAST_NOISE, AmortisedSampler


class ConvolutionalSampler(AmortisedSampler):
    """A convolutional network of an image with noise projected into every layer (AVB, supplement, section IV).

    z = A n + f(n, x) + s(n, x) m, with f and log s from one
    :class:`~avbvi.amortised.convolutional.InjectedConvolutions` and m as in
    :class:`~avbvi.amortised.samplers.ConditionalSampler`.

    Args:
        image_shape: channels, height and width; the context is such an image, flattened.
        channels: numbers of channels; each scale halves the image.
        blocks: residual blocks at each scale.
        network_noise: width of n; ``None`` takes twice that of the latents, and at least 8.
        start_scale: standard deviation of A n + s m at the start.
        smoothing: s at the start, in units of ``start_scale``, in [0, 1); 0 leaves m out.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or ``image_shape`` does not have three sizes.

    Example:
        >>> import torch, avbvi
        >>> sampler = avbvi.ConvolutionalSampler((1, 8, 8), channels=(4, 8))
        >>> sampler.build(2)
        >>> images = torch.rand(3, 64)  # flattened
        >>> noise = sampler.sample_noise((5, 3), like=images)
        >>> sampler(noise, images).shape
        torch.Size([5, 3, 2])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), supplement, section IV; the noise m is this project's.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: int = 0,
        network_noise: int | None = None,
        start_scale: float = 0.5,
        smoothing: float = 0.2,
        slope: float | None = None,
    ) -> None:
        shape = checked_image_shape(image_shape)
        super().__init__(math.prod(shape))
        self.image_shape = shape
        self.channels: tuple[int, ...] = checked_layers("channels", channels, "numbers of channels")
        self.blocks: int = integer("blocks", blocks, 0)
        self.network_noise: int | None = checked_noise("network_noise", network_noise)
        self.start_scale: float = positive_number("start_scale", start_scale)
        self.smoothing: float = checked_smoothing(smoothing)
        self.slope: float | None = checked_slope(slope)

    def _build(self, dim: int) -> None:
        self.inner_dim: int = max(LEAST_NOISE, 2 * dim) if self.network_noise is None else self.network_noise
        self.noise_dim: int | None = self.inner_dim + (dim if self.smoothing else 0)
        self.linear: nn.Linear = scaled_rows(self.inner_dim, dim, math.sqrt(1.0 - self.smoothing**2) * self.start_scale)
        n_out = 2 * dim if self.smoothing else dim
        self.network: InjectedConvolutions = InjectedConvolutions(
            self.image_shape, self.channels, self.blocks, self.inner_dim, n_out, self.slope
        )

    def forward(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        inner = noise[..., : self.inner_dim]
        out: Tensor = self.network(inner, self._required(context))
        if not self.smoothing:
            return out + self.linear(inner)
        shift, log_scale = out.chunk(2, dim=-1)
        scale = smoothing_scale(log_scale, self.smoothing * self.start_scale)
        draws: Tensor = self.linear(inner) + shift + scale * noise[..., self.inner_dim :]
        return draws


class ConvolutionalAdversary(ConditionalAdversary):
    """A convolutional network of the image x with z projected into every layer (AVB, supplement, section IV).

    T starts at 0 but for log p(z).

    Args:
        image_shape: channels, height and width; the context is such an image, flattened.
        channels: numbers of channels; each scale halves the image.
        blocks: residual blocks at each scale.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.
        squares: show the squares of the features too.
        log_prior: take log p(z) off the output (:class:`ConditionalAdversary`), as the paper does.
        dropout: share of the hidden units that is left out in training mode; ``eval()`` is the caller's to call.
        objective: see :class:`~avbvi.adversaries.Adversary`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or (at set-up) the context is no such image.

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.ConvolutionalAdversary((1, 8, 8), channels=(4, 8))
        >>> adversary.build_for(feature_dim=2, base_dim=2, context_dim=64)
        >>> adversary(torch.randn(5, 3, 2), torch.rand(3, 64)).shape
        torch.Size([5, 3])

    Source: AVB (Mescheder, Nowozin and Geiger 2017), supplement, section IV.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: int = 0,
        slope: float | None = None,
        squares: bool = True,
        log_prior: bool = False,
        dropout: float = 0.0,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(squares, log_prior, objective=objective)
        self.dropout: float = share("dropout", dropout)
        self.image_shape: tuple[int, int, int] = checked_image_shape(image_shape)
        self.channels: tuple[int, ...] = checked_layers("channels", channels, "numbers of channels")
        self.blocks: int = integer("blocks", blocks, 0)
        self.slope: float | None = checked_slope(slope)

    def _build(self, dim: int) -> None:
        if math.prod(self.image_shape) != self.context_dim:
            raise ValueError(
                f"image_shape={self.image_shape} has {math.prod(self.image_shape)} pixels, but the context "
                f"{self.context_dim} numbers per datum"
            )
        self.network: InjectedConvolutions = InjectedConvolutions(
            self.image_shape, self.channels, self.blocks, dim, 1, self.slope, zero_last=True, dropout=self.dropout
        )

    def network_output(self, features: Tensor, context: Tensor) -> Tensor:
        t: Tensor = self.network(features, context)
        return t.squeeze(-1)


class ImageAdversary(Adversary):
    """A convolutional network of an image alone: T(x), the discriminator of a generative adversarial network.

    The convolutions are those of :class:`ConvolutionalAdversary`, after DCGAN, whose
    batch normalisation is left out: T of an image must not depend on the others. T starts at 0 instead, which keeps
    the first gradients small.

    Args:
        image_shape: channels, height and width; the features are such an image, flattened.
        channels: numbers of channels; each scale halves the image.
        blocks: residual blocks at each scale.
        slope: negative slope of leaky ReLU units (0 is ReLU); ``None`` takes smooth SiLU units.
        dropout: share of the hidden units that is left out in training mode; ``eval()`` is the caller's to call.
        objective: see :class:`~avbvi.adversaries.Adversary`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or (at set-up) the features are no such image.

    Example:
        >>> import torch, avbvi
        >>> adversary = avbvi.ImageAdversary((1, 8, 8), channels=(4, 8))
        >>> adversary.build_for(feature_dim=64, base_dim=64)
        >>> adversary(torch.rand(3, 64)).shape
        torch.Size([3])

    Source: Radford, Metz and Chintala (2016), Unsupervised representation learning with deep convolutional generative
    adversarial networks, ICLR.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, ...] = (32, 64, 128),
        blocks: int = 0,
        slope: float | None = None,
        dropout: float = 0.0,
        *,
        objective: Objective = Logistic(),
    ) -> None:
        super().__init__(objective=objective)
        self.image_shape: tuple[int, int, int] = checked_image_shape(image_shape)
        self.channels: tuple[int, ...] = checked_layers("channels", channels, "numbers of channels")
        self.blocks: int = integer("blocks", blocks, 0)
        self.slope: float | None = checked_slope(slope)
        self.dropout: float = share("dropout", dropout)

    def _build(self, dim: int) -> None:
        if math.prod(self.image_shape) != dim:
            raise ValueError(
                f"image_shape={self.image_shape} has {math.prod(self.image_shape)} pixels, but the features "
                f"{dim} numbers per datum"
            )
        self.network: InjectedConvolutions = InjectedConvolutions(
            self.image_shape, self.channels, self.blocks, None, 1, self.slope, zero_last=True, dropout=self.dropout
        )

    def forward(self, features: Tensor, hint: Hint | None = None) -> Tensor:
        """T: flattened images, the features, (*batch, pixels) to (*batch,); there is no use for a hint."""
        t: Tensor = self.network(None, features.reshape(-1, features.shape[-1]))
        return t.reshape(features.shape[:-1])


class _Scale(nn.Module):
    """A convolution with stride 2 and residual blocks behind it, each with a vector, if any, added to its channels."""

    def __init__(
        self, n_in: int, n_out: int, blocks: int, inject_dim: int | None, slope: float | None, dropout: float
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
        self.projections = nn.ModuleList()
        if inject_dim is not None:
            self.projections.extend(nn.Linear(inject_dim, n_out, bias=False) for _ in range(1 + blocks))
        self.first = nn.ModuleList(nn.Conv2d(n_out, n_out, 3, padding=1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(n_out, n_out, 3, padding=1) for _ in range(blocks))
        self.unit = unit(slope)
        # Within a block as in wide residual networks (Zagoruyko and Komodakis 2016): the skip stays whole.
        self.inner = unit(slope, dropout)

    def forward(self, image: Tensor, vector: Tensor | None) -> Tensor:
        """Images (n or B, n_in, height, width) and vectors (n, inject_dim) to (n, n_out, height / 2, width / 2)."""
        h: Tensor = self.enter(image)
        shifts: list[Tensor | float] = [0.0] * (1 + len(self.first))
        if vector is not None:
            # One image per datum is repeated for the datum's draws only after the convolution.
            h = h.expand(len(vector) // len(h), *h.shape).reshape(len(vector), *h.shape[1:])
            shifts = [projection(vector)[:, :, None, None] for projection in self.projections]
            h = h + shifts[0]
        for first, second, shift in zip(self.first, self.second, shifts[1:], strict=True):
            h = h + second(self.inner(first(self.unit(h)) + shift))
        return h


class InjectedConvolutions(nn.Module):
    """A convolutional network of an image with a vector added into every hidden layer (AVB, supplement, section IV).

    Each scale halves the image (kernel 3, stride 2), adds a learned projection of the vector to each channel, and is
    followed by residual blocks that do the same; the output is linear in the last scale.

    Args:
        image_shape: channels, height and width of the image.
        channels: numbers of channels of the scales.
        blocks: residual blocks at each scale.
        inject_dim: width of the vector; None if there is none.
        n_out: width of the output.
        slope: see :func:`unit`.
        zero_last: let the output start at 0.
        dropout: share of the hidden units that is left out in training mode.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: tuple[int, ...],
        blocks: int,
        inject_dim: int | None,
        n_out: int,
        slope: float | None,
        *,
        zero_last: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.unit: nn.Module = unit(slope, dropout)
        _, height, width = image_shape
        self.scales: nn.ModuleList = nn.ModuleList()
        for a, b in itertools.pairwise((image_shape[0], *channels)):
            self.scales.append(_Scale(a, b, blocks, inject_dim, slope, dropout))
            height, width = (height + 1) // 2, (width + 1) // 2
        self.leave: nn.Linear = nn.Linear(channels[-1] * height * width, n_out)
        if zero_last:
            zero_(self.leave)

    def forward(self, vector: Tensor | None, context: Tensor) -> Tensor:
        """The vector (*S, B, inject_dim) and flattened images (B, pixels) to (*S, B, n_out)."""
        flat = None if vector is None else vector.reshape(-1, vector.shape[-1])
        h = context.reshape(-1, *self.image_shape)
        for i, scale in enumerate(self.scales):
            h = scale(self.unit(h) if i else h, flat)
        out: Tensor = self.leave(self.unit(h).flatten(1))
        return out if vector is None else out.reshape(*vector.shape[:-1], -1)


def checked_image_shape(value: tuple[int, int, int]) -> tuple[int, int, int]:
    """The argument ``image_shape``: channels, height and width."""
    shape = integers("image_shape", value, "channels, height and width")
    if len(shape) != 3:
        raise ValueError(f"image_shape must be channels, height and width, such as (1, 28, 28); found {value}")
    return shape[0], shape[1], shape[2]
