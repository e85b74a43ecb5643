"""Bounds on KL(q, p) that hold whatever their network has learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..arguments import function, integer
from ..estimates import Estimate
from .networks import RatioNetwork, train_ratio
from .samples import Draws, paired_draws

# Least share of the training folds that chooses the snapshot and the scale of T; of small
# samples more, up to 0.3, so that it is at least so many draws.
_VALIDATION_SHARE = 0.1
_VALIDATION_DRAWS = 1000
# Largest factor that the validation draws may put before T.
_MAX_SCALE = 2.0
# Rows of one law that are handed to `features` at once, or that set the scales of the inputs.
_CHUNK = 50_000
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def kl_lower_bound(
    x: Draws,
    y: Draws,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    folds: int = 3,
    width: int = 128,
    blocks: int = 2,
    passes: int = 10,
    batch_size: int = 1024,
    seed: int = 0,
) -> Estimate:
    """Estimate a lower bound on KL(q, p) that can be trusted however badly its network has learned.

    For any function T that was chosen without looking at the draws under the means,

        E_q[T] - E_p[exp T] + 1 <= KL(q, p),

    with equality at T = log q/p. T is a network trained by logistic loss on all folds but one;
    a part of these folds that it was not trained on chooses the best snapshot and a scale and
    shift of T, 0 included; the bound is evaluated on the remaining fold, in turn. So what it
    reads is a divergence that is there, up to its standard error, and what it misses is what
    the network has not found: it grows with the number of draws and with good features. Read
    it beside the figure for two samples of the same law. 0 with a standard error of 0 is the
    trivial bound: no fold has found anything.

    `features` makes it sharper against a known target (`density_features`). On the Eight
    Schools posterior (10 dimensions), with q a flow whose KL is known and 100 000 draws of each
    law, it reads .004 to .006 for a KL of .022 to .026 (standard error .0004), .061 to .074 for
    .10, and 0 for exact draws; without features .002 and .057 (benchmark ``divergences``). Take as
    many draws as can be had.

    |T| is limited to log(m / (16 folds)), so that no mean rests on a handful of draws; a
    larger divergence than that cannot be read.

    The standard error is that of the held-out means, given the networks. It presumes
    independent draws, and leaves out that a draw that is judged in one fold trains in the others.

    Args:
        x: draws of q, shape (n, d); tensor or array. Training runs on x's device, in float32.
        y: draws of p, shape (m, d); m may differ from n, and every draw is used.
        features: maps draws (k, d), float64 on x's device, to further inputs (k, f) of the
            network: finite numbers, in any units. Called on blocks of at most 50 000 draws of
            one law, with gradients enabled, so that it may differentiate inside.
        folds: number of parts, at least 2; more parts train on more draws, and cost more.
        width: of the network's hidden layers.
        blocks: residual blocks of two layers each.
        passes: passes over the smaller training set (at least 300 steps in all); the learning
            rate falls from 3e-3 to 0 over them by a cosine.
        batch_size: draws per optimiser step, of both laws together.
        seed: of folds, weights and batches; the global random state is not touched.

    Returns:
        The bound in nats with its standard error; by chance it may fall below 0.

    Raises:
        TypeError: x, y or a feature is no tensor (or, of x and y, array) of real numbers.
        ValueError: wrong or unequal dimensions, NaN or infinite values in draws or features,
            features of another shape than (k, f), options out of range, or fewer than 20 draws
            of each law per fold.

    Example:
        Two normals whose means are one standard deviation apart: KL(q, p) = 1 / 2.

        >>> import avbvi, torch
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(2000, 1), torch.randn(2000, 1) + 1.0
        >>> bound = avbvi.kl_lower_bound(x, y, folds=2, width=16, blocks=1, passes=10)
        >>> 0.35 < bound.value < 0.6
        True

    Source: Nguyen, Wainwright and Jordan (2010), Estimating divergence functionals and the
    likelihood ratio by convex risk minimization, IEEE Trans. Inf. Theory 56(11), 5847-5861,
    eq. 7 with T = 1 + log g; limits of such bounds: McAllester and Stratos (2020), AISTATS.
    """
    for name, option, least in (
        ("folds", folds, 2),
        ("width", width, 1),
        ("blocks", blocks, 0),
        ("passes", passes, 1),
        ("batch_size", batch_size, 2),
    ):
        integer(name, option, least)
    integer("seed", seed)
    if features is not None:
        function("features", features)
    q, p = paired_draws(x, y)
    for name, size in (("x", q.shape[0]), ("y", p.shape[0])):
        if size < 20 * folds:
            raise ValueError(f"{name} has {size} draws; {folds} folds need at least {20 * folds}.")
    # The CPU generator serves every device, so that a seed means the same folds everywhere.
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.inference_mode(False):
        q = q[torch.randperm(q.shape[0], generator=generator, device="cpu").to(q.device)]
        p = p[torch.randperm(p.shape[0], generator=generator, device="cpu").to(p.device)]
        f_q, f_p = _features(features, q, "x"), _features(features, p, "y")
        if f_q.shape[1] != f_p.shape[1]:
            raise ValueError(
                f"features must return as many columns for x as for y, got {f_q.shape[1]} and {f_p.shape[1]}."
            )
        value = variance = 0.0
        for fold in range(folds):
            t_q, t_p = _held_out(
                (q, f_q),
                (p, f_p),
                fold,
                folds,
                width=width,
                blocks=blocks,
                passes=passes,
                batch_size=batch_size,
                generator=generator,
            )
            ratio = t_p.exp()
            value += float(t_q.mean() - ratio.mean() + 1.0) / folds
            variance += float(t_q.var() / t_q.shape[0] + ratio.var() / ratio.shape[0]) / folds**2
    return Estimate(value, math.sqrt(variance))


def density_features(log_prob: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Features of `kl_lower_bound` from p's log-density: its value and its gradient, the score.

    Args:
        log_prob: log p up to a constant, of draws (k, d) to (k,); differentiable by autograd,
            each value depending on its own draw alone.

    Returns:
        A function of draws (k, d) with values (k, 1 + d).

    Raises:
        TypeError: log_prob can't be called or, when called, returns no tensor.
        ValueError: when called, if log_prob returns another shape than (k,), or no gradient.

    Example:
        >>> import torch
        >>> from avbvi.divergences import density_features
        >>> features = density_features(lambda z: -0.5 * z.square().sum(-1))
        >>> features(torch.tensor([[1.0, 2.0]]))
        tensor([[-2.5000, -1.0000, -2.0000]])
    """

    function("log_prob", log_prob)

    def features(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = log_prob(z)
            if not isinstance(value, Tensor):
                raise TypeError(f"log_prob must return a torch.Tensor, found {type(value).__name__}")
            if value.shape != z.shape[:1]:
                raise ValueError(f"log_prob must map {tuple(z.shape)} to ({z.shape[0]},), got {tuple(value.shape)}.")
            if not value.requires_grad:
                raise ValueError(
                    "log_prob must be differentiable, but its values are cut off from its argument; write it in torch "
                    "throughout, without detach(), item() or NumPy"
                )
            (score,) = torch.autograd.grad(value.sum(), z)
        return torch.cat([value.detach().unsqueeze(1), score], 1)

    return features


def _held_out(
    q: tuple[Tensor, Tensor],
    p: tuple[Tensor, Tensor],
    fold: int,
    folds: int,
    *,
    width: int,
    blocks: int,
    passes: int,
    batch_size: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """T at the x and the y of one fold, from a network that has seen the other folds."""
    # Rows are in random order already: every folds-th one is judged, the first of the others validate.
    judged, rest = [], []
    for sample in (q, p):
        inside = torch.arange(sample[0].shape[0], device=sample[0].device) % folds == fold
        judged.append([part[inside] for part in sample])
        rest.append([part[~inside] for part in sample])
    few = [[part[:_CHUNK] for part in sample] for sample in rest]
    inputs = _Inputs(*(torch.cat(parts) for parts in zip(*few, strict=True)))
    u_q, u_p = (inputs(*sample) for sample in rest)
    cut_q, cut_p = (
        int(max(_VALIDATION_SHARE * u.shape[0], min(_VALIDATION_DRAWS, 0.3 * u.shape[0]))) for u in (u_q, u_p)
    )
    network = RatioNetwork(u_q.shape[1], width, blocks)
    limit = _limit(judged[1][0].shape[0])

    def calibrated(weights: list[Tensor]) -> tuple[float, float, float]:
        t_q, t_p = network.values(weights, u_q[:cut_q]), network.values(weights, u_p[:cut_p])
        return _calibrate(t_q.clamp(-limit, limit), t_p.clamp(-limit, limit))

    weights = train_ratio(
        network,
        u_q[cut_q:],
        u_p[cut_p:],
        score=lambda weights: calibrated(weights)[2],
        passes=passes,
        batch_size=batch_size,
        generator=generator,
    )
    scale, shift, _ = calibrated(weights)
    t_q, t_p = (network.values(weights, inputs(*sample)).clamp(-limit, limit) for sample in judged)
    return (scale * t_q + shift).clamp(-limit, limit), (scale * t_p + shift).clamp(-limit, limit)


def _limit(size: int) -> float:
    """Largest |T| that held-out means over so many y can be trusted with."""
    # Where T > log(size / 16), the mean of exp T rests on fewer than 16 expected draws of y.
    return math.log(max(size / 16.0, math.e))


def _calibrate(t_q: Tensor, t_p: Tensor) -> tuple[float, float, float]:
    """Scale s >= 0 and shift c of T that make the bound tight, and its value on these draws.

    For a given s the best shift is -log E_p[exp sT], which turns the bound into that of Donsker
    and Varadhan, concave in s.
    """
    mean = t_q.mean()

    def slope(s: float) -> float:
        return float(mean - (torch.softmax(s * t_p, 0) * t_p).sum())

    lower, upper = 0.0, _MAX_SCALE
    if slope(upper) >= 0.0:
        lower = upper
    elif slope(lower) <= 0.0:
        upper = lower
    while upper - lower > 1e-3:
        middle = 0.5 * (lower + upper)
        lower, upper = (middle, upper) if slope(middle) > 0.0 else (lower, middle)

    def gain(s: float) -> tuple[float, float]:
        shift = math.log(t_p.shape[0]) - float(torch.logsumexp(s * t_p, 0))
        return s * float(mean) + shift, shift

    best = gain(lower)[0]
    if best <= 0.0:
        return 0.0, 0.0, 0.0
    # A T that has learned nothing gains half a chi-squared variable times 1/n + 1/m by the choice
    # of s, and more by that of the snapshot: shrink s towards 0, and to 0 below two standard errors.
    chance = 2.0 * (1.0 / t_q.shape[0] + 1.0 / t_p.shape[0])
    scale = lower * max(0.0, 1.0 - chance / best)
    value, shift = gain(scale)
    return scale, shift, value


class _Inputs:
    """Whitened draws and standardised features, squashed, with constants from the training folds."""

    def __init__(self, z: Tensor, f: Tensor) -> None:
        self._mean = z.mean(0)
        scale = _positive(z.std(0))
        standard = (z - self._mean) / scale
        values, vectors = torch.linalg.eigh(standard.T @ standard / z.shape[0])
        # Directions without spread (a constant or repeated coordinate) are not blown up.
        values = values.clamp_min(1e-6 * float(values[-1]))
        # The symmetric root keeps each coordinate close to itself, and its defects with it.
        self._whiten = (vectors * values.rsqrt()) @ vectors.T / scale
        u = torch.cat([(z - self._mean) @ self._whiten.T, f], 1)
        # Quantiles, since a few far draws may carry most of the variance.
        lower, self._centre, upper = _quantiles(u)
        self._scale = _positive(0.5 * (upper - lower), u.std(0))

    def __call__(self, z: Tensor, f: Tensor) -> Tensor:
        u = torch.cat([(z - self._mean) @ self._whiten.T, f], 1)
        # Near linear over the bulk, logarithmic beyond: far draws may not rule the network.
        return (3.0 * torch.asinh((u - self._centre) / (3.0 * self._scale))).float()


def _positive(scale: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """The scales, with ``otherwise`` and then 1 in place of zeros."""
    if otherwise is not None:
        scale = torch.where(scale > 0, scale, otherwise)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _quantiles(u: Tensor) -> list[Tensor]:
    """Quantiles .16, .5 and .84 of each column."""
    ordered = u.sort(0).values
    return [ordered[round(level * (ordered.shape[0] - 1))] for level in (0.16, 0.5, 0.84)]


def _features(features: Callable[[Tensor], Tensor] | None, z: Tensor, name: str) -> Tensor:
    """The checked features of all draws, shape (n, f); without columns if there are none."""
    if features is None:
        return z.new_empty(z.shape[0], 0)
    parts: list[Tensor] = []
    for piece in z.split(_CHUNK):
        with torch.enable_grad():  # they may differentiate a log-density
            out = features(piece.clone())
        if not isinstance(out, Tensor) or not (out.is_floating_point() or out.dtype in _INTEGERS):
            found = f"dtype {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise TypeError(f"features({name}) must return a tensor of real numbers, got {found}.")
        wanted = "f" if not parts else str(parts[0].shape[1])
        if out.ndim != 2 or out.shape[0] != piece.shape[0] or (parts and out.shape[1] != parts[0].shape[1]):
            raise ValueError(
                f"features({name}) must have shape ({piece.shape[0]}, {wanted}) for draws of shape "
                f"{tuple(piece.shape)}, got {tuple(out.shape)}. One feature per draw needs shape (n, 1)."
            )
        parts.append(out.detach().to(z))
    values = torch.cat(parts)
    bad = ~values.isfinite()
    if bool(bad.any()):
        columns = bad.any(0).nonzero().squeeze(1).tolist()
        raise ValueError(
            f"features({name}) holds NaN or infinite values in {int(bad.any(1).sum())} of {z.shape[0]} draws, "
            f"columns {columns}. A log-density of -inf at draws of x means that KL(q, p) is infinite; "
            "otherwise clamp such values to a finite floor."
        )
    return values
