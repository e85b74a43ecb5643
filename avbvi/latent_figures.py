"""Figures of latent-variable models beside log-evidence: bounds by importance, reconstruction, use of the latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .annealed.densities import PriorDensity
from .annealed.evidence import jackknife_stderr, log_mean_exp, mean_over_data
from .arguments import function, instance, integer, positive_number
from .divergences import knn_kl
from .estimates import Estimate

__all__ = [
    "ActiveUnits",
    "ImportanceBound",
    "active_units",
    "aggregate_kl",
    "importance_weighted_bound",
    "mixture_kl",
    "reconstruction_error",
]

#: n -> draws of q(z | x_i) for each datum (n, B, dim), with log q (n, B).
Propose = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImportanceBound:
    """Importance-weighted bounds of the log-evidence by datum.

    Attributes:
        log_weights: log p(x_i, z) - log q(z | x_i) at K draws for each datum (K, B), float64, in nats.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
    """

    log_weights: Tensor

    @cached_property
    def bound(self) -> Tensor:
        """L_K by datum (B,), float64: the log of the mean weight, a lower bound of log p(x_i) in expectation."""
        return log_mean_exp(self.log_weights)

    @cached_property
    def stderr(self) -> Tensor:
        """Standard error of :attr:`bound` over the draws (B,), by the jackknife."""
        return jackknife_stderr(self.log_weights)

    @property
    def mean(self) -> Estimate:
        """L_K averaged over the data, in nats, with the draws' standard error: the data count as given."""
        return mean_over_data(self.bound, self.stderr)

    @property
    def elbo(self) -> Estimate:
        """L_1, the evidence lower bound, averaged over the data, in nats, from the same draws."""
        k = len(self.log_weights)
        stderr = self.log_weights.std(0) / math.sqrt(k) if k > 1 else torch.full_like(self.bound, math.nan)
        return mean_over_data(self.log_weights.mean(0), stderr)

    def at(self, k: int) -> Estimate:
        """L_k averaged over the data, in nats, from K // k disjoint sets of k draws.

        Raises:
            TypeError: k is no integer.
            ValueError: k is larger than K.
        """
        total = len(self.log_weights)
        if integer("k", k, 1) > total:
            raise ValueError(f"k must be at most the number of draws, {total}, found {k}")
        sets = total // k
        # (sets, B): one bound for each set.
        bounds = self.log_weights[: sets * k].reshape(sets, k, -1).logsumexp(1) - math.log(k)
        stderr = bounds.std(0) / math.sqrt(sets) if sets > 1 else torch.full_like(bounds[0], math.nan)
        return mean_over_data(bounds.mean(0), stderr)

    @cached_property
    def ess(self) -> Tensor:
        """Effective number of draws by datum (B,), from 1 to K."""
        return (2.0 * self.log_weights.logsumexp(0) - (2.0 * self.log_weights).logsumexp(0)).exp()


@torch.no_grad()
def importance_weighted_bound(
    log_joint: Callable[[Tensor], Tensor], propose: Propose, draws: int = 1000, *, chunk_size: int = 100
) -> ImportanceBound:
    """The bound log 1/K sum_k p(x_i, z_k) / q(z_k | x_i) <= log p(x_i) of each datum, from K draws of a density q.

    q must have a density that is exact: with a learned one, of an adversary, this is no bound.

    Args:
        log_joint: z (n, B, dim) to log p(x_i, z) (n, B).
        propose: n to z (n, B, dim) and log q(z | x_i) (n, B), drawn anew at each call.
        draws: K.
        chunk_size: draws at a time, which bounds the memory; the weights are kept in float64.

    Returns:
        The bound of each datum (B,) in nats, and those of fewer draws.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or functions whose shapes disagree.

    Example:
        q is the posterior itself, so that the bound is log p(x) with a single draw: x = 1 under N(0, 2), -1.516 nats.

        >>> import torch
        >>> from torch.distributions import Normal
        >>> from avbvi.latent_figures import importance_weighted_bound
        >>> q = Normal(torch.tensor([0.5]), 0.5**0.5)  # of z given x = 1, with z and x - z standard normal
        >>> def propose(n):
        ...     z = q.sample((n,))
        ...     return z[..., None], q.log_prob(z)
        >>> def log_joint(z):
        ...     return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(torch.ones(()))
        >>> round(importance_weighted_bound(log_joint, propose, 2).mean.value, 3)
        -1.516

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR.
    """
    function("log_joint", log_joint)
    function("propose", propose)
    draws, chunk_size = integer("draws", draws, 1), integer("chunk_size", chunk_size, 1)
    weights = []
    for done in range(0, draws, chunk_size):
        n = min(chunk_size, draws - done)
        z, log_q = propose(n)
        log_p = log_joint(z)
        if z.dim() != 3 or len(z) != n or not log_p.shape == log_q.shape == z.shape[:2]:
            raise ValueError(
                f"propose({n}) must return z ({n}, B, dim) and log q ({n}, B), and log_joint(z) the same shape as "
                f"log q; found {tuple(z.shape)}, {tuple(log_q.shape)} and {tuple(log_p.shape)}"
            )
        weights.append(log_p.double() - log_q.double())
    return ImportanceBound(torch.cat(weights))


@torch.no_grad()
def reconstruction_error(density: PriorDensity, draws: Tensor, pixels: int) -> Estimate:
    """Mean over draws, data and pixels of -log p(x | z), the cross-entropy of a datum and its reconstruction.

    The error that the AVB paper gives in section 5.1.

    Args:
        density: joint and prior log-densities of the data; their difference is the likelihood.
        draws: of each datum's encoder (n, B, dim), unconstrained.
        pixels: numbers in one datum.

    Returns:
        The error in nats per pixel, with the draws' standard error: the data count as given.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
    """
    instance("density", density, PriorDensity, "an object with log_joint and log_prior, such as a DatumTarget")
    instance("draws", draws, Tensor, "a tensor (n, B, dim)")
    integer("pixels", pixels, 1)
    if draws.dim() != 3 or draws.shape[1:] != (density.batch, density.dim) or not len(draws):
        raise ValueError(f"draws must have shape (n, {density.batch}, {density.dim}), found {tuple(draws.shape)}")
    error = (density.log_prior(draws).double() - density.log_joint(draws).double()) / pixels
    n = len(draws)
    stderr = error.std(0) / math.sqrt(n) if n > 1 else torch.full_like(error[0], math.nan)
    return mean_over_data(error.mean(0), stderr)


class ActiveUnits(NamedTuple):
    """How many latent coordinates are active.

    Attributes:
        active: their number.
        variances: the variance over data of each coordinate's posterior mean (dim,), in units of the prior's.
    """

    active: int
    variances: Tensor


def active_units(means: Tensor, threshold: float = 0.01) -> ActiveUnits:
    """Coordinates of z that tell data apart: Var_x(E[z_j | x]) > threshold.

    Args:
        means: posterior means of many data (N, dim), on the scale of a prior of unit variance.
        threshold: 0.01 in the source.

    Raises:
        TypeError, ValueError: means of another shape, of fewer than two data, or not finite.

    Example:
        Two of three coordinates vary with the datum:

        >>> import torch
        >>> from avbvi.latent_figures import active_units
        >>> means = torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.0, -0.5]])
        >>> active_units(means).active
        2

    Source: Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, ICLR, section 5.2.
    """
    instance("means", means, Tensor, "a tensor (N, dim)")
    positive_number("threshold", threshold)
    if means.dim() != 2 or len(means) < 2 or not bool(torch.isfinite(means).all()):
        raise ValueError(f"means must be finite, of shape (N, dim) with N at least 2, found {tuple(means.shape)}")
    variances = means.detach().double().var(0)
    return ActiveUnits(int((variances > threshold).sum()), variances)


def aggregate_kl(draws: Tensor, prior_draws: Tensor, k: int = 3) -> Estimate:
    """KL(q(z), p(z)) of the aggregate posterior q(z) = mean_i q(z | x_i), by nearest neighbours.

    Args:
        draws: of the encoder at data (n, B, dim) or (n, dim): one or a few for each of many data.
        prior_draws: of the prior (m, dim).
        k: which neighbour.

    Returns:
        The divergence in nats with its standard error.

    Raises:
        TypeError, ValueError: as :func:`avbvi.knn_kl`.

    Example:
        An encoder whose draws are half as wide as the prior: log 2 - 3 / 8 = .32 nats.

        >>> import torch
        >>> from avbvi.latent_figures import aggregate_kl
        >>> _ = torch.manual_seed(0)
        >>> kl = aggregate_kl(0.5 * torch.randn(4, 1000, 1), torch.randn(4000, 1))
        >>> abs(kl.value - 0.32) < 0.1
        True

    Source: Makhzani, Shlens, Jaitly, Goodfellow and Frey (2016), Adversarial autoencoders, arXiv:1511.05644, for the
    aggregate posterior; the estimate is :func:`avbvi.knn_kl`.
    """
    instance("draws", draws, Tensor, "a tensor (n, B, dim)")
    return knn_kl(draws.reshape(-1, draws.shape[-1]) if draws.dim() == 3 else draws, prior_draws, k=k)


@torch.no_grad()
def mixture_kl(
    draws: Tensor, log_q: Callable[[Tensor], Tensor], log_prior: Callable[[Tensor], Tensor], *, chunk_size: int = 100
) -> Estimate:
    """KL(q(z), p(z)) of the aggregate posterior by Monte Carlo, for encoders that have a density.

    Args:
        draws: n of each datum's q(z | x_i), all data that make up q(z): (n, B, dim).
        log_q: z (c, dim) to log q(z | x_i) for each z and datum (c, B).
        log_prior: z (c, dim) to log p(z) (c,).
        chunk_size: rows z at a time, which bounds the memory.

    Returns:
        The divergence in nats with the draws' standard error: the data count as given.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, or functions that return the wrong shape.

    Example:
        Two data whose encoder is the prior: nothing is lost.

        >>> import torch
        >>> from avbvi.latent_figures import mixture_kl
        >>> _ = torch.manual_seed(0)
        >>> prior = torch.distributions.Normal(torch.zeros(1), 1.0)
        >>> log_prior = lambda z: prior.log_prob(z).sum(-1)
        >>> kl = mixture_kl(torch.randn(50, 2, 1), lambda z: log_prior(z)[:, None].expand(-1, 2), log_prior)
        >>> round(kl.value, 4)
        0.0

    Source: Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound,
    NIPS workshop: the marginal KL.
    """
    instance("draws", draws, Tensor, "a tensor (n, B, dim)")
    function("log_q", log_q)
    function("log_prior", log_prior)
    integer("chunk_size", chunk_size, 1)
    if draws.dim() != 3 or 0 in draws.shape:
        raise ValueError(f"draws must have shape (n, B, dim), found {tuple(draws.shape)}")
    n, batch, dim = draws.shape
    ratios = []
    for z in draws.reshape(-1, dim).split(chunk_size):
        each, prior = log_q(z), log_prior(z)
        if each.shape != (len(z), batch) or prior.shape != (len(z),):
            raise ValueError(
                f"for z {tuple(z.shape)} log_q must return {(len(z), batch)} and log_prior {(len(z),)}, found "
                f"{tuple(each.shape)} and {tuple(prior.shape)}"
            )
        ratios.append(each.double().logsumexp(-1) - math.log(batch) - prior.double())
    # Draws are stratified by datum: only the spread within each counts.
    by_datum = torch.cat(ratios).reshape(n, batch)
    stderr = by_datum.std(0) / math.sqrt(n) if n > 1 else torch.full_like(by_datum[0], math.nan)
    return mean_over_data(by_datum.mean(0), stderr)
