"""Four one-hot images of 2 x 2 pixels with latents in the plane: the synthetic example of AVB (section 5.1).

A latent-variable model of so little can be known exactly: log p(x) and p(z | x) come from quadrature, and the ELBO of
an encoder without density from draws alone, as the entropy of a law in the plane is measured well by neighbours.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avbvi import Estimate
from avbvi.arguments import integer, positive_number
from avbvi.divergences import knn_entropy

from .quadrature import LatentPlane
from .vaes import VAE

__all__ = [
    "OPTIMUM",
    "ImageLaw",
    "PlanarTruth",
    "all_images",
    "kl_to_standard_normal",
    "one_hot_images",
]

#: The largest mean log-likelihood that four distinct, equally likely images can have.
OPTIMUM = -math.log(4.0)
#: Parts of the draws from which standard errors come.
BLOCKS = 20
#: Probability that quadrature over a model's images may lose.
MOST_LOST = 1e-6


def one_hot_images() -> Tensor:
    """The four images of 2 x 2 pixels with one pixel on, flattened: shape (4, 4)."""
    return torch.eye(4)


def all_images() -> Tensor:
    """All 16 black and white images of 2 x 2 pixels, flattened, the four of :func:`one_hot_images` first: (16, 4)."""
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    one_hot = every.sum(-1) == 1.0
    return torch.cat([one_hot_images(), every[~one_hot]])


@dataclass(frozen=True)
class ImageLaw:
    """The law p(x) of a model of images of 2 x 2 pixels beside q(x), the four with one pixel on, equally likely.

    KL(p(x), q(x)) is infinite for every model here: some black and white image that is none of the four always has
    a positive probability. The Jensen-Shannon divergence is finite and as strict with them as with the four.

    Attributes:
        probabilities: p(x) of the images of :func:`all_images`, shape (16,), double precision.
    """

    probabilities: Tensor

    @classmethod
    def of(cls, vae: VAE, points: int = 301, limit: float = 6.5) -> ImageLaw:
        """Integrate over the plane of latents as :class:`PlanarTruth` does.

        Raises:
            ValueError: the VAE has another number of latents, or the probabilities do not sum to 1 within 1e-6 (a
                likelihood of values that are not 0 or 1).
        """
        if vae.latent_dim != 2:
            raise ValueError(f"vae must have two latents to be integrated over a plane, found {vae.latent_dim}")
        n, limit = integer("points", points, 3), positive_number("limit", limit)
        images, judged = all_images().double(), copy.deepcopy(vae).double()
        axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
        total = torch.zeros(len(images), dtype=torch.float64)
        with torch.no_grad():
            for first in axis:  # the integrand has died out at the edges: the trapezoidal rule is a plain sum
                z = torch.stack([first.expand(n), axis], -1)[:, None]
                total += judged.log_joint(images, z).exp().sum(0)
        law = cls(total * (2.0 * limit / (n - 1)) ** 2)
        if not abs(float(law.probabilities.sum()) - 1.0) < MOST_LOST:
            raise ValueError(
                f"the probabilities of all black and white images must sum to 1, found {float(law.probabilities.sum())}"
                ": vae needs a likelihood of pixels that are 0 or 1"
            )
        return law

    @property
    def kl_from_data(self) -> float:
        """KL(q(x), p(x)) in nats: what the mean log-likelihood of the four images lacks to the largest possible."""
        return OPTIMUM - float(self.probabilities[:4].log().mean())

    @property
    def share_of_data(self) -> float:
        """Probability that an image of the model is one of the four."""
        return float(self.probabilities[:4].sum())

    @property
    def jensen_shannon(self) -> float:
        """Jensen-Shannon divergence of q(x) and p(x) in nats, between 0 and log 2."""
        p, q = self.probabilities, torch.zeros_like(self.probabilities)
        q[:4] = 0.25
        middle = 0.5 * (p + q)
        return float(0.5 * (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).sum())


class PlanarTruth:
    """What quadrature knows of a VAE with two latents and of data x, in double precision.

    Later changes of the VAE's parameters do not reach it.

    Args:
        vae: the model.
        x: data, shape (B, *shape of a datum).
        points: of the grid, per axis; the default resolves posteriors with edges .1 wide.
        limit: the grid covers [-limit, limit] in both coordinates; what the prior has beyond is neglected.

    Attributes:
        log_likelihood: log p(x_i), shape (B,).

    Raises:
        ValueError: the VAE has another number of latents.
    """

    def __init__(self, vae: VAE, x: Tensor, points: int = 301, limit: float = 6.5) -> None:
        if vae.latent_dim != 2:
            raise ValueError(f"vae must have two latents to be integrated over a plane, found {vae.latent_dim}")
        integer("points", points, 3)
        limit = positive_number("limit", limit)
        self._vae = copy.deepcopy(vae).double()
        self._x = x.detach().double()
        self._plane = LatentPlane.of(self.log_joint, len(x), reach=limit, n=points, like=self._x)
        self.log_likelihood = self._plane.log_evidence

    @torch.no_grad()
    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x_i, z_i): (*S, B, 2) or (*S, 1, 2) -> (*S, B)."""
        return self._vae.log_joint(self._x, z.to(self._x))

    def log_posterior(self, z: Tensor) -> Tensor:
        """log p(z_i | x_i), normalised: (*S, B, 2) or (*S, 1, 2) -> (*S, B)."""
        return self.log_joint(z) - self.log_likelihood

    def sample_posterior(self, n: int) -> Tensor:
        """n draws of each datum's posterior, as if it were constant in the cells of the grid: (n, B, 2)."""
        plane = self._plane
        weights = (plane.log_posterior + plane.log_weights[:, None]).exp().mT
        z = plane.points[torch.multinomial(weights, n, replacement=True).mT]
        return z + (plane.axis[1] - plane.axis[0]) * (torch.rand_like(z) - 0.5)

    def elbo(self, z: Tensor, k: int = 3) -> Estimate:
        """ELBO, as a mean over the data, of an encoder with these independent draws (n, B, 2): no density is needed.

        E_q[log p(x, z)] is a mean over draws, the entropy is that of Kozachenko and Leonenko by the k-th nearest
        neighbours. Structure of q that is thinner than their distance, about (k / n)^(1/2), goes unseen, and the ELBO
        then reads too high.

        Raises:
            ValueError: z has another shape.
        """
        if z.dim() != 3 or tuple(z.shape[1:]) != (len(self._x), 2):
            raise ValueError(f"z must have shape (n, {len(self._x)}, 2), found {tuple(z.shape)}")

        def figure(part: Tensor) -> float:
            entropies = [knn_entropy(part[:, i].double(), k).value for i in range(len(self._x))]
            return float(self.log_joint(part).mean()) + sum(entropies) / len(entropies)

        return _with_stderr(figure, z)


def kl_to_standard_normal(z: Tensor, k: int = 3) -> Estimate:
    """KL(q, N(0, I)) of the law of independent draws z (n, dim), its entropy by the k-th nearest neighbours.

    Raises:
        ValueError: z is no matrix of draws.
    """
    if z.dim() != 2:
        raise ValueError(f"z must have shape (n, dim), found {tuple(z.shape)}")

    def figure(part: Tensor) -> float:
        energy = 0.5 * part.double().square().sum(-1) + 0.5 * part.shape[1] * math.log(2.0 * math.pi)
        return float(energy.mean()) - knn_entropy(part.double(), k).value

    return _with_stderr(figure, z)


def _with_stderr(figure: Callable[[Tensor], float], z: Tensor) -> Estimate:
    """The figure of all draws, and its standard error from those of BLOCKS parts of them.

    Energy and entropy share draws and their errors largely cancel, so that errors of the two would tell little.
    """
    parts = [figure(part) for part in z.chunk(BLOCKS)]
    return Estimate(figure(z), statistics.stdev(parts) / math.sqrt(BLOCKS))
