"""Data sets of the relatives' board: pictures, networks, recipe, and how each is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avbvi.amortised.adversaries import JointAdversary
from benchmarks import digits as digits_board
from benchmarks.image_models import Task
from benchmarks.latent import Recipe
from models.architectures import CIFAR10, MNIST, Architecture
from models.data import cifar, digits, mnist
from models.data.binarisation import Binarisation, DynamicBinarisation, StaticBinarisation
from models.data.dequantisation import BinMiddles, Dequantisation
from models.data.images import Split
from models.likelihoods import LearnedNormalLikelihood, Likelihood, RelaxedBernoulliLikelihood

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """A data set of the board.

    Args:
        data: its name, for the records.
        load: folder, or None for the usual one -> the pictures.
        place: the same -> where they are.
        task: what the methods share; its steps are those of a CPU.
        steps: by kind of device.
        pixels: how intensities become data in training and in the test.
        test_images: that are judged.
        samples: number of draws that the score takes.
        temperatures: of annealed importance sampling; 0 for none.
        at_once: test images that are annealed together; None for all.
        both_starts: whether chains start from the prior as well.
        scale: grey levels that RMSE is in.
        levels: of a pixel, where likelihoods are those of bins.
    """

    data: str
    load: Callable[[Path | None], Split]
    place: Callable[[Path | None], object]
    task: Task
    steps: dict[str, int]
    pixels: tuple[Binarisation, Binarisation]
    test_images: int
    samples: int
    temperatures: int
    at_once: int | None = None
    both_starts: bool = False
    scale: float = 1.0
    levels: int | None = None


#: Of the relaxed Bernoulli: at .5 the gradient at pixels that are nearly sure is too noisy for a GAN to learn by.
TEMPERATURE = 1.0


def binary() -> Likelihood:
    """Bernoulli pixels whose draws have a gradient."""
    return RelaxedBernoulliLikelihood(TEMPERATURE)


def digits_task() -> Task:
    """Digits of 8 x 8: networks of the digits' board; their rates, for all methods."""
    return Task(
        latent_dim=8,
        pixels=64,
        decoder=lambda: digits_board.decoder(8),
        body=digits_board.body,
        width=200,
        shape=(100, 100),
        adversary=lambda: JointAdversary((128, 128)),
        recipe=Recipe(steps=3000, lr=2e-3, average=0.999),
        batch_size=128,
        adversary_lr=3e-3,
        likelihood=binary,
    )


def convolutional_task(networks: Architecture, likelihood: Callable[[], Likelihood], recipe: Recipe) -> Task:
    """DCGAN's networks for pictures of one size."""
    return Task(
        networks.latent_dim,
        pixels=networks.pixels,
        decoder=networks.decoder,
        body=networks.body,
        width=300,
        shape=(128, 128),
        adversary=networks.joint_adversary,
        recipe=recipe,
        batch_size=128,
        adversary_lr=4e-4,
        likelihood=likelihood,
        data_adversary=networks.data_adversary,
    )


#: AS-VAE's rate is 1e-4 for all networks.
SLOW = Recipe(steps=2000, lr=2e-4, average=0.999)

TARGETS: dict[str, Target] = {
    "digits": Target(
        "digits 8x8",
        load=lambda folder: digits.load(),
        place=lambda folder: folder,
        task=digits_task(),
        steps={"cpu": 3000, "cuda": 3000},
        pixels=(DynamicBinarisation(), StaticBinarisation(seed=0)),
        test_images=300,
        samples=3000,
        temperatures=100,
        both_starts=True,
    ),
    "mnist": Target(
        "MNIST",
        load=mnist.load,
        place=mnist.folder,
        task=convolutional_task(MNIST, binary, SLOW),
        steps={"cpu": 2000, "cuda": 30_000},
        pixels=(DynamicBinarisation(), StaticBinarisation(seed=0)),
        test_images=1024,
        samples=10_000,
        temperatures=500,
        at_once=256,
    ),
    "cifar10": Target(
        "CIFAR-10",
        load=cifar.load,
        place=cifar.place,
        task=convolutional_task(CIFAR10, LearnedNormalLikelihood, SLOW),
        steps={"cpu": 1000, "cuda": 30_000},
        pixels=(Dequantisation(), BinMiddles()),
        test_images=2048,
        samples=10_000,
        temperatures=0,
        scale=255.0,
        levels=256,
    ),
}
