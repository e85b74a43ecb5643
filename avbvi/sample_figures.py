"""Figures of generative models of images: bits per dimension, errors of reconstructions, the inception score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor, nn

from .arguments import flag, found, function, instance, integer, number, positive_number
from .estimates import Estimate

__all__ = ["bits_per_dimension", "inception_score", "rmse"]

#: By how much the probabilities of a row may miss 1: those of float16 classifiers do.
TOLERANCE = 1e-2


@overload
def bits_per_dimension(nats: Estimate, dimensions: int, levels: int | None = None) -> Estimate: ...


@overload
def bits_per_dimension(nats: float, dimensions: int, levels: int | None = None) -> float: ...


def bits_per_dimension(nats: float | Estimate, dimensions: int, levels: int | None = None) -> float | Estimate:
    """A negative log-likelihood, or a bound of it, in bits for each number in a datum.

    Discrete images have probabilities: nats / (dimensions log 2). Where a density stands in for them, of dequantised
    images (i + u) / levels in [0, 1], a bin's probability is the density times (1 / levels)^dimensions, which adds
    log2(levels): without that a figure is too small by 8 bits for images of 8 bits.

    Args:
        nats: minus the log-likelihood of one datum, as a mean over data.
        dimensions: numbers in a datum, channels * height * width.
        levels: None if nats speak of discrete data; the number of levels if they speak of a density on [0, 1]. A
            density on another interval of length w has levels / w in its place.

    Returns:
        An `Estimate` of an `Estimate`, with its standard error; a number of a number.

    Raises:
        TypeError, ValueError: an argument of the wrong kind.

    Example:
        >>> from avbvi import bits_per_dimension
        >>> round(bits_per_dimension(80.0, 784), 3)  # binarised digits, 80 nats
        0.147

    Source: Theis, van den Oord and Bethge (2016), A note on the evaluation of generative models, ICLR, section 3.1.
    """
    per_bit = integer("dimensions", dimensions, 1) * math.log(2.0)
    shift = 0.0 if levels is None else math.log2(positive_number("levels", levels))
    if isinstance(nats, Estimate):
        return Estimate(nats.value / per_bit + shift, nats.stderr / per_bit)
    return number("nats", nats) / per_bit + shift


@torch.no_grad()
def rmse(x: Tensor, reconstruction: Tensor, scale: float = 255.0) -> Estimate:
    """Root of the mean squared error over data and pixels, in grey levels of 0 .. scale.

    Args:
        x: data, intensities in [0, 1], shape (B, *shape).
        reconstruction: of the same shape.
        scale: levels that an intensity of 1 stands for: 255 as in AS-VAE (Pu et al. 2017, Table 2); 1 leaves
            intensities as they are.

    Returns:
        The error in units of ``scale``, with a standard error that takes the data as a sample (delta method); NaN for
        a single datum.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape, or values that are not finite.

    Example:
        >>> import torch
        >>> from avbvi import rmse
        >>> float(rmse(torch.zeros(4, 8, 8), torch.full((4, 8, 8), 0.5)))  # half of 255 grey levels
        127.5
    """
    instance("x", x, Tensor, "a tensor (B, *shape)")
    instance("reconstruction", reconstruction, Tensor, "a tensor like x")
    scale = positive_number("scale", scale)
    if x.dim() < 2 or not x.numel() or reconstruction.shape != x.shape:
        raise ValueError(
            f"x and reconstruction must have the same shape (B, *shape), found {tuple(x.shape)} and "
            f"{tuple(reconstruction.shape)}"
        )
    squares = (x.double() - reconstruction.double()).square().flatten(1).mean(1)
    if not bool(torch.isfinite(squares).all()):
        raise ValueError("x and reconstruction must be finite, found NaN or infinity")
    root = float(squares.mean().sqrt())
    if not root:
        return Estimate(0.0, 0.0)
    # squares.std() of one datum is NaN, with a warning.
    stderr = float(squares.std()) / math.sqrt(len(squares)) if len(squares) > 1 else math.nan
    return Estimate(scale * root, scale * stderr / (2.0 * root))


@torch.no_grad()
def inception_score(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    splits: int = 10,
    batch_size: int = 256,
    logits: bool = True,
) -> Estimate:
    """exp(E KL(p(y | x), p(y))): from 1, if all images look alike to a classifier, to the number of its classes.

    p(y) is the mean of p(y | x) over the images of a split, hence log(score) is biased downwards, by about
    (K - 1) / (2 m) for m images of a split that a classifier of K classes is sure of: 4.5 % for 10 classes and splits
    of 100. Compare scores at equal numbers of images and splits only, and beside that of as many data. The score sees
    neither images left out of a class nor copies of the data.

    Args:
        classifier: images (n, *shape) to logits or probabilities (n, K): a module, which is in evaluation mode
            meanwhile, or any function; Inception for natural images (Salimans et al. 2016), one of its own for digits.
        images: (N, *shape), as the classifier takes them, in random order.
        splits: equal parts that are scored by themselves, in the order given; a remainder is left out.
        batch_size: images that the classifier sees at a time.
        logits: whether the classifier returns logits; False for probabilities.

    Returns:
        The mean of the splits' scores with its standard error. (The literature's ± is the splits' standard deviation:
        sqrt(splits) times as much.) NaN for a single split.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: fewer images than splits, or a classifier's output that is not (n, K) with K at least 2, not finite
            or not what ``logits`` says.

    Example:
        A classifier that is sure of one of two classes for each half of the images:

        >>> import torch
        >>> from avbvi import inception_score
        >>> images = torch.arange(40.0)[:, None]
        >>> float(inception_score(lambda x: 100.0 * torch.cat([x % 2, 1 - x % 2], 1), images, splits=2))
        2.0

    Source: Salimans, Goodfellow, Zaremba, Cheung, Radford and Chen (2016), Improved techniques for training GANs, NIPS,
    section 4.
    """
    function("classifier", classifier)
    instance("images", images, Tensor, "a tensor (N, *shape)")
    splits, batch_size = integer("splits", splits, 1), integer("batch_size", batch_size, 1)
    flag("logits", logits)
    if images.dim() < 2 or len(images) < splits:
        raise ValueError(
            f"images must have shape (N, *shape) with at least as many as splits={splits}, found {tuple(images.shape)}"
        )
    size = len(images) // splits
    with _evaluation_mode(classifier):
        outputs = [_checked(classifier(part), len(part)) for part in images[: size * splits].split(batch_size)]
    p = _probabilities(torch.cat(outputs), logits).unflatten(0, (splits, size))
    information = _entropy(p.mean(1)) - _entropy(p).mean(1)
    # Rounding may leave -1e-17 where no image tells anything.
    scores = information.clamp(min=0.0).exp()
    stderr = float(scores.std()) / math.sqrt(splits) if splits > 1 else math.nan
    return Estimate(float(scores.mean()), stderr)


def _entropy(p: Tensor) -> Tensor:
    """In nats, of probabilities (*batch, K), shape (*batch,)."""
    return -torch.special.xlogy(p, p).sum(-1)


def _checked(output: Tensor, n: int) -> Tensor:
    instance("classifier's output", output, Tensor, "a tensor (n, K)")
    if output.dim() != 2 or len(output) != n or output.shape[1] < 2 or not output.is_floating_point():
        raise ValueError(
            f"classifier must return floating-point numbers of shape (n, K), K at least 2, for n={n} images; found "
            f"{found(output)}"
        )
    return output.double()


def _probabilities(output: Tensor, logits: bool) -> Tensor:
    if not bool(torch.isfinite(output).all()):
        raise ValueError("classifier must return finite numbers, found NaN or infinity")
    sums = output.sum(1, keepdim=True)
    are_probabilities = bool((output >= 0.0).all()) and bool(((sums - 1.0).abs() < TOLERANCE).all())
    if logits and are_probabilities:
        raise ValueError("classifier returns probabilities, as every row is positive with sum 1: pass logits=False")
    if not logits and not are_probabilities:
        raise ValueError(
            "classifier must return probabilities, rows of numbers in [0, 1] with sum 1; found a row with the sum "
            f"{float(sums[(sums - 1.0).abs().argmax()]):.4g} and a least entry of {float(output.min()):.4g}; pass "
            "logits=True if it returns logits"
        )
    return output.softmax(1) if logits else output / sums


@contextmanager
def _evaluation_mode(classifier: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Dropout and batch normalisation at rest, and each module's mode as before afterwards."""
    modules = list(classifier.modules()) if isinstance(classifier, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
