"""Four one-hot images of 2 x 2 pixels with latents in the plane: the synthetic example of AVB (section 5.1).

A latent-variable model of so little can be known exactly: log p(x) and p(z | x) come from quadrature, and the ELBO of
an encoder without density from draws alone, as the entropy of a law in the plane is measured well by neighbours.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from avbvi import Estimate
from avbvi.arguments import integer, positive_number
from avbvi.divergences import knn_entropy

from .quadrature import LatentPlane
from .vaes import VAE

__all__ = ["OPTIMUM", "PlanarTruth", "kl_to_standard_normal", "one_hot_images"]

#: The largest mean log-likelihood that four distinct, equally likely images can have.
OPTIMUM = -math.log(4.0)
#: Parts of the draws from which standard errors come.
BLOCKS = 20


def one_hot_images() -> Tensor:
    """The four images of 2 x 2 pixels with one pixel on, flattened: shape (4, 4)."""
    return torch.eye(4)


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
