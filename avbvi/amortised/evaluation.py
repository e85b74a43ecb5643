"""What fresh draws say of an amortised guide: the terms of its ELBO, and what moments prove of its density."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from ..contrasts import PriorContrast
from ..divergences import knn_entropy
from ..estimates import Estimate
from ..rng import seeded
from ..targets import Model
from .guide import AmortisedAVBGuide
from .minibatch import Minibatch

#: Numbers that one evaluation of sampler, adversary or model may take as input: bounds the memory.
CHUNK = 2**22
#: Evaluations into which draws are divided at least: each asks the contrast anew, whose moments may be estimates.
PIECES = 10
#: Data whose moments are looked at, and draws for them: 64 for each coordinate within these limits.
MOMENT_DATA, LEAST_MOMENT_DRAWS, MOST_MOMENT_DRAWS = 256, 512, 4096
#: The most dimensions in which entropies by neighbours are trusted.
ENTROPY_DIM = 3


class DrawTerms(NamedTuple):
    """Draws of q(z | x) for each datum of a minibatch, and their densities, unconstrained.

    Shapes: ``z`` (n, B, dim); ``log_p``, log p(x, z), ``log_r``, the contrast's log r(z | x), and ``log_ratio``, the
    adversary's log q - log r, (n, B), in float64.
    """

    z: Tensor
    log_p: Tensor
    log_r: Tensor
    log_ratio: Tensor

    @property
    def log_q(self) -> Tensor:
        """Learned log q(z | x), (n, B)."""
        return self.log_r + self.log_ratio

    @property
    def elbo(self) -> Tensor:
        """log p(x, z) - log q(z | x), (n, B)."""
        return self.log_p - self.log_q


@torch.no_grad()
def draw_terms(guide: AmortisedAVBGuide, data: Minibatch, n: int) -> DrawTerms:
    """n fresh draws for each datum of a minibatch, with their densities."""
    target = guide._target_of(data)
    pieces: list[tuple[Tensor, ...]] = []
    for rows in _rows(guide, data, n):
        z = guide.draw_for(data, rows)
        given = guide.given(data)
        log_r = given.log_prob(z)
        log_ratio = guide.log_ratio_and_contrast(z, data, given) - log_r
        pieces.append((z, target.log_joint(z).double(), log_r.double(), log_ratio.double()))
    return DrawTerms(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _rows(guide: AmortisedAVBGuide, data: Minibatch, n: int) -> list[int]:
    """Draws in each evaluation, n in all."""
    size = min(_most(guide, data), math.ceil(n / PIECES))
    return [min(size, n - start) for start in range(0, n, size)]


def _most(guide: AmortisedAVBGuide, data: Minibatch) -> int:
    """Draws that one evaluation may take for each datum."""
    assert guide.plate_layout is not None
    return max(1, CHUNK // max(1, data.frame.size * (data.context.shape[1] + guide.plate_layout.dim)))


@torch.no_grad()
def held_out_logits(guide: AmortisedAVBGuide, data: Minibatch, n: int) -> tuple[Tensor, Tensor]:
    """The adversary's output T at n fresh draws of q and of r for each datum, (n * B,) each; fewer of many data."""
    n = min(n, _most(guide, data))
    given, adversary = guide.given(data), guide.part("adversary")
    z = torch.cat([guide.draw_for(data, n), given.sample(n)])
    t: Tensor = adversary(given.features(z), data.context, **guide.log_prior_if_used(z, data))
    return t[:n].flatten(), t[n:].flatten()


def mean_over_data(terms: Tensor) -> Estimate:
    """Mean of terms (n, B) with its standard error, of the draws alone: the data count as given."""
    n, batch = terms.shape
    stderr = math.sqrt(float(terms.var(0).mean()) / (n * batch)) if n > 1 else math.nan
    if n >= 2 * PIECES:
        # Draws that share a contrast share its error.
        means = torch.stack([part.mean() for part in terms.tensor_split(PIECES)])
        stderr = max(stderr, float(means.std()) / math.sqrt(PIECES))
    return Estimate(float(terms.mean()), stderr)


@torch.no_grad()
def gaussian_log_prob(fitted: Tensor, z: Tensor) -> Tensor:
    """log N(z; m, C) of each datum, m and C the moments of other draws of it: (n', B, dim), (n, B, dim) -> (n, B)."""
    n, _, dim = fitted.shape
    mean = fitted.double().mean(0)
    centred = (fitted.double() - mean).transpose(0, 1)
    covariance = centred.mT @ centred / (n - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    factor, info = torch.linalg.cholesky_ex(covariance + torch.diag_embed(1e-9 * variance))
    # Any density will do; where rounding leaves no factor the correlations are let go.
    factor = torch.where((info == 0)[:, None, None], factor, torch.diag_embed(variance.sqrt()))
    whitened = torch.linalg.solve_triangular(factor, (z.double() - mean).permute(1, 2, 0), upper=False)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (-0.5 * whitened.square().sum(1) - log_det[:, None] - 0.5 * dim * math.log(2.0 * math.pi)).mT


@torch.no_grad()
def moment_draws(guide: AmortisedAVBGuide, data: Minibatch) -> Tensor:
    """Draws from which :func:`moment_bound` takes the moments of the first 256 data, (n, B, dim)."""
    assert guide.plate_layout is not None
    context, sampler = data.context[:MOMENT_DATA], guide.part("sampler")
    n = min(max(64 * guide.plate_layout.dim, LEAST_MOMENT_DRAWS), MOST_MOMENT_DRAWS)
    size = max(1, CHUNK // max(1, len(context) * (context.shape[1] + guide.plate_layout.dim)))
    rows = [min(size, n - start) for start in range(0, n, size)]
    shapes = (torch.Size((k, len(context))) for k in rows)
    return torch.cat([sampler(sampler.sample_noise(shape, like=guide.anchor), context) for shape in shapes])


@torch.no_grad()
def entropy_excess(
    guide: AmortisedAVBGuide, data: Minibatch, *, draws: int = 5000, most: int = 2**19, seen: int = 16
) -> Estimate | None:
    """E_q[-log q] by the learned density less the entropy of q by neighbours, in nats, mean over some of the data.

    It is KL(q, learned q) where that is normalised, and what the ELBO's estimate is too high by. Structure thinner than
    the draws are dense makes it read too low.

    Args:
        guide: the guide.
        data: the minibatch.
        draws: the most for each datum.
        most: for all data that have to be drawn for.
        seen: number of data that are looked at.

    Returns:
        ``None`` where neighbours tell too little: above three dimensions, or with less than a fifth of ``draws``.
    """
    assert guide.plate_layout is not None
    part = _first(guide, data, seen)
    n = min(most // part.frame.size, draws)
    if guide.plate_layout.dim > ENTROPY_DIM or n < draws // 5:
        return None
    pieces = []
    for rows in _rows(guide, part, n):
        z = guide.draw_for(part, rows)
        pieces.append((z[:, :seen], guide.log_ratio_and_contrast(z, part, guide.given(part))[:, :seen]))
    z, log_q = (torch.cat(parts).double() for parts in zip(*pieces, strict=True))
    if not bool(torch.isfinite(z).all()):
        return Estimate(math.inf, math.nan)
    entropies = [knn_entropy(of_datum) for of_datum in z.unbind(1)]
    value = -float(log_q.mean()) - sum(e.value for e in entropies) / len(entropies)
    return Estimate(value, math.hypot(*(e.stderr for e in entropies)) / len(entropies))


def _first(guide: AmortisedAVBGuide, data: Minibatch, count: int) -> Minibatch:
    """The first data of a minibatch, or all where the model has to be asked about them, whose arguments are whole."""
    asks_model = isinstance(guide.part("contrast"), PriorContrast) or guide.part("adversary").uses_log_prior
    if asks_model or data.frame.size <= count:
        return data
    return data._replace(
        frame=data.frame._replace(size=count), indices=data.indices[:count], context=data.context[:count]
    )


class MomentBound(NamedTuple):
    """What the moments of q(z | x) alone prove of KL(q, r) in nats per datum, beside what the adversary says of it.

    For any density f the expectation of log f under q is at most that of log q. With f the Gaussian of q's moments,
    taken from other draws, ``proved`` = E_q[log f - log r] is a lower bound of KL(q, r) for every contrast r; for a
    diagonal Gaussian with q's moments it is -1/2 log det corr(q) less what the estimate of the moments costs, about
    dim (dim + 3) / 4 nats over the number of draws that they are taken from. ``claimed`` is the mean of the learned
    log q - log r. The ELBO's estimate is too high by ``missed`` at least: proved less claimed, by the same draws.
    """

    proved: Estimate
    claimed: Estimate
    missed: Estimate


def moment_bound(terms: DrawTerms, fitted: Tensor) -> MomentBound:
    """The bound for the data of which there are moments.

    Args:
        terms: fresh draws, for B data.
        fitted: others, from which the moments are taken, for the first of these data (n, up to B, dim).
    """
    z, _, log_r, log_ratio = (values[:, : fitted.shape[1]] for values in terms)
    log_f = gaussian_log_prob(fitted, z)
    return MomentBound(
        mean_over_data(log_f - log_r), mean_over_data(log_ratio), mean_over_data(log_f - log_r - log_ratio)
    )


def activity(z: Tensor) -> Tensor:
    """Share of each latent coordinate's variance that lies between data: (n, B, dim) -> (dim,).

    0 where q(z | x) is the same for all x, whatever the prior. For a standard normal prior it is close to the
    variance over x of E[z | x] that Burda, Grosse and Salakhutdinov (2016, importance weighted autoencoders) call
    activity. The noise of the means over n draws is taken off.
    """
    n, _, _ = z.shape
    z = z.double()
    within = z.var(0).mean(0)
    between = (z.mean(0).var(0) - within / n).clamp_min(0.0)
    return between / (between + within).clamp_min(torch.finfo(torch.float64).tiny)


@torch.no_grad()
def likelihood_is_discrete(model: Model, data: Minibatch) -> bool:
    """Whether all that a model says of its observed data is discrete, so that no log p(x) can be positive."""
    with seeded(0), poutine.block():
        trace = poutine.trace(model).get_trace(*data.args, **data.kwargs)
    inside = [
        node
        for node in trace.observation_nodes
        if any(f.name == data.frame.name for f in trace.nodes[node]["cond_indep_stack"])
    ]
    supports = []
    for name in inside:
        node = trace.nodes[name]
        if node["infer"].get("_deterministic"):
            continue
        if isinstance(node["fn"], Unit):
            return False  # a factor may be of any size
        supports.append(node["fn"].support)
    return bool(supports) and all(bool(s is not None and s.is_discrete) for s in supports)
